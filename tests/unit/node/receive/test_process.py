"""The node's side of the receiver: what it hears is handed on until that succeeds."""

from __future__ import annotations

import threading

import pytest

from node.config import NodeConfig
from node.receive.process import ReceiverProcess


def test_a_series_that_could_not_be_handed_on_comes_again_and_holds_up_no_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("node.receive.process.HANDOVER_RETRY_SECONDS", 0.05)
    handed: list[tuple[str, int]] = []
    done = threading.Event()

    def on_complete(series_instance_uid: str, version: int) -> None:
        handed.append((series_instance_uid, version))
        if handed.count(("1.2", 1)) == 3:
            done.set()
        elif series_instance_uid == "1.2":
            raise RuntimeError("the database is locked")

    process = ReceiverProcess(NodeConfig(), on_complete)
    process._router.start()
    for uid, version in (("1.2", 1), ("1.3", 2)):
        process._heard({"event": "complete", "series_instance_uid": uid, "version": version})
    assert done.wait(10)
    process._complete.put(None)
    process._router.join(10)
    assert handed[:2] == [("1.2", 1), ("1.3", 2)]
    assert handed.count(("1.3", 2)) == 1 and handed.count(("1.2", 1)) == 3
