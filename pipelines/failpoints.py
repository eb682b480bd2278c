"""Places where a test can end a process, so that what a crash leaves there is tried (``make chaos``).

In: the environment's ``PACSNODE_FAILPOINTS``, a folder that only tests set; without it nothing happens.
Out: a process that reaches a place named by a file in that folder takes the file away, so that it happens
once, and kills itself as ``kill -9`` would.

Beside the places that call ``failpoint``, every stage of a pipeline is one (``Stages``), and every
``write_transaction`` of the node is two: before and after its commit.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

VARIABLE = "PACSNODE_FAILPOINTS"
#: below the folder: what was reached
REACHED = "reached"

_folder = os.environ.get(VARIABLE)
FOLDER = Path(_folder) if _folder else None


def failpoint(name: str) -> None:
    """Nothing, unless a test wants the process to end here."""
    if FOLDER is not None:
        _reach(FOLDER, name)


def name_of_caller(depth: int) -> str:
    """Module and function, ``depth`` frames above who asks; "" where nobody wants to know."""
    if FOLDER is None:
        return ""
    frame = sys._getframe(depth + 1)
    return f"{frame.f_globals['__name__'].partition('.')[2]}.{frame.f_code.co_qualname}"


def _reach(folder: Path, name: str) -> None:
    try:
        (folder / name).rename(folder / REACHED / name)  # of several processes one succeeds
    except OSError:
        return
    os.kill(os.getpid(), signal.SIGKILL)
