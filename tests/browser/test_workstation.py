"""A workstation, OHIF, shows the results: on the lesions, in the right colours, with their numbers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from playwright.sync_api import Browser
from pydicom import dcmread

from pipelines.results import codes
from pipelines.volume import Lesion
from tests.browser.conftest import BUILD
from tests.browser.study import WINDOW, Study, write_study, write_triage_study
from tests.browser.viewer import Pixels, Viewer
from tests.browser.workstation import Workstation
from tests.integration.running import Pacs

pytestmark = pytest.mark.integration

#: HU of ``synthetic.chest``
HU = {Lesion.GROUND_GLASS: -550, Lesion.CONSOLIDATION: 10}


@pytest.fixture(scope="module")
def study(archive: Pacs, tmp_path_factory: pytest.TempPathFactory) -> Study:
    return stored(archive, write_study(tmp_path_factory.mktemp("axial")))


@pytest.fixture(scope="module")
def viewer(browser: Browser, workstation: Workstation, study: Study) -> Iterator[Viewer]:
    yield from opened(browser, workstation, study)


def stored(archive: Pacs, study: Study) -> Study:
    for path in study.files:
        archive.upload_file(path.read_bytes())
    return study


def opened(browser: Browser, workstation: Workstation, study: Study) -> Iterator[Viewer]:
    viewer = Viewer(browser, workstation.url)
    viewer.open_study(study.uid)
    yield viewer
    viewer.close()
    assert not viewer.faults


def shown_as(lesion: Lesion, pixels: Pixels) -> NDArray[np.bool_]:
    """Where the overlay has this lesion's colour of ``drawing.palette``: sky blue or orange."""
    red, _, blue = np.moveaxis(pixels.astype(int), -1, 0)
    seen: NDArray[np.bool_] = blue - red > 40 if lesion is Lesion.GROUND_GLASS else red - blue > 60
    return seen


def on_screen(
    viewer: Viewer, study: Study, index: int, plane: NDArray[np.bool_], size: tuple[int, ...]
) -> NDArray[np.bool_]:
    """A mask of slice ``index`` as a mask of the viewport's pixels (rows, columns)."""
    voxels = np.array([[index, 0, 0], [index, 1, 0], [index, 0, 1]], np.float64)
    origin, down, right = viewer.to_screen(study.volume.to_patient(voxels))
    to_voxel = np.linalg.inv(np.stack([down - origin, right - origin], axis=1))
    pixels = np.moveaxis(np.indices(size), 0, -1) + 0.5 - origin
    row, column = np.moveaxis(np.rint(pixels @ to_voxel.T).astype(int), -1, 0)
    inside = (row >= 0) & (row < plane.shape[0]) & (column >= 0) & (column < plane.shape[1])
    found: NDArray[np.bool_] = (
        inside & plane[row.clip(0, plane.shape[0] - 1), column.clip(0, plane.shape[1] - 1)]
    )
    return found


def gray(hu: int) -> float:
    return 255 * (hu - WINDOW["WindowCenter"] + WINDOW["WindowWidth"] / 2) / WINDOW["WindowWidth"]


def dice(a: NDArray[np.bool_], b: NDArray[np.bool_]) -> float:
    return float(2 * np.count_nonzero(a & b) / (np.count_nonzero(a) + np.count_nonzero(b)))


def check_overlay(viewer: Viewer, study: Study, name: str) -> None:
    """Load the segmentation; on each region's key slice its lesion type is where the CT shows it."""
    slices = {region.key_slice: region for region in study.findings.regions}
    uids = {index: f"{study.volume.sources[index].SOPInstanceUID}/" for index in slices}
    bare = {index: viewer.show_image(uid) for index, uid in uids.items()}
    viewer.open_series("AI lung and lesion segmentation")
    assert {f"Region {region.number}" for region in study.findings.regions} < set(viewer.loaded_segments())
    for index, region in slices.items():
        lesion = Lesion[region.lesion_type.upper()]
        overlaid = viewer.show_image(uids[index], until=lambda pixels: shown_as(lesion, pixels).any())  # noqa: B023
        viewer.screenshot(BUILD / f"{name}-region-{region.number}.png")
        place = on_screen(viewer, study, index, study.findings.lesions[index] == lesion, overlaid.shape[:2])
        assert bare[index][place].mean() == pytest.approx(gray(HU[lesion]), abs=6), "the lesion isn't there"
        assert not shown_as(lesion, bare[index]).any()
        seen = shown_as(lesion, overlaid)
        assert dice(seen, place) > 0.95
        for mirrored in (np.fliplr(place), np.flipud(place), np.rot90(place, 2)):
            assert dice(seen, mirrored) < 0.05


def test_every_result_is_in_the_study(viewer: Viewer) -> None:
    listed = viewer.series()
    for modality, description in (
        ("SEG", "AI lung and lesion segmentation"),
        ("SR", "AI measurement report"),
        ("OT", "AI result picture"),
        ("OT", "AI 3D rotation"),
        ("OT", "AI key slices as if without lesions"),
    ):
        assert any(entry.startswith(f"{modality} {description}") for entry in listed), listed


def test_the_overlay_lies_on_the_lesions_and_not_on_their_mirror_images(viewer: Viewer, study: Study) -> None:
    check_overlay(viewer, study, "axial")
    overlaid = viewer.settled()
    rows, columns = np.nonzero(shown_as(Lesion.CONSOLIDATION, overlaid))
    middle = np.array(overlaid.shape[:2]) / 2
    assert rows.mean() > middle[0] and columns.mean() > middle[1], (
        "posterior is down, the left lung on the right"
    )


