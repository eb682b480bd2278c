"""Folders of DICOM -> a picture of a workstation that shows them: the segmentation where it has most to show.

.venv/bin/python -m tests.browser.screenshot FOLDER… --out docs/workstation.png
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
from PIL import Image
from playwright.sync_api import sync_playwright
from pydicom import Dataset, dcmread

from pipelines.volume import Lesion
from tests.browser.conftest import BUILD, CHROMIUM, DICOM_WEB
from tests.browser.ohif import ohif_pages
from tests.browser.test_workstation import shown_as
from tests.browser.viewer import CHROMIUM_FLAGS, Pixels, Viewer
from tests.browser.workstation import Workstation
from tests.integration.running import Pacs, orthanc_program

COLORS = 200


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    files = [path for folder in arguments.folders for path in sorted(folder.rglob("*.dcm"))]
    folder = Path(tempfile.mkdtemp())
    archive = Pacs(orthanc_program(), folder, Plugins=[str(DICOM_WEB)], DicomWeb={"Enable": True})
    try:
        for path in files:
            archive.upload_file(path.read_bytes())
        with Workstation(ohif_pages(BUILD), archive.url) as workstation:
            take(workstation, segmentation_of(files), arguments.out)
    finally:
        archive.stop()
        shutil.rmtree(folder)


def segmentation_of(files: list[Path]) -> Dataset:
    return next(dataset for dataset in map(dcmread, files) if dataset.Modality == "SEG")


def image_with_most(segmentation: Dataset) -> str:
    """SOP Instance UID of the image that most pixels of lesion lie on."""
    lesions = {
        int(segment.SegmentNumber)
        for segment in segmentation.SegmentSequence
        if "lung" not in segment.SegmentLabel
    }
    count: Counter[str] = Counter()
    for frame, pixels in zip(
        segmentation.PerFrameFunctionalGroupsSequence, segmentation.pixel_array, strict=True
    ):
        if int(frame.SegmentIdentificationSequence[0].ReferencedSegmentNumber) in lesions:
            source = frame.DerivationImageSequence[0].SourceImageSequence[0]
            count[str(source.ReferencedSOPInstanceUID)] += int(np.count_nonzero(pixels))
    return count.most_common(1)[0][0]


def take(workstation: Workstation, segmentation: Dataset, out: Path) -> None:
    def overlaid(pixels: Pixels) -> bool:
        return any(shown_as(lesion, pixels).any() for lesion in Lesion)

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=CHROMIUM_FLAGS)
        viewer = Viewer(browser, workstation.url, screen={"width": 1280, "height": 800})
        viewer.open_study(str(segmentation.StudyInstanceUID))
        viewer.open_series(str(segmentation.SeriesDescription))
        viewer.loaded_segments()
        viewer.show_image(image_with_most(segmentation), until=overlaid)
        picture = Image.fromarray(viewer.screenshot(out))
        browser.close()
    picture.quantize(COLORS).save(out, optimize=True)


if __name__ == "__main__":
    main()
