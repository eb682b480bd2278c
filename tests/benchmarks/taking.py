"""Takes a benchmark's measures, prints their figures and keeps them in build/bench."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

FOLDER = Path("build/bench")

#: an empty folder to work in -> figures by name
Measure = Callable[[Path], Mapping[str, object]]


def take(
    benchmark: str, measures: Mapping[str, Measure], only: str | None, untold: Sequence[str] = ()
) -> None:
    """Take all measures, or ``only`` one, whose figures are added to those of earlier runs in
    FOLDER/``benchmark``.json. untold: names of figures that are kept, but not printed."""
    out = FOLDER / f"{benchmark}.json"
    result: dict[str, object] = json.loads(out.read_text()) if only and out.exists() else {}
    for name, measure in measures.items():
        if only in {None, name}:
            with tempfile.TemporaryDirectory(prefix=f"bench-{benchmark}-", dir=".") as folder:
                result |= measure(Path(folder))
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(result, indent=1) + "\n")
    table = Table("figure", "value")
    for key, value in result.items():
        if key not in untold:
            table.add_row(key, json.dumps(value))
    Console().print(table)
