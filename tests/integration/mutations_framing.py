"""Mutations of PDUs and PDVs (PS3.8): fragments, lengths, negotiation, states, bytes."""

from __future__ import annotations

import struct
from random import Random

from pydicom.uid import CTImageStorage

from tests.integration.mutation import (
    CONTEXTS,
    ECHO,
    FIND_CONTEXT,
    IMPLICIT_CONTEXT,
    REQUEST,
    STORING,
    Mutation,
    ct_image,
    good,
    new_uid,
    place,
    torn,
)
from tests.integration.raw_dataset import EXPLICIT
from tests.integration.raw_scu import (
    ABORT,
    APPLICATION,
    ASSOCIATE_AC,
    ASSOCIATE_RJ,
    COMMAND,
    CT_CONTEXT,
    ECHO_CONTEXT,
    ECHO_REQUEST,
    LAST,
    P_DATA,
    RELEASE,
    RELEASE_RP,
    cut,
    item,
    other_pdu,
    pdu,
    pdv,
    proposed,
    request_of,
    store_message,
    store_request,
    user_information,
)


def fragments(rng: Random) -> Mutation:
    """What PS3.8 allows: PDVs of any size, several or none of a message in a PDU, empty last fragments."""
    pdvs: list[bytes] = []
    count = rng.choice((1, 2, 3))
    for number in range(count):
        context = rng.choice(sorted(STORING))
        uid, dataset = ct_image(rng, syntax=STORING[context])
        request = store_request(uid, message_id=number)
        for content, control in ((request, COMMAND), (dataset, 0)):
            parts = cut(content, control, rng.choice((1, 2, 3, 7, 50, 4000)), context)
            if rng.random() < 0.3:
                parts[-1] = parts[-1][:5] + bytes([control]) + parts[-1][6:]
                parts.append(pdv(b"", control | LAST, context))
            if rng.random() < 0.3:
                parts.insert(place(rng, len(parts)), pdv(b"", control, context))
            pdvs += parts
        if rng.random() < 0.3:
            pdvs += cut(ECHO_REQUEST, COMMAND, rng.choice((1, 10, 100)), ECHO_CONTEXT)
    together = rng.choice((1, 2, 5, 10_000))
    stream = b"".join(pdu(*pdvs[at : at + together]) for at in range(0, len(pdvs), together))
    return Mutation(REQUEST, torn(rng, stream + RELEASE), statuses=(frozenset({0}),) * count)


def interleaved(rng: Random) -> Mutation:
    """A PDV too many, or of another context, somewhere in a message."""
    uid, dataset = ct_image(rng)
    pdvs = [
        *cut(store_request(uid), COMMAND, rng.choice((20, 1000))),
        *cut(dataset, 0, rng.choice((50, 1000))),
    ]
    context = rng.choice((0, 1, 2, 3, 4, IMPLICIT_CONTEXT, FIND_CONTEXT, 13, 99, 255))
    control = rng.choice((0, COMMAND, LAST, COMMAND | LAST, 0xFC, 0xFF))
    content = rng.choice((b"", b"\0", ECHO_REQUEST, store_request(uid), rng.randbytes(20)))
    at = place(rng, len(pdvs) + 1)
    if rng.random() < 0.3 and at < len(pdvs):
        pdvs[at] = pdvs[at][:4] + bytes([context]) + pdvs[at][5:]
    else:
        pdvs.insert(at, pdv(content, control, context))
    return Mutation(REQUEST, (b"".join(pdu(one) for one in pdvs), RELEASE))


def lengths(rng: Random) -> Mutation:
    """PDUs and PDVs whose lengths lie, that end early, or are larger than we offered to take."""
    uid, dataset = ct_image(rng)
    start = pdu(pdv(store_request(uid), COMMAND | LAST))
    match rng.randrange(6):
        case 0:  # the PDU's length
            lie = rng.choice((0, 1, 5, 6, len(dataset), 2**16, 2**31, 2**32 - 1))
            stream = start + struct.pack(">BBL", P_DATA, 0, lie) + pdv(dataset, LAST)
        case 1:  # the PDV's length
            lie = rng.choice((0, 1, 2, len(dataset), len(dataset) + 3, 2**31, 2**32 - 1))
            stream = start + pdu(struct.pack(">LBB", lie, CT_CONTEXT, LAST) + dataset)
        case 2:  # a piece of a PDV header at the end of a PDU
            stream = start + pdu(pdv(dataset, rng.choice((0, LAST))), rng.randbytes(rng.choice((1, 4, 5))))
        case 3:  # cut anywhere
            whole = start + pdu(pdv(dataset, LAST))
            stream = whole[: place(rng, len(whole))]
        case 4:  # larger than our maximum PDU
            stream = start + pdu(pdv(dataset + bytes(rng.choice((140_000, 300_000))), LAST))
        case _:  # no PDV at all, again and again
            stream = pdu() * rng.choice((1, 3, 200)) + start + pdu() * 2 + pdu(pdv(dataset, LAST))
    return Mutation(REQUEST, (*torn(rng, stream), RELEASE))


