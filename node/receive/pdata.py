"""pynetdicom's upper layer with our reading of P-DATA-TF.

In: pynetdicom's hooks.  Out: messages read by ``stream``, here or, where that is possible, by a mover.
pynetdicom negotiates, holds the state machine and serves every command but C-STORE; only the reading of
P-DATA-TF in state Sta6 (PS3.8 9.2) is ours: pynetdicom decodes each PDU, copies each data set several times
and polls twice a millisecond.
"""

from __future__ import annotations

import ssl
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import cached_property, partial
from typing import Any

from pynetdicom.pdu_primitives import P_DATA
from pynetdicom.transport import AssociationSocket, RequestHandler

from node.receive.command import (
    C_CANCEL_RQ,
    COMMAND,
    LAST,
    P_DATA_TF,
    RESPONSE,
    SERVED_BESIDES_STORE,
    BadCommandSet,
    StoreCommand,
    command_field,
    other_request,
    refusal,
    why_not_served,
)
from node.receive.loan import Lend
from node.receive.stream import (
    BUFFER_BYTES,
    NO_TIMEOUT_SECONDS,
    Context,
    InvalidPdu,
    ReadAhead,
    Reception,
    Respond,
    StoreStream,
    Terms,
)
from node.receive.upper_layer import (
    AWAITING_CLOSE,
    CONNECTION_CLOSED,
    DATA_TRANSFER,
    INVALID_PDU,
    GuardedDul,
    guard_negotiation,
)

#: PS3.8 sets no limit; A-ASSOCIATE-RQ with 128 contexts of 40 transfer syntaxes is about 150 KB
MAX_OTHER_PDU_BYTES = 1024 * 1024
#: data set of a command that isn't C-STORE; pynetdicom holds it in memory
MAX_OTHER_DATA_SET_BYTES = 16 * 1024 * 1024
#: the buffer of an association whose instances a mover reads
SMALL_BUFFER_BYTES = 16 * 1024
#: between two messages pynetdicom's loop gets its turn at least this often
TURN_MILLISECONDS = 50

#: (pynetdicom association, context, command) -> the reception of that C-STORE
Begin = Callable[[Any, Context, StoreCommand], Reception]


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


class BufferedSocket(AssociationSocket):  # type: ignore[misc]
    """pynetdicom's socket, reading through ``ahead``."""

    def __init__(self, association: Any, connection: Any, buffer_bytes: int) -> None:
        super().__init__(association, client_socket=connection)
        # the A-ASSOCIATE-RQ is due when the ARTIM timer ends, however its bytes come
        seconds = association.acse_timeout or NO_TIMEOUT_SECONDS
        self.ahead = ReadAhead(connection, seconds, buffer_bytes=buffer_bytes)
        self.is_lent = False

    @property
    def ready(self) -> bool:
        # pynetdicom's select() fails where more than 1024 files are open
        return self.socket is not None and self._is_connected and self.ahead.wait(0)

    @property
    def quiet_seconds(self) -> float:
        """Since the last PDU began to come."""
        if self.is_lent:
            return 0.0
        return time.monotonic() - self.ahead.deadline + (self.assoc.network_timeout or NO_TIMEOUT_SECONDS)

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
        ahead = self.ahead
        if self.assoc.dul.state_machine.current_state == DATA_TRANSFER:
            ahead.deadline = time.monotonic() + (self.assoc.network_timeout or NO_TIMEOUT_SECONDS)
        taken = bytearray()
        while len(taken) < nr_bytes:
            if ahead.is_empty:
                try:
                    ahead.fill()
                except ConnectionError:
                    break
            stop = min(ahead.end, ahead.start + nr_bytes - len(taken))
            taken += ahead.data[ahead.start : stop]
            ahead.start = stop
        return taken


