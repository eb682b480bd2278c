"""Pictures of a slice: how they are read, what isn't one, and what their results say."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from pydicom import Dataset, dcmread
from pydicom.dataset import FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, SecondaryCaptureImageStorage

from pipelines import lungs
from pipelines.chest_ct_picture import PIPELINE
from pipelines.classify import FUSION_SPEC, SPEC
from pipelines.ct_picture import GREY_HU, NOTES, CtPicture, load_ct_picture
from pipelines.drawing import palette
from pipelines.errors import SeriesRefused
from pipelines.estimates import Estimate
from pipelines.picture_estimates import PictureEstimates, conclusion, summarise
from pipelines.picture_lungs import find_lungs
from pipelines.results import codes
from pipelines.results.picture_estimates import build_picture_results
from pipelines.results.result_set import write_result_set
from tests.unit.pipelines.estimates import FUSION, PNEUMONIA_CLASS, RANDOM_FUSION
from tests.unit.pipelines.examples import ByRule
from tests.unit.pipelines.results.synthetic import context
from tests.unit.pipelines.results.test_report import groups, items
from tests.unit.pipelines.test_picture import written
from triton_models.data import grey

__all__ = ["written"]


def chest(rows: int = 160, columns: int = 200) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Two dark ellipses in something bright on black, and where the ellipses are."""
    row, column = np.mgrid[:rows, :columns]

    def ellipse(centre: float, width: float, height: float) -> NDArray[np.bool_]:
        inside: NDArray[np.bool_] = ((row - rows / 2) / height) ** 2 + ((column - centre) / width) ** 2 < 1
        return inside

    lungs = ellipse(columns * 0.3, columns * 0.14, rows * 0.3) | ellipse(
        columns * 0.7, columns * 0.14, rows * 0.3
    )
    pixels = np.where(ellipse(columns / 2, columns * 0.47, rows * 0.45), 215, 0)
    return np.where(lungs, 42, pixels).astype(np.uint8), lungs


def stored(folder: Path, name: str = "picture.dcm", **changes: Any) -> Path:
    pixels, _ = chest()
    image = Dataset()
    image.SOPClassUID = SecondaryCaptureImageStorage
    image.StudyInstanceUID, image.SeriesInstanceUID, image.SOPInstanceUID = "1.2.1", "1.2.2", "1.2.3"
    image.SamplesPerPixel, image.PhotometricInterpretation = 1, "MONOCHROME2"
    image.Rows, image.Columns = pixels.shape
    image.BitsAllocated = image.BitsStored = 8
    image.HighBit, image.PixelRepresentation = 7, 0
    image.PixelData = pixels.tobytes()
    image["PixelData"].VR = "OB"
    for keyword, value in changes.items():
        if value is None:
            del image[keyword]
        else:
            setattr(image, keyword, value)
    image.file_meta = FileMetaDataset()
    image.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    path = folder / name
    image.save_as(path, enforce_file_format=True)
    return path


def load(*paths: Path) -> CtPicture:
    return load_ct_picture(paths, lambda _done, _total: None)


def test_greys_are_the_hounsfield_units_that_the_models_learned_from() -> None:
    pixels = np.arange(256, dtype=np.uint8)[None]
    assert grey.GREY_HU == GREY_HU
    np.testing.assert_array_equal(CtPicture(pixels, Dataset()).hu, grey.grey_to_hu(pixels))


def test_a_picture_is_read(tmp_path: Path) -> None:
    picture = load(stored(tmp_path))
    np.testing.assert_array_equal(picture.grey, chest()[0])
    assert (picture.instance_uids, picture.series_instance_uid) == (("1.2.3",), "1.2.2")
    assert "PixelData" not in picture.source and picture.notes == NOTES


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"SOPClassUID": CTImageStorage}, "unsupported_sop_class"),
        ({"StudyInstanceUID": None}, "missing_attribute"),
        ({"SamplesPerPixel": 3, "PhotometricInterpretation": "RGB"}, "unsupported_pixels"),
        ({"BitsAllocated": 16}, "unsupported_pixels"),
        ({"PhotometricInterpretation": "MONOCHROME1"}, "unsupported_pixels"),
        ({"NumberOfFrames": 2, "Rows": 80}, "unsupported_pixels"),
        ({"PixelData": b"\0\0"}, "undecodable_pixels"),
        ({"PixelData": None}, "undecodable_pixels"),
    ],
)
def test_what_is_no_such_picture(tmp_path: Path, changes: dict[str, Any], code: str) -> None:
    with pytest.raises(SeriesRefused) as caught:
        load(stored(tmp_path, **changes))
    assert caught.value.code == code


def test_one_picture_and_no_other_file(tmp_path: Path) -> None:
    broken = tmp_path / "broken.dcm"
    broken.write_bytes(b"no DICOM")
    for paths, code in (
        ((), "no_instances"),
        ((stored(tmp_path), stored(tmp_path, "b.dcm", SOPInstanceUID="1.2.4")), "several_pictures"),
        ((broken,), "unreadable_instance"),
    ):
        with pytest.raises(SeriesRefused) as caught:
            load(*paths)
        assert caught.value.code == code


