"""A mover: reads the C-STOREs of connections that are lent to it, in a process of its own.

One interpreter can't move the data of several fast senders at once: their threads would wait for each other
at every system call. A mover has no part in anything else: the receiver negotiates, serves other commands,
owns the index and files what is in the mover's journal.

In, from the receiver (``movers``): connections with their terms (``loan``), and orders.  Out: instances
durable in the mover's journal or given to the receiver, and answered.

    orders  begin, lend (a connection), end (an association), file (everything), filed (records), stop
    news    ready, ended (an association), done (filing everything), records (to be filed)
"""

from __future__ import annotations

import os
import queue
import select
import signal
import socket
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict
from itertools import count
from pathlib import Path
from typing import Any, NoReturn

import structlog

from node.config import NodeConfig
from node.errors import OutOfSpace, SpoolError
from node.receive.channel import Channel, Message
from node.receive.command import BadCommandSet, StoreCommand
from node.receive.index import Incoming
from node.receive.intake import Intake
from node.receive.journal import Journal, Lane, Record
from node.receive.loan import CLOSED, INVALID, OTHER, TURN, terms_from_json
from node.receive.places import JOURNAL
from node.receive.receiving import Stored
from node.receive.storage import Outcome, StoreReception, begin_store
from node.receive.stream import Context, InvalidPdu, ReadAhead, Reception, Respond, StoreStream, Terms

log = structlog.get_logger("node.receive.mover")

#: a connection on which nothing comes for so long goes back
IDLE_MILLISECONDS = 50
#: outcomes are told after so many, or so long
OUTCOMES, OUTCOME_SECONDS = 64, 0.5


class _Other(Exception):
    """A command that isn't C-STORE."""

    def __init__(self, context_id: int, command_set: bytes) -> None:
        super().__init__()
        self.context_id = context_id
        self.command_set = command_set


class _NoOthers:
    """See ``stream.OtherCommands``."""

    def command(
        self, context_id: int, _context: Context, _elements: dict[int, bytes], command_set: bytes
    ) -> tuple[Reception, Respond, bool] | int:
        raise _Other(context_id, command_set)

    def data_set(self, context_id: int, fragment: bytes | bytearray, *, last: bool) -> None:  # noqa: ARG002
        raise InvalidPdu("a data set that no command announced")


class _LoanIntake(Intake):
    """Gives what isn't for the journal to the receiver."""

    def __init__(self, mover: Mover, channel: Channel) -> None:
        super().__init__(
            mover.config.data_dir,
            mover.journal,
            free_disk_floor_bytes=mover.config.receive.free_disk_floor_bytes,
            own_dir=mover.config.own_dir,
        )
        self._channel = channel
        self.wanted_back = False

    def keep(self, incoming: Incoming, file: Path, header_bytes: int, head: bytes) -> Stored:  # noqa: ARG002
        self._channel.send(
            {"keep": {"incoming": asdict(incoming), "file": file.name, "header_bytes": header_bytes}}
        )
        while (answer := self._channel.receive()) is not None:
            if "back" in answer.fields:
                self.wanted_back = True
            elif "error" in answer.fields:
                error = OutOfSpace if answer.fields["out_of_space"] else SpoolError
                raise error(answer.fields["error"], hint=answer.fields["hint"])
            else:
                return Stored(**answer.fields["kept"])
        raise SpoolError("the receiver has gone")


