"""Helper: the commands of docs/operations.md, by the name of their drill."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs/operations.md").read_text()


def commands(name: str) -> list[str]:
    """The lines of the block that is marked with it."""
    (block,) = re.findall(rf"<!-- drill: {name} -->\n\n((?:    .*\n)+)", TEXT)
    return [line.strip() for line in block.splitlines()]


def run(name: str, **variables: object) -> str:
    """Run a drill's commands as they are written; what systemd does is for the test to do."""
    return run_lines([line for line in commands(name) if not line.startswith("systemctl ")], **variables)


def run_lines(lines: list[str], **variables: object) -> str:
    """Run commands with these variables; returns what they said."""
    script = "set -eu\n" + "\n".join(lines).replace(".venv/bin/python", sys.executable)
    environment = os.environ | {key: str(value) for key, value in variables.items()}
    bash = ["/bin/bash", "-c", script]
    done = subprocess.run(
        bash, capture_output=True, text=True, cwd=ROOT, env=environment, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
