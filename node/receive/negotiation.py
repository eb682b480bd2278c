"""Extended negotiation beyond presentation contexts (PS3.7 D.3.3), as the SCP that we are.

In: the items of an A-ASSOCIATE-RQ.  Out: those that mean something to us, and our answers to them.

Roles: the requestor is SCU, and nothing else. Where it proposes both, SCP is refused; where it proposes to be
SCP only, the context is. SOP Class Extended Negotiation of storage is answered. User Identity, Asynchronous
Operations Window and SOP Class Common Extended Negotiation need no answer, and get none: they are skipped
like items of types that nobody knows yet.
"""

from __future__ import annotations

import struct
from typing import Any

from pynetdicom.presentation import PresentationContext

from node.receive.storage import is_accepted_storage

#: PS3.4 table B.3-2: level of support 2 (Full); digital signatures level 3 (data sets are kept bit by bit);
#: element coercion 0 (none)
STORAGE_APPLICATION_INFORMATION = bytes((2, 0, 3, 0, 0, 0))

_USER_INFORMATION = 0x50
#: Application Context, Presentation Context, User Information
_ITEMS = frozenset((0x10, 0x20, _USER_INFORMATION))
#: Maximum Length, Implementation Class UID, SCP/SCU Role Selection, Implementation Version Name, SOP Class
#: Extended Negotiation
_USER_INFORMATION_ITEMS = frozenset((0x51, 0x52, 0x54, 0x55, 0x56))
_PDU_HEADER, _FIXED_BYTES = struct.Struct(">BxL"), 74
_ITEM_HEADER = struct.Struct(">BxH")


def scp_only(context: PresentationContext) -> PresentationContext:
    """Let the requestor be SCU in a context that we support, not SCP (PS3.7 D.3.3.4)."""
    context.scu_role, context.scp_role = True, False  # pynetdicom means the requestor's
    return context


def answer_storage(event: Any) -> dict[str, bytes]:
    """SOP Class Extended Negotiation (PS3.4 B.3.1) of the storage classes that are supported."""
    supported = {context.abstract_syntax for context in event.assoc.acceptor.supported_contexts}
    return {
        str(uid): STORAGE_APPLICATION_INFORMATION
        for uid in event.app_info
        if uid in supported and is_accepted_storage(str(uid), accept_unknown=True)
    }


def understood(request: bytes) -> bytes:
    """An A-ASSOCIATE-RQ PDU without the items that we skip (PS3.8 9.3.1); one that is malformed as it is."""
    try:
        items = _of_kinds(request[_FIXED_BYTES:], _ITEMS)
    except (struct.error, ValueError):
        return request
    kind, length = _PDU_HEADER.unpack_from(request)
    length += len(items) - (len(request) - _FIXED_BYTES)
    return _PDU_HEADER.pack(kind, length) + request[_PDU_HEADER.size : _FIXED_BYTES] + items


def _of_kinds(items: bytes, kinds: frozenset[int]) -> bytes:
    """Raises struct.error or ValueError where an item is cut short."""
    kept: list[bytes] = []
    at = 0
    while at < len(items):
        kind, length = _ITEM_HEADER.unpack_from(items, at)
        at += _ITEM_HEADER.size
        content = items[at : at + length]
        if len(content) < length:
            raise ValueError("an item is longer than what is left")
        at += length
        if kind in kinds:
            if kind == _USER_INFORMATION:
                content = _of_kinds(content, _USER_INFORMATION_ITEMS)
            kept += (_ITEM_HEADER.pack(kind, len(content)), content)
    return b"".join(kept)
