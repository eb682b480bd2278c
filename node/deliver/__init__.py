"""Deliver: the files of a result set in, stored at a destination or a DeliveryError out."""

from __future__ import annotations

from node.config import CStoreDestination, Destination
from node.deliver.base import Deliverer
from node.deliver.cstore import CStoreDeliverer
from node.deliver.folder import FolderDeliverer

__all__ = ["Deliverer", "make_deliverer"]


def make_deliverer(name: str, config: Destination, *, calling_ae_title: str) -> Deliverer:
    """The deliverer for one configured destination; ``calling_ae_title`` unless it has its own."""
    if isinstance(config, CStoreDestination):
        return CStoreDeliverer(name, config, calling_ae_title=config.calling_ae_title or calling_ae_title)
    return FolderDeliverer(name, config)
