"""The secondary captures look in others' programs as we drew them, pixel for pixel: DCMTK and Orthanc."""

from __future__ import annotations

import io
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from pydicom import dcmread

from tests.browser.study import Study, write_study
from tests.integration.running import Pacs, orthanc_program

pytestmark = pytest.mark.integration

#: Since DCMTK 3.6.8 dcm2img, before that dcmj2pnm; not the venv's scripts of like names
_RENDERERS = (Path("/usr/bin/dcm2img"), Path("/usr/bin/dcmj2pnm"))
CAPTURES = ("picture", "rotation", "inpainted")


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    return write_study(tmp_path_factory.mktemp("study"), shape=(24, 96, 112), spacing=(8.0, 2.8, 2.4))


@pytest.fixture(scope="module")
def archive(study: Study, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pacs]:
    pacs = Pacs(orthanc_program(), tmp_path_factory.mktemp("archive"))
    for name in CAPTURES:
        pacs.upload_file(study.results[name].read_bytes())
    yield pacs
    pacs.stop()


def frames_of(path: Path) -> NDArray[np.uint8]:
    """(frames, rows, columns, 3) RGB."""
    dataset = dcmread(path)
    frames: NDArray[np.uint8] = dataset.pixel_array.reshape(-1, dataset.Rows, dataset.Columns, 3)
    return frames


def rgb(png: bytes) -> NDArray[np.uint8]:
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))


@pytest.mark.parametrize("name", CAPTURES)
def test_dcmtk_renders_what_we_drew(name: str, study: Study, tmp_path: Path) -> None:
    renderer = next((path for path in _RENDERERS if path.exists()), None)
    if renderer is None:
        pytest.skip("needs DCMTK (apt install dcmtk)")
    for number, frame in enumerate(frames_of(study.results[name]), start=1):
        output = tmp_path / f"{number}.png"
        command: list[str | Path] = [renderer, "+on", "+F", str(number), study.results[name], output]
        subprocess.run(command, check=True, capture_output=True, timeout=60)
        np.testing.assert_array_equal(rgb(output.read_bytes()), frame)


@pytest.mark.parametrize("view", ["preview", "rendered"])
@pytest.mark.parametrize("name", CAPTURES)
def test_orthanc_shows_what_we_drew(name: str, view: str, study: Study, archive: Pacs) -> None:
    uid = str(dcmread(study.results[name], stop_before_pixels=True).SOPInstanceUID)
    (found,) = httpx.post(f"{archive.url}/tools/lookup", content=uid, timeout=30.0).json()
    for number, frame in enumerate(frames_of(study.results[name])):
        address = f"{archive.url}/instances/{found['ID']}/frames/{number}/{view}"
        answer = httpx.get(address, headers={"accept": "image/png"}, timeout=60.0)
        np.testing.assert_array_equal(rgb(answer.raise_for_status().content), frame)
