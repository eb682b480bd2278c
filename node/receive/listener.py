"""The DICOM listener: Verification, Storage and Storage Commitment SCP.

In: associations over TCP. Out: instances in the spool, and the tracker being told how each association
ended. pynetdicom owns the upper layer, negotiation and the services; C-STORE's data path is ``pdata``'s, its
answers are ``storage``'s; ``commitment`` answers N-ACTION. Nothing here decodes a data set.
"""

from __future__ import annotations

import sys
import threading
import time
import uuid
from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any

import structlog
from pydicom.uid import UID_dictionary
from pynetdicom import (
    AE,
    ALL_TRANSFER_SYNTAXES,
    build_context,
    evt,
)
from pynetdicom.presentation import PresentationContext
from pynetdicom.sop_class import Verification

from node.audit import AuditTrail
from node.audit_message import Peer
from node.config import ReceiveConfig
from node.receive.admission import Admission, host_of
from node.receive.command import StoreCommand
from node.receive.commitment import CommitmentService
from node.receive.loan import Returned
from node.receive.metrics import ReceiveMetrics
from node.receive.movers import Movers
from node.receive.negotiation import answer_storage, scp_only
from node.receive.pdata import request_handler
from node.receive.refusals import Refused
from node.receive.series import SeriesTracker
from node.receive.server import Server
from node.receive.storage import STATUS_STORED, Sender, StorageService
from node.receive.stream import Context, Reception, Terms
from node.tls import server_context

log = structlog.get_logger("node.receive.listener")

_EXPLICIT_VR_LITTLE_ENDIAN = "1.2.840.10008.1.2.1"
#: the standard's other syntaxes that are a data set in explicit VR, with pixel data in one of the retired
#: JPEG processes or encapsulated as it is
_RARE_TRANSFER_SYNTAXES = tuple(
    uid
    for uid, (_name, kind, *_rest) in UID_dictionary.items()
    if kind == "Transfer Syntax"
    and uid not in ALL_TRANSFER_SYNTAXES
    and (uid.startswith("1.2.840.10008.1.2.4.") or uid == "1.2.840.10008.1.2.1.98")
)
#: In our order of preference for a context that offers several: explicit VR first, because it keeps the
#: VRs of private attributes.
TRANSFER_SYNTAXES = (
    _EXPLICIT_VR_LITTLE_ENDIAN,
    *(uid for uid in ALL_TRANSFER_SYNTAXES if uid != _EXPLICIT_VR_LITTLE_ENDIAN),
    *_RARE_TRANSFER_SYNTAXES,
)


@lru_cache(maxsize=1024)
def _storage_context(abstract_syntax: str) -> PresentationContext:
    """What we support of a storage SOP class; shared by associations, which only read it."""
    return scp_only(build_context(abstract_syntax, list(TRANSFER_SYNTAXES)))


