"""Deliver: the files of a result set in, stored at a destination or a DeliveryError out."""

from __future__ import annotations

from collections.abc import Mapping

from node.audit import AuditTrail
from node.config import DestinationConfig, FolderDestination, NodeConfig, StowDestination
from node.deliver.base import Destination
from node.deliver.cstore import CStoreDeliverer
from node.deliver.dicom_peer import DicomPeer
from node.deliver.folder import FolderDeliverer
from node.deliver.gate import Condition, Gate
from node.deliver.stow import StowDeliverer
from node.metrics import Metrics
from node.tls import client_context

__all__ = ["Destination", "conditions", "make_destination", "make_gates"]


def make_gates(config: NodeConfig, audit: AuditTrail, metrics: Metrics) -> dict[str, Gate]:
    """Every configured destination behind its gate, by name. Raises ConfigError."""
    return {
        name: Gate(
            make_destination(
                name, each, calling_ae_title=config.receive.ae_title, audit=audit, metrics=metrics
            ),
            each,
            metrics,
        )
        for name, each in config.destinations.items()
    }


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
