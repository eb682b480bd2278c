"""Every malformed file and every codec's, sent raw: each has its outcome in ``bad_input_outcomes.tsv``.

A file goes out twice. *As sent*: the bytes behind its File Meta Information, under the SOP class, instance
UID and transfer syntax that this names; all of it as it is where there is none that can be read. *Whole*: all
of its bytes, preamble and meta included, as a CT image in Explicit VR Little Endian.

An outcome is the status, with the code of the recorded reason, or ``context N``: the presentation context was
rejected with result N (PS3.8 table 9-18; 3: not a storage class, 4: unknown transfer syntax). The statuses
are those of PS3.4 B.2.3, as ``REASONS`` says. Every file meets a spool that doesn't know its UID.
"""

from __future__ import annotations

import hashlib
import os
import struct
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian
from sqlalchemy import select

from node.config import ReceiveConfig
from node.database import instances
from node.receive.journal import SEGMENT_BYTES
from tests.integration.raw_dataset import encode, image_elements
from tests.integration.raw_scu import Context, RawScu, store_message
from tests.integration.receiving import CALLING, ReceivingNode, wait_for
from tests.processes import peak_kilobytes
from tests.shared_data import SHARED_DATA, shared

pytestmark = pytest.mark.integration

FOLDERS = ("codecs", "malformed")
OUTCOMES = Path(__file__).with_name("bad_input_outcomes.tsv")
#: code of the recorded reason -> status, and why (PS3.4 table B.2-1, PS3.7 annex C)
REASONS = {
    "missing_uid": ("0xC000", "cannot understand: it can't be filed without its UIDs"),
    "invalid_uid": ("0xC000", "cannot understand: a UID that is none (PS3.5 9.1)"),
    "unreadable_dataset": ("0xC000", "cannot understand: no data set in the negotiated transfer syntax"),
    "uid_mismatch": ("0xA900", "data set does not match SOP Class, or Instance, of the command"),
}
FILE_CONTEXT, WHOLE_CONTEXT = 1, 3
_LONG_VRS = (b"OB", b"OW", b"SQ", b"UN", b"UT")


@dataclass(frozen=True)
class Sending:
    """What of a file is sent, and as what."""

    sop_class_uid: str
    sop_instance_uid: str
    transfer_syntax_uid: str
    dataset: bytes


def _uid_of(name: str) -> str:
    return f"1.2.826.0.1.3680043.9.9999.2.{int(hashlib.sha256(name.encode()).hexdigest()[:16], 16)}"


def _as_sent(name: str, content: bytes) -> Sending:
    meta, at = _meta(content)
    if not {0x02, 0x10} <= set(meta):
        return Sending(CTImageStorage, _uid_of(name), ExplicitVRLittleEndian, content[at:])
    return Sending(meta[0x02], meta.get(0x03) or _uid_of(name), meta[0x10], content[at:])


def _meta(content: bytes) -> tuple[dict[int, str], int]:
    """The File Meta Information's values and its end; nothing, and 0, where it breaks PS3.10 7.1."""
    if content[128:132] != b"DICM":
        return {}, 0
    found: dict[int, str] = {}
    at = 132
    while content[at : at + 2] == b"\2\0" and at + 12 <= len(content):
        number, vr, length = struct.unpack_from("<H2sH", content, at + 2)
        start = at + 8
        if vr in _LONG_VRS:
            length, start = struct.unpack_from("<L", content, at + 8)[0], at + 12
        if not (vr.isalpha() and vr.isupper()) or start + length > len(content):
            return {}, 0
        found[number] = content[start : start + length].strip(b" \0").decode("latin-1")
        at = start + length
    return found, at


def _files() -> list[str]:
    return sorted(
        str(path.relative_to(SHARED_DATA))
        for folder in FOLDERS
        for path in shared(folder).rglob("*")
        if path.is_file()
    )


def _expected() -> dict[str, tuple[str, str]]:
    rows = [line.split("\t") for line in OUTCOMES.read_text(encoding="utf-8").splitlines()[1:]]
    return {path: (as_sent, whole) for path, as_sent, whole in rows}


def _rounds(names: list[str]) -> list[list[str]]:
    """The files, so that none of a round has a SOP Instance UID of another."""
    rounds: list[dict[str, str]] = []
    for name in names:
        uid = _as_sent(name, (SHARED_DATA / name).read_bytes()).sop_instance_uid
        home = next((one for one in rounds if uid not in one), None)
        if home is None:
            home = {}
            rounds.append(home)
        home[uid] = name
    return [list(one.values()) for one in rounds]


