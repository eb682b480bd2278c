"""Associations that are wrong, odd, or right in an unusual way, each from a random generator alone.

``KINDS`` names the kinds. The same state of the generator and of ``mutation.uid_numbers`` gives the same
bytes: ``make fuzz`` seeds both; hypothesis chooses and shrinks what the generator returns (``st.randoms``).
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from tests.integration.mutation import Mutation
from tests.integration.mutations_framing import associate, damage, fragments, interleaved, lengths, states
from tests.integration.mutations_messages import command_set, dataset, services, text, uids

KINDS: dict[str, Callable[[Random], Mutation]] = {
    "fragments": fragments,
    "interleaved": interleaved,
    "lengths": lengths,
    "command_set": command_set,
    "uids": uids,
    "text": text,
    "dataset": dataset,
    "associate": associate,
    "states": states,
    "services": services,
    "damage": damage,
}
