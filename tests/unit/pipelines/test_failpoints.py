"""A failpoint ends the process once, where the environment says so, and does nothing elsewhere."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from pipelines import failpoints
from pipelines.failpoints import REACHED, VARIABLE, failpoint, name_of_caller

PROGRAM = """
from contextlib import contextmanager
from pipelines.failpoints import failpoint, name_of_caller
from pipelines.pipeline import Stages

class A:
    def b(self):
        return name_of_caller(0)

print(A().b())
failpoint("here")
with Stages()("lungs"):
    print("went on")
"""


def run(folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env={**os.environ, VARIABLE: str(folder)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_once_where_it_is_wanted(tmp_path: Path) -> None:
    (tmp_path / REACHED).mkdir()
    (tmp_path / "here").touch()
    first = run(tmp_path)
    assert first.returncode == -signal.SIGKILL
    assert "went on" not in first.stdout
    assert [path.name for path in (tmp_path / REACHED).iterdir()] == ["here"]
    second = run(tmp_path)
    assert second.returncode == 0
    assert second.stdout.splitlines() == [".A.b", "went on"]
    (tmp_path / "stage.lungs").touch()
    third = run(tmp_path)
    assert third.returncode == -signal.SIGKILL
    assert "went on" not in third.stdout


def test_nothing_without_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert failpoints.FOLDER is None
    (tmp_path / "here").touch()
    monkeypatch.chdir(tmp_path)
    failpoint("here")
    assert name_of_caller(0) == ""
