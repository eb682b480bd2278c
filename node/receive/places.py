"""Where received instances lie: JOURNAL and INCOMING below the node's ``own_dir``, the others below data_dir.

No path contains text that a peer chose, only hashes of it.
"""

from __future__ import annotations

import hashlib

JOURNAL, INCOMING, STORED = "spool/journal", "spool/incoming", "spool/series"
QUARANTINE = "spool/quarantine"


def path_of(series_instance_uid: str, sop_instance_uid: str) -> str:
    """Where an instance is stored."""
    return f"{STORED}/{hash_of(series_instance_uid)}/{hash_of(sop_instance_uid)}.dcm"


def hash_of(text: str) -> str:
    """What stands for a peer's text in a path."""
    return hashlib.sha256(text.encode("utf-8", errors="surrogateescape")).hexdigest()[:32]
