"""Reading CT: real scanners' series, every codec, padding, enhanced multi-frame, and the named refusals."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import highdicom as hd
import numpy as np
import pytest
from pydicom import Dataset, dcmread, dcmwrite
from pydicom.datadict import dictionary_VR
from pydicom.dataelem import RawDataElement
from pydicom.tag import Tag
from pydicom.uid import CTImageStorage, EnhancedCTImageStorage, generate_uid

from pipelines.errors import SeriesRefused
from pipelines.instance import AIR_HU
from pipelines.load import dicom_files, load_series
from tests.shared_data import shared
from triton_models.data.dicom_series import write_series
from triton_models.data.phantom import Phantom, chest_phantom


@pytest.fixture(scope="module")
def phantom() -> Phantom:
    return chest_phantom(3, slices=5, rows=64, columns=64)


@pytest.fixture
def series(phantom: Phantom, tmp_path: Path) -> list[Path]:
    return write_series(phantom, tmp_path / "series", seed=3)


def edit(path: Path, change: Callable[[Dataset], object]) -> None:
    dataset = dcmread(path)
    change(dataset)
    dcmwrite(path, dataset)


def refusal(paths: list[Path]) -> tuple[str, str]:
    with pytest.raises(SeriesRefused) as caught:
        load_series(paths)
    return caught.value.code, str(caught.value)


def test_phantom_comes_back_as_it_was_made(phantom: Phantom, series: list[Path]) -> None:
    volume = load_series(series[::-1])
    np.testing.assert_array_equal(volume.hu, np.clip(phantom.hu, AIR_HU, None))
    assert volume.spacing_mm == pytest.approx(phantom.spacing_mm, rel=1e-4)
    assert [s.SOPInstanceUID for s in volume.sources] == [dcmread(p).SOPInstanceUID for p in series]
    assert volume.source_frames == tuple((k, 1) for k in range(5))


@pytest.mark.parametrize(
    ("folder", "shape", "spacing", "lowest"),
    [
        ("chest_ct/lidc0001_ge_deflated", (133, 512, 512), (2.5, 0.703125, 0.703125), -1024),
        ("chest_ct/lungdx_a0002_siemens_b40f", (30, 512, 512), (8.0, 0.646484375, 0.646484375), -1024),
    ],
)
def test_real_series(folder: str, shape: tuple[int, ...], spacing: tuple[float, ...], lowest: int) -> None:
    volume = load_series(dicom_files(shared(folder)))
    assert volume.hu.shape == shape
    assert volume.spacing_mm == pytest.approx(spacing)
    assert volume.hu.min() == lowest
    counts, edges = np.histogram(volume.hu, bins=np.arange(-20, 200, 10))
    assert 20 < edges[np.argmax(counts)] < 80, "muscle and blood"
    assert np.mean((volume.hu > -950) & (volume.hu < -700)) > 0.05, "lung"
    assert volume.hu[0, 0, 0] < -1000, "outside of the body"


@pytest.mark.parametrize(
    ("folder", "code"),
    [
        ("chest_ct/ny_sbu_A046441", "mixed_series"),
    ],
)
def test_odd_series_are_refused_by_name(folder: str, code: str) -> None:
    assert refusal(dicom_files(shared(folder)))[0] == code


#: largest and mean difference from the uncompressed slice, HU
LOSSY = {"JLSN": (4, 2.5), "J2KI": (352, 26.0)}


@pytest.mark.parametrize("name", ["RLE", "J2KR", "JLSL", "JPLL", *LOSSY])
def test_codecs_agree_with_the_uncompressed_slice(name: str, tmp_path: Path) -> None:
    def stack(source: Path, folder: Path) -> list[Path]:
        folder.mkdir()
        paths = []
        for k in range(3):
            dataset = dcmread(source)
            dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = generate_uid()
            x, y, _ = dataset.ImagePositionPatient
            dataset.ImagePositionPatient = [x, y, 5.0 * k]
            paths.append(folder / f"{k}.dcm")
            dcmwrite(paths[-1], dataset)
        return paths

    plain = load_series(stack(shared("codecs/CT1_UNC.dcm"), tmp_path / "plain")).hu
    coded = load_series(stack(shared(f"codecs/CT1_{name}.dcm"), tmp_path / "coded")).hu
    largest, mean = LOSSY.get(name, (0, 0.0))
    difference = np.abs(coded.astype(np.int32) - plain)
    assert difference.max() <= largest
    assert difference.mean() <= mean


def _copy(path: Path, *, changed: bool) -> Path:
    """The same slice under another SOP Instance UID."""
    dataset = dcmread(path)
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    if changed:
        pixels = dataset.pixel_array.copy()
        pixels[0, 0] += 1
        dataset.PixelData = pixels.tobytes()
    copy = path.with_name(f"copy-{path.name}")
    dcmwrite(copy, dataset)
    return copy


def test_a_slice_that_came_twice_is_used_once(series: list[Path]) -> None:
    alone = load_series(series)
    given = [*series, _copy(series[2], changed=False)]
    forwards, backwards = load_series(given), load_series(given[::-1])
    np.testing.assert_array_equal(forwards.hu, alone.hu)
    assert [s.SOPInstanceUID for s in forwards.sources] == [s.SOPInstanceUID for s in backwards.sources]
    assert "came twice" in forwards.notes[0]
    assert not alone.notes


def test_two_different_slices_at_one_position_are_refused(series: list[Path]) -> None:
    code, message = refusal([*series, _copy(series[2], changed=True)])
    assert code == "geometry_duplicate_position"
    assert str(dcmread(series[2]).SOPInstanceUID) in message


def test_a_tilted_gantry_is_said_so(series: list[Path]) -> None:
    def tilt(dataset: Dataset) -> None:
        x, y, z = (float(v) for v in dataset.ImagePositionPatient)
        cosine, sine = np.cos(np.radians(12)), np.sin(np.radians(12))
        dataset.ImageOrientationPatient = [1, 0, 0, 0, float(cosine), float(-sine)]
        dataset.ImagePositionPatient = [x, y, z]

    upright = load_series(series)
    for path in series:
        edit(path, tilt)
    volume = load_series(series)
    assert volume.notes == ("The slices are tilted by 12.0 degrees (gantry tilt).",)
    assert volume.voxel_volume_ml == pytest.approx(upright.voxel_volume_ml * np.cos(np.radians(12)))


def test_enhanced_multi_frame_equals_classic(series: list[Path], tmp_path: Path) -> None:
    classic = load_series(series)
    path = tmp_path / "enhanced.dcm"
    headers = [dcmread(p) for p in series]
    legacy = hd.legacy.LegacyConvertedEnhancedCTImage(
        legacy_datasets=headers,
        series_instance_uid=generate_uid(),
        series_number=2,
        sop_instance_uid=generate_uid(),
        instance_number=1,
    )
    legacy.SOPClassUID = legacy.file_meta.MediaStorageSOPClassUID = EnhancedCTImageStorage
    legacy.save_as(path)
    enhanced = load_series([path])
    np.testing.assert_array_equal(enhanced.hu, classic.hu)
    np.testing.assert_allclose(enhanced.affine, classic.affine, atol=1e-6)
    assert len(enhanced.sources) == 1
    assert {index for index, _ in enhanced.source_frames} == {0}
    assert sorted(frame for _, frame in enhanced.source_frames) == [1, 2, 3, 4, 5]


def test_a_volume_in_several_enhanced_instances_is_refused(tmp_path: Path) -> None:
    phantom = chest_phantom(3, slices=6, rows=64, columns=64)
    series = write_series(phantom, tmp_path / "series", seed=3)
    paths = []
    for n, part in enumerate((series[:3], series[3:])):
        images = [dcmread(path) for path in part]
        enhanced = hd.legacy.LegacyConvertedEnhancedCTImage(images, "1.2.3", 2, f"1.2.3.{n + 1}", n + 1)
        enhanced.SOPClassUID = enhanced.file_meta.MediaStorageSOPClassUID = EnhancedCTImageStorage
        paths.append(tmp_path / f"{n}.dcm")
        enhanced.save_as(paths[-1])
    assert refusal(paths)[0] == "several_multiframe_instances"


@pytest.mark.parametrize(("representation", "stored", "padding"), [(1, -2000, 63536), (0, 63536, -2000)])
def test_padding_is_read_with_the_pixels_sign(
    series: list[Path], representation: int, stored: int, padding: int
) -> None:
    """GE writes US 63536 for signed pixels of -2000 (PS3.3 C.7.5.1.1.2 wants the pixels' VR)."""

    def pad(dataset: Dataset) -> None:
        pixels = dataset.pixel_array.astype(np.int16 if representation else np.uint16)
        pixels[:8] = stored
        dataset.PixelData = pixels.tobytes()
        dataset.PixelRepresentation = representation
        dataset.RescaleIntercept = 0
        del dataset[0x00280120:0x00280122]
        dataset.add_new(0x00280120, "US" if padding > 0 else "SS", padding)

    for path in series:
        edit(path, pad)
    assert (load_series(series).hu[:, :8] == AIR_HU).all()


def test_rescale_slope_that_is_no_integer(series: list[Path]) -> None:
    before = load_series(series).hu

    for path in series:
        edit(path, lambda d: setattr(d, "RescaleSlope", "0.5"))
    after = load_series(series).hu
    inside = before > AIR_HU
    np.testing.assert_allclose(after[inside], (before[inside] + 1024) * 0.5 - 1024, atol=0.5)


def test_missing_position_names_instance_and_attribute(series: list[Path]) -> None:
    edit(series[2], lambda d: delattr(d, "ImagePositionPatient"))
    code, message = refusal(series)
    assert code == "missing_attribute"
    assert "ImagePositionPatient" in message
    assert str(dcmread(series[2]).SOPInstanceUID) in message


def test_two_series_are_refused(series: list[Path]) -> None:
    edit(series[2], lambda d: setattr(d, "SeriesInstanceUID", "1.2.3"))
    assert refusal(series)[0] == "mixed_series"


def test_empty_series_uid_is_refused(series: list[Path]) -> None:
    edit(series[0], lambda d: setattr(d, "SeriesInstanceUID", ""))
    code, message = refusal(series)
    assert (code, "SeriesInstanceUID" in message) == ("missing_attribute", True)


def test_truncated_pixels_are_refused(series: list[Path]) -> None:
    edit(series[1], lambda d: setattr(d, "PixelData", d.PixelData[:100]))
    assert refusal(series)[0] == "undecodable_pixels"


def test_no_instances() -> None:
    assert refusal([])[0] == "no_instances"


def test_dicom_files_leaves_out_what_is_none(series: list[Path]) -> None:
    folder = series[0].parent
    (folder / "notes.txt").write_text("hello")
    (folder / "sub").mkdir()
    shutil.move(series[0], folder / "sub" / "no-suffix")
    found = dicom_files(folder)
    assert len(found) == 5
    assert dcmread(found[-1]).SOPClassUID == CTImageStorage


MALFORMED_VALUES = (None, b"", b"abc\\x", b"1\\2\\3", b"\xff\xff\xff", b"1e999 ")
NAMED = {
    *("missing_attribute", "unsupported_sop_class", "mixed_series", "unreadable_instance", "not_hounsfield"),
    *("unsupported_pixels", "undecodable_pixels", "localizers_only", "geometry_mixed_frame_of_reference"),
    *("geometry_mixed_orientation", "geometry_mixed_matrix", "geometry_irregular_spacing"),
}


@pytest.mark.filterwarnings("ignore::UserWarning:pydicom")
@pytest.mark.parametrize(
    "keyword",
    [
        *("SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID", "FrameOfReferenceUID"),
        *("ImageType", "ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "Rows", "Columns"),
        *("RescaleSlope", "RescaleIntercept", "RescaleType", "SamplesPerPixel", "PixelPaddingRangeLimit"),
        *("BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "PixelPaddingValue"),
        *("PhotometricInterpretation", "NumberOfFrames", "PixelData", "SpecificCharacterSet"),
        "PlanarConfiguration",
    ],
)
def test_a_broken_attribute_ends_in_a_volume_or_a_named_reason(series: list[Path], keyword: str) -> None:
    """Of one instance, its bytes wrong, or none: whatever is wrong, nothing but SeriesRefused leaves."""
    whole = series[1].read_bytes()
    for value in MALFORMED_VALUES:
        series[1].write_bytes(whole)
        dataset = dcmread(series[1])
        dataset.pop(keyword, None)
        if value is not None:
            vr = dictionary_VR(keyword).split(" or ")[0]
            raw = RawDataElement(Tag(keyword), vr, len(value), value, 0, False, True)
            dataset._dict[raw.tag] = raw  # written as it is
        dcmwrite(series[1], dataset)
        try:
            assert load_series(series).hu.shape == (5, 64, 64), value
        except SeriesRefused as refused:
            assert refused.code in NAMED, value


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"RescaleType": "PCT"}, "not_hounsfield"),
        ({"RescaleSlope": "0"}, "missing_attribute"),
        ({"SamplesPerPixel": 3}, "unsupported_pixels"),
        ({"Rows": 0}, "missing_attribute"),
    ],
)
def test_pixels_that_are_no_hounsfield_units(
    series: list[Path], change: dict[str, object], code: str
) -> None:
    def changed(dataset: Dataset) -> None:
        for keyword, value in change.items():
            setattr(dataset, keyword, value)

    edit(series[1], changed)
    assert refusal(series)[0] == code


