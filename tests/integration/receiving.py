"""Helpers: a receiving node (spool, tracker, listener) on a free port, senders, and the shared data.

``ReceivingNode`` is the receiving half of the service as ``node/receive/__main__.py`` puts it together.
``python -m tests.integration.receiving DATA_DIR [DATABASE NODE_ID]`` runs one as a process that prints its
port: something to kill.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from pydicom import Dataset, dcmread
from pydicom.filereader import read_file_meta_info
from pydicom.uid import UID, CTImageStorage, ExplicitVRLittleEndian, generate_uid
from pynetdicom import AE, build_context
from pynetdicom.dimse_primitives import C_STORE
from pynetdicom.dsutils import encode
from sqlalchemy import select

from node.config import (
    DatabaseConfig,
    DestinationConfig,
    LogConfig,
    NodeConfig,
    QueryPeer,
    ReceiveConfig,
    SeriesConfig,
)
from node.database import instances, series
from node.log import configure_logging
from node.receive.journal import SEGMENT_BYTES
from node.receive.receiver import Receiver
from node.scu import wait_for_reactor
from tests.audit_schema import event_of, parsed

CALLING = "SENDER"


@dataclass
class ReceivingNode:
    """Started by ``start``; ``completed`` fills with (series, version) as they are handed over."""

    data_dir: Path
    receive: ReceiveConfig = field(
        default_factory=lambda: ReceiveConfig(
            port=0,
            allowed_calling_ae_titles=(CALLING,),
            network_timeout_seconds=5.0,
            acse_timeout_seconds=2.0,
            free_disk_floor_bytes=0,
            journal_bytes=4 * SEGMENT_BYTES,
            movers=0,
        )
    )
    timing: SeriesConfig = field(
        default_factory=lambda: SeriesConfig(quiet_seconds=3.0, released_quiet_seconds=0.3)
    )
    query: dict[str, QueryPeer] = field(default_factory=dict)
    destinations: dict[str, DestinationConfig] = field(default_factory=dict)
    on_complete: Callable[[str, int], object] | None = None
    completed: list[tuple[str, int]] = field(default_factory=list)
    database: DatabaseConfig = DatabaseConfig()  # noqa: RUF009 - frozen
    node_id: str = "node"

    def start(self) -> ReceivingNode:
        config = NodeConfig(
            data_dir=self.data_dir,
            database=self.database,
            node_id=self.node_id,
            receive=self.receive,
            series=self.timing,
            query=self.query,
            destinations=self.destinations,
        )
        self._receiver = receiver = Receiver(config, self._complete)
        receiver.start()
        self.engine, self.metrics, self.reconciled = receiver.engine, receiver.metrics, receiver.reconciled
        self.tracker, self.spool, self.listener = receiver.tracker, receiver.spool, receiver.listener
        self.headers, self.inquiries = receiver.headers, receiver.inquiries
        self.audit = receiver.audit
        return self

    def stop(self, grace_seconds: float = 2.0) -> None:
        self._receiver.stop(grace_seconds)

    @property
    def port(self) -> int:
        return self.listener.port

    def audited_transfers(self) -> set[tuple[str, ...]]:
        """Of the audit trail so far: (study, action, outcome, instances of the first SOP class, why)."""
        found: set[tuple[str, ...]] = set()
        for line in (self.data_dir / "audit/audit-receive.log").read_bytes().splitlines():
            message = parsed(line)
            if event_of(message)[0] == "110104":
                study = message.find("ParticipantObjectIdentification")
                assert study is not None
                instances = study.find("ParticipantObjectDescription/SOPClass")
                assert instances is not None
                found.add(
                    (
                        study.get("ParticipantObjectID", ""),
                        message[0].get("EventActionCode", ""),
                        event_of(message)[2],
                        instances.get("NumberOfInstances", ""),
                        message.findtext("EventIdentification/EventOutcomeDescription", ""),
                    )
                )
        return found

    def rows(self) -> list[dict[str, Any]]:
        self.spool.file_all()
        with self.engine.connect() as connection:
            return [dict(r._mapping) for r in connection.execute(select(instances).order_by(instances.c.id))]

    def series_rows(self) -> list[dict[str, Any]]:
        self.spool.file_all()
        with self.engine.connect() as connection:
            return [dict(r._mapping) for r in connection.execute(select(series).order_by(series.c.opened_at))]

    def dataset_bytes(self, row: dict[str, Any]) -> bytes:
        return dataset_bytes(self.data_dir / row["path"])

    def _complete(self, series_instance_uid: str, version: int) -> None:
        if self.on_complete is not None:
            self.on_complete(series_instance_uid, version)
        self.completed.append((series_instance_uid, version))


def wait_for(condition: Callable[[], Any], *, seconds: float = 10.0, what: str = "") -> Any:
    """Poll until true; fails the test after ``seconds``."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        if time.monotonic() > deadline:
            pytest.fail(f"waited {seconds} s for {what or condition}")
        time.sleep(0.02)
    return value


def dataset_bytes(path: Path) -> bytes:
    """The encoded data set of a Part 10 file, without its header."""
    meta = read_file_meta_info(path)
    return path.read_bytes()[144 + meta.FileMetaInformationGroupLength :]