class Mover:
    """The process' state. ``run`` serves until it is told to stop."""

    def __init__(self, number: int, journal_bytes: int, config: NodeConfig, channel: Channel) -> None:
        self.config = config
        self.journal = Journal(config.own_dir / JOURNAL / str(number), journal_bytes, self._file)
        self._channel = channel
        self._lanes: dict[str, Lane] = {}
        self._lock = threading.Lock()
        self._tokens = count()
        self._filed: dict[int, queue.SimpleQueue[bool]] = {}

    def run(self) -> NoReturn:
        """Ends the process; without the receiver at once, as if killed."""
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the receiver says when
        while (message := self._channel.receive()) is not None:
            match message.fields["order"]:
                case "begin":
                    self._background(self._begin)
                case "lend":
                    self._background(self._serve, message)
                case "end":
                    self._background(self._end, message.fields["association_id"])
                case "file":
                    self._background(self._file_now, message.fields["token"])
                case "filed":
                    self._filed.pop(message.fields["token"]).put(message.fields["ok"])
                case "stop":
                    self._background(self._stop)
        os._exit(1)

    def _background(self, function: Any, *arguments: Any) -> None:
        threading.Thread(target=function, args=arguments, daemon=True).start()

    def _tell(self, news: str, **fields: Any) -> None:
        self._channel.send({"news": news, **fields})

    def _begin(self) -> None:
        try:
            self.journal.start()
        except Exception:  # a thread's boundary: without its journal the process is of no use
            log.critical("mover_not_started", exc_info=True)
            os._exit(1)
        self._tell("ready")

    def _stop(self) -> None:
        try:
            self.journal.stop()
        except Exception:  # a thread's boundary: the receiver waits for our end
            log.error("mover_not_stopped", hint="what isn't filed is in its journal", exc_info=True)
        os._exit(0)

    def _file_now(self, token: int) -> None:
        self._tell("done", token=token, ok=self.journal.file_now())

    def _file(self, records: Sequence[Record]) -> None:
        """Have the receiver file records; for the journal."""
        token = next(self._tokens)
        answer: queue.SimpleQueue[bool] = queue.SimpleQueue()
        self._filed[token] = answer
        files = list(dict.fromkeys(record.file for record in records))
        self._channel.send(
            {
                "news": "records",
                "token": token,
                "records": [
                    (files.index(one.file), one.offset, one.length, asdict(one.instance)) for one in records
                ],
            },
            files,
        )
        if not answer.get():
            raise SpoolError("the receiver couldn't file")

    def lane_of(self, association_id: str) -> Lane:
        """The lane of an association, for all of its loans."""
        with self._lock:
            if association_id not in self._lanes:
                self._lanes[association_id] = self.journal.lane()
            return self._lanes[association_id]

    def _end(self, association_id: str) -> None:
        with self._lock:
            lane = self._lanes.pop(association_id, None)
        if lane is not None:
            self.journal.end(lane)
        self._tell("ended", association_id=association_id)

    def _serve(self, message: Message) -> None:
        with socket.socket(fileno=message.descriptors[0]) as connection:
            channel = Channel(socket.socket(fileno=message.descriptors[1]))
            try:
                _Loan(self, connection, channel, message).serve()
            except OSError:
                pass  # the receiver has ended the loan
            except Exception:  # a thread's boundary: this association ends
                log.error("loan_failed", association_id=message.fields["association_id"], exc_info=True)
            finally:
                channel.close()


class _Loan:
    """One connection from its coming until it goes back."""

    def __init__(self, mover: Mover, connection: socket.socket, channel: Channel, message: Message) -> None:
        fields = message.fields
        self._sender = (fields["association_id"], fields["calling_ae_title"])
        self._lane = mover.lane_of(fields["association_id"])
        self._accept_unknown = mover.config.receive.accept_unknown_sop_classes
        self._terms: Terms = terms_from_json(fields["terms"])
        self._channel = channel
        self._intake = _LoanIntake(mover, channel)
        self._ahead = ReadAhead(connection, self._terms.timeout)
        self._stream = StoreStream(self._ahead, self._terms, self._begin, _NoOthers())
        self._outcomes: list[Outcome] = []
        self._told_at = time.monotonic()
        self._poll = select.poll()
        self._poll.register(connection, select.POLLIN)
        self._poll.register(channel, select.POLLIN)

    def serve(self) -> None:
        how, other = TURN, None
        try:
            self._stream.run(self._stay)
        except _Other as command:
            how, other = OTHER, command
        except (InvalidPdu, BadCommandSet):
            how = INVALID
        except OSError:
            how = CLOSED
        finally:
            self._stream.abandon()
        self._tell_outcomes()
        ahead = self._ahead
        returned: dict[str, Any] = {"how": how}
        unread = bytes(ahead.data[ahead.start : ahead.end])
        if other is not None:
            returned |= {
                "context_id": other.context_id,
                "left": self._stream.left,
                "command_bytes": len(other.command_set),
            }
            unread = other.command_set + unread
        self._channel.send({"returned": returned}, attachment=unread)
        while self._channel.receive() is not None:
            pass  # closing with something unread would take from the receiver what was sent last

    def _begin(self, context: Context, command: StoreCommand) -> StoreReception:
        return begin_store(
            self._intake,
            self._lane,
            self._sender,
            context,
            command,
            accept_unknown=self._accept_unknown,
            report=self._report,
        )

    def _report(self, outcome: Outcome) -> None:
        self._outcomes.append(outcome)

    def _tell_outcomes(self) -> None:
        if self._outcomes:
            self._channel.send({"outcomes": [asdict(outcome) for outcome in self._outcomes]})
            self._outcomes.clear()
        self._told_at = time.monotonic()

    def _stay(self) -> bool:
        """Between messages: whether the next one is there, and is to be read here."""
        if len(self._outcomes) >= OUTCOMES or time.monotonic() - self._told_at > OUTCOME_SECONDS:
            self._tell_outcomes()
        if self._intake.wanted_back:
            return False
        is_here = not self._ahead.is_empty
        ready = {descriptor for descriptor, _events in self._poll.poll(0 if is_here else IDLE_MILLISECONDS)}
        return (is_here or bool(ready)) and self._channel.fileno() not in ready
