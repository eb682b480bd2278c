"""The data sets of Storage Commitment (PS3.4 tables J.3-1 and J.3-2), in Little Endian.

In: the Action Information of an N-ACTION, as it came.  Out: the transaction and what it refers to.
In: what became of each reference.  Out: the Event Information of an N-EVENT-REPORT.

Not by pydicom: a request may have tens of thousands of references, of which it would make gigabytes.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from node.receive.dataset import UNDEFINED_LENGTH, Element, UnreadableDataset, top_level_elements
from node.receive.part10 import is_uid

#: of one request: some 30 MB of memory; large studies have a few thousand instances
MAX_REFERENCES = 20_000

#: (0008,1197), PS3.3 C.14.1.1
COMMITTED = 0x0000

_TRANSACTION_UID = 0x00081195
_REFERENCED_SOP_SEQUENCE, _FAILED_SOP_SEQUENCE = 0x00081199, 0x00081198
_REFERENCED_SOP_CLASS_UID, _REFERENCED_SOP_INSTANCE_UID = 0x00081150, 0x00081155
_FAILURE_REASON = 0x00081197
_ITEM, _ITEM_DELIMITATION, _SEQUENCE_DELIMITATION = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD
_MAX_UID_VALUE_BYTES = 66
_HEADER = struct.Struct("<HHL")


class InvalidRequest(Exception):
    """The Action Information isn't what PS3.4 table J.3-1 asks for. The message has no values."""


class TooManyReferences(Exception):
    """More than ``MAX_REFERENCES``."""


class Reference(NamedTuple):
    """One instance whose storage is to be committed."""

    sop_class_uid: str
    sop_instance_uid: str


@dataclass(frozen=True)
class CommitmentRequest:
    """One transaction; there is at least one reference, in the order of the request."""

    transaction_uid: str
    references: tuple[Reference, ...]


def read_request(action_information: bytes, *, implicit_vr: bool) -> CommitmentRequest:
    """Raises InvalidRequest or TooManyReferences."""
    stream = io.BytesIO(action_information)
    transaction_uid: str | None = None
    references: tuple[Reference, ...] | None = None
    try:
        for element in top_level_elements(stream, implicit_vr=implicit_vr, little_endian=True):
            if element.tag == _TRANSACTION_UID:
                transaction_uid = _uid(stream, element, "Transaction UID")
            elif element.tag == _REFERENCED_SOP_SEQUENCE:
                references = tuple(_references(stream, element, implicit_vr=implicit_vr))
                break  # everything else has a lower tag, or is of no interest
    except UnreadableDataset as error:
        raise InvalidRequest(f"it can't be read: {error}") from error
    if transaction_uid is None:
        raise InvalidRequest("Transaction UID is missing")
    if not references:
        raise InvalidRequest("Referenced SOP Sequence is missing or empty")
    return CommitmentRequest(transaction_uid, references)


def _references(stream: io.BytesIO, sequence: Element, *, implicit_vr: bool) -> Iterator[Reference]:
    """Of the sequence's items, each of them and the sequence itself of defined or undefined length."""
    end = stream.getbuffer().nbytes
    if sequence.length != UNDEFINED_LENGTH:
        if sequence.at + sequence.length > end:
            raise UnreadableDataset("a sequence is longer than what is left")
        end = sequence.at + sequence.length
    at, count = sequence.at, 0
    while at < end:
        stream.seek(at)
        head = stream.read(_HEADER.size)
        if len(head) < _HEADER.size:
            raise UnreadableDataset("it ends inside of a sequence")
        group, number, length = _HEADER.unpack(head)
        tag, at = group << 16 | number, at + _HEADER.size
        if tag == _SEQUENCE_DELIMITATION:
            return
        if tag != _ITEM:
            raise UnreadableDataset("a sequence with something else than items")
        count += 1
        if count > MAX_REFERENCES:
            raise TooManyReferences
        if length == UNDEFINED_LENGTH:
            reference, after = _item(stream, implicit_vr=implicit_vr)
            if after is None:
                raise UnreadableDataset("it ends inside of an item")
            at = after
        else:
            content = stream.read(length)
            if len(content) < length:
                raise UnreadableDataset("an item is longer than what is left")
            reference, _ = _item(io.BytesIO(content), implicit_vr=implicit_vr)
            at += length
        yield reference
    if sequence.length == UNDEFINED_LENGTH:
        raise UnreadableDataset("it ends inside of a sequence")


