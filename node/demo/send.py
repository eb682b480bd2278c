"""The demo's modality: sends folders by C-STORE as a scanner or PACS would, files unchanged."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

from pydicom import dcmread
from pydicom.uid import UID
from pynetdicom import AE, Association, _config, evt

from node.errors import NodeError
from node.scu import release, send_and_acknowledge_at_once, wait_for_reactor
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
        "127.0.0.1", port, ae_title=ae_title, evt_handlers=[(evt.EVT_CONN_OPEN, send_and_acknowledge_at_once)]
    )
    if not association.is_established:
        raise NodeError("the node didn't accept the demo's association", hint="see node.log")
    failed = []
    for done, item in enumerate(outgoing, 1):
        why_not = _store(association, item)
        if why_not:
            failed.append(f"{item.path.name}: {why_not}")
        progress(done, len(outgoing))
    release(association)
    return failed


def _store(association: Association, item: Outgoing) -> str:
    """Send one file; returns why it wasn't taken, or nothing."""
    if not association.is_established:
        return "the association had ended"
    accepted = {(c.abstract_syntax, c.transfer_syntax[0]) for c in association.accepted_contexts}
    if (item.sop_class_uid, item.transfer_syntax_uid) not in accepted:
        return f"{item.sop_class_uid.name} in {item.transfer_syntax_uid.name} wasn't accepted"
    wait_for_reactor(association)
    status = association.send_c_store(item.path).get("Status")
    if status is None:
        association.abort()  # unless it is at its end already
        return "no answer"
    return "" if status == 0x0000 else f"status {status:#06x}"
