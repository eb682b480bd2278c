"""However a volume is stored, sent or batched, the same is found at the same place in the patient.

Served models run in this process by ONNX Runtime. Where storing moves whole voxels only, labels have to be
equal, bit for bit; where it resamples, a chest of known shape says where they have to be.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import highdicom as hd
import numpy as np
import pytest
from numpy.typing import NDArray
from pydicom import Dataset, dcmread
from pydicom.dataset import FileMetaDataset
from pydicom.uid import CTImageStorage, EnhancedCTImageStorage, ExplicitVRLittleEndian
from scipy import ndimage

from pipelines.chest_ct_pneumonia import PIPELINE
from pipelines.errors import SeriesRefused
from pipelines.load import load_series
from pipelines.pipeline import Stages
from pipelines.results.segmentation import build_segmentation
from pipelines.triton import Arrays, Inference, Progress, ServedModel, put_into
from pipelines.volume import Findings, Volume
from tests.benchmarks.study import Bare
from tests.unit.pipelines.results.synthetic import ORIENTATIONS, chest, context
from tests.unit.pipelines.test_process import models
from triton_models.data.dicom_series import write_series
from triton_models.data.phantom import chest_phantom

Affine = NDArray[np.float64]


class Remembering(Bare):
    """Answers at once what it was asked before: most ways to store a volume ask the models the same."""

    def __init__(self) -> None:
        super().__init__()
        self._answers: dict[str, dict[str, NDArray[Any]]] = {}

    def run(
        self,
        model: ServedModel,
        inputs: Arrays,
        *,
        progress: Progress | None = None,
        out: Arrays | None = None,
    ) -> dict[str, NDArray[Any]]:
        key = model.spec.name + "".join(
            f"{name}{array.shape}{hashlib.sha256(array.tobytes()).hexdigest()}"
            for name, array in inputs.items()
        )
        if key not in self._answers:
            self._answers[key] = self._answer(model, inputs)
        return put_into(out, self._answers[key])


@pytest.fixture(scope="module")
def remembering() -> Remembering:
    return Remembering()


def analyse(volume: Volume, inference: Inference) -> Findings:
    models = {spec.name: inference.check(spec) for spec in PIPELINE.models}
    return PIPELINE.analyse(volume, inference, models, Stages())


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    phantom = chest_phantom(11, slices=18, rows=96, columns=96, lesions=True)
    return write_series(phantom, tmp_path_factory.mktemp("axial"), seed=11)


@pytest.fixture(scope="module")
def axial(paths: list[Path]) -> Volume:
    return load_series(paths)


@pytest.fixture(scope="module")
def found(axial: Volume, remembering: Remembering) -> Findings:
    findings = analyse(axial, remembering)
    assert findings.lesions.any()
    return findings


def write(hu: NDArray[np.int16], affine: Affine, folder: Path) -> list[Path]:
    """A volume as a classic CT series, its slices in the order of the array."""
    folder.mkdir(exist_ok=True)
    steps = np.linalg.norm(affine[:3, :3], axis=0)
    row, column = affine[:3, 2] / steps[2], affine[:3, 1] / steps[1]
    written = []
    for k, plane in enumerate(hu):
        image = Dataset()
        image.SOPClassUID, image.SOPInstanceUID = CTImageStorage, f"1.2.3.4.{k + 1}"
        image.StudyInstanceUID, image.SeriesInstanceUID = "1.2.3", "1.2.3.1"
        image.FrameOfReferenceUID, image.Modality, image.InstanceNumber = "1.2.3.2", "CT", k + 1
        image.PatientID = image.PatientName = image.StudyID = image.StudyDate = image.StudyTime = ""
        image.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
        image.ImagePositionPatient = [f"{x:.10g}" for x in affine[:3, 3] + k * affine[:3, 0]]
        image.ImageOrientationPatient = [f"{x:.10g}" for x in (*row, *column)]
        image.PixelSpacing = [f"{steps[1]:.10g}", f"{steps[2]:.10g}"]
        image.SliceThickness = f"{steps[0]:.10g}"
        image.Rows, image.Columns = plane.shape
        image.SamplesPerPixel, image.PhotometricInterpretation = 1, "MONOCHROME2"
        image.BitsAllocated, image.BitsStored, image.HighBit, image.PixelRepresentation = 16, 16, 15, 1
        image.RescaleSlope, image.RescaleIntercept = 1, 0
        image.PixelData = np.ascontiguousarray(plane).astype("<i2").tobytes()
        image.file_meta = FileMetaDataset()
        image.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        written.append(folder / f"{k:04d}.dcm")
        image.save_as(written[-1], enforce_file_format=True)
    return written


def turned(
    volume: Volume, axes: tuple[int, int, int], flipped: tuple[int, ...]
) -> tuple[NDArray[np.int16], Affine]:
    """The same voxels with the array's axes in another order and some of them reversed."""
    hu = np.flip(volume.hu.transpose(axes), flipped)
    affine = volume.affine.copy()
    affine[:3, :3] = affine[:3, axes]
    for axis in flipped:
        affine[:3, 3] += affine[:3, axis] * (hu.shape[axis] - 1)
        affine[:3, axis] *= -1
    return hu, affine