class StoreDul(GuardedDul):
    """pynetdicom's upper layer, reading P-DATA-TF by a ``StoreStream``."""

    socket: BufferedSocket

    def __init__(self, association: Any, begin: Begin, lend: Lend | None) -> None:
        """lend: lends the connection of an association to a mover; None: everything is read here."""
        super().__init__(association)
        self.daemon = True
        self._begin = begin
        self._lend = lend
        self._stream: StoreStream | None = None

    @property
    def _current(self) -> StoreStream:
        if self._stream is None:  # negotiation has ended
            begin = partial(self._begin, self.assoc)
            others = PynetdicomCommands(self.assoc)
            self._stream = StoreStream(self.socket.ahead, self._terms, begin, others)
        return self._stream

    @cached_property
    def _terms(self) -> Terms:
        """To be asked for when negotiation has ended."""
        return terms_of(self.assoc)

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
        stream, ahead = self._current, self.socket.ahead
        try:
            self._receive(stream)
        except (InvalidPdu, BadCommandSet):
            event = INVALID_PDU
        except OSError:
            event = CONNECTION_CLOSED
        except BaseException:  # a defect: pynetdicom aborts the association
            stream.abandon()
            raise
        finally:
            self._idle_timer.restart()
            self.assoc._reactor_checkpoint.set()
        if event is not None:
            stream.abandon()
            ahead.clear()
            self.event_queue.put(event)
        elif not ahead.is_empty and ahead.data[ahead.start] != P_DATA_TF:
            stream.abandon()
            super()._read_pdu_data()

    def _discard(self) -> None:
        """The association is over: what still comes is neither answered nor logged, until the ARTIM timer
        ends. Closing with it unread would take our last PDU from the peer."""
        ahead = self.socket.ahead
        ahead.clear()
        try:
            ahead.fill()
        except OSError:
            self.event_queue.put(CONNECTION_CLOSED)
        ahead.clear()

    def _receive(self, stream: StoreStream) -> None:
        """Have the messages read that come: by a mover until it meets one that it doesn't read, else here."""
        ahead = self.socket.ahead
        if self._lend is not None and ahead.is_empty and stream.is_between_messages:
            stream.begin_pdu()
            self.socket.is_lent = True
            try:
                returned = self._lend(self.assoc, self._terms, self._has_work)
            finally:
                self.socket.is_lent = False
            ahead.give_back(returned.unread)
            if returned.other is not None:
                stream.resume(*returned.other)
            elif ahead.is_empty or ahead.data[ahead.start] != P_DATA_TF:
                return
            if stream.is_between_messages and not self._stay():
                return
        stream.run(self._stay)

    def _has_work(self) -> bool:
        """Whether something of ours waits to be done or sent."""
        return bool(
            self._kill_thread or not self.to_provider_queue.empty() or not self.assoc.dimse.msg_queue.empty()
        )

    def _stay(self) -> bool:
        """Between messages: whether the next PDU is there and is to be read here."""
        if self._has_work() or (self._lend is not None and self.socket.ahead.is_empty):
            return False
        return self.socket.ahead.wait(TURN_MILLISECONDS)


class PynetdicomCommands:
    """Commands that aren't C-STORE, for pynetdicom's services. See ``stream.OtherCommands``."""

    def __init__(self, association: Any) -> None:
        self._association = association

    def command(
        self, context_id: int, context: Context, elements: dict[int, bytes], command_set: bytes
    ) -> tuple[Reception, Respond, bool] | int:
        """pynetdicom chooses a service by the command's SOP class alone, so only what fits its presentation
        context is handed on; other requests are refused here."""
        field, abstract_syntax = command_field(elements), context.abstract_syntax
        if field == C_CANCEL_RQ:
            return 0  # nothing that we serve can be cancelled, and a cancel has no response (PS3.7 9.3.2.3)
        if field & RESPONSE:
            if field not in SERVED_BESIDES_STORE.get(abstract_syntax, ()):
                raise InvalidPdu("a response to what wasn't asked")
        else:
            request = other_request(elements)
            status = why_not_served(request, abstract_syntax)
            if status is not None:
                respond = partial(_refuse, request)
                return _Refused(status), respond, request.has_data_set
        self._forward(context_id, COMMAND | LAST, command_set)
        # whether pynetdicom waits for a data set
        return MAX_OTHER_DATA_SET_BYTES if self._association.dimse.message is not None else 0

    def data_set(self, context_id: int, fragment: bytes | bytearray, *, last: bool) -> None:
        self._forward(context_id, LAST if last else 0, fragment)

    def _forward(self, context_id: int, control: int, fragment: bytes | bytearray) -> None:
        primitive = P_DATA()
        primitive.presentation_data_value_list.append([context_id, bytes([control]) + fragment])
        self._association.dimse.receive_primitive(primitive)


def _refuse(request: Any, status: int, _comment: str) -> bytes:
    return refusal(request, status)


def terms_of(association: Any) -> Terms:
    """What was negotiated for an association."""
    return Terms(
        contexts={
            number: Context(str(context.abstract_syntax), str(context.transfer_syntax[0]))
            for number, context in association._accepted_cx.items()
        },
        max_pdu_bytes=association.acceptor.maximum_length,
        peer_max_pdu_bytes=association.requestor.maximum_length or 0,
        timeout=association.network_timeout or NO_TIMEOUT_SECONDS,
    )


def request_handler(begin: Begin, lend: Lend | None = None) -> type[RequestHandler]:
    """pynetdicom's handler of a new connection, with our reading."""

    buffer_bytes = BUFFER_BYTES if lend is None else SMALL_BUFFER_BYTES

    class StoreRequestHandler(RequestHandler):  # type: ignore[misc]
        def _create_association(self) -> Any:
            association = super()._create_association()
            association.dul = StoreDul(association, begin, lend)
            # setting these sets the upper layer's timers
            association.acse_timeout = association.acse_timeout
            association.network_timeout = association.network_timeout
            association.set_socket(BufferedSocket(association, self.request, buffer_bytes))
            guard_negotiation(association)
            return association

    return StoreRequestHandler
