"""The receiver's movers: start them, lend them connections, file what is in their journals.

In: connections between two messages.  Out: the same, once their C-STOREs are read and answered. See ``mover``
for the process, ``loan`` for the words.
"""

from __future__ import annotations

import gc
import os
import queue
import select
import threading
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Any

import structlog

from node.config import NodeConfig
from node.errors import OutOfSpace, SpoolError
from node.receive.channel import Channel, Message
from node.receive.index import Incoming
from node.receive.journal import Journal, Record, RecordedInstance
from node.receive.loan import CLOSED, INVALID, OTHER, Returned, terms_to_json
from node.receive.mover import Mover
from node.receive.part10 import HEAD_BYTES
from node.receive.places import JOURNAL
from node.receive.spool import Spool
from node.receive.storage import Outcome
from node.receive.stream import InvalidPdu, Terms

log = structlog.get_logger("node.receive.movers")

#: how often a loan looks whether the connection is wanted back
LOOK_MILLISECONDS = 50
#: filing what a mover's journal holds may take so long
FILE_SECONDS = 60.0


class Movers:
    """Started once, before any thread is; each association stays with one mover."""

    def __init__(self, config: NodeConfig, number_of_movers: int) -> None:
        """Forks the processes, which share our memory as it is now. They wait for ``begin``."""
        self._config = config
        self._channels: list[Channel] = []
        self._pids: list[int] = []
        self._hearers: list[threading.Thread] = []
        self._of: dict[str, int] = {}  # association -> its mover
        self._lock = threading.Lock()
        self._tokens = count()
        self._answers: dict[Any, queue.SimpleQueue[bool]] = {}
        self._stopping = False
        gc.collect()
        gc.freeze()  # a collection would write to every object, and so copy it into each process
        for number in range(number_of_movers):
            self._fork(number, config.receive.journal_bytes // number_of_movers)

    def begin(self, spool: Spool) -> None:
        """Have them make their journals; what is in these from the last time is filed first."""
        self._spool = spool
        for number, channel in enumerate(self._channels):
            answer = self._answers["ready", number] = queue.SimpleQueue()
            hearer = threading.Thread(target=self._hear, args=(number,), name="mover", daemon=True)
            self._hearers.append(hearer)
            hearer.start()
            channel.send({"order": "begin"})
            answer.get()

    def lend(
        self,
        sender: tuple[str, str],
        connection: int,
        terms: Terms,
        *,
        wanted_back: Callable[[], bool],
        count_outcome: Callable[[Outcome], None],
    ) -> Returned:
        """Have the C-STOREs of a connection read; returns when something else comes, or nothing.

        sender: association id, calling AE title.  connection: descriptor.
        Raises InvalidPdu, and OSError when the connection or the mover ended.
        """
        association_id, calling_ae_title = sender
        ours, theirs = Channel.pair()
        try:
            self._channels[self._mover_of(association_id)].send(
                {
                    "order": "lend",
                    "association_id": association_id,
                    "calling_ae_title": calling_ae_title,
                    "terms": terms_to_json(terms),
                },
                [connection, theirs.fileno()],
            )
            theirs.close()
            return self._wait(ours, wanted_back, count_outcome)
        finally:
            ours.close()

    def end(self, association_id: str) -> None:
        """An association has ended: everything that came over it is filed when this returns."""
        with self._lock:
            number = self._of.pop(association_id, None)
        if number is None:
            return
        answer = self._answers["ended", association_id] = queue.SimpleQueue()
        self._channels[number].send({"order": "end", "association_id": association_id})
        answer.get()

    def file_all(self) -> bool:
        """File everything that is acknowledged; False when that failed for some."""
        filed = [self._spool.journal.file_now()]
        waiting = []
        for channel in self._channels:
            token = next(self._tokens)
            answer = self._answers["done", token] = queue.SimpleQueue()
            channel.send({"order": "file", "token": token})
            waiting.append((token, answer))
        for token, answer in waiting:
            try:
                filed.append(answer.get(timeout=FILE_SECONDS))
            except queue.Empty:
                self._answers.pop(("done", token), None)
                filed.append(False)
        return all(filed)

    def stop(self) -> None:
        """No association may be open."""
        self._stopping = True
        for channel in self._channels:
            with suppress(OSError):  # it has ended already
                channel.send({"order": "stop"})
        for pid in self._pids:
            os.waitpid(pid, 0)
        for hearer in self._hearers:
            hearer.join()
        for channel in self._channels:
            channel.close()

    def _fork(self, number: int, journal_bytes: int) -> None:
        ours, theirs = Channel.pair()
        pid = os.fork()
        if pid == 0:
            try:
                for channel in (*self._channels, ours):
                    channel.close()  # else they wouldn't end with the receiver
                os.dup2(2, 1)  # stdout is for the receiver's events
                Mover(number, journal_bytes, self._config, theirs).run()
            finally:
                os._exit(1)
        theirs.close()
        self._channels.append(ours)
        self._pids.append(pid)

    def _mover_of(self, association_id: str) -> int:
        with self._lock:
            if association_id not in self._of:
                load = Counter(self._of.values())
                self._of[association_id] = min(range(len(self._channels)), key=load.__getitem__)
            return self._of[association_id]

    def _wait(
        self, channel: Channel, wanted_back: Callable[[], bool], count_outcome: Callable[[Outcome], None]
    ) -> Returned:
        poll = select.poll()
        poll.register(channel, select.POLLIN)
        asked = False
        while True:
            if not poll.poll(LOOK_MILLISECONDS):
                if not asked and wanted_back():
                    asked = True
                    channel.send({"back": True})
                continue
            message = channel.receive()
            if message is None:
                raise ConnectionError("the mover has gone")
            if "outcomes" in message.fields:
                for outcome in message.fields["outcomes"]:
                    count_outcome(Outcome(**outcome))
            elif "keep" in message.fields:
                channel.send(self._keep(message.fields["keep"]))
            else:
                return _returned(message)

    def _keep(self, asked: dict[str, Any]) -> dict[str, Any]:
        file = self._spool.incoming / asked["file"]
        try:
            with file.open("rb") as stream:
                stream.seek(asked["header_bytes"])
                head = stream.read(HEAD_BYTES)
            kept = self._spool.keep(Incoming(**asked["incoming"]), file, asked["header_bytes"], head)
        except SpoolError as error:
            out_of_space = isinstance(error, OutOfSpace)
            return {"error": str(error), "hint": error.hint, "out_of_space": out_of_space}
        except OSError as error:
            return {"error": f"cannot read {file.name}: {error.strerror}", "hint": "", "out_of_space": False}
        return {"kept": kept.__dict__}

    def _hear(self, number: int) -> None:
        channel = self._channels[number]
        while (message := channel.receive()) is not None:
            fields = message.fields
            match fields["news"]:
                case "ready":
                    self._answers.pop(("ready", number)).put(True)
                case "ended":
                    self._answers.pop(("ended", fields["association_id"])).put(True)
                case "done":
                    answer = self._answers.pop(("done", fields["token"]), None)
                    if answer is not None:
                        answer.put(fields["ok"])
                case "records":
                    threading.Thread(target=self._file, args=(number, message), daemon=True).start()
        if not self._stopping:
            # what it acknowledged is in its journal, which a new receiver files first
            log.critical("mover_died", mover=number, hint="the receiver starts again")
            os._exit(1)

    def _file(self, number: int, message: Message) -> None:
        records = [
            Record(message.descriptors[file], offset, length, RecordedInstance(**instance))
            for file, offset, length, instance in message.fields["records"]
        ]
        ok = True
        try:
            self._spool.file_records(records)
        except Exception:  # a worker's boundary: the mover asks again
            log.error("records_not_filed", mover=number, records=len(records), exc_info=True)
            ok = False
        finally:
            for descriptor in message.descriptors:
                os.close(descriptor)
        self._channels[number].send({"order": "filed", "token": message.fields["token"], "ok": ok})


def _returned(message: Message) -> Returned:
    fields, unread = message.fields["returned"], message.attachment
    how = fields["how"]
    if how == INVALID:
        raise InvalidPdu("a mover says so")
    if how == CLOSED:
        raise ConnectionError("the connection ended")
    if how == OTHER:
        command_set = unread[: fields["command_bytes"]]
        other = (fields["context_id"], command_set, fields["left"])
        return Returned(other, unread[fields["command_bytes"] :])
    return Returned(None, unread)


def file_left_journals(spool: Spool, movers: int) -> None:
    """File the journals of movers that there are no more, when there are so many now."""
    for folder in (spool.own_dir / JOURNAL).glob("*/"):
        if folder.name.isdigit() and int(folder.name) >= movers:
            _file_left_journal(spool, folder)


def _file_left_journal(spool: Spool, folder: Path) -> None:
    journal = Journal(folder, 0, spool.file_records)
    journal.start()
    journal.stop()
    for segment in folder.glob("*.segment"):
        segment.unlink()
    folder.rmdir()
