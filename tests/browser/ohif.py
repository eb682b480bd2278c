"""OHIF's built pages, as npm has them.

The package's dependencies are built into its ``dist``, so only its own archive is fetched, by ``npm pack``,
and compared with the digest below: what a lock file would hold.
"""

from __future__ import annotations

import base64
import hashlib
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path

PACKAGE = "@ohif/app"
VERSION = "3.13.2"
#: `npm view @ohif/app@3.13.2 dist.integrity`
INTEGRITY = "sha512-WZdxmpmG7rqFgW9ZJLcbgr3XCtLi1KDNPoMaeY5PPe6j4G4fjEjjkycZM6C6Zk2F87BKxFfpq+jd5xXZB9E8EA=="
_FETCH_SECONDS = 300.0


def ohif_pages(cache: Path) -> Path:
    """The folder that a web server serves as OHIF; fetched into ``cache`` unless it is there.

    Raises RuntimeError when npm can't fetch it, or fetches something else.
    """
    kept = cache / f"ohif-{VERSION}"
    if not kept.is_dir():
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as folder:
            with tarfile.open(_fetched(Path(folder))) as archive:
                archive.extractall(folder, filter="data")
            shutil.move(Path(folder) / "package" / "dist", kept)
    return kept


def _fetched(folder: Path) -> Path:
    command = ["npm", "pack", f"{PACKAGE}@{VERSION}", "--pack-destination", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=_FETCH_SECONDS, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"npm couldn't fetch {PACKAGE} {VERSION}: {done.stderr[-1000:]}")
    (archive,) = folder.glob("*.tgz")
    digest = base64.b64encode(hashlib.sha512(archive.read_bytes()).digest()).decode()
    if f"sha512-{digest}" != INTEGRITY:
        raise RuntimeError(f"{PACKAGE} {VERSION} has the digest sha512-{digest}, not {INTEGRITY}")
    return archive
