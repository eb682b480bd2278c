"""An SCU over a plain socket: it cuts messages as it is told, and sends any bytes."""

from __future__ import annotations

import socket
import struct

from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid
from pynetdicom import build_context
from pynetdicom.pdu import A_ASSOCIATE_RQ
from pynetdicom.pdu_primitives import (
    A_ASSOCIATE,
    ImplementationClassUIDNotification,
    MaximumLengthNotification,
)
from pynetdicom.sop_class import Verification

from node.receive.command import read_elements
from tests.integration.receiving import CALLING

COMMAND, LAST = 1, 2
CT_CONTEXT, ECHO_CONTEXT = 1, 3


def association_request() -> bytes:
    """An A-ASSOCIATE-RQ for CT images and for Verification."""
    request = A_ASSOCIATE()
    request.application_context_name = "1.2.840.10008.3.1.1.1"
    request.calling_ae_title, request.called_ae_title = CALLING, "PACSNODE"
    contexts = [build_context(CTImageStorage, ExplicitVRLittleEndian), build_context(Verification)]
    for context, number in zip(contexts, (CT_CONTEXT, ECHO_CONTEXT), strict=True):
        context.context_id = number
    request.presentation_context_definition_list = contexts
    length, implementation = MaximumLengthNotification(), ImplementationClassUIDNotification()
    length.maximum_length_received = 16382
    implementation.implementation_class_uid = generate_uid()
    request.user_information = [length, implementation]
    encoded = A_ASSOCIATE_RQ()
    encoded.from_primitive(request)
    content: bytes = encoded.encode()
    return content


class RawScu:
    """An association over a plain socket, to which any bytes can be sent."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=10)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.sendall(association_request())
        assert self.pdu()[0] == 2, "A-ASSOCIATE-AC"

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
        assert kind == 4, f"PDU {kind} instead of P-DATA-TF"
        return int.from_bytes(read_elements(content[6:])[0x0900], "little")

    def _exactly(self, count: int) -> bytes:
        data = b""
        while len(data) < count and (more := self.socket.recv(count - len(data))):
            data += more
        return data


def element(number: int, value: bytes) -> bytes:
    return struct.pack("<HHL", 0, number, len(value)) + value


def store_request(sop_instance_uid: str, *, message_id: int = 1, data_set: bool = True) -> bytes:
    def uid(text: str) -> bytes:
        return text.encode() + b"\0" * (len(text) % 2)

    return b"".join(
        (
            element(0x0002, uid(CTImageStorage)),
            element(0x0100, b"\1\0"),
            element(0x0110, struct.pack("<H", message_id)),
            element(0x0700, b"\0\0"),
            element(0x0800, b"\1\0" if data_set else b"\1\1"),
            element(0x1000, uid(sop_instance_uid)),
        )
    )


ECHO_REQUEST = b"".join(
    (
        element(0x0002, b"1.2.840.10008.1.1\0"),
        element(0x0100, b"\x30\0"),
        element(0x0110, b"\7\0"),
        element(0x0800, b"\1\1"),
    )
)


def pdv(content: bytes, control: int, context: int = CT_CONTEXT) -> bytes:
    return struct.pack(">LBB", len(content) + 2, context, control) + content


def pdu(*pdvs: bytes) -> bytes:
    content = b"".join(pdvs)
    return struct.pack(">BBL", 4, 0, len(content)) + content


def cut(content: bytes, control: int, size: int) -> list[bytes]:
    pieces = [content[i : i + size] for i in range(0, len(content), size)]
    return [pdv(p, control | (LAST if i + 1 == len(pieces) else 0)) for i, p in enumerate(pieces)]


def store_message(sop_instance_uid: str, dataset: bytes, *, message_id: int = 1, size: int = 16_000) -> bytes:
    """A C-STORE-RQ with its data set, in PDVs of ``size`` bytes, each in a PDU of its own."""
    pdvs = [
        pdv(store_request(sop_instance_uid, message_id=message_id), COMMAND | LAST),
        *cut(dataset, 0, size),
    ]
    return b"".join(pdu(one) for one in pdvs)
