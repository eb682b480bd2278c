"""Questions to a query AE, and fetching from it: C-FIND, C-GET and C-MOVE as SCU (PS3.4 annex C, Study Root).

In: a series, and the instances of it that are wanted.  Out: how many instances the peer has, which, and how
many it says to have sent. One association a call; every wait is limited. What a peer answers is checked
before it is believed: it may ignore keys, and say anything.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import structlog
from pydicom import Dataset
from pydicom.uid import ImplicitVRLittleEndian
from pynetdicom import AE, Association, build_role, evt
from pynetdicom.pdu_primitives import SCP_SCU_RoleSelectionNegotiation
from pynetdicom.presentation import PresentationContext, build_context
from pynetdicom.sop_class import (
    StudyRootQueryRetrieveInformationModelFind,
    StudyRootQueryRetrieveInformationModelGet,
    StudyRootQueryRetrieveInformationModelMove,
)

from node.config import QueryPeer
from node.errors import QueryError
from node.receive.listener import TRANSFER_SYNTAXES
from node.receive.part10 import is_uid
from node.scu import Missing, NotAssociated, release, request_association, wait_for_reactor
from node.tls import ClientHandshake, query_context

log = structlog.get_logger("node.receive.query")

MAX_PDU_BYTES = 131072
#: what a series may have at most; a peer that names more isn't believed
MAXIMUM_INSTANCES = 1_000_000
#: SOP Instance UIDs in one C-GET or C-MOVE
_BATCH = 100
#: all answers of one C-FIND together may take so many times an answer's timeout
_FIND_TIMEOUTS = 6
#: contexts of one association (PS3.8 9.3.2.2)
_MAX_CONTEXTS = 128

_HINT = "see the peer's log"
#: code of a QueryError, and its hint
_NOT_ASSOCIATED = {
    Missing.TLS: ("unreachable", _HINT),
    Missing.REJECTED: ("rejected", "does it know us by this AE title?"),
    Missing.NONE_ACCEPTED: ("refused", _HINT),
}

_SUCCESS, _PENDING, _SOME_FAILED = 0x0000, (0xFF00, 0xFF01), 0xB000


@dataclass(frozen=True)
class SeriesKey:
    """A series by its Study and Series Instance UID."""

    study_instance_uid: str
    series_instance_uid: str


#: (pynetdicom association, context, event of a C-STORE) -> status
Store = Callable[[evt.Event], int]


class QueryScu:
    """Asks one query AE."""

    def __init__(self, name: str, config: QueryPeer, *, calling_ae_title: str) -> None:
        """Raises ConfigError when a file of ``config.tls`` can't be used."""
        self._name = name
        self._config = config
        self._calling_ae_title = config.calling_ae_title or calling_ae_title
        self._tls = query_context(name, config)

    def count(self, series: SeriesKey) -> int:
        """How many instances the peer has of a series; 0: it doesn't know it. Raises QueryError.

        Number of Series Related Instances (0020,1209) where the peer returns it, else its answers at IMAGE
        level.
        """
        with self._find() as association:
            said = self._said_count(association, series)
            return said if said is not None else len(self._instances(association, series))

    def instances(self, series: SeriesKey) -> dict[str, str]:
        """SOP Instance UID -> SOP Class UID ("" when not said) of what it has of a series. Raises
        QueryError."""
        with self._find() as association:
            return self._instances(association, series)

    def get(self, series: SeriesKey, wanted: Mapping[str, str], syntaxes: Sequence[str], store: Store) -> int:
        """Have instances sent over our own association; returns how many it says it sent.

        wanted: SOP Instance UID -> SOP Class UID.  syntaxes: transfer syntaxes to prefer.
        store: keeps one, in the association's thread, and returns the status.  Raises QueryError.
        """
        model = StudyRootQueryRetrieveInformationModelGet
        classes = sorted({sop_class for sop_class in wanted.values() if sop_class})
        contexts = [build_context(model), *_storage_contexts(classes, syntaxes)]
        roles = [build_role(sop_class, scp_role=True) for sop_class in classes]
        with self._association(contexts, model, roles, [(evt.EVT_C_STORE, store)]) as association:
            self._wait_for_retrieve(association)
            return self._retrieve(
                association,
                series,
                wanted,
                lambda keys, number: association.send_c_get(keys, model, msg_id=number),
            )

    def move(self, series: SeriesKey, wanted: Iterable[str], destination: str) -> int:
        """Have instances sent to an AE title; returns how many the peer says it sent. Raises QueryError."""
        model = StudyRootQueryRetrieveInformationModelMove
        with self._association([build_context(model)], model) as association:
            self._wait_for_retrieve(association)
            return self._retrieve(
                association,
                series,
                wanted,
                lambda keys, number: association.send_c_move(keys, destination, model, msg_id=number),
            )

    def _wait_for_retrieve(self, association: Association) -> None:
        """One answer may come after all instances that were asked for."""
        association.dimse_timeout = association.network_timeout = self._config.retrieve_timeout_seconds

    def _find(self) -> Any:
        model = StudyRootQueryRetrieveInformationModelFind
        return self._association([build_context(model)], model)

    def _said_count(self, association: Association, series: SeriesKey) -> int | None:
        keys = _keys("SERIES", series)
        keys.NumberOfSeriesRelatedInstances = ""
        answers = list(self._answers(association, series, keys))
        if not answers:
            return 0
        return _count(answers[0]) if len(answers) == 1 else None

    def _instances(self, association: Association, series: SeriesKey) -> dict[str, str]:
        keys = _keys("IMAGE", series)
        keys.SOPInstanceUID = keys.SOPClassUID = ""
        found = {}
        for answer in self._answers(association, series, keys):
            uid = _text(answer, "SOPInstanceUID")
            if is_uid(uid):
                found[uid] = _text(answer, "SOPClassUID")
        return found

    def _answers(self, association: Association, series: SeriesKey, keys: Dataset) -> Iterator[Dataset]:
        """The identifiers of the series' matches. Raises QueryError."""
        deadline = time.monotonic() + _FIND_TIMEOUTS * self._config.timeout_seconds
        model = StudyRootQueryRetrieveInformationModelFind
        for number, (status, identifier) in enumerate(association.send_c_find(keys, model)):
            code = self._status(association, status, "C-FIND")
            if code == _SUCCESS:
                return
            if code not in _PENDING:
                raise self._error("refused", f"C-FIND failed with status {code:#06x}")
            if number >= MAXIMUM_INSTANCES or time.monotonic() > deadline:
                association.abort()
                raise self._error("timeout", "C-FIND: the answers don't end")
            # a peer that ignores a key answers with other series, too
            if identifier is not None and _text(identifier, "SeriesInstanceUID") in (
                "",
                series.series_instance_uid,
            ):
                yield identifier
        raise self._error("timeout", "C-FIND: no final answer")

    def _retrieve(
        self,
        association: Association,
        series: SeriesKey,
        wanted: Iterable[str],
        request: Callable[[Dataset, int], Iterator[tuple[Dataset, Dataset | None]]],
    ) -> int:
        """Ask for all that is wanted, some at a time; returns the sub-operations completed."""
        uids, completed = sorted(wanted), 0
        for number, start in enumerate(range(0, len(uids), _BATCH), start=1):
            keys = _keys("IMAGE", series)
            keys.SOPInstanceUID = uids[start : start + _BATCH]
            wait_for_reactor(association)
            for status, _failed in request(keys, number):
                code = self._status(association, status, "retrieve")
                if code in _PENDING:
                    continue
                completed += int(status.get("NumberOfCompletedSuboperations") or 0)
                completed += int(status.get("NumberOfWarningSuboperations") or 0)
                if code not in (_SUCCESS, _SOME_FAILED):
                    raise self._error("refused", f"retrieve failed with status {code:#06x}")
        return completed

    def _status(self, association: Association, status: Dataset, what: str) -> int:
        code = status.get("Status")
        if code is None and association.acse.is_aborted():
            raise self._error("refused", f"{what}: it aborted the association", hint="may we query it?")
        if code is None:
            raise self._error("timeout", f"{what}: no answer that can be understood in time")
        return int(code)

    @contextmanager
    def _association(
        self,
        contexts: Sequence[PresentationContext],
        model: str,
        roles: Sequence[SCP_SCU_RoleSelectionNegotiation] = (),
        handlers: Sequence[tuple[Any, Any]] = (),
    ) -> Iterator[Association]:
        config = self._config
        ae = AE(ae_title=self._calling_ae_title)
        handshake = None if self._tls is None else ClientHandshake(self._tls.current())
        try:
            association = request_association(
                ae,
                (config.host, config.port),
                ae_title=config.ae_title,
                timeout_seconds=config.timeout_seconds,
                tls=config.tls,
                handshake=handshake,
                contexts=list(contexts),
                max_pdu=MAX_PDU_BYTES,
                ext_neg=list(roles),
                evt_handlers=handlers,
            )
        except NotAssociated as why:
            code, hint = _NOT_ASSOCIATED.get(why.missing, ("unreachable", "is it up?"))
            raise self._error(code, str(why), hint=hint) from why
        try:
            if model not in {context.abstract_syntax for context in association.accepted_contexts}:
                raise self._error("refused", "it doesn't support Study Root query and retrieve")
            yield association
        finally:
            release(association)

    def _error(self, code: str, message: str, *, hint: str = _HINT) -> QueryError:
        config = self._config
        where = f"query.{self._name} ({config.ae_title} at {config.host}:{config.port})"
        return QueryError(f"{where}: {message}", code=code, hint=hint)


