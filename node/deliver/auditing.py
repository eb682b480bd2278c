"""What a delivery tells the audit trail (PS3.15 A.5.3.3 and A.5.3.7): what is about to be sent, what was."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from node.audit import AuditTrail
from node.audit_message import Peer, Transfer
from node.deliver.base import Instance


@contextmanager
def audited(audit: AuditTrail | None, peer: Peer, instances: Sequence[Instance]) -> Iterator[list[Instance]]:
    """Around sending. The yielded list is for what was stored; an exception says that not all was."""
    sent: list[Instance] = []
    if audit is None:
        yield sent
        return
    for transfer in _transfers(peer, instances):
        audit.begin(transfer)
    failure = "the delivery failed half-way"
    try:
        yield sent
        failure = ""
    finally:
        for transfer in _transfers(peer, sent, failure):
            audit.transferred(transfer)


def _transfers(peer: Peer, instances: Sequence[Instance], failure: str = "") -> list[Transfer]:
    """One a study."""
    return [
        Transfer(
            peer,
            "sent",
            study,
            Counter(each.sop_class_uid for each in instances if each.study_instance_uid == study),
            failure,
        )
        for study in sorted({each.study_instance_uid for each in instances})
    ]
