"""The data path of C-STORE: P-DATA-TF PDUs off the socket, fragments straight to where they are kept.

In: an established association's bytes.  Out: one ``Reception`` a C-STORE-RQ, and its C-STORE-RSP; other
commands are handed on. Memory is one buffer an association, however large the instances are.
"""

from __future__ import annotations

import select
import socket
import ssl
import struct
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple, Protocol

from node.receive.command import (
    C_STORE_RQ,
    COMMAND,
    LAST,
    P_DATA_TF,
    StoreCommand,
    command_field,
    command_pdus,
    read_elements,
    store_command,
    store_response,
)
from node.tcp import SMALL_READ_BYTES, acknowledge_at_once

BUFFER_BYTES = 128 * 1024
MAX_COMMAND_BYTES = 64 * 1024
#: over the maximum length that we announce; some peers don't count headers into it
PDU_SLACK_BYTES = 1024
#: a message must bring as much within the network timeout, or end
PROGRESS_BYTES = 16 * 1024
#: of a PDU, when there is no network timeout
NO_TIMEOUT_SECONDS = 3600.0

_PDU = struct.Struct(">BBL")
_PDV = struct.Struct(">LBB")
_TIMEVAL = struct.Struct("@ll")


class Reception(Protocol):
    """One instance on its way in; nothing here raises what the peer could cause."""

    def write(self, pieces: Sequence[memoryview]) -> None:
        """The next bytes of the data set; the views are valid during the call only."""

    def finish(self) -> tuple[int, str]:
        """The data set is whole: keep it. Returns status and error comment for the answer."""

    def abandon(self) -> None:
        """The data set won't be whole: leave nothing. Harmless after ``finish``."""


class Context(NamedTuple):
    """An accepted presentation context: the UIDs of its abstract and transfer syntax."""

    abstract_syntax: str
    transfer_syntax: str


#: the reception of a C-STORE
Begin = Callable[[Context, StoreCommand], Reception]
#: the bytes of the response, of a status and an error comment
Respond = Callable[[int, str], bytes]


@dataclass(frozen=True)
class Terms:
    """What was negotiated. Lengths: of PDUs, bytes; peer's 0 is "no limit". Timeout: seconds."""

    contexts: Mapping[int, Context]
    max_pdu_bytes: int
    peer_max_pdu_bytes: int
    timeout: float


class InvalidPdu(Exception):
    """What came violates PS3.8; the association is aborted (AA-8)."""


class OtherCommands(Protocol):
    """Takes what isn't a C-STORE-RQ. Each may raise InvalidPdu."""

    def command(
        self, context_id: int, context: Context, elements: dict[int, bytes], command_set: bytes
    ) -> tuple[Reception, Respond, bool] | int:
        """A command set: returns a reception of its data set with its response and whether a data set
        follows, or how many bytes of a data set may follow for ``data_set``."""

    def data_set(self, context_id: int, fragment: bytes | bytearray, *, last: bool) -> None:
        """The next fragment of its data set."""


def limit_waiting(connection: socket.socket, seconds: float) -> None:
    """Let no read or write of a socket take longer; they raise OSError then.

    For plain TCP the kernel keeps the time: Python's own timeout is another system call before each read, and
    another moment in which the association's thread waits for the interpreter.
    """
    if isinstance(connection, ssl.SSLSocket):
        connection.settimeout(seconds)
        return
    connection.settimeout(None)
    limit = _TIMEVAL.pack(int(seconds), int(seconds % 1 * 1_000_000))
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, limit)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)