def in_patient(labels: NDArray[Any], volume: Volume, onto: Volume) -> NDArray[Any]:
    """``labels`` on the grid of ``onto``, voxel by voxel through both affines."""
    index = np.moveaxis(np.indices(onto.hu.shape), 0, -1).reshape(-1, 3).astype(np.float64)
    inverse = np.linalg.inv(volume.affine)
    there = onto.to_patient(index) @ inverse[:3, :3].T + inverse[:3, 3]
    nearest = np.rint(there).astype(np.intp)
    np.testing.assert_allclose(there, nearest, atol=1e-3)
    found: NDArray[Any] = labels[tuple(nearest.T)].reshape(onto.hu.shape)
    return found


#: axes and which are reversed -> a right- or left-handed stack of planes
FORMS: dict[str, tuple[tuple[int, int, int], tuple[int, ...]]] = {
    "feet first": ((0, 1, 2), (0, 2)),
    "prone": ((0, 1, 2), (1, 2)),
    "columns from top": ((0, 2, 1), ()),
    "coronal": ((1, 0, 2), (1,)),
    "coronal from behind": ((1, 0, 2), (0, 1, 2)),
    "sagittal": ((2, 0, 1), (1,)),
}


@pytest.mark.parametrize("form", list(FORMS))
def test_planes_of_any_direction(
    form: str, axial: Volume, found: Findings, remembering: Remembering, tmp_path: Path
) -> None:
    volume = load_series(write(*turned(axial, *FORMS[form]), tmp_path / "form"))
    np.testing.assert_array_equal(in_patient(volume.hu, volume, axial), axial.hu)
    findings = analyse(volume, remembering)
    np.testing.assert_array_equal(in_patient(findings.lungs, volume, axial), found.lungs)
    np.testing.assert_array_equal(in_patient(findings.lesions, volume, axial), found.lesions)
    np.testing.assert_array_equal(in_patient(findings.region_labels, volume, axial), found.region_labels)
    for side, measures in findings.measures.items():
        assert measures.volume_ml == pytest.approx(found.measures[side].volume_ml)
        assert measures.peripheral_percent == pytest.approx(found.measures[side].peripheral_percent)
    for one, other in zip(findings.regions, found.regions, strict=True):
        assert one.votes == other.votes
        assert one.centroid_lps_mm == pytest.approx(other.centroid_lps_mm)


def test_order_of_arrival(paths: list[Path], axial: Volume) -> None:
    orders: list[Callable[[list[Path]], list[Path]]] = [
        lambda given: given[::-1],
        lambda given: [given[i] for i in np.random.default_rng(0).permutation(len(given))],
    ]
    for order in orders:
        volume = load_series(order(paths))
        np.testing.assert_array_equal(volume.hu, axial.hu)
        assert volume.affine.tobytes() == axial.affine.tobytes()
        assert [s.SOPInstanceUID for s in volume.sources] == [s.SOPInstanceUID for s in axial.sources]


def test_enhanced_multi_frame(
    paths: list[Path], axial: Volume, found: Findings, remembering: Remembering, tmp_path: Path
) -> None:
    enhanced = hd.legacy.LegacyConvertedEnhancedCTImage(
        [dcmread(path) for path in paths[::-1]],
        *("1.2.3.5", 5, "1.2.3.6", 1),
    )
    enhanced.SOPClassUID = enhanced.file_meta.MediaStorageSOPClassUID = EnhancedCTImageStorage
    enhanced.save_as(tmp_path / "enhanced.dcm")
    volume = load_series([tmp_path / "enhanced.dcm"])
    np.testing.assert_array_equal(volume.hu, axial.hu)
    findings = analyse(volume, remembering)
    np.testing.assert_array_equal(findings.lungs, found.lungs)
    np.testing.assert_array_equal(findings.lesions, found.lesions)
    segmentation = build_segmentation(volume, findings, context())
    first = segmentation.PerFrameFunctionalGroupsSequence[0].DerivationImageSequence[0].SourceImageSequence[0]
    assert first.ReferencedSOPInstanceUID == enhanced.SOPInstanceUID


