"""Where the real test data lies: a folder beside the checkout that is never committed."""

from __future__ import annotations

from pathlib import Path

import pytest

SHARED_DATA = Path(__file__).parents[1].parent / "shared" / "data"


def shared(relative: str) -> Path:
    """A file or folder of the shared test data; skips the test where it isn't there."""
    path = SHARED_DATA / relative
    if not path.exists():
        pytest.skip(f"needs the shared test data: {relative} isn't beside the checkout")
    return path