def ct_slice(series_uid: str, number: int, **changes: Any) -> Dataset:
    """A small CT image."""
    image = Dataset()
    image.SOPClassUID = CTImageStorage
    image.SOPInstanceUID = generate_uid(entropy_srcs=[series_uid, str(number)])
    image.StudyInstanceUID = generate_uid(entropy_srcs=[series_uid, "study"])
    image.SeriesInstanceUID = series_uid
    image.Modality = "CT"
    image.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    image.BodyPartExamined = "CHEST"
    image.InstanceNumber = number
    image.ImagePositionPatient = [0, 0, 2.5 * number]
    image.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    image.Rows, image.Columns = 16, 16
    image.PixelData = bytes([number % 256]) * 512
    image["PixelData"].VR = "OW"
    for keyword, value in changes.items():
        setattr(image, keyword, value)
    return image


def encoded(image: Dataset) -> bytes:
    """Explicit VR Little Endian."""
    data = encode(image, False, True)
    assert data is not None
    return bytes(data)


class Sender:
    """An SCU that sends bytes as they are and looks at nothing in them."""

    def __init__(
        self, port: int, contexts: Iterable[tuple[str, str]], calling: str = CALLING, *, tls: Any = None
    ) -> None:
        self.ae = AE(ae_title=calling)
        self.ae.acse_timeout = self.ae.dimse_timeout = self.ae.network_timeout = 20
        requested = [build_context(UID(a), UID(t)) for a, t in sorted(set(contexts))]
        self.association = self.ae.associate(
            "127.0.0.1", port, contexts=requested, ae_title="PACSNODE", tls_args=tls
        )
        assert self.association.is_established, "the association was not accepted"
        self.association.dul.socket.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._message_id = 0

    def store(
        self, sop_class: str, sop_instance: str, dataset: bytes, transfer_syntax: str = ExplicitVRLittleEndian
    ) -> int:
        """C-STORE one data set; returns the status. Raises ConnectionError when there is no answer."""
        request = C_STORE()
        self._message_id = self._message_id % 65535 + 1
        request.MessageID = self._message_id
        request.AffectedSOPClassUID = sop_class
        request.AffectedSOPInstanceUID = sop_instance
        request.Priority = 2
        request.DataSet = BytesIO(dataset)
        context = next(
            cx
            for cx in self.association.accepted_contexts
            if (cx.abstract_syntax, cx.transfer_syntax[0]) == (sop_class, transfer_syntax)
        )
        wait_for_reactor(self.association)
        # the reactor would take the answer for a request of the peer
        self.association._reactor_checkpoint.clear()
        while not self.association._is_paused:
            time.sleep(0.001)
        try:
            self.association.dimse.send_msg(request, context.context_id)
            _, response = self.association.dimse.get_msg(block=True)
        finally:
            self.association._reactor_checkpoint.set()
        if response is None:
            raise ConnectionError("no answer to C-STORE")
        return int(response.Status)

    def store_image(self, image: Dataset) -> int:
        return self.store(image.SOPClassUID, image.SOPInstanceUID, encoded(image))

    def store_file(self, path: Path) -> int:
        """One Part 10 file in its own transfer syntax."""
        meta = read_file_meta_info(path)
        syntax = meta.TransferSyntaxUID
        uid = meta.get("MediaStorageSOPInstanceUID") or generate_uid(entropy_srcs=[path.name])
        return self.store(meta.MediaStorageSOPClassUID, uid, dataset_bytes(path), syntax)

    def release(self) -> None:
        self.association.release()

    def abort(self) -> None:
        self.association.abort()


def contexts_of(paths: Iterable[Path]) -> set[tuple[str, str]]:
    """(SOP class, transfer syntax) of Part 10 files."""
    metas = [read_file_meta_info(path) for path in paths]
    return {(str(m.MediaStorageSOPClassUID), str(m.TransferSyntaxUID)) for m in metas}


CT = [(CTImageStorage, ExplicitVRLittleEndian)]


def series_uid_of(folder: Path) -> str:
    first = next(path for path in sorted(folder.iterdir()) if path.is_file())
    return str(dcmread(first, stop_before_pixels=True).SeriesInstanceUID)


def storescu(port: int, paths: Iterable[Path], *options: str) -> subprocess.CompletedProcess[str]:
    """DCMTK's storescu."""
    program = Path("/usr/bin/storescu")  # pynetdicom installs a script of the same name
    if not program.exists():
        pytest.skip("needs DCMTK (apt install dcmtk)")
    return subprocess.run(
        [program, *options, "-aet", CALLING, "-aec", "PACSNODE", "127.0.0.1", str(port), *map(str, paths)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, "TCP_NODELAY": "1"},
    )


def main(data_dir: str, database: str = "{}", node_id: str = "node") -> None:
    configure_logging(LogConfig())
    node = ReceivingNode(
        Path(data_dir), database=DatabaseConfig.model_validate_json(database), node_id=node_id
    )
    node.receive = node.receive.model_copy(update={"movers": 2})
    node.start()
    sys.stdout.write(f"{node.port}\n")
    sys.stdout.flush()
    threading.Event().wait()


if __name__ == "__main__":
    main(*sys.argv[1:])
