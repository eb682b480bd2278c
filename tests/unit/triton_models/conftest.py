"""What the model tests share: shared data that isn't part of the repository, and small phantoms."""

from __future__ import annotations

from pathlib import Path

import pytest

from triton_models.data.phantom import Phantom, chest_phantom

SHARED_CT = Path(__file__).parents[4] / "shared" / "data" / "chest_ct"


@pytest.fixture(scope="session")
def shared_ct() -> Path:
    """The folder of real chest CT beside the checkout."""
    if not SHARED_CT.is_dir():
        pytest.skip(f"real chest CT is not there: {SHARED_CT.name} beside the checkout")
    return SHARED_CT


@pytest.fixture(scope="session")
def small_phantom() -> Phantom:
    """A phantom with ground glass and consolidation, 12 slices of 160 x 160."""
    return chest_phantom(11, slices=12, rows=160, columns=160, lesions="dense")
