"""The result page: right side, right shape, nothing that names the patient, nothing cut off."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from PIL import ImageDraw

from pipelines.drawing import palette, text
from pipelines.drawing.key_slices import key_slices
from pipelines.drawing.page import WIDTH
from pipelines.drawing.planes import axial_grid, axial_plane
from pipelines.picture import result_picture
from pipelines.volume import Findings, Lesion, Lung
from tests.unit.pipelines.results.synthetic import ORIENTATIONS, chest, context
from tests.unit.pipelines.test_render import near


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every string that is drawn."""
    lines: list[str] = []
    draw = ImageDraw.ImageDraw.text

    def record(self: ImageDraw.ImageDraw, xy: object, words: str, *rest: object, **options: object) -> None:
        lines.append(words)
        draw(self, xy, words, *rest, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(ImageDraw.ImageDraw, "text", record)
    return lines


@pytest.mark.parametrize("orientation", list(ORIENTATIONS))
def test_planes_are_in_radiological_convention(orientation: str) -> None:
    volume, findings = chest(orientation)
    grid = axial_grid(volume, findings.lungs, columns=200)
    lungs = axial_plane(volume, grid, 0.0, findings.lungs)
    right, left = (np.nonzero(lungs == lung)[1].mean() for lung in (Lung.RIGHT, Lung.LEFT))
    assert right < 100 < left
    spine = axial_plane(volume, axial_grid(volume, np.ones_like(findings.lungs)), 0.0, volume.hu) > 300
    assert np.nonzero(spine)[0].mean() > spine.shape[0] / 2  # the spine is posterior: below


@pytest.mark.parametrize("orientation", list(ORIENTATIONS))
def test_pixels_are_square_whatever_the_spacing(orientation: str) -> None:
    volume, findings = chest(orientation)
    grid = axial_grid(volume, findings.lungs, columns=400)
    right = axial_plane(volume, grid, 0.0, findings.lungs) == Lung.RIGHT
    rows, columns = (np.ptp(axis) * grid.pixel_mm for axis in np.nonzero(right))
    # The right lung's ellipse is 84 mm wide and 124 mm deep at its middle
    assert columns == pytest.approx(84, abs=9)
    assert rows == pytest.approx(124, abs=13)


@pytest.mark.parametrize("orientation", ["axial", "coronal", "reversed", "oblique"])
def test_key_slices_show_the_lesions_on_their_sides(orientation: str) -> None:
    volume, findings = chest(orientation)
    slices = key_slices(volume, findings, width=480)
    assert [s.z_mm for s in slices] == sorted((s.z_mm for s in slices), reverse=True)
    pictures = [s.picture for s in slices]
    for kind, on_the_left in ((Lesion.GROUND_GLASS, True), (Lesion.CONSOLIDATION, False)):
        columns = np.concatenate([np.nonzero(near(p, palette.LESION[kind]))[1] for p in pictures])
        assert columns.size > 50
        assert (columns.mean() < 240) == on_the_left


def test_the_page_says_what_was_found_and_by_what(written: list[str]) -> None:
    volume, findings = chest()
    page = result_picture(volume, findings, context())
    assert page.shape[1] == WIDTH
    assert 1200 < page.shape[0] < 2300
    drawn = "\n".join(written)
    for words in (
        *("COVID-19", "Influenza A pneumonia", "P = 0.955", "P = 0.873", "2 regions", "1 region"),
        *("NOT FOR CLINICAL USE", "#1  0.91", "Image 15", "sha256 b2b2b2b2b2b2", "chest_ct_pneumonia 1.0"),
        *("Right lung", "Left lung", f"{findings.involved_percent:.1f} %"),
    ):
        assert words in drawn, words


def test_the_patient_is_not_on_the_page(written: list[str]) -> None:
    volume, findings = chest()
    result_picture(volume, findings, context())
    drawn = "\n".join(written)
    for words in ("Müller", "4711", "1950", "ACC1", "Doe"):
        assert words not in drawn


def test_clinical_use_takes_the_warning_away(written: list[str]) -> None:
    volume, findings = chest()
    result_picture(volume, findings, context(clinical_use=True))
    assert "NOT FOR CLINICAL USE" not in "\n".join(written)


def test_a_case_without_regions(written: list[str]) -> None:
    volume, findings = chest(lesions=False)
    page = result_picture(volume, findings, context())
    assert "No infection found" in written
    assert written.count("no region") == 2
    assert not near(page, palette.LESION[Lesion.CONSOLIDATION])[700:].any()


def many_regions(findings: Findings) -> Findings:
    copies = [dataclasses.replace(findings.regions[n % 3], number=n + 1) for n in range(60)]
    return dataclasses.replace(findings, regions=tuple(copies), notes=("note " * 60,) * 3)


def test_much_content_still_fits_the_page(written: list[str]) -> None:
    volume, findings = chest()
    page = result_picture(volume, many_regions(findings), context(pipeline="p" * 64))
    assert page.shape[0] < 2600
    assert "Regions: the 6 largest of 60" in written
    assert (page[:, -8:] == palette.BACKGROUND).all()  # nothing runs over the margin
    assert (page[-8:] == palette.BACKGROUND).all()


def test_long_text_is_shortened_to_its_width() -> None:
    face = text.font(20)
    short = text.fit("a very long note " * 30, face, 300)
    assert short.endswith("...")
    assert face.getlength(short) <= 300
    assert text.fit("short", face, 300) == "short"


@pytest.mark.parametrize(
    ("value", "shown"), [(1.0, "P > 0.999"), (0.9996, "P > 0.999"), (0.9994, "P = 0.999")]
)
def test_nothing_is_shown_as_certain(value: float, shown: str, written: list[str]) -> None:
    volume, findings = chest()
    noisy_or = {**findings.noisy_or, "covid19": value}
    result_picture(volume, dataclasses.replace(findings, noisy_or=noisy_or), context())
    assert shown in written
    assert "P = 1.000" not in written


#: longer than a page is wide in any font that has them
NAMES = {
    "chinese": f"Ouyang^Xiaodong=歐陽^小{40 * '東'}",
    "arabic": f"Abd al-Rahman^Muhammad={5 * 'عبد الرحمن بن محمد '}",
    "latin": "Müller-Lüdenscheidt von und zu Hohenzollern-Sigmaringen^Maria Magdalena Wilhelmine",
}


@pytest.mark.parametrize("name", NAMES.values(), ids=list(NAMES))
def test_no_name_moves_a_pixel(name: str) -> None:
    """Whatever the patient and the study are called: nothing of it is drawn, cut off or in the way."""
    pages = []
    for named in ("A^B", name):
        volume, findings = chest(
            SpecificCharacterSet="ISO_IR 192",
            PatientName=named,
            StudyDescription=named,
            BodyPartExamined="CHEST",
        )
        pages.append(result_picture(volume, findings, context()))
    first, second = pages
    np.testing.assert_array_equal(first, second)