@pytest.mark.parametrize("signed", [False, True])
def test_no_rescale_at_all_is_read_where_the_pixels_can_be_hounsfield_units(
    series: list[Path], signed: bool
) -> None:
    hu = load_series(series).hu

    def strip(dataset: Dataset) -> None:
        del dataset.RescaleSlope, dataset.RescaleIntercept
        dataset.PixelRepresentation, dataset.BitsStored, dataset.HighBit = int(signed), 16, 15
        dataset.pop("PixelPaddingValue", None)
        dataset.PixelData = (dataset.pixel_array.astype(np.int16) - 1024).astype("<i2").tobytes()

    for path in series:
        edit(path, strip)
    if signed:
        np.testing.assert_array_equal(load_series(series).hu, hu)
    else:
        assert refusal(series)[0] == "missing_attribute"


@pytest.mark.parametrize("signed", [False, True])
def test_bits_above_those_stored_are_no_part_of_the_value(series: list[Path], signed: bool) -> None:
    """Old scanners kept overlays there (retired in PS3.5-2004); 12 bits may be signed, too."""
    hu = np.clip(load_series(series).hu, -1024, 1023)

    def pack(dataset: Dataset, plane: np.ndarray[tuple[int, ...], np.dtype[np.int16]]) -> None:
        dataset.PixelRepresentation, dataset.BitsStored, dataset.HighBit = int(signed), 12, 11
        dataset.RescaleSlope, dataset.RescaleIntercept = 1, 0 if signed else -1024
        dataset.pop("PixelPaddingValue", None)
        values = (plane if signed else plane + 1024).astype(np.int32) & 0xFFF
        values[::3] |= 0x5000
        dataset.PixelData = values.astype("<u2").tobytes()

    for k, path in enumerate(series):
        edit(path, lambda d, k=k: pack(d, hu[k]))  # type: ignore[misc]
    np.testing.assert_array_equal(load_series(series).hu, hu)