def found(grey: NDArray[np.uint8], marked: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The lungs, where the model marks so much of the picture."""
    header = Dataset()
    header.SOPInstanceUID = "1.2.3"

    def answer(_inputs: Any) -> dict[str, NDArray[Any]]:
        return {"LUNGS": marked[None].astype(np.uint8)}

    inference = ByRule(answer)
    return find_lungs(CtPicture(grey, header), inference, inference.check(lungs.SPEC))


def test_lungs_are_told_from_the_air_around_the_patient() -> None:
    grey, mask = chest()
    outside = np.zeros_like(mask)
    outside[:30, :40] = True
    np.testing.assert_array_equal(found(grey, mask | outside), mask)
    narrow = grey[10:150, 36:164], mask[10:150, 36:164]  # the lungs themselves touch the edges
    np.testing.assert_array_equal(found(*narrow), narrow[1])


def test_what_is_marked_has_to_look_like_lungs() -> None:
    grey, mask = chest()
    one_side = mask.copy()
    one_side[:, 100:] = False
    for pixels, marked in (
        (grey, np.zeros_like(mask)),
        (grey, np.ones_like(mask)),
        (grey, one_side),
        ((255 - grey).astype(np.uint8), mask),
        (np.full_like(grey, 42), mask),
    ):
        with pytest.raises(SeriesRefused, match="no lungs as a lung window shows them") as caught:
            found(pixels, marked)
        assert caught.value.code == "no_lungs_found"


def made(folder: Path, *, random: bool = False, **changes: Any) -> tuple[CtPicture, PictureEstimates]:
    picture = load(stored(folder, **changes))
    answers = (
        Estimate(PNEUMONIA_CLASS, SPEC.classes, np.array([[0.6, 0.1, 0.3]])),
        Estimate(RANDOM_FUSION if random else FUSION, FUSION_SPEC.classes, np.array([[0.25, 0.75]])),
    )
    return picture, PictureEstimates(chest()[1], answers, picture.notes)


def test_the_report_says_what_it_is_made_of_and_measures_nothing(tmp_path: Path) -> None:
    picture, estimates = made(tmp_path)
    entries = write_result_set(build_picture_results(picture, estimates, context()), tmp_path / "out")
    assert [entry.path.name for entry in entries] == ["estimates_report.dcm", "estimates_picture.dcm"]
    report = dcmread(entries[0].path)
    (group,) = groups(report, "1501")
    units = {
        code.CodeValue
        for element in report.iterall()
        if element.keyword == "MeasurementUnitsCodeSequence"
        for code in element.value
    }
    assert units == {"1", "{pixels}"}, "no millimetres, areas or volumes"
    texts = [str(element.value) for element in report.iterall() if element.keyword == "TextValue"]
    for note in (*NOTES, conclusion(estimates)):
        assert note in texts
    for name, p in estimates.by_model[0].case.items():
        measured = next(items(group, codes.CLASS_PROBABILITY[name].value))
        assert float(measured.MeasuredValueSequence[0].NumericValue) == pytest.approx(p)
        assert next(items(measured, "111001")).TextValue == "pneumonia_class"
    (outline,) = (element.value for element in report.iterall() if element.keyword == "GraphicData")
    points = np.reshape(outline, (-1, 2))
    assert (points[0] == points[-1]).all() and points[:, 0].max() < 200 and points[:, 1].max() < 160


def test_a_random_models_class_is_not_stated(tmp_path: Path, written: list[str]) -> None:
    picture, estimates = made(tmp_path, random=True)
    report, _ = (one for _, one in build_picture_results(picture, estimates, context()).objects)
    said = [
        element.value[0].CodeValue for element in report.iterall() if element.keyword == "ConceptCodeSequence"
    ]
    assert codes.PICTURE_CLASS["normal"].value in said and codes.POSITIVE.value not in said
    assert "Means nothing: random weights" in written
    assert "fusion has random weights" in conclusion(estimates)


@pytest.mark.parametrize("clinical_use", [True, False])
def test_the_page_is_never_for_clinical_use(tmp_path: Path, clinical_use: bool, written: list[str]) -> None:
    picture, estimates = made(tmp_path, LossyImageCompression="01", LossyImageCompressionRatio="9.5")
    _, capture = (
        one
        for _, one in build_picture_results(picture, estimates, context(clinical_use=clinical_use)).objects
    )
    drawn = " ".join(written)
    assert palette.NOT_CLINICAL in drawn
    for note in NOTES:
        assert note in drawn.replace("\n", " ") or note.split(":")[0] in drawn
    assert "1 image" in drawn and "0.600" in drawn and "0.750" in drawn
    assert (capture.BurnedInAnnotation, capture.LossyImageCompression) == ("YES", "01")
    assert capture.LossyImageCompressionRatio == "9.5"
    page = capture.pixel_array
    assert (page[:, -8:] == palette.BACKGROUND).all() and (page[-8:] == palette.BACKGROUND).all()


def test_the_edges_of_the_picture_are_not_shown(tmp_path: Path) -> None:
    """Where names are written."""
    marked, _ = chest()
    marked[:12] = 255
    picture, estimates = made(tmp_path)
    page = build_picture_results(replace(picture, grey=marked), estimates, context()).objects[1][1]
    plain = build_picture_results(picture, estimates, context()).objects[1][1]
    assert page.PixelData == plain.PixelData


def test_the_summary(tmp_path: Path) -> None:
    _, estimates = made(tmp_path)
    summary = summarise(estimates)
    assert summary["case_type"] == "normal" and summary["noisy_or"] == {}
    assert summary["estimates"]["fusion"] == {"negative": 0.25, "positive": 0.75}
    assert summary["conclusion"].startswith("From a picture, not from CT") and summary["conclusion"].isascii()
    assert 0.1 < summary["lung_share_of_picture"] < 0.4
    assert PIPELINE.load is load_ct_picture