class ReadAhead:
    """A connection and what was read of it: ``data[start:end]`` isn't used yet."""

    def __init__(
        self, connection: socket.socket, seconds: float, *, buffer_bytes: int = BUFFER_BYTES
    ) -> None:
        """seconds: until what comes first must be whole."""
        self.connection = connection
        self._buffer_bytes = buffer_bytes
        self.data = memoryview(bytearray(buffer_bytes))
        self.start = self.end = 0
        self.deadline = time.monotonic() + seconds
        self._poll = select.poll()
        self._poll.register(connection, select.POLLIN)

    @property
    def is_empty(self) -> bool:
        return self.start == self.end

    def clear(self) -> None:
        self.start = self.end = 0

    def wait(self, milliseconds: int) -> bool:
        """Whether there is something to read within that time."""
        pending = isinstance(self.connection, ssl.SSLSocket) and self.connection.pending() > 0
        return self.end > self.start or pending or bool(self._poll.poll(milliseconds))

    def fill(self) -> None:
        """Read what is there, at least one byte, behind what is unused.

        Raises OSError: closed, timed out, or the deadline has passed.
        """
        if self.start == self.end:
            self.start = self.end = 0
        elif self.start:
            unused = self.end - self.start
            self.data[:unused] = bytes(self.data[self.start : self.end])
            self.start, self.end = 0, unused
        if time.monotonic() > self.deadline:
            raise TimeoutError("the PDU didn't come in time")
        count = self.connection.recv_into(self.data[self.end :])
        if count == 0:
            raise ConnectionError("closed by the peer")
        if count < SMALL_READ_BYTES:
            acknowledge_at_once(self.connection)
        self.end += count

    def give_back(self, unused: bytes) -> None:
        """Have bytes before all others. The buffer must be empty."""
        if len(unused) > len(self.data):
            self.data = memoryview(bytearray(len(unused) + self._buffer_bytes))
        self.start, self.end = 0, len(unused)
        self.data[: self.end] = unused