@pytest.mark.parametrize("batch", [1, 7])
def test_batches(batch: int, axial: Volume, found: Findings, remembering: Remembering) -> None:
    """Run again, in batches of another size: also a test of one run against the other."""
    models = {s.name: replace(remembering.check(s), max_batch_size=batch) for s in PIPELINE.models}
    findings = PIPELINE.analyse(axial, Bare(), models, Stages())
    for name in ("lungs", "lesions", "region_labels"):
        np.testing.assert_array_equal(getattr(findings, name), getattr(found, name))
    assert findings.regions == found.regions


def dice(a: NDArray[np.bool_], b: NDArray[np.bool_]) -> float:
    return float(2 * np.count_nonzero(a & b) / (np.count_nonzero(a) + np.count_nonzero(b)))


@pytest.mark.parametrize("orientation", list(ORIENTATIONS))
def test_planes_at_any_angle(orientation: str, tmp_path: Path) -> None:
    """What is where is known from the shapes, at every voxel of each grid: nothing is mapped back."""
    known, truth = chest(orientation, shape=(48, 96, 112), spacing=(4.0, 2.8, 2.4))
    volume = load_series(write(known.hu, known.affine, tmp_path / "series")[::-1])
    findings = analyse(volume, models())
    expected = in_patient(truth.lungs, known, volume)
    for side in (1, 2):
        assert dice(findings.lungs == side, expected == side) >= 0.99
    lesions = in_patient(truth.lesions, known, volume)
    for kind in (1, 2):
        assert dice(findings.lesions == kind, lesions == kind) >= 0.99
    for side, measures in findings.measures.items():
        assert measures.lesions_ml == pytest.approx(truth.measures[side].lesions_ml, rel=0.01)


@pytest.mark.parametrize(
    ("slices", "spacing_mm"), [(20, 10.0), (1200, 0.5)], ids=["20 x 10 mm", "1200 x 0.5 mm"]
)
def test_few_thick_and_many_thin_slices(slices: int, spacing_mm: float, tmp_path: Path) -> None:
    """Both ends of what scanners make. Of 600 mm, the chest of ``synthetic`` fills 170."""
    known, truth = chest(shape=(slices, 64, 64), spacing=(spacing_mm, 4.4, 4.4))
    volume = load_series(write(known.hu, known.affine, tmp_path / "series"))
    findings = analyse(volume, models())
    assert dice(findings.lungs > 0, truth.lungs > 0) >= 0.99
    assert dice(findings.lesions > 0, truth.lesions > 0) >= 0.99
    segmentation = build_segmentation(volume, findings, context())
    assert len(segmentation.ReferencedSeriesSequence[0].ReferencedInstanceSequence) == slices


def test_one_slice(paths: list[Path]) -> None:
    with pytest.raises(SeriesRefused) as refused:
        load_series(paths[:1])
    assert refused.value.code == "geometry_too_few_slices"


def test_no_lung(axial: Volume, found: Findings, remembering: Remembering) -> None:
    """A body whose lungs are fluid to the last slice, one without any air in it, and nothing but air."""
    grown = ndimage.binary_dilation(found.lungs > 0, np.ones((3, 3, 3)))
    filled = np.where(grown, np.maximum(axial.hu, np.int16(15)), axial.hu)
    solid = np.where(axial.hu < -400, np.int16(40), axial.hu)
    for hu in (filled, solid, np.full_like(axial.hu, -1024)):
        with pytest.raises(SeriesRefused) as refused:
            analyse(replace(axial, hu=hu), remembering)
        assert refused.value.code == "no_lungs_found"


@pytest.mark.parametrize("gone", [1, 2])
def test_one_lung(gone: int, axial: Volume, found: Findings, remembering: Remembering) -> None:
    """After a pneumonectomy, half of the chest is fluid: the other lung, on its side, and a segmentation."""
    hu = np.where(found.lungs == gone, np.int16(15), axial.hu)
    findings = analyse(replace(axial, hu=hu), remembering)
    left = 3 - gone
    volume_ml, usual_ml = (
        {int(side): measures.volume_ml for side, measures in each.measures.items()}
        for each in (findings, found)
    )
    assert volume_ml[left] > 0.8 * usual_ml[left]
    assert volume_ml[gone] < 0.2 * usual_ml[gone]
    build_segmentation(replace(axial, hu=hu), findings, context())
