"""A connection lent to a mover, and what comes of it: the words of both sides.

The receiver sends a connection with its terms, and a channel for this loan alone.  The mover then reads
C-STOREs and answers them; over the channel come

    {"keep": …}       an instance that isn't for the journal: answered with what became of it, or the error
    {"outcomes": […]} what was answered to C-STOREs since the last such message
    {"returned": …}   the end of the loan, with what was read and not used

and to it goes {"back": true} when the connection is wanted back between two messages.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from node.receive.stream import Context, Terms


class Returned(NamedTuple):
    """other: (context id, command set, bytes left of its PDU) of a command that the mover doesn't serve.
    unread: what was read ahead."""

    other: tuple[int, bytes, int] | None
    unread: bytes


#: (pynetdicom association, what was negotiated, whether the connection is wanted back) -> what came back.
#: Raises InvalidPdu, and OSError when the connection ended.
Lend = Callable[[Any, Terms, Callable[[], bool]], Returned]

#: how a loan ends: between two messages, with another's command, as InvalidPdu, as OSError
TURN, OTHER, INVALID, CLOSED = "turn", "other", "invalid", "closed"


def terms_to_json(terms: Terms) -> dict[str, Any]:
    return {
        "contexts": {str(number): list(context) for number, context in terms.contexts.items()},
        "max_pdu_bytes": terms.max_pdu_bytes,
        "peer_max_pdu_bytes": terms.peer_max_pdu_bytes,
        "timeout": terms.timeout,
    }


def terms_from_json(fields: dict[str, Any]) -> Terms:
    contexts = {int(number): Context(*context) for number, context in fields["contexts"].items()}
    return Terms(contexts, fields["max_pdu_bytes"], fields["peer_max_pdu_bytes"], fields["timeout"])