def test_a_localizer_in_the_series_is_left_out(series: list[Path]) -> None:
    alone = load_series(series)
    localizer = dcmread(_copy(series[0], changed=True))
    localizer.ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]
    localizer.ImageOrientationPatient = [0, 1, 0, 0, 0, -1]
    del localizer.RescaleIntercept
    path = series[0].with_name("localizer.dcm")
    dcmwrite(path, localizer)
    volume = load_series([path, *series])
    np.testing.assert_array_equal(volume.hu, alone.hu)
    np.testing.assert_array_equal(volume.affine, alone.affine)
    assert volume.notes == ("1 localizer(s) in the series were left out.",)
    assert localizer.SOPInstanceUID not in [source.SOPInstanceUID for source in volume.sources]


def test_a_reformat_in_the_series_is_refused(series: list[Path]) -> None:
    edit(series[0], lambda d: setattr(d, "ImageOrientationPatient", [1, 0, 0, 0, 0, -1]))
    assert refusal(series)[0] == "geometry_mixed_orientation"


def test_two_frames_of_reference_are_refused(series: list[Path]) -> None:
    edit(series[4], lambda d: setattr(d, "FrameOfReferenceUID", "1.2.3"))
    assert refusal(series)[0] == "geometry_mixed_frame_of_reference"