def _item(stream: io.BytesIO, *, implicit_vr: bool) -> tuple[Reference, int | None]:
    """One item, and where what comes after its delimiter begins, where it has one."""
    sop_class_uid = sop_instance_uid = None
    after = None
    for element in top_level_elements(stream, implicit_vr=implicit_vr, little_endian=True):
        if element.tag == _ITEM_DELIMITATION:
            after = element.at
            break
        if element.tag == _REFERENCED_SOP_CLASS_UID:
            sop_class_uid = _uid(stream, element, "Referenced SOP Class UID")
        elif element.tag == _REFERENCED_SOP_INSTANCE_UID:
            sop_instance_uid = _uid(stream, element, "Referenced SOP Instance UID")
    if sop_class_uid is None or sop_instance_uid is None:
        raise InvalidRequest("an item without Referenced SOP Class or Instance UID")
    return Reference(sop_class_uid, sop_instance_uid), after


def _uid(stream: io.BytesIO, element: Element, name: str) -> str:
    if element.length > _MAX_UID_VALUE_BYTES:
        raise InvalidRequest(f"{name} is not a UID")
    stream.seek(element.at)
    value = stream.read(element.length).decode("ascii", errors="replace").strip(" \0")
    if not is_uid(value):
        raise InvalidRequest(f"{name} is not a UID")
    return value


def encode_report(
    transaction_uid: str, judged: Sequence[tuple[Reference, int]], *, implicit_vr: bool
) -> bytes:
    """The Event Information. judged: each reference with its Failure Reason, or COMMITTED."""
    write = _Writer(implicit_vr=implicit_vr)
    failed = [
        write.item(
            write.element(_REFERENCED_SOP_CLASS_UID, b"UI", _uid_value(reference.sop_class_uid)),
            write.element(_REFERENCED_SOP_INSTANCE_UID, b"UI", _uid_value(reference.sop_instance_uid)),
            write.element(_FAILURE_REASON, b"US", struct.pack("<H", reason)),
        )
        for reference, reason in judged
        if reason != COMMITTED
    ]
    committed = [
        write.item(
            write.element(_REFERENCED_SOP_CLASS_UID, b"UI", _uid_value(reference.sop_class_uid)),
            write.element(_REFERENCED_SOP_INSTANCE_UID, b"UI", _uid_value(reference.sop_instance_uid)),
        )
        for reference, reason in judged
        if reason == COMMITTED
    ]
    encoded = write.element(_TRANSACTION_UID, b"UI", _uid_value(transaction_uid))
    for tag, items in ((_FAILED_SOP_SEQUENCE, failed), (_REFERENCED_SOP_SEQUENCE, committed)):
        if items:
            encoded += write.element(tag, b"SQ", b"".join(items))
    return encoded


def _uid_value(uid: str) -> bytes:
    return uid.encode("ascii") + b"\0" * (len(uid) % 2)


class _Writer:
    def __init__(self, *, implicit_vr: bool) -> None:
        self._implicit_vr = implicit_vr

    def element(self, tag: int, vr: bytes, value: bytes) -> bytes:
        number = struct.pack("<HH", tag >> 16, tag & 0xFFFF)
        if self._implicit_vr:
            return number + struct.pack("<L", len(value)) + value
        if vr == b"SQ":
            return number + vr + struct.pack("<HL", 0, len(value)) + value
        return number + vr + struct.pack("<H", len(value)) + value

    def item(self, *elements: bytes) -> bytes:
        content = b"".join(elements)
        return _HEADER.pack(_ITEM >> 16, _ITEM & 0xFFFF, len(content)) + content
