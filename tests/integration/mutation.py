"""One association of ``mutations``, and what all its kinds are made of."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from random import Random

from pydicom.uid import CTImageStorage

from tests.integration.raw_dataset import (
    BIG_ENDIAN,
    DEFLATED,
    EXPLICIT,
    IMPLICIT,
    Element,
    encode,
    image_elements,
)
from tests.integration.raw_scu import (
    COMMAND,
    CT_CONTEXT,
    ECHO_CONTEXT,
    ECHO_REQUEST,
    LAST,
    VERIFICATION,
    Context,
    association_request,
    pdu,
    pdv,
    store_message,
)

IMPLICIT_CONTEXT, FIND_CONTEXT, DEFLATED_CONTEXT, BIG_CONTEXT = 5, 7, 9, 11
FIND = "1.2.840.10008.5.1.4.1.2.1.1"
CONTEXTS: tuple[Context, ...] = (
    (CT_CONTEXT, CTImageStorage, EXPLICIT),
    (ECHO_CONTEXT, VERIFICATION, IMPLICIT),
    (IMPLICIT_CONTEXT, CTImageStorage, IMPLICIT),
    (FIND_CONTEXT, FIND, IMPLICIT),  # rejected: we are no Query/Retrieve SCP
    (DEFLATED_CONTEXT, CTImageStorage, DEFLATED),
    (BIG_CONTEXT, CTImageStorage, BIG_ENDIAN),
)
STORING = {number: syntax for number, abstract, syntax in CONTEXTS if abstract == CTImageStorage}
REQUEST = association_request(CONTEXTS)
ECHO = pdu(pdv(ECHO_REQUEST, COMMAND | LAST, ECHO_CONTEXT))


@dataclass(frozen=True)
class Mutation:
    """One association. ``pieces`` are sent one by one, after the answer to ``request`` when ``waits``.

    statuses: for each C-STORE, what may be answered; None where that isn't said.
    """

    request: bytes
    pieces: tuple[bytes, ...]
    waits: bool = True
    statuses: tuple[frozenset[int], ...] | None = None


#: apart from the generators', which may repeat themselves; of constant length, on which they may depend
uid_numbers = Random(0)  # noqa: S311 repeatable


def new_uid() -> str:
    return f"1.2.826.0.1.3680043.9.9999.1{uid_numbers.randrange(10**17):017}"


def place(rng: Random, length: int) -> int:
    """Below ``length``, which may depend on a UID: hypothesis wants the same draws each time."""
    return int(rng.random() * length)


def ct_image(rng: Random, *, syntax: str = EXPLICIT, text: Iterable[Element] = ()) -> tuple[str, bytes]:
    uid = new_uid()
    pixels = bytes([rng.getrandbits(8)]) * rng.choice((2, 64, 3000))
    return uid, encode(image_elements(uid, text=tuple(text), pixels=pixels), syntax)


def good(rng: Random, *, context: int = CT_CONTEXT) -> bytes:
    uid, dataset = ct_image(rng, syntax=STORING[context])
    return store_message(uid, dataset, context=context, size=rng.choice((300, 16_000)))


def torn(rng: Random, stream: bytes, most: int = 4) -> tuple[bytes, ...]:
    cuts = sorted(place(rng, len(stream) + 1) for _ in range(rng.randrange(most)))
    return tuple(stream[a:b] for a, b in zip([0, *cuts], [*cuts, len(stream)], strict=True))
