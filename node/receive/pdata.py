"""The data path of C-STORE: P-DATA-TF PDUs off the socket, fragments straight to where they are kept.

In: an established association's bytes.  Out: one ``Reception`` a C-STORE-RQ, and its C-STORE-RSP.
pynetdicom negotiates, holds the state machine and serves every other command; only the reading of P-DATA-TF
in state Sta6 (PS3.8 9.2) is ours: pynetdicom decodes each PDU, copies each data set several times and polls
twice a millisecond. Memory is one buffer an association, however large the instances are.
"""

from __future__ import annotations

import select
import socket
import ssl
import struct
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, Protocol

from pynetdicom.pdu_primitives import P_DATA
from pynetdicom.presentation import PresentationContext
from pynetdicom.transport import AssociationSocket, RequestHandler

from node.receive.command import (
    C_CANCEL_RQ,
    C_STORE_RQ,
    COMMAND,
    LAST,
    P_DATA_TF,
    RESPONSE,
    SERVED_BESIDES_STORE,
    BadCommandSet,
    StoreCommand,
    command_field,
    command_pdus,
    other_request,
    read_elements,
    refusal,
    store_command,
    store_response,
    why_not_served,
)
from node.receive.upper_layer import (
    AWAITING_CLOSE,
    CONNECTION_CLOSED,
    DATA_TRANSFER,
    INVALID_PDU,
    GuardedDul,
    guard_negotiation,
)

BUFFER_BYTES = 256 * 1024
#: PS3.8 sets no limit; A-ASSOCIATE-RQ with 128 contexts of 40 transfer syntaxes is about 150 KB
MAX_OTHER_PDU_BYTES = 1024 * 1024
MAX_COMMAND_BYTES = 64 * 1024
#: data set of a command that isn't C-STORE; pynetdicom holds it in memory
MAX_OTHER_DATA_SET_BYTES = 16 * 1024 * 1024
#: over the maximum length that we announce; some peers don't count headers into it
PDU_SLACK_BYTES = 1024
#: a message must bring as much within the network timeout, or end
PROGRESS_BYTES = 16 * 1024
#: between two messages pynetdicom's loop gets its turn at least this often
TURN_MILLISECONDS = 50
#: of a PDU, when there is no network timeout
_NO_TIMEOUT = 3600.0

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


#: (pynetdicom association, context, command) -> the reception of that C-STORE
Begin = Callable[[Any, PresentationContext, StoreCommand], Reception]


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


class _Refused:
    """A request that isn't served: its data set is read, and kept nowhere."""

    def __init__(self, status: int) -> None:
        self._status = status

    def write(self, pieces: Sequence[memoryview]) -> None:
        pass

    def finish(self) -> tuple[int, str]:
        return self._status, ""

    def abandon(self) -> None:
        pass


class _InvalidPdu(Exception):
    """What came violates PS3.8; the association is aborted (AA-8)."""


