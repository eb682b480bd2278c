"""An SCU over a plain socket: it cuts messages as it is told, and sends any bytes.

Everything is encoded by hand, so that each part can be wrong; ``read_pdus``, ``sent_stores`` and
``checked_answers`` say what a stream of either direction means.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian
from pynetdicom.pdu import A_ASSOCIATE_AC

from node.receive.command import BadCommandSet, read_elements
from tests.integration.receiving import CALLING

COMMAND, LAST = 1, 2
CT_CONTEXT, ECHO_CONTEXT = 1, 3
ASSOCIATE_RQ, ASSOCIATE_AC, ASSOCIATE_RJ, P_DATA, RELEASE_RQ, RELEASE_RP, ABORT = range(1, 8)
VERIFICATION = "1.2.840.10008.1.1"

#: number, abstract syntax, transfer syntax
Context = tuple[int, str, str]
CONTEXTS: tuple[Context, ...] = (
    (CT_CONTEXT, CTImageStorage, ExplicitVRLittleEndian),
    (ECHO_CONTEXT, VERIFICATION, "1.2.840.10008.1.2"),
)


def other_pdu(kind: int, content: bytes = bytes(4)) -> bytes:
    return struct.pack(">BBL", kind, 0, len(content)) + content


RELEASE = other_pdu(RELEASE_RQ)


def item(kind: int, content: bytes) -> bytes:
    """An item or sub-item of an A-ASSOCIATE-RQ (PS3.8 9.3.2)."""
    return struct.pack(">BBH", kind, 0, len(content)) + content


def proposed(number: int, abstract_syntax: str, *transfer_syntaxes: str) -> bytes:
    syntaxes = b"".join(item(0x40, uid.encode()) for uid in transfer_syntaxes)
    return item(0x20, bytes([number, 0, 0, 0]) + item(0x30, abstract_syntax.encode()) + syntaxes)


APPLICATION = item(0x10, b"1.2.840.10008.3.1.1.1")


def user_information(max_pdu_bytes: int = 16382, *more: bytes) -> bytes:
    length = item(0x51, struct.pack(">L", max_pdu_bytes))
    return item(0x50, b"".join((length, item(0x52, b"1.2.826.0.1.3680043.9.9999"), *more)))


def request_of(
    items: Sequence[bytes],
    *,
    called: bytes = b"PACSNODE",
    calling: bytes = CALLING.encode(),
    version: int = 1,
    reserved: bytes = bytes(32),
) -> bytes:
    """An A-ASSOCIATE-RQ with these items."""
    titles = called.ljust(16)[:16] + calling.ljust(16)[:16]
    return other_pdu(ASSOCIATE_RQ, struct.pack(">H2x", version) + titles + reserved + b"".join(items))


def association_request(contexts: Sequence[Context] = CONTEXTS) -> bytes:
    return request_of([APPLICATION, *(proposed(*context) for context in contexts), user_information()])


class RawScu:
    """An association over a plain socket, to which any bytes can be sent.

    ``results`` has the acceptor's answer for each context: 0 is accepted (PS3.8 table 9-18).
    """

    def __init__(
        self, port: int, contexts: Sequence[Context] = CONTEXTS, *, receive_buffer_bytes: int = 0
    ) -> None:
        self.socket = socket.socket()
        self.socket.settimeout(10)
        if receive_buffer_bytes:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer_bytes)
        self.socket.connect(("127.0.0.1", port))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.sendall(association_request(contexts))
        kind, content = self.pdu()
        assert kind == ASSOCIATE_AC, f"PDU {kind} instead of A-ASSOCIATE-AC"
        accept = A_ASSOCIATE_AC()
        accept.decode(other_pdu(kind, content))
        self.results = {cx.presentation_context_id: cx.result for cx in accept.presentation_context}

    def __enter__(self) -> RawScu:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def pdu(self) -> tuple[int, bytes]:
        """The next PDU: type and content. (0, b"") when the connection was closed."""
        header = self._exactly(6)
        if len(header) < 6:
            return 0, b""
        return header[0], self._exactly(int.from_bytes(header[2:], "big"))

    def status(self) -> int:
        """Of the next response."""
        kind, content = self.pdu()
        assert kind == P_DATA, f"PDU {kind} instead of P-DATA-TF"
        return int.from_bytes(read_elements(content[6:])[0x0900], "little")

    def release(self) -> None:
        self.socket.sendall(RELEASE)
        kind, _ = self.pdu()
        assert kind == RELEASE_RP, f"PDU {kind} instead of A-RELEASE-RP"

    def _exactly(self, count: int) -> bytes:
        data = b""
        while len(data) < count and (more := self.socket.recv(count - len(data))):
            data += more
        return data


def element(number: int, value: bytes, *, group: int = 0, length: int | None = None) -> bytes:
    return struct.pack("<HHL", group, number, len(value) if length is None else length) + value


def padded(text: str | bytes) -> bytes:
    value = text.encode() if isinstance(text, str) else text
    return value + b"\0" * (len(value) % 2)


def store_request(
    sop_instance_uid: str | bytes,
    *,
    sop_class_uid: str | bytes = CTImageStorage,
    message_id: int = 1,
    data_set: bool = True,
) -> bytes:
    return b"".join(
        (
            element(0x0002, padded(sop_class_uid)),
            element(0x0100, b"\1\0"),
            element(0x0110, struct.pack("<H", message_id)),
            element(0x0700, b"\0\0"),
            element(0x0800, b"\1\0" if data_set else b"\1\1"),
            element(0x1000, padded(sop_instance_uid)),
        )
    )


ECHO_REQUEST = b"".join(
    (
        element(0x0002, padded(VERIFICATION)),
        element(0x0100, b"\x30\0"),
        element(0x0110, b"\7\0"),
        element(0x0800, b"\1\1"),
    )
)


def pdv(content: bytes, control: int, context: int = CT_CONTEXT) -> bytes:
    return struct.pack(">LBB", len(content) + 2, context, control) + content


def pdu(*pdvs: bytes) -> bytes:
    content = b"".join(pdvs)
    return struct.pack(">BBL", P_DATA, 0, len(content)) + content


def cut(content: bytes, control: int, size: int, context: int = CT_CONTEXT) -> list[bytes]:
    pieces = [content[i : i + size] for i in range(0, len(content), size)] or [b""]
    return [pdv(p, control | (LAST if i + 1 == len(pieces) else 0), context) for i, p in enumerate(pieces)]


def store_message(
    sop_instance_uid: str | bytes,
    dataset: bytes,
    *,
    sop_class_uid: str | bytes = CTImageStorage,
    message_id: int = 1,
    size: int = 16_000,
    context: int = CT_CONTEXT,
) -> bytes:
    """A C-STORE-RQ with its data set, in PDVs of ``size`` bytes, each in a PDU of its own."""
    request = store_request(sop_instance_uid, sop_class_uid=sop_class_uid, message_id=message_id)
    pdvs = [pdv(request, COMMAND | LAST, context), *cut(dataset, 0, size, context)]
    return b"".join(pdu(one) for one in pdvs)


def read_pdus(stream: bytes, *, unfinished: bool = False) -> Iterator[tuple[int, bytes]]:
    """The whole PDUs of a stream: type and content; and the last one if it is ``unfinished``."""
    at = 0
    while at + 6 <= len(stream):
        length = int.from_bytes(stream[at + 2 : at + 6], "big")
        if at + 6 + length > len(stream) and not unfinished:
            return
        yield stream[at], stream[at + 6 : at + 6 + length]
        at += 6 + length


def sent_stores(stream: bytes) -> list[bytes]:
    """The data sets of the C-STORE-RQs that a stream carries, in order, until it breaks PS3.8 or PS3.7."""
    stores: list[bytes] = []
    command, dataset = bytearray(), bytearray()
    storing = False
    for kind, content in read_pdus(stream, unfinished=True):
        if kind != P_DATA:
            return stores
        at = 0
        while at + 6 <= len(content):
            length, _context, control = struct.unpack_from(">LBB", content, at)
            fragment = content[at + 6 : at + 4 + length]
            at += 4 + length
            if length < 2 or at > len(content):
                return stores
            if control & COMMAND:
                command += fragment
                if control & LAST:
                    try:
                        elements = read_elements(command)
                    except BadCommandSet:
                        return stores
                    command.clear()
                    dataset.clear()
                    storing = elements.get(0x0100) == b"\1\0"
                    if storing and elements.get(0x0800) == b"\1\1":
                        stores.append(b"")
            else:
                dataset += fragment
                if control & LAST and storing:
                    stores.append(bytes(dataset))
    return stores


@dataclass
class Answers:
    """What came back. kinds: of PDUs.  stores: status and SOP Instance UID of C-STORE-RSPs, in order."""

    kinds: list[int] = field(default_factory=list)
    stores: list[tuple[int, str]] = field(default_factory=list)
    unfinished: bytearray = field(default_factory=bytearray)  # a command set that goes on in the next PDU


def checked_answers(stream: bytes) -> Answers:
    """Asserts that every whole PDU that the node sent is well-formed (PS3.8 9.3, PS3.7 6.3)."""
    answers = Answers()
    for kind, content in read_pdus(stream):
        answers.kinds.append(kind)
        if kind == ASSOCIATE_AC:
            A_ASSOCIATE_AC().decode(other_pdu(kind, content))
            _check_items(content[68:])
        elif kind == P_DATA:
            _take_response(answers, content)
        else:
            assert kind in (ASSOCIATE_RJ, RELEASE_RP, ABORT), f"PDU type {kind}"
            assert len(content) == 4
            if kind == ASSOCIATE_RJ:
                assert content[1] in (1, 2) and content[2] in (1, 2, 3), content
            if kind == ABORT:
                assert content[2] in (0, 2), content
    return answers


def _check_items(items: bytes) -> None:
    """The items of an A-ASSOCIATE-AC fill it, and are those that it may have (PS3.8 table 9-17)."""
    at = 0
    while at < len(items):
        assert items[at] in (0x10, 0x21, 0x50)
        at += 4 + int.from_bytes(items[at + 2 : at + 4], "big")
    assert at == len(items)


def _take_response(answers: Answers, content: bytes) -> None:
    command, at = answers.unfinished, 0
    while at < len(content):
        length, _context, control = struct.unpack_from(">LBB", content, at)
        assert 2 <= length <= len(content) - at - 4 and control in (COMMAND, COMMAND | LAST)
        command += content[at + 6 : at + 4 + length]
        at += 4 + length
        if control & LAST:
            elements = read_elements(bytes(command))
            assert int.from_bytes(elements[0x0000], "little") == len(command) - 12
            assert len(elements[0x0900]) == len(elements[0x0120]) == 2
            if elements[0x0100] == b"\1\x80":
                uid = elements.get(0x1000, b"").strip(b" \0").decode("ascii", "replace")
                answers.stores.append((int.from_bytes(elements[0x0900], "little"), uid))
            command.clear()
