"""A child started through ``node.child`` ends with its parent, however that ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

from node import child
from tests.integration.receiving import wait_for

#: starts a child that sleeps, prints its pid, and sleeps too
PARENT = """
import subprocess, sys, time
from node import child
sleeper = child.command(sys.executable, "-c", "import time; print(1, flush=True); time.sleep(60)")
process = subprocess.Popen(sleeper, stdout=subprocess.PIPE)
process.stdout.readline()
print(process.pid, flush=True)
time.sleep(60)
"""


def running(pid: int) -> bool:
    """Whether the process is there and is no zombie that its new parent hasn't collected yet."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False
    return status.rpartition(")")[2].split()[0] != "Z"


def test_the_child_ends_when_the_parent_is_killed() -> None:
    parent = subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    assert running(pid)
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    parent.stdout.close()
    wait_for(lambda: not running(pid), what="the child to end")


def test_arguments_environment_and_exit_code_are_the_programs() -> None:
    code = "import sys, os; print(sys.argv[1:], os.environ['MARK']); sys.exit(7)"
    done = subprocess.run(
        child.command(sys.executable, "-c", code, "a b", "--c"),
        env={**os.environ, "MARK": "x"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (7, "['a b', '--c'] x\n")


def test_nothing_is_started_when_the_parent_is_already_gone() -> None:
    command = child.command(sys.executable, "-c", "print('started')")
    command[3] = "1"  # the parent that asked; ours is another by now
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
