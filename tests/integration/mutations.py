"""Associations that are wrong, odd, or right in an unusual way, each from a random generator alone.

``KINDS`` names the kinds. The same state of the generator and of ``uid_numbers`` gives the same bytes:
``make fuzz`` seeds both; hypothesis chooses and shrinks what the generator returns (``st.randoms``).
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from random import Random
from typing import Required, TypedDict, cast

from pydicom.uid import CTImageStorage, MRImageStorage

from tests.integration.raw_dataset import (
    BIG_ENDIAN,
    CHARACTER_SETS,
    DEFLATED,
    EXPLICIT,
    IMPLICIT,
    Element,
    encode,
    image_elements,
)
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
    VERIFICATION,
    Context,
    association_request,
    cut,
    element,
    item,
    other_pdu,
    padded,
    pdu,
    pdv,
    proposed,
    request_of,
    store_message,
    store_request,
    user_information,
)

IMPLICIT_CONTEXT, FIND_CONTEXT, DEFLATED_CONTEXT, BIG_CONTEXT = 5, 7, 9, 11
_FIND = "1.2.840.10008.5.1.4.1.2.1.1"
CONTEXTS: tuple[Context, ...] = (
    (CT_CONTEXT, CTImageStorage, EXPLICIT),
    (ECHO_CONTEXT, VERIFICATION, IMPLICIT),
    (IMPLICIT_CONTEXT, CTImageStorage, IMPLICIT),
    (FIND_CONTEXT, _FIND, IMPLICIT),  # rejected: we are no Query/Retrieve SCP
    (DEFLATED_CONTEXT, CTImageStorage, DEFLATED),
    (BIG_CONTEXT, CTImageStorage, BIG_ENDIAN),
)
STORING = {number: syntax for number, abstract, syntax in CONTEXTS if abstract == CTImageStorage}
REQUEST = association_request(CONTEXTS)
ECHO = pdu(pdv(ECHO_REQUEST, COMMAND | LAST, ECHO_CONTEXT))

_UID = re.compile(rb"[0-9]+(\.[0-9]+)*")


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


def _place(rng: Random, length: int) -> int:
    """Below ``length``, which may depend on a UID: hypothesis wants the same draws each time."""
    return int(rng.random() * length)


def _image(rng: Random, *, syntax: str = EXPLICIT, text: Iterable[Element] = ()) -> tuple[str, bytes]:
    uid = new_uid()
    pixels = bytes([rng.getrandbits(8)]) * rng.choice((2, 64, 3000))
    return uid, encode(image_elements(uid, text=tuple(text), pixels=pixels), syntax)


def _good(rng: Random, *, context: int = CT_CONTEXT) -> bytes:
    uid, dataset = _image(rng, syntax=STORING[context])
    return store_message(uid, dataset, context=context, size=rng.choice((300, 16_000)))


def _torn(rng: Random, stream: bytes, most: int = 4) -> tuple[bytes, ...]:
    cuts = sorted(_place(rng, len(stream) + 1) for _ in range(rng.randrange(most)))
    return tuple(stream[a:b] for a, b in zip([0, *cuts], [*cuts, len(stream)], strict=True))


def fragments(rng: Random) -> Mutation:
    """What PS3.8 allows: PDVs of any size, several or none of a message in a PDU, empty last fragments."""
    pdvs: list[bytes] = []
    count = rng.choice((1, 2, 3))
    for number in range(count):
        context = rng.choice(sorted(STORING))
        uid, dataset = _image(rng, syntax=STORING[context])
        request = store_request(uid, message_id=number)
        for content, control in ((request, COMMAND), (dataset, 0)):
            parts = cut(content, control, rng.choice((1, 2, 3, 7, 50, 4000)), context)
            if rng.random() < 0.3:
                parts[-1] = parts[-1][:5] + bytes([control]) + parts[-1][6:]
                parts.append(pdv(b"", control | LAST, context))
            if rng.random() < 0.3:
                parts.insert(_place(rng, len(parts)), pdv(b"", control, context))
            pdvs += parts
        if rng.random() < 0.3:
            pdvs += cut(ECHO_REQUEST, COMMAND, rng.choice((1, 10, 100)), ECHO_CONTEXT)
    together = rng.choice((1, 2, 5, 10_000))
    stream = b"".join(pdu(*pdvs[at : at + together]) for at in range(0, len(pdvs), together))
    return Mutation(REQUEST, _torn(rng, stream + RELEASE), statuses=(frozenset({0}),) * count)


def interleaved(rng: Random) -> Mutation:
    """A PDV too many, or of another context, somewhere in a message."""
    uid, dataset = _image(rng)
    pdvs = [
        *cut(store_request(uid), COMMAND, rng.choice((20, 1000))),
        *cut(dataset, 0, rng.choice((50, 1000))),
    ]
    context = rng.choice((0, 1, 2, 3, 4, IMPLICIT_CONTEXT, FIND_CONTEXT, 13, 99, 255))
    control = rng.choice((0, COMMAND, LAST, COMMAND | LAST, 0xFC, 0xFF))
    content = rng.choice((b"", b"\0", ECHO_REQUEST, store_request(uid), rng.randbytes(20)))
    at = _place(rng, len(pdvs) + 1)
    if rng.random() < 0.3 and at < len(pdvs):
        pdvs[at] = pdvs[at][:4] + bytes([context]) + pdvs[at][5:]
    else:
        pdvs.insert(at, pdv(content, control, context))
    return Mutation(REQUEST, (b"".join(pdu(one) for one in pdvs), RELEASE))


def lengths(rng: Random) -> Mutation:
    """PDUs and PDVs whose lengths lie, that end early, or are larger than we offered to take."""
    uid, dataset = _image(rng)
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
            stream = whole[: _place(rng, len(whole))]
        case 4:  # larger than our maximum PDU
            stream = start + pdu(pdv(dataset + bytes(rng.choice((140_000, 300_000))), LAST))
        case _:  # no PDV at all, again and again
            stream = pdu() * rng.choice((1, 3, 200)) + start + pdu() * 2 + pdu(pdv(dataset, LAST))
    return Mutation(REQUEST, (*_torn(rng, stream), RELEASE))


def command_set(rng: Random) -> Mutation:  # noqa: PLR0912 one branch a way to be wrong
    """A C-STORE-RQ or C-ECHO-RQ with elements missing, doubled, unknown, wrong in length or content."""
    uid, dataset = _image(rng)
    store = rng.random() < 0.8
    elements: list[tuple[int, bytes]] = [
        (0x0002, padded(CTImageStorage if store else VERIFICATION)),
        (0x0100, b"\1\0" if store else b"\x30\0"),
        (0x0110, b"\5\0"),
        (0x0700, struct.pack("<H", rng.choice((0, 1, 2, 3, 0xFFFF)))),
        (0x0800, b"\1\0" if store else b"\1\1"),
        (0x1000, padded(uid)),
    ]
    encoded: list[bytes] = []
    for _ in range(rng.choice((1, 1, 2, 3))):
        at = _place(rng, len(elements))
        number, value = elements[at]
        match rng.randrange(10):
            case 0:
                elements.pop(at)
            case 1:
                elements.insert(at, (number, rng.choice((value, b"", b"\1\0", padded(new_uid())))))
            case 2:
                elements[at] = (number, rng.randbytes(rng.choice((0, 1, 2, 3, 4, 64, 1001))))
            case 3:
                elements[at] = (number, value + b"\0")
            case 4:
                elements[at] = (number, value[:-1])
            case 5:
                elements.append((rng.choice((0x1030, 0x1031, 0x0901, 0x5010, 0xFFFF)), rng.randbytes(16)))
            case 6:
                lie = rng.choice((0, 1, len(value) + 1, 2**16, 2**31, 2**32 - 1))
                encoded.append(element(number, value, length=lie))
            case 7:
                encoded.append(element(number, value, group=rng.choice((1, 2, 8, 0xFFFF))))
            case 8:
                elements.insert(0, (0x0000, rng.choice((struct.pack("<L", 1), b"\xff" * 4, b"", b"\1"))))
            case _:
                rng.shuffle(elements)
        if not elements:
            break
    parts = [element(number, value) for number, value in elements] + encoded
    if rng.random() < 0.2:
        rng.shuffle(parts)
    request = b"".join(parts)
    if rng.random() < 0.1:
        request = request[: _place(rng, len(request) + 1)]
    context = CT_CONTEXT if store else ECHO_CONTEXT
    stream = pdu(*cut(request, COMMAND, rng.choice((1, 30, 10_000)), context))
    stream += pdu(pdv(dataset, LAST)) if store else b""
    return Mutation(REQUEST, (stream, ECHO, RELEASE))


_ODD_UIDS = (
    b"",
    b"\0",
    b" ",
    b"1",
    b"1.2.3",
    b"1.02.003",
    b"1..2",
    b".1.2",
    b"1.2.",
    b"1.2.3 ",
    b"1.2.3    ",
    b" 1.2.3",
    b"1.2.3\0\0\0",
    b"1.2\x003",
    b"1.2.3\n",
    b"1.2,3",
    b"-1.2",
    b"1.2.3\\1.2.4",
    b"../../../../../../../../tmp/pwned",
    b"..\\..\\pwned",
    b"/tmp/pwned",
    b"1.2/../../../../../pwned",
    b"1.2.3/../4",
    b"~/pwned",
    b"%2e%2e%2fpwned",
    b"1.2.3;touch pwned",
    b"$(touch pwned)",
    b"file:///tmp/pwned",
    b"pwned\0.dcm",
    "１.２.３".encode(),
    b"\xff\xfe\xfd",
    b"\x1b[31m1.2.3",
    b"1" * 64,
    b"1." * 31 + b"12",
    b"1" * 65,
    b"1." * 500 + b"1",
    b"1" * 30_000,
)


def _valid(uid: bytes) -> bool:
    return len(uid) <= 64 and _UID.fullmatch(uid) is not None


class _Uids(TypedDict, total=False):
    sop_instance_uid: Required[bytes]
    study_instance_uid: bytes
    series_instance_uid: bytes
    sop_class_uid: bytes


def uids(rng: Random) -> Mutation:
    """UIDs that are empty, odd, too long, no UIDs, or paths, in the command, in the data set, or in both."""
    good = new_uid().encode()
    odd = rng.choice(_ODD_UIDS)
    in_command = good
    in_dataset: _Uids = {"sop_instance_uid": good}
    match rng.randrange(6):
        case 0:
            in_command = odd
        case 1:
            in_dataset["sop_instance_uid"] = odd
        case 2:
            in_command = in_dataset["sop_instance_uid"] = odd
        case 3:
            in_dataset["study_instance_uid"] = odd
        case 4:
            in_dataset["series_instance_uid"] = odd
        case _:
            in_dataset["sop_class_uid"] = odd
    context = rng.choice(sorted(STORING))
    dataset = encode(image_elements(**in_dataset), STORING[context], odd=rng.random() < 0.5)
    request = element(0x0002, padded(CTImageStorage)) + element(0x0100, b"\1\0") + element(0x0110, b"\5\0")
    request += element(0x0800, b"\1\0") + element(0x1000, in_command)
    stream = pdu(pdv(request, COMMAND | LAST, context)) + b"".join(
        pdu(one) for one in cut(dataset, 0, 16_000, context)
    )
    found = [value.strip(b" \0") for value in cast(Iterable[bytes], in_dataset.values())]
    if not all(_valid(uid) for uid in found):
        statuses = {0xC000}
    elif in_command.strip(b" \0") != found[0] or in_dataset.get("sop_class_uid"):
        statuses = {0xA900}
    else:  # one like "1.2.3" may be stored with other content already
        statuses = {0x0000} if found[0] == good else {0x0000, 0xC001}
    return Mutation(REQUEST, (stream, ECHO, RELEASE), statuses=(frozenset(statuses),))


def text(rng: Random) -> Mutation:
    """Names in every character set, in what the data set says it is or in another, and bytes at random."""
    context = rng.choice(sorted(STORING))
    term, name = rng.choice(CHARACTER_SETS)
    match rng.randrange(5):
        case 0:
            name = rng.choice(CHARACTER_SETS)[1]
        case 1:
            name = rng.randbytes(rng.choice((1, 64, 300)))
        case 2:
            term = rng.choice(
                (b"ISO_IR 999", b"\\" * 1000, rng.randbytes(20), b"UTF-8", b"latin1\\\\GB18030")
            )
    elements = [
        (0x00080005, b"CS", term),
        (0x00081030, b"LO", name[:64]),
        (0x00100010, b"PN", name),
        (0x00104000, b"LT", name * 10),
        (0x00091010, b"UT", name),
    ]
    uid, dataset = _image(rng, syntax=STORING[context], text=elements)
    stream = store_message(uid, dataset, context=context)
    return Mutation(REQUEST, (*_torn(rng, stream), RELEASE), statuses=(frozenset({0}),))


def dataset(rng: Random) -> Mutation:
    """A data set that is wrong in structure: lengths, order, nesting, encoding, end."""
    context = rng.choice(sorted(STORING))
    syntax = STORING[context]
    uid = new_uid()
    elements = image_elements(uid)
    if rng.random() < 0.3:
        rng.shuffle(elements)
    if rng.random() < 0.3:
        elements.insert(_place(rng, len(elements)), rng.choice(elements))
    if rng.random() < 0.2:
        elements.pop(_place(rng, len(elements)))
    other = rng.choice((EXPLICIT, IMPLICIT, BIG_ENDIAN, DEFLATED)) if rng.random() < 0.2 else syntax
    content = bytearray(encode(elements, other))
    for _ in range(rng.randrange(3)):
        at = _place(rng, len(content))
        match rng.randrange(5):
            case 0:
                content[at : at + 1] = rng.randbytes(1)
            case 1:
                content[at : at + 4] = struct.pack("<L", rng.choice((0, 1, 2**16, 2**31, 2**32 - 1)))
            case 2:
                del content[at:]
            case 3:
                content[at:at] = rng.randbytes(rng.choice((1, 8, 100)))
            case _:
                nested = struct.pack("<HHLHHL", 8, 0x1140, 2**32 - 1, 0xFFFE, 0xE000, 2**32 - 1)
                content[at:at] = nested * rng.choice((1, 100, 2000))
    return Mutation(REQUEST, (store_message(uid, bytes(content), context=context), ECHO, RELEASE))


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
    return Mutation(request, (_good(rng), ECHO, RELEASE))


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
        at = _place(rng, len(items))
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
                items[at] = items[at][: _place(rng, len(items[at]) + 1)]
            case _:
                rng.shuffle(items)
        if not items:
            break


def states(rng: Random) -> Mutation:
    """PDUs that the state machine doesn't expect: before, while and after what it does."""
    uid, image = _image(rng)
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
        _good(rng),
        b"GET / HTTP/1.1\r\n\r\n",
        b"\x16\x03\x01\x02\0\1\0\1\xfc\3\3",
    )
    pieces = tuple(rng.choice(unexpected) for _ in range(rng.choice((1, 2, 3, 6))))
    if rng.random() < 0.2:
        return Mutation(rng.choice(unexpected), pieces, waits=False)
    if rng.random() < 0.2:  # what comes before the answer
        return Mutation(REQUEST, pieces, waits=False)
    return Mutation(REQUEST, pieces)


