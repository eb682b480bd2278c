"""UIDs that are a function of facts: the same facts, the same UID, wherever and whenever.

In: facts as JSON's types.  Out: a UID below ``2.25``, or below a root of the site's.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence

from pydicom.uid import UID

MAX_UID_LENGTH = 64  # PS3.5 9.1


def derived_uid(facts: Sequence[object], uid_root: str | None) -> UID:
    """The UID of these facts."""
    canonical = json.dumps(facts, separators=(",", ":"), ensure_ascii=True)
    number = int.from_bytes(hashlib.sha256(canonical.encode("ascii")).digest()[:16], "big")
    if uid_root is None:
        # PS3.5 B.2 wants a UUID below 2.25: RFC 9562 version 8 (custom hash), variant 10
        number = number & ~(0xF << 76) & ~(0x3 << 62) | 0x8 << 76 | 0x2 << 62
        return UID(f"2.25.{number}")
    digits = MAX_UID_LENGTH - len(uid_root) - 1
    return UID(f"{uid_root}.{number % 10**digits}")
