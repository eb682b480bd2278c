"""Deliver: the files of a result set in, stored at a destination or a DeliveryError out."""

from __future__ import annotations

from node.audit import AuditTrail
from node.config import CStoreDestination, Destination
from node.deliver.base import Deliverer
from node.deliver.cstore import CStoreDeliverer
from node.deliver.folder import FolderDeliverer
from node.metrics import Metrics
from node.tls import client_context

__all__ = ["Deliverer", "make_deliverer"]


def make_deliverer(
    name: str,
    config: Destination,
    *,
    calling_ae_title: str,
    audit: AuditTrail | None = None,
    metrics: Metrics | None = None,
) -> Deliverer:
    """The deliverer for one configured destination; ``calling_ae_title`` unless it has its own.

    Raises ConfigError when a file of its ``tls`` can't be used.
    """
    if isinstance(config, CStoreDestination):
        tls = None
        if config.tls is not None:
            tls = client_context(name, config.tls, metrics.tls(name) if metrics is not None else None)
        calling = config.calling_ae_title or calling_ae_title
        return CStoreDeliverer(name, config, calling_ae_title=calling, tls=tls, audit=audit)
    return FolderDeliverer(name, config)
