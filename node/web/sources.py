"""What the pages show and ask for, besides the database: given by ``node.app``, which knows what runs here.

Everything has a default that says "not here", so that a node without destinations, or a test, needs nothing.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from node.checks import ModelState
from node.deliver.gate import Gate
from node.receive.handing import Handing
from node.reload import Reloading
from node.route.router import Route


@dataclass(frozen=True)
class Models:
    """url: of the Triton that was asked.  states: in the order to show.  why: there are none."""

    url: str = ""
    states: Sequence[ModelState] = ()
    why: str = "This process runs no pipelines: models are with the workers."


@dataclass(frozen=True)
class Sources:
    """gates: of destinations, by name.  models: asks Triton, and may take its time.  data_dir: where results
    are.  uploads: a folder for what is being uploaded, on the spool's file system.  handing: into the
    receiver, where this process has one.  accessed: told (user, address, study) of who saw a patient's name.
    stopping: set before the server stops; answers that would go on end then.  uid_root: of what is made here
    (``wrapping``).
    """

    gates: Callable[[], Mapping[str, Gate]] = dict
    routes: Callable[[], Sequence[Route]] = tuple
    models: Callable[[], Models] = Models
    data_dir: Path | None = None
    uploads: Path | None = None
    free_disk_floor_bytes: int = 0
    handing: Handing | None = None
    reloading: Reloading | None = None
    accessed: Callable[[str, str, str], None] = lambda *_: None
    stopping: threading.Event = field(default_factory=threading.Event)
    uid_root: str | None = None