class GoodSeries(threading.Thread):
    """Sent while the bad files are."""

    def __init__(self, port: int) -> None:
        super().__init__(name="good series")
        self.uid = "1.2.826.0.1.3680043.9.9999.3"
        self.datasets = {
            uid: encode(image_elements(uid, self.uid, pixels=uid[-1:].encode() * 100_000))
            for uid in (f"{self.uid}.{n}" for n in range(60))
        }
        self.statuses: list[int] = []
        self._port = port

    def run(self) -> None:
        with RawScu(self._port) as scu:
            for uid, dataset in self.datasets.items():
                scu.socket.sendall(store_message(uid, dataset))
                self.statuses.append(scu.status())
            scu.release()


def _send(node: ReceivingNode, name: str) -> tuple[str, str]:
    """Both outcomes of a file; what was kept of it is compared with what was sent."""
    content = (SHARED_DATA / name).read_bytes()
    sending = _as_sent(name, content)
    whole = Sending(CTImageStorage, _uid_of(f"whole {name}"), ExplicitVRLittleEndian, content)
    contexts: list[Context] = [
        (FILE_CONTEXT, sending.sop_class_uid, sending.transfer_syntax_uid),
        (WHOLE_CONTEXT, CTImageStorage, ExplicitVRLittleEndian),
    ]
    outcomes = []
    with RawScu(node.port, contexts) as scu:
        for context, one in ((FILE_CONTEXT, sending), (WHOLE_CONTEXT, whole)):
            if scu.results[context] != 0:
                outcomes.append(f"context {scu.results[context]}")
                continue
            scu.socket.sendall(
                store_message(
                    one.sop_instance_uid, one.dataset, sop_class_uid=one.sop_class_uid, context=context
                )
            )
            outcomes.append(_outcome(node, one, scu.status()))
        scu.release()
    return outcomes[0], outcomes[1]


def _outcome(node: ReceivingNode, sending: Sending, status: int) -> str:
    node.spool.file_all()
    with node.engine.connect() as connection:
        # the index keeps 64 characters of what may be any text
        named = instances.c.sop_instance_uid == sending.sop_instance_uid[:64]
        rows = [dict(row._mapping) for row in connection.execute(select(instances).where(named))]
    (row,) = [row for row in rows if node.dataset_bytes(row) == sending.dataset]
    assert (row["state"] == "stored") == (status == 0)
    assert bool(row["reason"]) == bool(row["reason_code"]) == (status != 0)
    return " ".join(part for part in (f"0x{status:04X}", row["reason_code"]) if part)


def _send_all(node: ReceivingNode, names: list[str]) -> dict[str, tuple[str, str]]:
    """The outcomes of files that were sent over several associations at once."""
    with ThreadPoolExecutor(4) as senders:
        return dict(zip(names, senders.map(lambda name: _send(node, name), names), strict=True))


def _node(data_dir: Path, *, journal_bytes: int) -> ReceivingNode:
    receive = ReceiveConfig(
        port=0,
        allowed_calling_ae_titles=(CALLING,),
        free_disk_floor_bytes=0,
        journal_bytes=journal_bytes,
    )
    return ReceivingNode(data_dir, receive).start()


def test_every_file_has_its_outcome_and_a_good_series_is_untouched(tmp_path: Path) -> None:
    expected = _expected()
    first, *others = _rounds(_files())
    descriptors, peak_kb = _descriptors(), peak_kilobytes(os.getpid())
    node = _node(tmp_path / "first", journal_bytes=2 * SEGMENT_BYTES)
    good = GoodSeries(node.port)
    good.start()
    try:
        found = _send_all(node, first)
        good.join()
        assert good.statuses == [0x0000] * len(good.datasets)
        stored = {row["sop_instance_uid"]: row for row in node.rows() if row["state"] == "stored"}
        assert all(node.dataset_bytes(stored[uid]) == dataset for uid, dataset in good.datasets.items())
        wait_for(lambda: (good.uid, 1) in node.completed, what="the good series to be complete")
    finally:
        node.stop()
    for number, names in enumerate(others):
        node = _node(tmp_path / str(number), journal_bytes=0)
        try:
            found |= _send_all(node, names)
        finally:
            node.stop()
    assert _descriptors() <= descriptors + 2
    assert peak_kilobytes(os.getpid()) - peak_kb < 100_000
    wrong = [
        "\t".join((name, *outcomes)) for name, outcomes in found.items() if outcomes != expected.get(name)
    ]
    assert not wrong, f"not as {OUTCOMES.name} says; new files need their outcome there:\n" + "\n".join(wrong)


def _descriptors() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def test_the_table_keeps_to_the_standard() -> None:
    for path, outcomes in _expected().items():
        for outcome in outcomes:
            status, _, code = outcome.partition(" ")
            if code in REASONS:
                assert status == REASONS[code][0], path
            else:
                assert outcome in ("0x0000", "context 3", "context 4"), path