def test_the_overlay_of_images_stored_the_other_way_round(
    browser: Browser, workstation: Workstation, archive: Pacs, tmp_path: Path
) -> None:
    """Rows run to the front and columns to the right: the screen shows that, and the overlay follows."""
    turned = stored(archive, write_study(tmp_path, 2, pictures=False, orientation="prone_flipped"))
    for viewer in opened(browser, workstation, turned):
        check_overlay(viewer, turned, "turned")


def test_the_reports_measurements_stand_at_their_lesions(viewer: Viewer, study: Study) -> None:
    viewer.open_series("AI measurement report")
    noisy_or = study.findings.noisy_or["iavp"]
    viewer.measurement(f"Noisy-OR probability of influenza A pneumonia: {noisy_or:.2f} 1")
    viewer.screenshot(BUILD / "report-case.png")
    for region in study.findings.regions:
        viewer.next_measurement()
        measurement = viewer.measurement(f"Volume: {region.volume_ml:.2f} cm3")
        index = region.key_slice
        assert f"/{study.volume.sources[index].SOPInstanceUID}/" in viewer.image()
        size = viewer.settled().shape[:2]
        viewer.screenshot(BUILD / f"report-region-{region.number}.png")
        place = on_screen(*(viewer, study, index), study.findings.region_labels[index] == region.number, size)
        assert dice(filled(measurement.points, size), place) > 0.95


@pytest.mark.parametrize("orientation", ["axial", "coronal"])
def test_the_triage_reports_estimates_stand_at_their_slices(
    browser: Browser, workstation: Workstation, archive: Pacs, tmp_path: Path, orientation: str
) -> None:
    number = {"axial": 3, "coronal": 4}[orientation]
    grid = {} if orientation == "axial" else {"shape": (24, 96, 112), "spacing": (8.0, 2.8, 2.4)}
    study, estimates = write_triage_study(tmp_path, number, orientation=orientation, **grid)
    for viewer in opened(browser, workstation, stored(archive, study)):
        viewer.open_series("AI triage report")
        viewer.measurement(f"Probability of viral pneumonia: {estimates.by_model[0].case['viral']:.2f} 1")
        viewer.screenshot(BUILD / f"triage-{orientation}.png")
        for key in estimates.key_slices[:3]:
            viewer.next_measurement()
            drawn = viewer.measurement(f"{codes.LUNG_AREA.meaning}: {key.lung_cm2:.2f} cm2")
            size = viewer.settled().shape[:2]
            inside = filled(drawn.points, size)
            if key.source_slice is None:  # a strip across a coronal image
                assert np.ptp(drawn.points[:, 0]) < 0.1 * np.ptp(drawn.points[:, 1])
                continue
            assert f"/{study.volume.sources[key.source_slice].SOPInstanceUID}/" in viewer.image()
            lungs = on_screen(viewer, study, key.source_slice, estimates.lungs[key.source_slice] > 0, size)
            assert (lungs & inside).sum() > 0.99 * lungs.sum()
            ends = [[axis.min(), axis.max()] for axis in np.nonzero(lungs)]
            np.testing.assert_allclose(
                [[axis.min(), axis.max()] for axis in np.nonzero(inside)], ends, atol=3
            )


def ends(mask: NDArray[np.bool_]) -> list[tuple[int, int]]:
    """First and last row, first and last column."""
    return [(int(axis.min()), int(axis.max())) for axis in np.nonzero(mask)]


def filled(points: NDArray[np.float64], size: tuple[int, ...]) -> NDArray[np.bool_]:
    """The pixels in a polygon of rows and columns."""
    canvas = Image.new("1", (size[1], size[0]))
    ImageDraw.Draw(canvas).polygon([tuple(point) for point in points[:, ::-1].tolist()], fill=1)
    return np.asarray(canvas)


@pytest.mark.parametrize(
    ("description", "name", "frame"),
    [
        ("AI result picture", "picture", 1),
        ("AI 3D rotation", "rotation", 1),
        ("AI 3D rotation", "rotation", 3),
        ("AI key slices as if without lesions", "inpainted", 1),
    ],
)
def test_secondary_captures_are_shown_in_their_colours(
    viewer: Viewer, study: Study, description: str, name: str, frame: int
) -> None:
    capture = dcmread(study.results[name])
    ours = capture.pixel_array.reshape(-1, capture.Rows, capture.Columns, 3)[frame - 1]
    viewer.open_series(description)
    viewer.show_image(
        f"{capture.SOPInstanceUID}/frames/{frame}", until=lambda seen: difference(seen, ours) < 6
    )
    viewer.screenshot(BUILD / f"{name}-{frame}.png")


def difference(seen: Pixels, ours: Pixels) -> float:
    """Mean difference of what the viewport shows from a picture that is fitted into it."""
    rows, columns = ours.shape[:2]
    scale = min(seen.shape[0] / rows, seen.shape[1] / columns)
    height, width = round(rows * scale), round(columns * scale)
    top, left = (seen.shape[0] - height) // 2, (seen.shape[1] - width) // 2
    fitted = np.asarray(Image.fromarray(ours).resize((width, height), Image.Resampling.BILINEAR), np.int16)
    return float(np.abs(seen[top : top + height, left : left + width] - fitted).mean())
