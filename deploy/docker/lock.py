#!/usr/bin/env python3
"""Pin everything that the image installs from PyPI, by version and hash.

In: pyproject.toml.  Out: requirements.lock beside this file, for `pip install --require-hashes --no-deps`.
It is what pip itself chooses for this machine, which must be like the image: Linux, x86-64, Python 3.11.

    python deploy/docker/lock.py

Run it when dependencies change or are to be renewed; review the difference, then run the tests.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
LOCK = Path(__file__).with_name("requirements.lock")
HEADER = "# Written by deploy/docker/lock.py; Linux, x86-64, Python 3.11. Don't edit.\n"


def normalized(name: str) -> str:
    """A distribution's name as PyPI compares it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def locked(report: dict[str, Any]) -> str:
    """The lock file's text, from what `pip install --report` says. Raises ValueError for what has no hash."""
    lines = []
    for item in report["install"]:
        metadata, source = item["metadata"], item["download_info"]
        if normalized(metadata["name"]) == "pacsnode":
            continue
        sha256 = source.get("archive_info", {}).get("hashes", {}).get("sha256")
        if sha256 is None:
            raise ValueError(f"{metadata['name']}: pip gives no hash of {source['url']}")
        lines.append(f"{normalized(metadata['name'])}=={metadata['version']} --hash=sha256:{sha256}\n")
    return HEADER + "".join(sorted(lines))


def main() -> None:
    """Ask pip and write the file."""
    build = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["build-system"]["requires"]
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--dry-run", "--ignore-installed"]
    done = subprocess.run(
        [*pip, "--only-binary=:all:", "--report=-", str(ROOT), *build], stdout=subprocess.PIPE, check=True
    )
    LOCK.write_text(locked(json.loads(done.stdout)), encoding="utf-8")
    print(f"{LOCK}: {len(LOCK.read_text(encoding='utf-8').splitlines()) - 1} distributions")


if __name__ == "__main__":
    main()
