"""C-STORE as destination: one association a result set, each instance's status judged (PS3.4 B.2.3).

In: the files of a result set.  Out: them stored at the peer, over TLS where that is configured, and what was
sent in the audit trail.

Every object goes in the transfer syntax that it has, byte for byte as the file holds it, if the peer takes
that; if not, uncompressed, which loses nothing (a picture that was compressed with loss stays what it is).
With ``deflate``, what isn't compressed goes deflated to a peer that takes that: a binary segmentation is a
fortieth then.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import structlog
from pydicom import Dataset, dcmread
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)
from pynetdicom import AE, Association, _config, build_context
from pynetdicom.sop_class import Verification

from node.deliver.auditing import audited
from node.deliver.base import Instance, Judged, Pace, Stored, unhindered
from node.deliver.dicom_peer import DicomPeer
from node.deliver.statuses import Outcome
from node.errors import DeliveryError
from node.failpoints import failpoint
from node.scu import wait_for_reactor

log = structlog.get_logger(__name__)

#: a file is sent as it is, piece by piece, instead of being read and encoded again
_config.STORE_SEND_CHUNKED_DATASET = True

#: (SOP Class UID, Transfer Syntax UID)
Kind = tuple[str, str]


class CStoreDeliverer:
    """Sends to one storage SCP."""

    def __init__(self, peer: DicomPeer) -> None:
        self.name = peer.name
        self.peer = peer

    def deliver(self, files: Sequence[Path], pace: Pace = unhindered) -> tuple[Stored, ...]:
        """See ``Destination``, and ``statuses`` for what counts as stored and what is tried again.

        Nothing is sent when the peer doesn't accept the SOP class of any of it.
        """
        instances = [Instance.read(file) for file in files]
        if not instances:
            return ()
        with self._association(instances) as association:
            accepted = {(c.abstract_syntax, c.transfer_syntax[0]) for c in association.accepted_contexts}
            for instance in instances:
                if not self._ways(instance) & accepted:
                    raise self._not_accepted(instance)
            judged = Judged(str(self.peer), "C-STORE", code="c_store_failed")
            with audited(self.peer.audit, self.peer.address, instances) as sent:
                for number, instance in enumerate(instances, 1):
                    pace(instance.size)
                    failpoint("deliver.send")
                    outcome = self._send(association, instance, number, judged, accepted)
                    if outcome.is_stored:
                        sent.append(instance)
                    if outcome is Outcome.REFUSED:
                        break  # of the next it wouldn't take more
                failpoint("deliver.sent")
                return judged.settle()

    def check(self) -> None:
        """C-ECHO."""
        ae = AE()
        ae.add_requested_context(Verification, ImplicitVRLittleEndian)
        with self.peer.associated(ae, self._no_echo) as association:
            status = association.send_c_echo()
            if status.get("Status") != 0x0000:
                raise self._no_echo()

    def close(self) -> None:
        """Nothing is kept open between deliveries."""

    @contextmanager
    def _association(self, instances: Sequence[Instance]) -> Iterator[Association]:
        """Each SOP class in each transfer syntax in a context of its own: the peer picks one of a context."""
        ways = sorted({way for instance in instances for way in self._ways(instance)})
        ae = AE()
        ae.requested_contexts = [build_context(sop_class, syntax) for sop_class, syntax in ways]
        with self.peer.associated(ae, lambda: self._not_accepted(instances[0])) as association:
            yield association

    def _send(
        self,
        association: Association,
        instance: Instance,
        number: int,
        judged: Judged,
        accepted: set[Kind],
    ) -> Outcome:
        uid = instance.sop_instance_uid
        if not association.is_established:
            raise DeliveryError(f"{self.peer}: the association ended before {uid}")
        sent = _as_accepted(instance, accepted, self._deflates(instance))
        wait_for_reactor(association)
        status = association.send_c_store(sent, msg_id=number).get("Status")
        if status is None:
            raise DeliveryError(f"{self.peer}: no answer to C-STORE of {uid}")
        outcome = judged.add(instance, status)
        if outcome is Outcome.WARNING:
            log.warning(
                "c_store_warning", destination=self.name, sop_instance_uid=uid, status=f"{status:#06x}"
            )
        return outcome

    def _deflates(self, instance: Instance) -> bool:
        return self.peer.config.deflate and instance.transfer_syntax_uid == ExplicitVRLittleEndian

    def _ways(self, instance: Instance) -> set[Kind]:
        """The presentation contexts in which an instance can be sent."""
        syntaxes = {instance.transfer_syntax_uid, str(ExplicitVRLittleEndian), str(ImplicitVRLittleEndian)}
        if self._deflates(instance):
            syntaxes.add(str(DeflatedExplicitVRLittleEndian))
        return {(instance.sop_class_uid, syntax) for syntax in syntaxes}

    def _no_echo(self) -> DeliveryError:
        return DeliveryError(f"{self.peer}: C-ECHO was not answered with success")

    def _not_accepted(self, instance: Instance) -> DeliveryError:
        sop_class, syntax = (UID(uid).name for uid in (instance.sop_class_uid, instance.transfer_syntax_uid))
        return DeliveryError(
            f"{self.peer} doesn't accept SOP class {sop_class} in {syntax}, nor uncompressed",
            hint="allow it at the destination",
            code="sop_class_not_accepted",
            retryable=False,
        )


def _as_accepted(instance: Instance, accepted: set[Kind], deflate: bool) -> Dataset | Path:
    """The file, if the peer takes it as it is; or its data set, uncompressed if need be. Explicit and
    implicit VR are left to pynetdicom, which encodes for the context; so is deflating."""
    syntax = UID(instance.transfer_syntax_uid)
    deflate = deflate and (instance.sop_class_uid, str(DeflatedExplicitVRLittleEndian)) in accepted
    if (instance.sop_class_uid, instance.transfer_syntax_uid) in accepted and not deflate:
        return instance.path
    dataset = dcmread(instance.path)
    if deflate:
        dataset.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    elif syntax.is_encapsulated:
        dataset.decompress(generate_instance_uid=False)
    elif syntax.is_deflated:
        dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    return dataset