class BufferedSocket(AssociationSocket):  # type: ignore[misc]
    """pynetdicom's socket, reading ahead into one buffer: ``data[start:end]`` is read and not yet used."""

    def __init__(self, association: Any, connection: Any) -> None:
        super().__init__(association, client_socket=connection)
        self.data = memoryview(bytearray(BUFFER_BYTES))
        self.start = self.end = 0
        # the A-ASSOCIATE-RQ is due when the ARTIM timer ends, however its bytes come
        self.deadline = time.monotonic() + (association.acse_timeout or _NO_TIMEOUT)
        self._poll = select.poll()
        self._poll.register(connection, select.POLLIN)

    @property
    def ready(self) -> bool:
        # pynetdicom's select() fails where more than 1024 files are open
        return self.socket is not None and self._is_connected and self.wait(0)

    def wait(self, milliseconds: int) -> bool:
        """Whether there is something to read within that time."""
        pending = isinstance(self.socket, ssl.SSLSocket) and self.socket.pending() > 0
        return self.end > self.start or pending or bool(self._poll.poll(milliseconds))

    @property
    def quiet_seconds(self) -> float:
        """Since the last PDU began to come."""
        return time.monotonic() - self.deadline + (self.assoc.network_timeout or _NO_TIMEOUT)

    def begin_pdu(self) -> None:
        """A PDU must come whole within the network timeout, so that a trickle can't hold us for ever."""
        if self.assoc.dul.state_machine.current_state == DATA_TRANSFER:
            self.deadline = time.monotonic() + (self.assoc.network_timeout or _NO_TIMEOUT)

    def fill(self) -> None:
        """Read what is there, at least one byte, behind what is unused.

        Raises OSError: closed, timed out, or the PDU's deadline has passed.
        """
        if self.start == self.end:
            self.start = self.end = 0
        elif self.start:
            unused = self.end - self.start
            self.data[:unused] = bytes(self.data[self.start : self.end])
            self.start, self.end = 0, unused
        if time.monotonic() > self.deadline:
            raise TimeoutError("the PDU didn't come in time")
        if self.socket is None:
            raise ConnectionError("closed by us")
        count = self.socket.recv_into(self.data[self.end :])
        if count == 0:
            raise ConnectionError("closed by the peer")
        self.end += count

    def close(self) -> None:
        """See pynetdicom. TLS says that it ends, and doesn't wait for the peer's answer."""
        connection = self.socket
        if isinstance(connection, ssl.SSLSocket):
            with suppress(OSError, ValueError):
                connection.settimeout(0.0)
                connection.unwrap()
        super().close()
        if connection is not None:
            connection.close()  # pynetdicom leaves it open where the peer was faster

    def recv(self, nr_bytes: int) -> bytearray:
        """For pynetdicom: exactly so many bytes, or what came before the connection was closed."""
        if nr_bytes > MAX_OTHER_PDU_BYTES:
            raise OSError(f"a PDU of {nr_bytes} bytes that isn't P-DATA-TF")
        self.begin_pdu()
        taken = bytearray()
        while len(taken) < nr_bytes:
            if self.start == self.end:
                try:
                    self.fill()
                except ConnectionError:
                    break
            stop = min(self.end, self.start + nr_bytes - len(taken))
            taken += self.data[self.start : stop]
            self.start = stop
        return taken


