"""``pacsnode demo`` as ``make demo`` calls it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from triton_models.data.dicom_series import write_series
from triton_models.data.phantom import chest_phantom

pytestmark = pytest.mark.integration


def demo(out: Path, *folders: Path) -> subprocess.CompletedProcess[str]:
    options = [word for folder in folders for word in ("--dicom", str(folder))]
    command = [sys.executable, "-m", "node", "demo", "--out", str(out), *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


def test_two_series_beside_garbage(phantom_series: Path, tmp_path: Path) -> None:
    """Both come back validated; a file that is no DICOM at all changes nothing."""
    folder = tmp_path / "in"
    for name, source in (("a", phantom_series), ("b", tmp_path / "other")):
        if not source.exists():
            write_series(chest_phantom(13, slices=20, rows=256, columns=256, lesions=True), source, seed=13)
        (folder / name).mkdir(parents=True)
        for path in source.iterdir():
            (folder / name / path.name).write_bytes(path.read_bytes())
    (folder / "readme.txt").write_text("not DICOM")
    (folder / "a" / "noise.dcm").write_bytes(bytes(range(256)) * 40)
    out = tmp_path / "out"
    done = demo(out, folder)
    assert done.returncode == 0, done.stdout + done.stderr
    summaries = [json.loads(path.read_text()) for path in out.glob("*/summary.json")]
    assert len({summary["series_instance_uid"] for summary in summaries}) == 2
    for summary in summaries:
        results = out / summary["series_instance_uid"]
        assert {entry["modality"] for entry in summary["results"]} == {"SEG", "SR", "OT"}
        assert all((results / entry["path"]).is_file() for entry in summary["results"])
        assert Image.open(results / "result_picture.png").width == 1080
    assert "archive: Orthanc" in done.stdout


def test_a_series_without_a_result_is_explained_and_fails_the_demo(tmp_path: Path) -> None:
    series = tmp_path / "head"
    write_series(chest_phantom(3, slices=4, rows=64, columns=64), series, seed=3)
    done = demo(tmp_path / "out", series)
    assert done.returncode == 1
    assert "no result, because" in " ".join(done.stdout.split())


def test_an_empty_folder_is_named(tmp_path: Path) -> None:
    done = demo(tmp_path / "out", tmp_path)
    assert done.returncode == 1
    assert str(tmp_path) in (done.stdout + done.stderr).replace("\n", "")
