"""DIMSE command sets of the Storage service, by hand: one is read and one written for every instance.

In: the bytes of a command set (Implicit VR Little Endian, PS3.7 6.3.1).  Out: the fields of a C-STORE-RQ
(PS3.7 9.3.1.1), and the bytes of its C-STORE-RSP (9.3.1.2). Other commands are pynetdicom's.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

#: type of a P-DATA-TF PDU, and the bits of a PDV's message control header (PS3.8 9.3.5, E.2)
P_DATA_TF = 0x04
COMMAND, LAST = 0x01, 0x02

C_STORE_RQ = 0x0001
C_STORE_RSP = 0x8001
NO_DATA_SET = 0x0101

_AFFECTED_SOP_CLASS_UID, _AFFECTED_SOP_INSTANCE_UID = 0x0002, 0x1000
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
