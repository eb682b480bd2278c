"""Pictures of a CT slice, wrapped, through chest_ct_picture with the shipped models and every validator."""

from __future__ import annotations

from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from node.triton_server import EmbeddedTriton
from node.web.multipart import Part
from node.web.wrapping import Wrapping
from pipelines.drawing.planes import window
from pipelines.errors import SeriesRefused
from pipelines.process import process
from pipelines.request import Request
from pipelines.results.validation import validate_all
from pipelines.triton import InferenceClient
from tests.shared_data import shared
from triton_models.data.phantom import chest_phantom

pytestmark = pytest.mark.integration
WHEN = datetime(2026, 11, 30, tzinfo=UTC)


@cache
def middle_slice(seed: int) -> NDArray[np.int16]:
    """HU of a generated chest."""
    hu: NDArray[np.int16] = chest_phantom(seed, slices=24, rows=256, columns=256, lesions=True).hu[12]
    return hu


def slice_picture(seed: int = 21) -> Image.Image:
    """As a workstation exports it."""
    return Image.fromarray(window(middle_slice(seed)))


def wrapped(picture: Path, folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return Wrapping(None).wrap(Part(picture, "", picture.name, picture.stat().st_size), folder)


def run(inference: InferenceClient, wrapped_picture: Path, out: Path) -> dict[str, Any]:
    out.mkdir(parents=True)
    return process(Request("chest_ct_picture", (wrapped_picture,), out, "9.9.9", WHEN), inference)


@pytest.fixture(scope="module")
def inference(triton: EmbeddedTriton) -> Any:
    with InferenceClient(triton.url, timeout_seconds=120.0) as client:
        yield client


def test_a_picture_has_results_that_validate_twice_the_same(
    inference: InferenceClient, tmp_path: Path
) -> None:
    objects = []
    for kind in ("PNG", "JPEG"):
        folder = tmp_path / kind
        folder.mkdir()
        slice_picture().convert("RGB").save(folder / "picture", kind)
        source = wrapped(folder / "picture", folder / "in")
        summary = run(inference, source, folder / "first")
        run(inference, source, folder / "second")
        made = {path.name: path.read_bytes() for path in (folder / "first").glob("*.dcm")}
        assert made == {path.name: path.read_bytes() for path in (folder / "second").glob("*.dcm")}
        assert sorted(made) == ["estimates_picture.dcm", "estimates_report.dcm"]
        assert set(summary["models"]) == {"lungs", "pneumonia_class"}
        assert summary["case_type"] in summary["estimates"]["pneumonia_class"]
        assert 0.1 < summary["lung_share_of_picture"] < 0.6
        objects.append(source)
    said = validate_all([*objects, *(folder / "first").glob("*.dcm")])
    wrong = {path.name: tool for path, tools in said.items() for tool in tools if not tool.ok}
    assert not wrong


def drawn() -> dict[str, Image.Image]:
    """What is no CT in a lung window."""
    random = np.random.default_rng(0)
    text = Image.new("L", (600, 800), 255)
    pen = ImageDraw.Draw(text)
    for line in range(40):
        pen.text((20, 20 * line), "The quick brown fox jumps over the lazy dog. " * 2, fill=0)
    face = Image.new("L", (400, 400), 255)
    pen = ImageDraw.Draw(face)
    pen.ellipse((50, 50, 350, 350), outline=0, width=6)
    pen.ellipse((120, 130, 160, 180), fill=0)
    pen.ellipse((240, 130, 280, 180), fill=0)
    return {
        "text": text,
        "face": face,
        "noise": Image.fromarray(random.integers(0, 256, (400, 400), dtype=np.uint8)),
        "black": Image.new("L", (300, 300)),
        "gradient": Image.fromarray(np.tile(np.arange(256, dtype=np.uint8), (256, 1))),
        "soft tissue": Image.fromarray(window(middle_slice(21), (40.0, 350.0))),
    }


@pytest.mark.parametrize("what", ["text", "face", "noise", "black", "gradient", "soft tissue"])
def test_what_shows_no_lungs_is_refused(inference: InferenceClient, tmp_path: Path, what: str) -> None:
    picture = tmp_path / "picture"
    drawn()[what].save(picture, "PNG")
    with pytest.raises(SeriesRefused, match="no lungs as a lung window shows them") as caught:
        run(inference, wrapped(picture, tmp_path / "in"), tmp_path / "out")
    assert caught.value.code == "no_lungs_found"


def test_pictures_of_patients_are_taken(inference: InferenceClient, tmp_path: Path) -> None:
    """Of papers: in a lung window, cropped, with letters and arrows on them."""
    for name in ("train/COVID/0000.png", "train/NonCOVID/0370.png", "val/COVID/0195.png"):
        picture = shared(f"labelled_2d/ucsd_covid_ct/{name}")
        folder = tmp_path / picture.stem
        summary = run(inference, wrapped(picture, folder / "in"), folder / "out")
        assert summary["case_type"] in ("normal", "bacterial", "viral")
