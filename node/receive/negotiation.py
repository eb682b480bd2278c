"""Extended negotiation beyond presentation contexts (PS3.7 D.3.3), as the SCP that we are.

In: the user information items of an A-ASSOCIATE-RQ.  Out: ours in the A-ASSOCIATE-AC.

Roles: the requestor is SCU, and nothing else. Where it proposes both, SCP is refused; where it proposes to be
SCP only, the context is. SOP Class Extended Negotiation of storage is answered. User Identity, Asynchronous
Operations Window and SOP Class Common Extended Negotiation need no answer, and get none.
"""

from __future__ import annotations

from typing import Any

from pynetdicom.presentation import PresentationContext

from node.receive.storage import is_accepted_storage

#: PS3.4 table B.3-2: level of support 2 (Full); digital signatures level 3 (data sets are kept bit by bit);
#: element coercion 0 (none)
STORAGE_APPLICATION_INFORMATION = bytes((2, 0, 3, 0, 0, 0))


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
