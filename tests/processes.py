"""What tests and benchmarks ask /proc about processes."""

from __future__ import annotations

import os
from pathlib import Path


def children(pid: int, *, deep: bool = False) -> list[int]:
    """Of a process; with ``deep`` their children, too."""
    listed = [path.read_text() for path in Path(f"/proc/{pid}/task").glob("*/children")]
    found = [int(child) for text in listed for child in text.split()]
    return found + [below for child in found for below in children(child, deep=True)] if deep else found


def read(pid: int, name: str) -> str:
    return Path(f"/proc/{pid}/{name}").read_text()


def kilobytes(text: str, name: str) -> int:
    """A value of ``status`` or ``smaps_rollup``."""
    return next(int(row.split()[1]) for row in text.splitlines() if row.startswith(f"{name}:"))


def peak_kilobytes(pid: int) -> int:
    """Resident memory at its peak."""
    return kilobytes(read(pid, "status"), "VmHWM")


def cpu_seconds(pid: int) -> float:
    """CPU time of all its threads so far, of the kernel's for it, too."""
    fields = read(pid, "stat").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
