"""A short run of the fuzzer; ``make fuzz`` is the long one."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.integration.fuzz_receive import Fuzzer, Receiver, mutation_of
from tests.integration.mutations import KINDS

pytestmark = pytest.mark.integration

SEED = 20261121


def test_mutated_associations_beside_a_good_sender(tmp_path: Path) -> None:
    receiver = Receiver(tmp_path / "receiver")
    fuzzer = Fuzzer(receiver, SEED)
    try:
        fuzzer.run(500)
        kept = receiver.verify()
    finally:
        receiver.stop()
    assert set(fuzzer.outcomes) == set(KINDS)
    assert sum(sum(outcomes.values()) for outcomes in fuzzer.outcomes.values()) == 500
    assert kept["stored"] > 100 and kept["unreadable_dataset"] and kept["invalid_uid"]
    assert len(receiver.good_series) > 5


def test_a_seed_repeats_its_associations() -> None:
    first = [mutation_of(SEED, number) for number in range(50)]
    assert [mutation_of(SEED, number) for number in range(50)] == first
    assert mutation_of(SEED + 1, 0) != first[0]
