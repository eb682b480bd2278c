"""Deliver: the files of a result set in, stored at a destination or a DeliveryError out."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from types import MappingProxyType

from sqlalchemy import Engine

from node.audit import AuditTrail
from node.commitment_requests import CommitmentRequests
from node.config import CStoreDestination, DestinationConfig, FolderDestination, NodeConfig, StowDestination
from node.deliver.base import Destination
from node.deliver.commitment import CommitmentScu
from node.deliver.cstore import CStoreDeliverer
from node.deliver.dicom_peer import DicomPeer
from node.deliver.folder import FolderDeliverer
from node.deliver.gate import Condition, Gate
from node.deliver.pauses import Pauses
from node.deliver.stow import StowDeliverer
from node.metrics import Metrics
from node.tls import client_context

__all__ = ["Destination", "check_commitment", "conditions", "make_destination", "make_gates"]


def make_gates(
    config: NodeConfig,
    engine: Engine,
    audit: AuditTrail,
    metrics: Metrics,
    kept: Mapping[str, Gate] = MappingProxyType({}),
) -> dict[str, Gate]:
    """Every configured destination behind its gate, by name; those of ``kept`` that didn't change as they
    are. Raises ConfigError."""
    record, pauses = CommitmentRequests(engine).record, Pauses(engine)
    gates = {}
    for name, each in config.destinations.items():
        if name in kept and kept[name].options == each:
            gates[name] = kept[name]
            continue
        made = make_destination(
            name, each, calling_ae_title=config.receive.ae_title, audit=audit, metrics=metrics
        )
        options = each.commitment if isinstance(each, CStoreDestination) else None
        scu = None
        if options is not None and isinstance(made, CStoreDeliverer):
            scu = CommitmentScu(made.peer, options, record)
        gates[name] = Gate(made, each, metrics, scu, partial(pauses.of, name))
    return gates


def check_commitment(config: NodeConfig) -> list[str]:
    """Why reports on storage commitment may not reach our listener."""
    receive, found = config.receive, []
    for name, each in config.destinations.items():
        options = each.commitment if isinstance(each, CStoreDestination) else None
        if options is None or not isinstance(each, CStoreDestination):
            continue
        title = options.ae_title or each.ae_title
        if not receive.allow_any_calling_ae_title and title not in receive.allowed_calling_ae_titles:
            found.append(
                f"destinations.{name}.commitment: {title} isn't in receive.allowed_calling_ae_titles: it can "
                "report over the association of the question only"
            )
        calling = each.calling_ae_title
        if calling not in (None, receive.ae_title) and receive.require_called_ae_title:
            found.append(
                f"destinations.{name}.commitment: reports go to {calling}, which isn't receive.ae_title, "
                f"{receive.ae_title}: receive.require_called_ae_title rejects them"
            )
    return found


def conditions(gates: Mapping[str, Gate]) -> list[Condition]:
    """How all destinations do, for people."""
    return [gate.condition for gate in gates.values()]


def make_destination(
    name: str,
    config: DestinationConfig,
    *,
    calling_ae_title: str,
    audit: AuditTrail | None = None,
    metrics: Metrics | None = None,
) -> Destination:
    """One configured destination; ``calling_ae_title`` unless it has its own.

    Raises ConfigError when a file of its ``tls`` can't be used, or its ``token_variable`` isn't set.
    """
    if isinstance(config, FolderDestination):
        return FolderDeliverer(name, config)
    tls = None
    if config.tls is not None:
        tls = client_context(name, config.tls, metrics.tls(name) if metrics is not None else None)
    if isinstance(config, StowDestination):
        return StowDeliverer(name, config, tls=tls, audit=audit)
    return CStoreDeliverer(DicomPeer(name, config, config.calling_ae_title or calling_ae_title, tls, audit))
