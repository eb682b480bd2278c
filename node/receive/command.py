"""DIMSE command sets of the Storage service, by hand: one is read and one written for every instance.

In: the bytes of a command set (Implicit VR Little Endian, PS3.7 6.3.1).  Out: the fields of a C-STORE-RQ
(PS3.7 9.3.1.1), and the bytes of its C-STORE-RSP (9.3.1.2). Other commands are pynetdicom's, where they are
served at all; the others are refused here.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

#: type of a P-DATA-TF PDU, and the bits of a PDV's message control header (PS3.8 9.3.5, E.2)
P_DATA_TF = 0x04
COMMAND, LAST = 0x01, 0x02

C_STORE_RQ, C_ECHO_RQ, N_EVENT_REPORT_RQ, N_ACTION_RQ, C_CANCEL_RQ = 0x0001, 0x0030, 0x0100, 0x0130, 0x0FFF
C_STORE_RSP, N_EVENT_REPORT_RSP = 0x8001, 0x8100
#: set in the command field of every response
RESPONSE = 0x8000
#: set in the command field of DIMSE-N requests (PS3.7 E.1)
_DIMSE_N = 0x0100
NO_DATA_SET = 0x0101

#: what is served in a presentation context, by its abstract syntax; in any other one C-STORE is
SERVED_BESIDES_STORE = {
    "1.2.840.10008.1.1": (C_ECHO_RQ,),
    "1.2.840.10008.1.20.1": (N_ACTION_RQ, N_EVENT_REPORT_RQ, N_EVENT_REPORT_RSP),
}
STATUS_NO_SUCH_SOP_CLASS = 0x0118
STATUS_SOP_CLASS_NOT_SUPPORTED = 0x0122
STATUS_UNRECOGNIZED_OPERATION = 0x0211

_AFFECTED_SOP_CLASS_UID, _AFFECTED_SOP_INSTANCE_UID = 0x0002, 0x1000
_REQUESTED_SOP_CLASS_UID = 0x0003
_COMMAND_FIELD, _MESSAGE_ID, _COMMAND_DATA_SET_TYPE = 0x0100, 0x0110, 0x0800
_MESSAGE_ID_RESPONDED_TO, _STATUS, _ERROR_COMMENT = 0x0120, 0x0900, 0x0902
_ELEMENT = struct.Struct("<HHL")
_US = struct.Struct("<H")


class BadCommandSet(Exception):
    """The bytes are no command set, or a field that a C-STORE-RQ needs is missing or malformed."""


@dataclass(frozen=True)
class StoreCommand:
    """A C-STORE-RQ. The UIDs are as sent, without padding, and may be anything."""

    message_id: int
    sop_class_uid: str
    sop_instance_uid: str
    has_data_set: bool


def read_elements(command_set: bytes | bytearray) -> dict[int, bytes]:
    """Element number -> value of every element of group 0000. Raises BadCommandSet."""
    found: dict[int, bytes] = {}
    at, end = 0, len(command_set)
    while at < end:
        if end - at < _ELEMENT.size:
            raise BadCommandSet("cut short in the middle of an element")
        group, element, length = _ELEMENT.unpack_from(command_set, at)
        at += _ELEMENT.size
        if group != 0 or length > end - at:
            raise BadCommandSet(f"element ({group:04X},{element:04X}) of {length} bytes doesn't belong here")
        found[element] = bytes(command_set[at : at + length])
        at += length
    return found


def command_field(elements: dict[int, bytes]) -> int:
    """(0000,0100). Raises BadCommandSet."""
    return _unsigned_short(elements, _COMMAND_FIELD)


def store_command(elements: dict[int, bytes]) -> StoreCommand:
    """The fields of a C-STORE-RQ. Raises BadCommandSet."""
    return StoreCommand(
        message_id=_unsigned_short(elements, _MESSAGE_ID),
        sop_class_uid=_text(elements, _AFFECTED_SOP_CLASS_UID),
        sop_instance_uid=_text(elements, _AFFECTED_SOP_INSTANCE_UID),
        has_data_set=_unsigned_short(elements, _COMMAND_DATA_SET_TYPE) != NO_DATA_SET,
    )


@dataclass(frozen=True)
class OtherRequest:
    """Any request but C-STORE-RQ: what every one has (PS3.7 9.3, 10.3), and what a refusal repeats."""

    field: int
    message_id: int
    sop_class_uid: str
    has_data_set: bool


def other_request(elements: dict[int, bytes]) -> OtherRequest:
    """Raises BadCommandSet. The SOP class is the affected or the requested one; empty where there is none."""
    named = _AFFECTED_SOP_CLASS_UID if _AFFECTED_SOP_CLASS_UID in elements else _REQUESTED_SOP_CLASS_UID
    return OtherRequest(
        field=command_field(elements),
        message_id=_unsigned_short(elements, _MESSAGE_ID),
        sop_class_uid=_text(elements, named) if named in elements else "",
        has_data_set=_unsigned_short(elements, _COMMAND_DATA_SET_TYPE) != NO_DATA_SET,
    )


def why_not_served(request: OtherRequest, abstract_syntax: str) -> int | None:
    """The status of the refusal (PS3.7 C.5), or None for what is served in this presentation context."""
    if request.field not in SERVED_BESIDES_STORE.get(abstract_syntax, ()):
        return STATUS_UNRECOGNIZED_OPERATION
    if request.sop_class_uid == abstract_syntax:
        return None
    return STATUS_NO_SUCH_SOP_CLASS if request.field & _DIMSE_N else STATUS_SOP_CLASS_NOT_SUPPORTED


def refusal(request: OtherRequest, status: int) -> bytes:
    """The command set of the response to what isn't served."""
    named = _uid(_AFFECTED_SOP_CLASS_UID, request.sop_class_uid) if request.sop_class_uid else b""
    return _with_length(
        named
        + _short(_COMMAND_FIELD, request.field | RESPONSE)
        + _short(_MESSAGE_ID_RESPONDED_TO, request.message_id)
        + _short(_COMMAND_DATA_SET_TYPE, NO_DATA_SET)
        + _short(_STATUS, status)
    )


