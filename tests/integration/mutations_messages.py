"""Mutations of messages (PS3.7) and of what they carry: command sets, UIDs, text, data sets, services."""

from __future__ import annotations

import re
import struct
from collections.abc import Iterable
from random import Random
from typing import Required, TypedDict, cast

from pydicom.uid import CTImageStorage, MRImageStorage

from tests.integration.mutation import (
    ECHO,
    FIND,
    IMPLICIT_CONTEXT,
    REQUEST,
    STORING,
    Mutation,
    ct_image,
    new_uid,
    place,
    torn,
)
from tests.integration.raw_dataset import (
    BIG_ENDIAN,
    CHARACTER_SETS,
    DEFLATED,
    EXPLICIT,
    IMPLICIT,
    encode,
    image_elements,
)
from tests.integration.raw_scu import (
    COMMAND,
    CT_CONTEXT,
    ECHO_CONTEXT,
    LAST,
    RELEASE,
    VERIFICATION,
    cut,
    element,
    padded,
    pdu,
    pdv,
    store_message,
)

_UID = re.compile(rb"[0-9]+(\.[0-9]+)*")


def command_set(rng: Random) -> Mutation:  # noqa: PLR0912 one branch a way to be wrong
    """A C-STORE-RQ or C-ECHO-RQ with elements missing, doubled, unknown, wrong in length or content."""
    uid, dataset = ct_image(rng)
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
        at = place(rng, len(elements))
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
        request = request[: place(rng, len(request) + 1)]
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
    uid, dataset = ct_image(rng, syntax=STORING[context], text=elements)
    stream = store_message(uid, dataset, context=context)
    return Mutation(REQUEST, (*torn(rng, stream), RELEASE), statuses=(frozenset({0}),))


def dataset(rng: Random) -> Mutation:
    """A data set that is wrong in structure: lengths, order, nesting, encoding, end."""
    context = rng.choice(sorted(STORING))
    syntax = STORING[context]
    uid = new_uid()
    elements = image_elements(uid)
    if rng.random() < 0.3:
        rng.shuffle(elements)
    if rng.random() < 0.3:
        elements.insert(place(rng, len(elements)), rng.choice(elements))
    if rng.random() < 0.2:
        elements.pop(place(rng, len(elements)))
    other = rng.choice((EXPLICIT, IMPLICIT, BIG_ENDIAN, DEFLATED)) if rng.random() < 0.2 else syntax
    content = bytearray(encode(elements, other))
    for _ in range(rng.randrange(3)):
        at = place(rng, len(content))
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
            (0x0002, padded(rng.choice((CTImageStorage, VERIFICATION, FIND, MRImageStorage, "1.2.3")))),
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
            elements.pop(place(rng, len(elements)))
        context = rng.choice((CT_CONTEXT, ECHO_CONTEXT, IMPLICIT_CONTEXT))
        request = b"".join(element(number, value) for number, value in elements)
        stream += pdu(pdv(request, COMMAND | LAST, context))
        if with_dataset:
            identifier = encode([(0x00080052, b"CS", b"STUDY"), (0x00100010, b"PN", b"*")], IMPLICIT)
            stream += pdu(*cut(rng.choice((identifier, b"", rng.randbytes(50))), 0, 100, context))
    return Mutation(REQUEST, (*torn(rng, stream), RELEASE))
