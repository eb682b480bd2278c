"""The workstation: OHIF in Chromium, reading from an Orthanc with DICOMweb."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, sync_playwright

from tests.browser.ohif import ohif_pages
from tests.browser.viewer import CHROMIUM_FLAGS
from tests.browser.workstation import Workstation
from tests.integration.running import Pacs, orthanc_program

BUILD = Path(__file__).parents[2] / "build" / "browser"
CHROMIUM = Path("/usr/bin/chromium")
DICOM_WEB = Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")


@pytest.fixture(scope="session")
def installed() -> None:
    """Fails without the programs where ``deploy/install-system.sh`` could install them; skips elsewhere."""
    needed = {
        "chromium": CHROMIUM.exists(),
        "npm": shutil.which("npm") is not None,
        "orthanc-dicomweb": DICOM_WEB.exists(),
    }
    missing = [name for name, there in needed.items() if not there]
    if missing:
        reason = f"NOT TESTED: the workstation. It needs: apt-get install {' '.join(missing)}"
        if os.geteuid() == 0 or os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)


@pytest.fixture(scope="session")
def archive(installed: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pacs]:
    pacs = Pacs(
        orthanc_program(),
        tmp_path_factory.mktemp("archive"),
        Plugins=[str(DICOM_WEB)],
        DicomWeb={"Enable": True, "Root": "/dicom-web/"},
    )
    yield pacs
    pacs.stop()


@pytest.fixture(scope="session")
def workstation(archive: Pacs) -> Iterator[Workstation]:
    with Workstation(ohif_pages(BUILD), archive.url) as started:
        yield started


@pytest.fixture(scope="package")
def browser(installed: None) -> Iterator[Browser]:
    """Chromium. Until it ends, an event loop runs in this thread, and no other package's tests can."""
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=CHROMIUM_FLAGS)
        yield chromium
        chromium.close()
