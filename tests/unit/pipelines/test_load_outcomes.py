"""Every series of the shared geometry and codec data ends in a volume or in a named reason.

The tables list the folders' content: a file or folder that is new there has to be added here.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from pipelines.errors import SeriesRefused
from pipelines.load import dicom_files, load_series
from tests.shared_data import SHARED_DATA, shared


@dataclass(frozen=True)
class Read:
    """A volume: its shape, mm between its slices, the acquired planes, and a word of each note."""

    shape: tuple[int, int, int]
    spacing_mm: float
    planes: int
    notes: tuple[str, ...] = ()


OUTCOMES: dict[str, Read | str] = {
    "geometry/dicom2nifti_gantrytilting_001": Read((4, 512, 512), 5.0, 4, ("tilted by 14.0 degrees",)),
    # four different slices at one position
    "geometry/dicom2nifti_notavolume_001": "geometry_duplicate_position",
    # one of five slices is missing, more than a tenth
    "geometry/dicom2nifti_sliceincrement_001": "geometry_missing_slices",
    "geometry/ge_head_tilt_variable_spacing": Read(
        (73, 512, 512), 2.11, 28, ("tilted by 18.5 degrees", "1.08 to 7.00 mm apart: for the analysis, 73")
    ),
    "geometry/philips_exam_summary_sc": "unsupported_sop_class",
    "geometry/philips_localizer": "localizers_only",
    **dict.fromkeys(
        [f"codecs/CT1_{codec}.dcm" for codec in ("J2KI", "J2KR", "JLSL", "JLSN", "JPLL", "RLE", "UNC")],
        "geometry_too_few_slices",
    ),
    # SOP Class UID is empty, as all UIDs are
    "codecs/totalseg_siemens_j2k": "unsupported_sop_class",
    "codecs/totalseg_siemens_j2k_seg.nii.gz": "unreadable_instance",
    "codecs/pydicom_data/693_J2KR.dcm": "geometry_too_few_slices",
    "codecs/pydicom_data/693_UNCI.dcm": "geometry_too_few_slices",
    "codecs/pydicom_data/693_UNCR.dcm": "geometry_too_few_slices",
    "codecs/pydicom_data/eCT_Supplemental.dcm": "geometry_too_few_slices",
    "codecs/pydicom_data/explicit_VR-UN.dcm": "geometry_too_few_slices",
    **dict.fromkeys(
        [
            f"codecs/pydicom_data/{name}.dcm"
            for name in (
                *("liver", "liver_deflate", "liver_expb", "liver_j2k", "liver_nonbyte_aligned"),
                *("liver_rle", "vlut_04"),
            )
        ],
        "unsupported_sop_class",
    ),
}


def outcome(path: Path) -> Read | str:
    try:
        volume = load_series(dicom_files(path) if path.is_dir() else [path])
    except SeriesRefused as refused:
        return refused.code
    expected = OUTCOMES[str(path.relative_to(SHARED_DATA))]
    told = expected.notes if isinstance(expected, Read) else ()
    slices, rows, columns = volume.hu.shape
    return Read(
        (slices, rows, columns),
        round(volume.spacing_mm[0], 2),
        len(volume.source_frames),
        tuple(word for word, note in zip(told, volume.notes, strict=True) if word in note),
    )


@pytest.mark.parametrize("name", list(OUTCOMES))
def test_outcome(name: str) -> None:
    assert outcome(shared(name)) == OUTCOMES[name]


@pytest.mark.parametrize("folder", ["geometry", "codecs", "codecs/pydicom_data"])
def test_nothing_is_left_out(folder: str) -> None:
    here = {f"{folder}/{path.name}" for path in shared(folder).iterdir()}
    deeper = {str(Path(name).parent) for name in OUTCOMES}
    assert here - deeper <= set(OUTCOMES)
