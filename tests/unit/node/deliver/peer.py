"""A storage SCP on the loopback that answers as told, for faults that a good one doesn't show."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pynetdicom import AE, evt
from pynetdicom.sop_class import Verification

PEER = "PACS"


class Peer:
    """A storage SCP. ``answers``: status a request, or a function of the event; 0x0000 when used up."""

    def __init__(self, *classes: str, **ae_options: Any) -> None:
        self.answers: list[int | Callable[[evt.Event], int]] = []
        self.stored: list[str] = []
        self.associations: list[tuple[str, str, int]] = []
        ae = AE(ae_title=PEER)
        for name, value in ae_options.items():
            setattr(ae, name, value)
        for sop_class in (*classes, Verification):
            ae.add_supported_context(sop_class)
        handlers = [(evt.EVT_C_STORE, self._store), (evt.EVT_ACCEPTED, self._accepted)]
        self._server = ae.start_server(("127.0.0.1", 0), block=False, evt_handlers=handlers)
        self.port = int(self._server.server_address[1])

    def _accepted(self, event: evt.Event) -> None:
        requestor = event.assoc.requestor
        called = requestor.primitive.called_ae_title
        self.associations.append((requestor.ae_title, called, requestor.maximum_length))

    def _store(self, event: evt.Event) -> int:
        answer = self.answers.pop(0) if self.answers else 0x0000
        if not isinstance(answer, int):
            return answer(event)
        self.stored.append(event.request.AffectedSOPInstanceUID)
        return answer

    def stop(self) -> None:
        self._server.shutdown()