def _storage_contexts(classes: Sequence[str], preferred: Sequence[str]) -> list[PresentationContext]:
    """One context for each SOP class and transfer syntax: a peer that can't transcode picks what it has."""
    order = list(
        dict.fromkeys([*preferred, *TRANSFER_SYNTAXES[:1], ImplicitVRLittleEndian, *TRANSFER_SYNTAXES])
    )
    pairs = [(sop_class, syntax) for syntax in order for sop_class in classes]
    return [build_context(sop_class, syntax) for sop_class, syntax in pairs[: _MAX_CONTEXTS - 1]]


def _keys(level: str, series: SeriesKey) -> Dataset:
    keys = Dataset()
    keys.QueryRetrieveLevel = level
    keys.StudyInstanceUID = series.study_instance_uid
    keys.SeriesInstanceUID = series.series_instance_uid
    return keys


def _text(answer: Dataset, keyword: str) -> str:
    """An attribute of an answer; "" for what is missing or can't be read."""
    try:
        return str(answer.get(keyword) or "").strip(" \0")
    except (ValueError, TypeError, OverflowError, LookupError, NotImplementedError):
        return ""


def _count(answer: Dataset) -> int | None:
    text = _text(answer, "NumberOfSeriesRelatedInstances")
    return int(text) if text.isascii() and text.isdigit() and 0 < int(text) <= MAXIMUM_INSTANCES else None
