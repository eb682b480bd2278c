"""The inputs whose result sets are validated: synthetic ones in every storage form, and real series.

On real series, with their own headers, lungs and lesions are painted. No model is needed: validators look at
objects, not at what was found.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from pipelines.load import dicom_files, load_series
from pipelines.volume import LESION_TYPES, Findings, Lung, Volume
from tests.shared_data import SHARED_DATA
from tests.unit.pipelines.results.synthetic import chest, findings_of, region_of, without_plane

#: name -> arguments of ``chest``
SYNTHETIC: Mapping[str, dict[str, object]] = {
    "phantom": {},
    "no_lesions": {"lesions": False},
    "enhanced": {"enhanced": True},
    "tilted": {"orientation": "tilted"},
    "reversed": {"orientation": "reversed"},
    "coronal": {"orientation": "coronal"},
    "repaired": {},
    "sparse_header_oblique": {"orientation": "oblique"}
    | dict.fromkeys(
        (
            *("PatientBirthDate", "PatientSex", "PatientAge", "StudyID", "StudyTime", "AccessionNumber"),
            *("ReferringPhysicianName", "StudyDescription", "SeriesNumber", "BodyPartExamined"),
            *("SpecificCharacterSet", "PositionReferenceIndicator", "Manufacturer"),
        )
    ),
    # PixelMed knows only the default character repertoire, so that the others have an ASCII name
    "named_chinese": {"PatientName": "Wang^XiaoDong=王^小東"},
    "named_german": {"PatientName": "Müller-Lüdenscheidt^Jörg", "SpecificCharacterSet": "ISO_IR 100"},
    "named_arabic": {"PatientName": "قباني^لنزار", "SpecificCharacterSet": "ISO_IR 127"},
    "named_japanese": {
        "PatientName": "Yamada^Tarou=山田^太郎=やまだ^たろう",
        "SpecificCharacterSet": ["", "ISO 2022 IR 87"],
    },
}
#: name -> folder of the shared test data
REAL: Mapping[str, str] = {
    "lidc_ge": "chest_ct/lidc0001_ge_deflated",
    "siemens": "chest_ct/lungdx_a0002_siemens_b40f",
}


def available() -> list[str]:
    """Names of the inputs that can be had here."""
    return [*SYNTHETIC, *(name for name, folder in REAL.items() if (SHARED_DATA / folder).exists())]


def read(name: str) -> tuple[Volume, Findings]:
    if name in REAL:
        return painted(load_series(dicom_files(SHARED_DATA / REAL[name])))
    volume, findings = chest(**{"PatientName": "Test^Anna", **SYNTHETIC[name]})  # type: ignore[arg-type]
    return without_plane(volume, findings, missing=11) if name == "repaired" else (volume, findings)


def painted(volume: Volume) -> tuple[Volume, Findings]:
    """Two lungs as ellipsoids on the volume's own grid, a region in each; places are shares of its shape."""
    axes = np.ogrid[tuple(slice(-1.0, 1.0, n * 1j) for n in volume.hu.shape)]

    def ellipsoid(centre: tuple[float, float, float], radii: tuple[float, float, float]) -> NDArray[np.bool_]:
        distance = sum(((axis - c) / r) ** 2 for axis, c, r in zip(axes, centre, radii, strict=True))
        return np.asarray(distance <= 1.0)

    lungs, kinds, labels = (np.zeros(volume.hu.shape, np.uint8) for _ in range(3))
    first, second = (Lung.RIGHT, Lung.LEFT) if volume.affine[0, 2] > 0 else (Lung.LEFT, Lung.RIGHT)
    lungs[ellipsoid((0, 0, -0.4), (0.8, 0.6, 0.3))] = first
    lungs[ellipsoid((0, 0, 0.4), (0.8, 0.6, 0.3))] = second
    regions = []
    for number, (centre, kind, infection) in enumerate(
        (((0.1, 0.1, -0.4), "ground_glass", "covid19"), ((-0.2, 0.1, 0.4), "consolidation", "iavp")), start=1
    ):
        inside = ellipsoid(centre, (0.25, 0.12, 0.1))
        labels[inside], kinds[inside] = number, LESION_TYPES[kind]
        regions.append(region_of(volume, labels, lungs, number, kind, infection, 0.8))
    return volume, findings_of(volume, lungs, kinds, labels, tuple(regions))