class StoreStream:
    """Reads the messages of one association."""

    def __init__(self, ahead: ReadAhead, terms: Terms, begin: Begin, others: OtherCommands) -> None:
        self._ahead = ahead
        self._terms = terms
        self._begin = begin
        self._others = others
        self._command = bytearray()
        self._context_id = 0
        self._respond: Respond | None = None
        self._reception: Reception | None = None
        self._pieces: list[memoryview] = []
        self._progress_bytes = 0
        self._progress_since = 0.0
        self._other_left = 0  # bytes that a data set of another command may still have; 0: none expected
        #: what the current PDU still has, bytes
        self.left = 0

    @property
    def is_between_messages(self) -> bool:
        return self._reception is None and not self._command and not self._other_left

    def run(self, stay: Callable[[], bool]) -> None:
        """Take P-DATA-TF PDUs until another one comes or, between messages, ``stay`` says no.

        Raises InvalidPdu, BadCommandSet, and OSError when the connection ends.
        """
        ahead = self._ahead
        while True:
            self.begin_pdu()
            if ahead.start == ahead.end:
                self._fill()
            if ahead.data[ahead.start] != P_DATA_TF:
                return
            self._p_data()
            if self.is_between_messages:
                self._progress_bytes = 0
                if not stay():
                    return

    def resume(self, context_id: int, command_set: bytes, left: int) -> None:
        """Go on with a message whose command another stream read, and with the rest of its PDU."""
        self.begin_pdu()
        self._context_id, self.left = context_id, left
        self._command_set(command_set)
        self._pdvs()

    def begin_pdu(self) -> None:
        """A PDU must come whole within the network timeout, so that a trickle can't hold us for ever."""
        self._ahead.deadline = time.monotonic() + self._terms.timeout

    def abandon(self) -> None:
        """Leave nothing of a message that won't be whole."""
        self._pieces.clear()
        if self._reception is not None:
            self._reception.abandon()
        self._reception = self._respond = None
        self._command.clear()
        self._other_left = 0

    def _p_data(self) -> None:
        """One P-DATA-TF PDU (PS3.8 9.3.5)."""
        _kind, _reserved, self.left = _PDU.unpack(self._take(_PDU.size))
        if self.left > self._terms.max_pdu_bytes + PDU_SLACK_BYTES:
            raise InvalidPdu("a PDU that is longer than we offered to receive")
        self._demand_progress(self.left)
        self._pdvs()

    def _pdvs(self) -> None:
        while self.left:
            if self.left < _PDV.size:
                raise InvalidPdu("a PDU with a piece of a PDV header")
            length, context_id, control = _PDV.unpack(self._take(_PDV.size))
            if not 2 <= length <= self.left - 4:
                raise InvalidPdu("a PDV that is longer than its PDU")
            self.left -= length + 4
            last = bool(control & LAST)
            if control & COMMAND:
                self._command_fragment(context_id, length - 2, last=last)
            elif self._reception is not None:
                self._data_fragment(context_id, length - 2, last=last)
            else:
                self._other_fragment(context_id, length - 2, last=last)

    def _demand_progress(self, pdu_bytes: int) -> None:
        """A message may not trickle in from PDU to PDU either, which would hold its association for ever."""
        now = time.monotonic()
        if self._progress_bytes == 0 or self._progress_bytes >= PROGRESS_BYTES:
            self._progress_bytes, self._progress_since = 0, now
        elif now - self._progress_since > self._terms.timeout:
            raise TimeoutError("the message makes no progress")
        self._progress_bytes += pdu_bytes + _PDU.size

    def _command_fragment(self, context_id: int, length: int, *, last: bool) -> None:
        if self._reception is not None or self._other_left:
            raise InvalidPdu("a command where a data set was to be continued")
        if len(self._command) + length > MAX_COMMAND_BYTES:
            raise InvalidPdu("a command set that is too long")
        if self._command and context_id != self._context_id:
            raise InvalidPdu("a command set over two presentation contexts")
        self._context_id = context_id
        self._command += self._take(length)
        if not last:
            return
        command_set, self._command = bytes(self._command), bytearray()
        self._command_set(command_set)

    def _command_set(self, command_set: bytes) -> None:
        context_id = self._context_id
        elements = read_elements(command_set)
        context = self._terms.contexts.get(context_id)
        if context is None:
            raise InvalidPdu("a command in a presentation context that wasn't accepted")
        has_data_set = True
        if command_field(elements) == C_STORE_RQ:
            store = store_command(elements)
            has_data_set = store.has_data_set
            self._respond = partial(store_response, store)
            self._reception = self._begin(context, store)
        else:
            taker = self._others.command(context_id, context, elements, command_set)
            if isinstance(taker, int):
                self._other_left = taker
            else:
                self._reception, self._respond, has_data_set = taker
        if not has_data_set:
            self._finish()

    def _data_fragment(self, context_id: int, length: int, *, last: bool) -> None:
        if context_id != self._context_id:
            raise InvalidPdu("a data set in another presentation context than its command")
        ahead = self._ahead
        while length:
            if ahead.start == ahead.end:
                self._fill()
            stop = min(ahead.end, ahead.start + length)
            self._pieces.append(ahead.data[ahead.start : stop])
            length -= stop - ahead.start
            ahead.start = stop
        if last:
            self._finish()

    def _other_fragment(self, context_id: int, length: int, *, last: bool) -> None:
        if length >= self._other_left:
            raise InvalidPdu("a data set without a command, or one that is too long")
        self._other_left -= length
        self._others.data_set(context_id, self._take(length), last=last)
        if last:
            self._other_left = 0

    def _finish(self) -> None:
        reception, respond = self._reception, self._respond
        assert reception is not None and respond is not None  # noqa: S101 - both are set by the command
        self._flush()
        status, comment = reception.finish()
        self._reception = self._respond = None
        pdus = command_pdus(self._context_id, respond(status, comment), self._terms.peer_max_pdu_bytes)
        self._ahead.connection.sendall(pdus)

    def _take(self, count: int) -> bytes | bytearray:
        """The next ``count`` bytes, copied; only for what is small."""
        ahead = self._ahead
        if ahead.end - ahead.start >= count:
            ahead.start += count
            return bytes(ahead.data[ahead.start - count : ahead.start])
        taken = bytearray()
        while len(taken) < count:
            if ahead.start == ahead.end:
                self._fill()
            stop = min(ahead.end, ahead.start + count - len(taken))
            taken += ahead.data[ahead.start : stop]
            ahead.start = stop
        return taken

    def _fill(self) -> None:
        self._flush()
        self._ahead.fill()

    def _flush(self) -> None:
        """Hand on what lies in the buffer, before it is overwritten."""
        if self._pieces:
            assert self._reception is not None  # noqa: S101 - pieces are of the current data set
            self._reception.write(self._pieces)
            self._pieces.clear()