def test_a_missing_slice_is_interpolated(tmp_path: Path) -> None:
    phantom = chest_phantom(3, slices=12, rows=64, columns=64, spacing_mm=(5.0, 5.0, 5.0))
    paths = write_series(phantom, tmp_path, seed=3)
    whole = load_series(paths)
    volume = load_series([path for k, path in enumerate(paths) if k != 4])
    np.testing.assert_allclose(volume.affine, whole.affine)
    assert volume.source_slices == (0, 1, 2, 3, 5, 6, 7, 8, 9, 10, 11)
    assert len(volume.sources) == len(volume.source_frames) == 11
    np.testing.assert_array_equal(volume.on_source_planes(volume.hu), np.delete(whole.hu, 4, axis=0))
    between = (whole.hu[3].astype(np.float64) + whole.hu[5]) / 2
    np.testing.assert_allclose(volume.hu[4], between, atol=0.5)
    z = whole.affine[2, 3] + 4 * 5.0
    assert volume.notes == (
        f"1 of 12 slices are missing and were interpolated, at {z:.1f} mm along the normal. "
        "Segments are on the slices acquired.",
    )
    labels = np.arange(12, dtype=np.uint8)[:, None, None]
    assert volume.as_acquired(labels).ravel().tolist() == [0, 1, 2, 3, 3, 5, 6, 7, 8, 9, 10, 11]
    assert whole.as_acquired(labels) is labels


