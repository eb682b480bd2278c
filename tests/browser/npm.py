"""What npm publishes, without npm's installing: one package's archive, compared with its digest.

In: a package, a version, and what `npm view PACKAGE@VERSION dist.integrity` said.  Out: its folder, fetched
once.
"""

from __future__ import annotations

import base64
import hashlib
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path

_FETCH_SECONDS = 300.0


def npm_package(name: str, version: str, integrity: str, cache: Path) -> Path:
    """The package's folder in ``cache``; fetched unless it is there.

    Raises RuntimeError when npm can't fetch it, or fetches something else.
    """
    kept = cache / f"{name.replace('/', '-').lstrip('@')}-{version}"
    if not kept.is_dir():
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as folder:
            with tarfile.open(_fetched(f"{name}@{version}", integrity, Path(folder))) as archive:
                archive.extractall(folder, filter="data")
            shutil.move(Path(folder) / "package", kept)
    return kept


def _fetched(package: str, integrity: str, folder: Path) -> Path:
    command = ["npm", "pack", package, "--pack-destination", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=_FETCH_SECONDS, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"npm couldn't fetch {package}: {done.stderr[-1000:]}")
    (archive,) = folder.glob("*.tgz")
    digest = base64.b64encode(hashlib.sha512(archive.read_bytes()).digest()).decode()
    if f"sha512-{digest}" != integrity:
        raise RuntimeError(f"{package} has the digest sha512-{digest}, not {integrity}")
    return archive