_COMMAND_FIELDS = (
    *(0x0001, 0x0010, 0x0020, 0x0021, 0x0030, 0x0100, 0x0110, 0x0120, 0x0130, 0x0140, 0x0150, 0x0FFF),
    *(0x8001, 0x8010, 0x8020, 0x8021, 0x8030, 0x8100, 0x8110, 0x8120, 0x8130, 0x8140, 0x8150),
    *(0x0000, 0x0002, 0x7FFF, 0xFFFF),
)


def services(rng: Random) -> Mutation:
    """Requests for what we don't serve, cancels, and answers to what we never asked."""
    stream = b""
    for _ in range(rng.choice((1, 2, 5, 20))):
        name = rng.choice(_COMMAND_FIELDS)
        with_dataset = rng.random() < 0.4
        elements = [
            (0x0002, padded(rng.choice((CTImageStorage, VERIFICATION, _FIND, MRImageStorage, "1.2.3")))),
            (0x0100, struct.pack("<H", name)),
            (0x0110, struct.pack("<H", rng.randrange(65536))),
            (0x0120, struct.pack("<H", rng.randrange(65536))),
            (0x0600, b"SOMEWHERE "),
            (0x0700, b"\0\0"),
            (0x0800, b"\1\0" if with_dataset else b"\1\1"),
            (0x0900, b"\0\0"),
            (0x1000, padded(new_uid())),
            (0x1002, b"\1\0"),
            (0x1008, b"\1\0"),
        ]
        for _ in range(rng.randrange(4)):
            elements.pop(_place(rng, len(elements)))
        context = rng.choice((CT_CONTEXT, ECHO_CONTEXT, IMPLICIT_CONTEXT))
        request = b"".join(element(number, value) for number, value in elements)
        stream += pdu(pdv(request, COMMAND | LAST, context))
        if with_dataset:
            identifier = encode([(0x00080052, b"CS", b"STUDY"), (0x00100010, b"PN", b"*")], IMPLICIT)
            stream += pdu(*cut(rng.choice((identifier, b"", rng.randbytes(50))), 0, 100, context))
    return Mutation(REQUEST, (*_torn(rng, stream), RELEASE))


def damage(rng: Random) -> Mutation:
    """Valid messages, or a valid request, with bytes changed, removed, repeated, inserted, or cut off."""
    messages = [
        _good(rng),
        store_message(new_uid(), _image(rng)[1][: rng.randrange(200)], size=rng.choice((7, 100))),
        ECHO,
    ]
    rng.shuffle(messages)
    head, body = REQUEST, b"".join(messages) + RELEASE
    if rng.random() < 0.2:
        head = _damaged(rng, head)
    else:
        body = _damaged(rng, body)
    return Mutation(head, _torn(rng, body))


def _damaged(rng: Random, stream: bytes) -> bytes:
    data = bytearray(stream)
    for _ in range(rng.choice((1, 1, 1, 2, 5))):
        at = _place(rng, len(data))
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
