"""``pacsnode demo`` as ``make demo`` calls it."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import httpx
import pytest
from PIL import Image
from pydicom import dcmread

from tests.patients import give_identity_to, served, told, words
from triton_models.data.dicom_series import write_series
from triton_models.data.phantom import chest_phantom

pytestmark = pytest.mark.integration
#: so that no line is broken
WIDE = {**os.environ, "COLUMNS": "400"}


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


def test_nothing_tells_of_the_patient(phantom_series: Path, tmp_path: Path) -> None:
    """Neither what it prints, nor its node's log, nor what its node serves without a login (DESIGN I8)."""
    series = tmp_path / "in"
    shutil.copytree(phantom_series, series)
    give_identity_to(series)
    (series / "cut.dcm").write_bytes(min(series.iterdir()).read_bytes()[:2000])
    out, pages = tmp_path / "out", dict[str, str]()
    command = [sys.executable, "-m", "node", "demo", "--out", str(out), "--dicom", str(series)]
    printed, log = tmp_path / "printed", out / "node.log"
    with printed.open("wb") as stream:
        running = subprocess.Popen(command, stdout=stream, stderr=subprocess.STDOUT, env=WIDE)
    while running.poll() is None:
        if (web := re.search(r"web (http://\S+),", printed.read_text())) is not None:
            with suppress(httpx.TransportError):  # it has ended meanwhile
                pages |= served(web.group(1))
        time.sleep(0.5)
    texts = {"printed": printed.read_text(), "log": log.read_text(), **pages}
    assert running.returncode == 0, texts["printed"]
    assert any(path.startswith("/studies/") for path in pages)
    assert re.search(r"^pacsnode_instances_total.* [1-9]", pages["/metrics"], re.MULTILINE)
    assert '"job_done"' in texts["log"]
    (sent,) = {tuple(sorted(words(dcmread(path)))) for path in series.glob("*.dcm") if path.stem != "cut"}
    assert told(texts, sent) == []


def test_an_empty_folder_is_named(tmp_path: Path) -> None:
    done = demo(tmp_path / "out", tmp_path)
    assert done.returncode == 1
    assert str(tmp_path) in (done.stdout + done.stderr).replace("\n", "")
