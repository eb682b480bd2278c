"""What a killed node leaves of its embedded Triton, and that the next one takes it away."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from node import triton_folder
from node.errors import TritonStartError
from node.triton_folder import PREFIX, ServerFolder, sweep
from pipelines import shared_memory

HOLD = """
import sys
from node.triton_folder import ServerFolder
folder = ServerFolder()
print(folder.path, folder.shared_memory_prefix, flush=True)
sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


@contextmanager
def node() -> Iterator[tuple[subprocess.Popen[str], Path, str]]:
    """Another process that has a folder until it is killed."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        path, prefix = process.stdout.readline().split()
        try:
            yield process, Path(path), prefix
        finally:
            process.kill()


def test_a_killed_nodes_folder_memory_and_programs_go(temporary: Path) -> None:
    with node() as (process, folder, prefix):
        shared = shared_memory.FOLDER / f"{prefix}of-a-backend"
        shared.write_bytes(b"tensors")
        program = folder / "backends" / "waits"
        shutil.copy(shutil.which("sleep") or "", program)
        with subprocess.Popen([program, "1000"]) as waiting:
            sweep()
            assert folder.is_dir() and shared.is_file() and waiting.poll() is None, "its node lives"
            process.kill()
            process.wait()
            assert (folder / "tritonserver").is_file()
            sweep()
            assert waiting.wait(10) == -9
    assert list(temporary.iterdir()) == []
    assert not shared.exists()


def test_what_is_not_a_nodes_folder_is_left(temporary: Path) -> None:
    (temporary / f"{PREFIX}being-made").mkdir()
    elsewhere = temporary / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "lock").touch()
    (temporary / f"{PREFIX}link").symlink_to(elsewhere)
    linked = temporary / f"{PREFIX}linked-lock"
    linked.mkdir()
    (linked / "lock").symlink_to(elsewhere / "lock")
    (temporary / f"{PREFIX}file").touch()
    before = sorted(temporary.rglob("*"))
    sweep()
    assert sorted(temporary.rglob("*")) == before


def test_another_users_folder_is_left(temporary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with node() as (process, folder, _):
        process.kill()
        process.wait()
        monkeypatch.setattr("os.getuid", lambda: folder.stat().st_uid + 1)
        sweep()
        assert folder.is_dir()
        monkeypatch.undo()


def test_a_python_without_a_stub_leaves_nothing(temporary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wheel = triton_folder.wheel_path
    monkeypatch.setattr(
        triton_folder,
        "wheel_path",
        lambda name: temporary / "none" if "stubs" in name else wheel(name),
    )
    with pytest.raises(TritonStartError, match="no backend stub for Python"):
        ServerFolder()
    assert list(temporary.iterdir()) == []