def associate(rng: Random) -> Mutation:
    """An A-ASSOCIATE-RQ with items missing, doubled, unknown or lying, odd titles, versions and contexts."""
    more = b"".join(
        item(kind, rng.choice((b"", b"\0\1", rng.randbytes(12), b"\0\4abcd\0\2", b"\1\0\0\3abc\0\0")))
        for kind in rng.sample((0x53, 0x54, 0x55, 0x56, 0x57, 0x58, 0x59, 0x7F), rng.randrange(3))
    )
    maximum = rng.choice((16382, 16382, 0, 1, 5, 6, 7, 8, 100, 2**32 - 1))
    items = [APPLICATION, *_odd_contexts(rng), user_information(maximum, more)]
    _disturb(rng, items)
    titles = (b"", b"\0" * 16, b"A\\B", b"\xff" * 16, b"\x1b[31m", b"X" * 16, "ÄÖÜ".encode(), b"SENDER\0")
    request = request_of(
        items,
        calling=rng.choice(titles) if rng.random() < 0.15 else b"SENDER",
        called=rng.choice(titles) if rng.random() < 0.15 else b"PACSNODE",
        version=rng.choice((0, 2, 3, 0x8001, 0xFFFF)) if rng.random() < 0.15 else 1,
        reserved=rng.randbytes(32) if rng.random() < 0.2 else bytes(32),
    )
    if rng.random() < 0.1:
        request = request[:2] + struct.pack(">L", rng.choice((0, 1, 68, 2**20, 2**32 - 1))) + request[6:]
    return Mutation(request, (good(rng), ECHO, RELEASE))


def _odd_contexts(rng: Random) -> list[bytes]:
    contexts = [proposed(*context) for context in CONTEXTS]
    match rng.randrange(9):
        case 0:
            contexts = []
        case 1:
            contexts = [proposed(2 * n + 1, CTImageStorage, EXPLICIT) for n in range(rng.choice((127, 128)))]
        case 2:
            contexts += contexts
        case 3:
            number = rng.choice((0, 2, 254, 255))
            contexts.insert(0, proposed(number, CTImageStorage, EXPLICIT))
        case 4:
            contexts.append(proposed(21, CTImageStorage, *(f"1.2.3.{n}" for n in range(200))))
        case 5:
            contexts.append(item(0x20, b"\x15\0\0\0" + rng.choice((b"", item(0x40, EXPLICIT.encode())))))
        case 6:
            odd = rng.choice(
                (b"", b"1" * 65, b"1.2.3 ", b"../x", rng.randbytes(9), CTImageStorage.encode() + b"\0")
            )
            contexts.append(
                item(0x20, b"\x17\0\0\0" + item(0x30, odd) + item(0x40, rng.choice((odd, b"1.2"))))
            )
    return contexts


def _disturb(rng: Random, items: list[bytes]) -> None:
    for _ in range(rng.choice((0, 0, 1, 2))):
        at = place(rng, len(items))
        match rng.randrange(6):
            case 0:
                items.pop(at)
            case 1:
                items.insert(at, items[at])
            case 2:
                items.insert(
                    at, item(rng.choice((0, 0x11, 0x21, 0x60, 0xFF)), rng.randbytes(rng.randrange(9)))
                )
            case 3:
                lie = rng.choice((0, 1, 3, 0xFFFF))
                items[at] = items[at][:2] + struct.pack(">H", lie) + items[at][4:]
            case 4:
                items[at] = items[at][: place(rng, len(items[at]) + 1)]
            case _:
                rng.shuffle(items)
        if not items:
            break


def states(rng: Random) -> Mutation:
    """PDUs that the state machine doesn't expect: before, while and after what it does."""
    uid, image = ct_image(rng)
    half = pdu(pdv(store_request(uid), COMMAND | LAST), pdv(image[:40], 0))
    unexpected = (
        REQUEST,
        other_pdu(ASSOCIATE_AC, REQUEST[6:]),
        other_pdu(ASSOCIATE_RJ, b"\0\1\1\1"),
        RELEASE,
        other_pdu(RELEASE_RP),
        other_pdu(ABORT, b"\0\0" + rng.choice((b"\0\0", b"\2\1", b"\xff\xff"))),
        other_pdu(rng.choice((0, 8, 0x47, 0xFF)), rng.randbytes(rng.choice((0, 4, 100)))),
        other_pdu(ABORT, b""),
        other_pdu(5, bytes(100)),
        other_pdu(5, b""),
        half,
        ECHO,
        good(rng),
        b"GET / HTTP/1.1\r\n\r\n",
        b"\x16\x03\x01\x02\0\1\0\1\xfc\3\3",
    )
    pieces = tuple(rng.choice(unexpected) for _ in range(rng.choice((1, 2, 3, 6))))
    if rng.random() < 0.2:
        return Mutation(rng.choice(unexpected), pieces, waits=False)
    if rng.random() < 0.2:  # what comes before the answer
        return Mutation(REQUEST, pieces, waits=False)
    return Mutation(REQUEST, pieces)


def damage(rng: Random) -> Mutation:
    """Valid messages, or a valid request, with bytes changed, removed, repeated, inserted, or cut off."""
    messages = [
        good(rng),
        store_message(new_uid(), ct_image(rng)[1][: rng.randrange(200)], size=rng.choice((7, 100))),
        ECHO,
    ]
    rng.shuffle(messages)
    head, body = REQUEST, b"".join(messages) + RELEASE
    if rng.random() < 0.2:
        head = _damaged(rng, head)
    else:
        body = _damaged(rng, body)
    return Mutation(head, torn(rng, body))


def _damaged(rng: Random, stream: bytes) -> bytes:
    data = bytearray(stream)
    for _ in range(rng.choice((1, 1, 1, 2, 5))):
        at = place(rng, len(data))
        match rng.randrange(6):
            case 0:
                data[at : at + 1] = bytes([rng.randrange(256)])
            case 1:
                del data[at : at + rng.choice((1, 4, 100))]
            case 2:
                data[at:at] = rng.randbytes(rng.choice((1, 6, 300)))
            case 3:
                data[at:at] = data[at : at + rng.choice((6, 50, 1000))]
            case 4:
                data[at : at + 4] = struct.pack(">L", rng.choice((0, 1, 2**16, 2**31, 2**32 - 1)))
            case _:
                del data[at:]
    return bytes(data)