class StoreDul(GuardedDul):
    """pynetdicom's upper layer with our reading of P-DATA-TF."""

    socket: BufferedSocket

    def __init__(self, association: Any, begin: Begin) -> None:
        super().__init__(association)
        self.daemon = True
        self._begin = begin
        self._command = bytearray()
        self._command_context = 0
        self._respond: Callable[[int, str], bytes] | None = None
        self._reception: Reception | None = None
        self._pieces: list[memoryview] = []
        self._progress_bytes = 0
        self._progress_since = 0.0
        self._other_left = 0  # bytes that a data set of another command may still have; 0: none expected

    def _read_pdu_data(self) -> None:
        """pynetdicom's hook: there is something to read."""
        if self.state_machine.current_state == AWAITING_CLOSE:
            self._discard()
            return
        if self.state_machine.current_state != DATA_TRANSFER:
            super()._read_pdu_data()
            return
        # pynetdicom's reactor of the association polls every millisecond: it has nothing to do meanwhile
        self.assoc._reactor_checkpoint.clear()
        event = None
        try:
            self._receive()
        except (_InvalidPdu, BadCommandSet):
            event = INVALID_PDU
        except OSError:
            event = CONNECTION_CLOSED
        except BaseException:  # a defect: pynetdicom aborts the association
            self._abandon()
            raise
        finally:
            self._idle_timer.restart()
            self.assoc._reactor_checkpoint.set()
        if event is not None:
            self._abandon()
            self.socket.start = self.socket.end = 0
            self.event_queue.put(event)
        elif self.socket.end > self.socket.start and self.socket.data[self.socket.start] != P_DATA_TF:
            self._abandon()
            super()._read_pdu_data()

    def _discard(self) -> None:
        """The association is over: what still comes is neither answered nor logged, until the ARTIM timer
        ends. Closing with it unread would take our last PDU from the peer."""
        self.socket.start = self.socket.end = 0
        try:
            self.socket.fill()
        except OSError:
            self.event_queue.put(CONNECTION_CLOSED)
        self.socket.start = self.socket.end = 0

    def _receive(self) -> None:
        """Take P-DATA-TF PDUs until another one comes or, between messages, it is pynetdicom's turn."""
        connection = self.socket
        while True:
            connection.begin_pdu()
            if connection.start == connection.end:
                self._fill()
            if connection.data[connection.start] != P_DATA_TF:
                return
            between_messages = self._p_data()
            if between_messages:
                self._progress_bytes = 0
            if between_messages and not self._stay():
                return

    def _stay(self) -> bool:
        """Between messages: whether the next PDU is there, and nothing of ours waits to be sent."""
        if self._kill_thread or not self.to_provider_queue.empty() or not self.assoc.dimse.msg_queue.empty():
            return False
        return self.socket.wait(TURN_MILLISECONDS)

    def _p_data(self) -> bool:
        """One P-DATA-TF PDU (PS3.8 9.3.5); returns whether no message is under way after it."""
        _kind, _reserved, left = _PDU.unpack(self._take(_PDU.size))
        if left > self.assoc.acceptor.maximum_length + PDU_SLACK_BYTES:
            raise _InvalidPdu("a PDU that is longer than we offered to receive")
        self._demand_progress(left)
        while left:
            if left < _PDV.size:
                raise _InvalidPdu("a PDU with a piece of a PDV header")
            length, context_id, control = _PDV.unpack(self._take(_PDV.size))
            if not 2 <= length <= left - 4:
                raise _InvalidPdu("a PDV that is longer than its PDU")
            left -= length + 4
            last = bool(control & LAST)
            if control & COMMAND:
                self._command_fragment(context_id, length - 2, last=last)
            elif self._reception is not None:
                self._data_fragment(context_id, length - 2, last=last)
            else:
                self._other_fragment(context_id, length - 2, last=last)
        return self._reception is None and not self._command and not self._other_left

    def _demand_progress(self, pdu_bytes: int) -> None:
        """A message may not trickle in from PDU to PDU either, which would hold its association for ever."""
        now = time.monotonic()
        if self._progress_bytes == 0 or self._progress_bytes >= PROGRESS_BYTES:
            self._progress_bytes, self._progress_since = 0, now
        elif now - self._progress_since > (self.assoc.network_timeout or _NO_TIMEOUT):
            raise TimeoutError("the message makes no progress")
        self._progress_bytes += pdu_bytes + _PDU.size

    def _command_fragment(self, context_id: int, length: int, *, last: bool) -> None:
        if self._reception is not None or self._other_left:
            raise _InvalidPdu("a command where a data set was to be continued")
        if len(self._command) + length > MAX_COMMAND_BYTES:
            raise _InvalidPdu("a command set that is too long")
        if self._command and context_id != self._command_context:
            raise _InvalidPdu("a command set over two presentation contexts")
        self._command_context = context_id
        self._command += self._take(length)
        if not last:
            return
        command_set, self._command = bytes(self._command), bytearray()
        elements = read_elements(command_set)
        context = self.assoc._accepted_cx.get(context_id)
        if context is None:
            raise _InvalidPdu("a command in a presentation context that wasn't accepted")
        if command_field(elements) == C_STORE_RQ:
            store = store_command(elements)
            self._respond = partial(store_response, store)
            self._reception = self._begin(self.assoc, context, store)
            if not store.has_data_set:
                self._finish()
        else:
            self._other_command(context, elements, command_set)

    def _other_command(
        self, context: PresentationContext, elements: dict[int, bytes], command_set: bytes
    ) -> None:
        """pynetdicom chooses a service by the command's SOP class alone, so only what fits its presentation
        context is handed on; other requests are refused here."""
        field, abstract_syntax = command_field(elements), str(context.abstract_syntax)
        if field == C_CANCEL_RQ:
            return  # nothing that we serve can be cancelled, and a cancel has no response (PS3.7 9.3.2.3)
        if field & RESPONSE:
            if field not in SERVED_BESIDES_STORE.get(abstract_syntax, ()):
                raise _InvalidPdu("a response to what wasn't asked")
        else:
            request = other_request(elements)
            status = why_not_served(request, abstract_syntax)
            if status is not None:
                self._respond = lambda status, _comment: refusal(request, status)
                self._reception = _Refused(status)
                if not request.has_data_set:
                    self._finish()
                return
        self._forward(self._command_context, COMMAND | LAST, command_set)
        if self.assoc.dimse.message is not None:  # pynetdicom waits for a data set
            self._other_left = MAX_OTHER_DATA_SET_BYTES

    def _data_fragment(self, context_id: int, length: int, *, last: bool) -> None:
        if context_id != self._command_context:
            raise _InvalidPdu("a data set in another presentation context than its command")
        connection = self.socket
        while length:
            if connection.start == connection.end:
                self._fill()
            stop = min(connection.end, connection.start + length)
            self._pieces.append(connection.data[connection.start : stop])
            length -= stop - connection.start
            connection.start = stop
        if last:
            self._finish()

    def _other_fragment(self, context_id: int, length: int, *, last: bool) -> None:
        if length >= self._other_left:
            raise _InvalidPdu("a data set without a command, or one that is too long")
        self._other_left -= length
        self._forward(context_id, LAST if last else 0, self._take(length))
        if last:
            self._other_left = 0

    def _forward(self, context_id: int, control: int, fragment: bytes | bytearray) -> None:
        primitive = P_DATA()
        primitive.presentation_data_value_list.append([context_id, bytes([control]) + fragment])
        self.assoc.dimse.receive_primitive(primitive)

    def _finish(self) -> None:
        reception, respond = self._reception, self._respond
        assert reception is not None and respond is not None  # noqa: S101 - both are set by the command
        self._flush()
        status, comment = reception.finish()
        self._reception = self._respond = None
        pdus = command_pdus(
            self._command_context, respond(status, comment), self.assoc.requestor.maximum_length or 0
        )
        if self.socket.socket is None:
            raise ConnectionError("closed by us")
        self.socket.socket.sendall(pdus)

    def _take(self, count: int) -> bytes | bytearray:
        """The next ``count`` bytes, copied; only for what is small."""
        connection = self.socket
        if connection.end - connection.start >= count:
            connection.start += count
            return bytes(connection.data[connection.start - count : connection.start])
        taken = bytearray()
        while len(taken) < count:
            if connection.start == connection.end:
                self._fill()
            stop = min(connection.end, connection.start + count - len(taken))
            taken += connection.data[connection.start : stop]
            connection.start = stop
        return taken

    def _fill(self) -> None:
        self._flush()
        self.socket.fill()

    def _flush(self) -> None:
        """Hand on what lies in the buffer, before it is overwritten."""
        if self._pieces:
            assert self._reception is not None  # noqa: S101 - pieces are of the current data set
            self._reception.write(self._pieces)
            self._pieces.clear()

    def _abandon(self) -> None:
        self._pieces.clear()
        if self._reception is not None:
            self._reception.abandon()
        self._reception = self._respond = None
        self._command.clear()
        self._other_left = 0


def request_handler(begin: Begin) -> type[RequestHandler]:
    """pynetdicom's handler of a new connection, with our reading."""

    class StoreRequestHandler(RequestHandler):  # type: ignore[misc]
        def _create_association(self) -> Any:
            association = super()._create_association()
            association.dul = StoreDul(association, begin)
            # setting these sets the upper layer's timers
            association.acse_timeout = association.acse_timeout
            association.network_timeout = association.network_timeout
            association.set_socket(BufferedSocket(association, self.request))
            guard_negotiation(association)
            return association

    return StoreRequestHandler
