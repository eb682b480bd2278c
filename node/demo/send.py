"""The demo's modality: sends folders by C-STORE as a scanner or PACS would, files unchanged."""

from __future__ import annotations

import socket
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

from pydicom import dcmread
from pydicom.uid import UID
from pynetdicom import AE, _config, evt

from node.errors import NodeError
from pipelines.load import dicom_files

#: an association may propose 128 presentation contexts (PS3.8 9.3.2.2)
MAX_CONTEXTS = 128


@dataclass(frozen=True)
class Outgoing:
    """One file to send."""

    path: Path
    series_instance_uid: str
    sop_class_uid: UID
    transfer_syntax_uid: UID


def find_outgoing(folders: Sequence[Path]) -> list[Outgoing]:
    """Every DICOM file below the folders, the series interleaved instance by instance."""
    by_series: dict[str, list[Outgoing]] = defaultdict(list)
    for path in [path for folder in folders for path in dicom_files(folder)]:
        header = dcmread(path, specific_tags=["SOPClassUID", "SeriesInstanceUID"], stop_before_pixels=True)
        if not header.get("SOPClassUID"):
            continue
        series = str(header.get("SeriesInstanceUID", ""))
        syntax = UID(header.file_meta.TransferSyntaxUID)
        by_series[series].append(Outgoing(path, series, UID(header.SOPClassUID), syntax))
    rounds = zip_longest(*by_series.values())
    return [item for items in rounds for item in items if item is not None]


def send(
    outgoing: Sequence[Outgoing], *, port: int, ae_title: str, progress: Callable[[int, int], None]
) -> list[str]:
    """Send over one association to the loopback; returns a line for every file not answered 0x0000."""
    # The bytes of the files go out as they are; decoding and encoding them would repair what is odd.
    _config.STORE_SEND_CHUNKED_DATASET = True
    ae = AE(ae_title="DEMO_MODALITY")
    kinds = sorted({(item.sop_class_uid, item.transfer_syntax_uid) for item in outgoing})
    for sop_class, syntax in kinds[:MAX_CONTEXTS]:
        ae.add_requested_context(sop_class, syntax)
    association = ae.associate(
        "127.0.0.1", port, ae_title=ae_title, evt_handlers=[(evt.EVT_CONN_OPEN, _no_delay)]
    )
    if not association.is_established:
        raise NodeError("the node didn't accept the demo's association", hint="see node.log")
    failed = []
    for done, item in enumerate(outgoing, 1):
        status = association.send_c_store(item.path).get("Status")
        if status != 0x0000:
            failed.append(
                f"{item.path.name}: " + ("no answer" if status is None else f"status {status:#06x}")
            )
        progress(done, len(outgoing))
    association.release()
    return failed


def _no_delay(event: evt.Event) -> None:
    event.assoc.dul.socket.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
