"""Options that several commands have, said in the same words."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

ConfigOption = Annotated[
    Path, typer.Option("--config", "-c", help="Configuration file; see deploy/config.example.yaml.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for machines.")]