def test_uneven_slices_are_interpolated_where_they_lie(tmp_path: Path) -> None:
    """HU that rise by 10 a millimetre do so on the grid, too."""
    phantom = chest_phantom(3, slices=12, rows=64, columns=64, spacing_mm=(5.0, 5.0, 5.0))
    paths = write_series(phantom, tmp_path, seed=3)
    z = np.cumsum([0.0, 5, 5, 5, 6.3, 5, 5, 3.1, 5, 5, 7.9, 5])
    for path, mm in zip(paths, z, strict=True):

        def place(dataset: Dataset, mm: float = mm) -> None:
            dataset.ImagePositionPatient = [0, 0, float(mm)]
            dataset.RescaleIntercept = -1000
            dataset.PixelData = np.full((64, 64), round(10 * mm), np.uint16).tobytes()
            dataset.pop("PixelPaddingValue", None)

        edit(path, place)
    volume = load_series(paths[::-1])
    expected = 10 * volume.to_patient(np.eye(3)[[0]] * np.arange(len(volume.hu))[:, None])[:, 2] - 1000
    np.testing.assert_allclose(volume.hu[:, 5, 7], expected, atol=1.0)
    assert volume.spacing_mm[0] == pytest.approx(2.5, abs=0.1)
    assert "12 slices lie 3.10 to 7.90 mm apart: for the analysis, 24 slices" in volume.notes[0]