class Listener:
    """Accepts associations between ``start`` and ``stop``."""

    def __init__(
        self,
        config: ReceiveConfig,
        storage: StorageService,
        series: SeriesTracker,
        metrics: ReceiveMetrics,
        audit: AuditTrail,
        *,
        commitment: CommitmentService,
        movers: Movers | None = None,
        refused: Refused = lambda *_: None,
    ) -> None:
        """``movers`` read what comes over plain TCP; there may be none where ``config.tls`` is set, which
        can't be handed on. ``refused``: is told of each association that is rejected.

        Raises ConfigError when a file of ``config.tls`` can't be used."""
        self._config = config
        self._storage = storage
        self._admission = Admission(config, self._storage.has_space, audit, metrics, refused)
        self._tls = server_context(config.tls, metrics.tls()) if config.tls is not None else None
        self._commitment = commitment
        self._movers = movers
        self._series = series
        self._metrics = metrics
        self._live: dict[Any, Sender] = {}  # pynetdicom Association -> ours
        self._lock = threading.Lock()
        self._server: Server | None = None

    @property
    def port(self) -> int:
        """The TCP port that is listened on; tells which was chosen for port 0."""
        if self._server is None:
            raise RuntimeError("the listener isn't started")
        return int(self._server.server_address[1])

    @property
    def open_associations(self) -> int:
        with self._lock:
            return len(self._live)

    def start(self) -> None:
        """Bind and accept. Raises OSError when the address can't be bound."""
        config = self._config
        ae = AE(ae_title=config.ae_title)
        ae.maximum_pdu_size = config.max_pdu_bytes
        # admission decides who may; pynetdicom's own checks let everyone pass
        ae.maximum_associations = sys.maxsize
        ae.require_called_aet = False
        ae.network_timeout = config.network_timeout_seconds
        ae.dimse_timeout = config.network_timeout_seconds
        ae.acse_timeout = config.acse_timeout_seconds
        if not config.allow_any_calling_ae_title and not config.allowed_calling_ae_titles:
            log.warning(
                "no_calling_ae_title_allowed",
                hint="name the senders in receive.allowed_calling_ae_titles; until then all are rejected",
            )
        server: Server = ae.make_server(
            (config.host, config.port),
            contexts=[build_context(Verification)],
            evt_handlers=[
                (evt.EVT_REQUESTED, self._on_requested),
                (evt.EVT_ESTABLISHED, self._on_established),
                (evt.EVT_RELEASED, self._on_released),
                (evt.EVT_C_ECHO, lambda _event: STATUS_STORED),
                (evt.EVT_SOP_EXTENDED, answer_storage),
            ],
            request_handler=request_handler(self._begin_store, self._lend if self._movers else None),
            server_class=partial(
                Server, admission=self._admission, tls=self._tls, on_idle=self._end_dead_associations
            ),
        )
        self._server = server
        threading.Thread(target=server.serve_forever, name="listener", daemon=True).start()
        log.info(
            "listening",
            ae_title=config.ae_title,
            host=config.host,
            port=self.port,
            tls=self._tls is not None,
        )

    def stop(self, grace_seconds: float) -> None:
        """Accept no more, let running associations finish within the grace, then abort them."""
        server = self._server
        if server is None:
            return
        server.shutdown()
        deadline = time.monotonic() + grace_seconds
        while server.active_associations and time.monotonic() < deadline:
            time.sleep(0.02)
        for association in server.active_associations:
            association.abort(block=False)
        server.disconnect_all(after_seconds=0.2)
        for association in server.active_associations:
            association.join(timeout=5.0)
        self._end_dead_associations(wait=True)
        self._server = None
        log.info("listener_stopped")

    def _on_requested(self, event: Any) -> None:
        """Support what was asked for and is acceptable: negotiation then costs what the request is long."""
        if not self._admission.admit(event.assoc):
            return
        requested = {
            str(context.abstract_syntax)
            for context in event.assoc.requestor.primitive.presentation_context_definition_list
        }
        event.assoc.acceptor.supported_contexts = [
            build_context(Verification),
            *(_storage_context(uid) for uid in sorted(requested) if self._storage.accepts(uid)),
            *self._commitment.contexts(event.assoc, requested),
        ]

    def _on_established(self, event: Any) -> None:
        self._sender(event.assoc)

    def _sender(self, association: Any) -> Sender:
        """The sender of an association; its first C-STORE may be read before it is reported established."""
        with self._lock:
            live = self._live.get(association)
            if live is not None:
                return live
            peer = Peer(
                str(association.requestor.primitive.calling_ae_title).strip(),
                host_of((association.requestor.address,)),
            )
            live = self._storage.open(uuid.uuid4().hex, peer)
            self._live[association] = live
        self._metrics.associations_accepted.inc()
        self._metrics.associations_open.inc()
        log.info(
            "association_accepted",
            association_id=live.association_id,
            calling_ae_title=live.calling_ae_title,
            contexts=len(association.accepted_contexts),
            contexts_rejected=len(association.rejected_contexts),
        )
        return live

    def _on_released(self, event: Any) -> None:
        """Runs in the association's own thread, after its last C-STORE was answered."""
        self._admission.leave(event.assoc)
        with self._lock:
            live = self._live.pop(event.assoc, None)
        if live is not None:
            live.released = True
            self._end(live)

    def _end_dead_associations(self, *, wait: bool = False) -> None:
        """End what didn't release: aborted, timed out, connection lost. Its threads are gone by then, so no
        instance of it can still be on its way into the spool."""
        with self._lock:
            dead = [a for a in self._live if not a.is_alive() and not a.dul.is_alive()]
            ended = [self._live.pop(association) for association in dead]
        for live in ended:
            # filing what came over it takes a moment, in which others want to be accepted
            thread = threading.Thread(target=self._end, args=(live,), name="association-end", daemon=True)
            thread.start()
            if wait:
                thread.join()

    def _end(self, live: Sender) -> None:
        ended_at = time.time()  # before what it sent is filed
        self._storage.close(live)
        if self._movers is not None:
            self._movers.end(live.association_id)
        self._metrics.associations_open.dec()
        self._metrics.associations_ended.labels(how="released" if live.released else "aborted").inc()
        log.info(
            "association_released" if live.released else "association_aborted",
            association_id=live.association_id,
            calling_ae_title=live.calling_ae_title,
            stored=live.stored,
            quarantined=live.quarantined,
            refused=live.refused,
        )
        self._series.association_ended(live.association_id, released=live.released, at=ended_at)

    def _begin_store(self, association: Any, context: Context, command: StoreCommand) -> Reception:
        """A C-STORE-RQ came; runs in the association's thread."""
        if self._movers is not None:
            self._movers.file_all()  # what a mover acknowledged before comes first
        return self._storage.begin(self._sender(association), context, command)

    def _lend(self, association: Any, terms: Terms, wanted_back: Callable[[], bool]) -> Returned:
        """Messages come; runs in the association's thread."""
        assert self._movers is not None  # noqa: S101 - else this isn't called
        sender = self._sender(association)
        return self._movers.lend(
            (sender.association_id, sender.calling_ae_title),
            association.dul.socket.socket.fileno(),
            terms,
            wanted_back=wanted_back,
            count_outcome=partial(self._storage.count, sender),
        )