def store_response(command: StoreCommand, status: int, comment: str = "") -> bytes:
    """The command set of the C-STORE-RSP; ``comment`` becomes (0000,0902), at most 64 characters."""
    body = b"".join(
        (
            _uid(_AFFECTED_SOP_CLASS_UID, command.sop_class_uid),
            _short(_COMMAND_FIELD, C_STORE_RSP),
            _short(_MESSAGE_ID_RESPONDED_TO, command.message_id),
            _short(_COMMAND_DATA_SET_TYPE, NO_DATA_SET),
            _short(_STATUS, status),
            _bytes(_ERROR_COMMENT, comment[:64].encode("ascii", "replace"), b" ") if comment else b"",
            _uid(_AFFECTED_SOP_INSTANCE_UID, command.sop_instance_uid),
        )
    )
    return _with_length(body)


def _with_length(body: bytes) -> bytes:
    """A command set behind its Command Group Length (PS3.7 E.1)."""
    return _ELEMENT.pack(0, 0, 4) + struct.pack("<L", len(body)) + body


def command_pdus(context_id: int, command_set: bytes, peer_max_pdu_bytes: int) -> bytes:
    """P-DATA-TF PDUs (PS3.8 9.3.5) that carry a command set; 0 is "no limit"."""
    room = max((peer_max_pdu_bytes or 1 << 16) - 6, 2)
    pdus = []
    for start in range(0, len(command_set), room):
        fragment = command_set[start : start + room]
        last = start + room >= len(command_set)
        control = COMMAND | LAST if last else COMMAND
        header = struct.pack(
            ">BBLLBB", P_DATA_TF, 0, len(fragment) + 6, len(fragment) + 2, context_id, control
        )
        pdus.append(header + fragment)
    return b"".join(pdus)


def _unsigned_short(elements: dict[int, bytes], element: int) -> int:
    value = elements.get(element, b"")
    if len(value) != _US.size:
        raise BadCommandSet(f"(0000,{element:04X}) has {len(value)} bytes, 2 wanted")
    number: int = _US.unpack(value)[0]
    return number


def _text(elements: dict[int, bytes], element: int) -> str:
    if element not in elements:
        raise BadCommandSet(f"(0000,{element:04X}) is missing")
    return elements[element].decode("ascii", errors="surrogateescape").strip(" \0")


def _short(element: int, value: int) -> bytes:
    return _ELEMENT.pack(0, element, 2) + _US.pack(value)


def _uid(element: int, value: str) -> bytes:
    return _bytes(element, value.encode("ascii", errors="surrogateescape"), b"\0")


def _bytes(element: int, value: bytes, padding: bytes) -> bytes:
    value += padding * (len(value) % 2)
    return _ELEMENT.pack(0, element, len(value)) + value
