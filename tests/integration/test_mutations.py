"""Mutated associations, chosen and shrunk by hypothesis: each gets a well-formed answer, an abort or an end.

``PACSNODE_EXAMPLES`` is the number of examples of each kind; where it is set they are random, without it the
same in every run.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from random import Random

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tests.integration.fuzz_receive import Receiver
from tests.integration.mutation import uid_numbers
from tests.integration.mutations import KINDS

pytestmark = pytest.mark.integration

EXAMPLES = int(os.environ.get("PACSNODE_EXAMPLES", "0"))


@pytest.fixture(scope="module")
def receiver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Receiver]:
    uid_numbers.seed("test_mutations")
    running = Receiver(tmp_path_factory.mktemp("mutations") / "receiver")
    yield running
    running.stop()


@pytest.mark.parametrize("kind", sorted(KINDS))
@settings(
    max_examples=EXAMPLES or 100,
    derandomize=not EXAMPLES,
    database=None,
    deadline=None,
    phases=[Phase.generate, Phase.shrink],
    suppress_health_check=list(HealthCheck),
)
@given(rng=st.randoms(use_true_random=False))
def test_mutations(receiver: Receiver, kind: str, rng: Random) -> None:
    """What is acknowledged is remembered; ``test_what_was_acknowledged_is_stored`` comes last."""
    receiver.play(KINDS[kind](rng))


def test_others_are_served_and_nothing_leaks(receiver: Receiver) -> None:
    receiver.send_good_series()
    left = receiver.resources()
    assert left.descriptors < 40 and left.threads < 15 and left.rss_kb < 150_000, str(left)


def test_what_was_acknowledged_is_stored(receiver: Receiver) -> None:
    kept = receiver.verify()
    assert kept["stored"] > 50 and kept["unreadable_dataset"] and kept["invalid_uid"]
