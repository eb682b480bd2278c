"""Storage Commitment: its data sets, and what is judged committed."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from functools import partial
from io import BytesIO
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom import Dataset
from pydicom.sequence import Sequence
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, MRImageStorage, generate_uid
from pynetdicom.dsutils import decode, encode
from pynetdicom.sop_class import Verification
from sqlalchemy import update

from node.database import instances, write_transaction
from node.errors import OutOfSpace
from node.receive import commitment_ledger
from node.receive.commitment import N_ACTION_STATUSES
from node.receive.commitment_ledger import FAILURE_REASONS, CommitmentLedger, Transaction
from node.receive.commitment_messages import (
    COMMITTED,
    MAX_REFERENCES,
    CommitmentRequest,
    InvalidRequest,
    Reference,
    TooManyReferences,
    encode_report,
    read_request,
)
from node.receive.journal import SEGMENT_BYTES
from node.receive.storage import is_accepted_storage
from tests.unit.node.receive.conftest import Bench, Sent

CONFORMANCE = Path(__file__).parents[4] / "docs/conformance-statement.md"
TRANSACTION = "1.2.3.4"
NOWHERE = "1.2.3.999"


def item(sop_class: str | None = CTImageStorage, sop_instance: str | None = "1.2.3") -> Dataset:
    found = Dataset()
    if sop_class is not None:
        found.ReferencedSOPClassUID = sop_class
    if sop_instance is not None:
        found.ReferencedSOPInstanceUID = sop_instance
    return found


def request(*items: Dataset, transaction: str | None = TRANSACTION) -> Dataset:
    found = Dataset()
    if transaction is not None:
        found.TransactionUID = transaction
    found.ReferencedSOPSequence = Sequence(items)
    return found


def encoded(dataset: Dataset, *, implicit_vr: bool = False) -> bytes:
    data: bytes | None = encode(dataset, implicit_vr, True)
    assert data is not None
    return data


@pytest.mark.parametrize("implicit_vr", [False, True])
@pytest.mark.parametrize("sequence_undefined", [False, True])
@pytest.mark.parametrize("items_undefined", [False, True])
def test_a_request_in_every_encoding(
    implicit_vr: bool, sequence_undefined: bool, items_undefined: bool
) -> None:
    nested = item(MRImageStorage, "1.2.840.1")
    nested.StorageMediaFileSetID = "DISC 1"
    nested.ReferencedSeriesSequence = [request(item())]
    dataset = request(item(), nested)
    dataset.RetrieveAETitle = "ELSEWHERE"
    dataset.StorageMediaFileSetUID = "1.2"
    dataset["ReferencedSOPSequence"].is_undefined_length = sequence_undefined
    for one in dataset.ReferencedSOPSequence:
        one.is_undefined_length_sequence_item = items_undefined
    read = read_request(encoded(dataset, implicit_vr=implicit_vr), implicit_vr=implicit_vr)
    assert read == CommitmentRequest(
        TRANSACTION, (Reference(CTImageStorage, "1.2.3"), Reference(MRImageStorage, "1.2.840.1"))
    )


def without_sequence() -> Dataset:
    dataset = request()
    del dataset.ReferencedSOPSequence
    return dataset


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "Transaction UID is missing"),
        (b"\0" * 7, "Transaction UID is missing"),
        (b"\xff" * 200, "can't be read"),
        (encoded(request(item(), transaction=None)), "Transaction UID is missing"),
        (encoded(request(item(), transaction="")), "Transaction UID is not a UID"),
        (encoded(request(item(), transaction="1.2/../3")), "Transaction UID is not a UID"),
        (encoded(request(item(), transaction="1." * 40)), "Transaction UID is not a UID"),
        (encoded(without_sequence()), "Referenced SOP Sequence is missing or empty"),
        (encoded(request()), "Referenced SOP Sequence is missing or empty"),
        (encoded(request(item(), item(None))), "without Referenced SOP Class or Instance UID"),
        (encoded(request(item(CTImageStorage, None))), "without Referenced SOP Class or Instance UID"),
        (encoded(request(item(CTImageStorage, ""))), "Referenced SOP Instance UID is not a UID"),
        (encoded(request(item("CT"))), "Referenced SOP Class UID is not a UID"),
        (encoded(request(Dataset())), "without Referenced SOP Class or Instance UID"),
        (encoded(request(item()))[:-1], "can't be read"),
        (encoded(request(item()), implicit_vr=True), ""),
    ],
)
def test_what_is_wrong_with_a_request_is_said(data: bytes, says: str) -> None:
    if not says:
        # an encoder that mistakes the negotiated VR is understood
        assert read_request(data, implicit_vr=False).transaction_uid == TRANSACTION
        return
    with pytest.raises(InvalidRequest, match=says):
        read_request(data, implicit_vr=False)


def test_a_request_that_ends_anywhere_is_refused() -> None:
    for undefined in (False, True):
        dataset = request(item(), item())
        dataset["ReferencedSOPSequence"].is_undefined_length = undefined
        for one in dataset.ReferencedSOPSequence:
            one.is_undefined_length_sequence_item = undefined
        whole = encoded(dataset)
        for length in range(len(whole)):
            with pytest.raises(InvalidRequest):
                read_request(whole[:length], implicit_vr=False)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_any_bytes_are_a_request_or_refused(data: st.DataObject) -> None:
    whole = bytearray(encoded(request(item(), item(MRImageStorage))))
    for _ in range(data.draw(st.integers(1, 4))):
        position = data.draw(st.integers(0, len(whole) - 1))
        whole[position] = data.draw(st.integers(0, 255))
    for implicit_vr in (False, True):
        try:
            read = read_request(bytes(whole), implicit_vr=implicit_vr)
        except (InvalidRequest, TooManyReferences):
            continue
        assert read.references


def test_a_large_request_takes_little_memory_and_a_larger_one_is_refused() -> None:
    uids = [f"1.2.3.{number}" for number in range(MAX_REFERENCES)]
    references = [(Reference(CTImageStorage, uid), COMMITTED) for uid in uids]
    data = encode_report(TRANSACTION, references, implicit_vr=False)  # has the form of a request
    tracemalloc.start()
    read = read_request(data, implicit_vr=False)
    _now, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(read.references) == MAX_REFERENCES
    assert peak < 15_000_000
    more = encode_report(TRANSACTION, [*references, references[0]], implicit_vr=False)
    with pytest.raises(TooManyReferences):
        read_request(more, implicit_vr=False)


@pytest.mark.parametrize("implicit_vr", [False, True])
def test_a_report_is_what_pydicom_reads(implicit_vr: bool) -> None:
    judged = [
        (Reference(CTImageStorage, "1.2.3"), COMMITTED),
        (Reference(CTImageStorage, "1.2.34"), 0x0112),
        (Reference(MRImageStorage, "1.2.345"), 0x0119),
    ]
    data = encode_report(TRANSACTION, judged, implicit_vr=implicit_vr)
    expected = request(item(CTImageStorage, "1.2.3"))
    expected.FailedSOPSequence = [item(CTImageStorage, "1.2.34"), item(MRImageStorage, "1.2.345")]
    for one, reason in zip(expected.FailedSOPSequence, (0x0112, 0x0119), strict=True):
        one.FailureReason = reason
    assert decode(BytesIO(data), implicit_vr, True) == expected
    assert data == encoded(expected, implicit_vr=implicit_vr)
    all_well = decode(BytesIO(encode_report("1.2", judged[:1], implicit_vr=False)), False, True)
    assert "FailedSOPSequence" not in all_well
    none_well = decode(BytesIO(encode_report("1.2", judged[1:], implicit_vr=False)), False, True)
    assert "ReferencedSOPSequence" not in none_well


def sent(number: int = 1, *, sender: str = "SCANNER", value: int = 0) -> Sent:
    image = Dataset()
    image.SOPClassUID, image.SOPInstanceUID = CTImageStorage, f"1.2.3.{number}"
    image.StudyInstanceUID, image.SeriesInstanceUID = "1.2.4", "1.2.5"
    image.InstanceNumber = value
    return Sent(
        CTImageStorage,
        image.SOPInstanceUID,
        ExplicitVRLittleEndian,
        encoded(image),
        calling_ae_title=sender,
    )


@pytest.fixture
def ledger(bench: Bench) -> CommitmentLedger:
    return make_ledger(bench)


def make_ledger(bench: Bench) -> CommitmentLedger:
    accepts = partial(is_accepted_storage, accept_unknown=False)
    return CommitmentLedger(bench.engine, bench.spool, accepts, clock=lambda: bench.now)


def record(ledger: CommitmentLedger, *references: Reference, uid: str | None = None) -> Transaction:
    return ledger.record(CommitmentRequest(uid or generate_uid(), references), "SCANNER")


def reason(ledger: CommitmentLedger, reference: Reference) -> int:
    ((_reference, found),) = ledger.judge(record(ledger, reference))
    return found


CT_1 = Reference(CTImageStorage, "1.2.3.1")


def test_what_is_stored_is_committed_and_the_rest_is_not(bench: Bench, ledger: CommitmentLedger) -> None:
    bench.store(sent(1))
    judged = ledger.judge(
        record(
            ledger,
            CT_1,
            Reference(MRImageStorage, "1.2.3.1"),
            Reference(CTImageStorage, NOWHERE),
            Reference(str(Verification), NOWHERE),
            CT_1,
        )
    )
    assert [found for _reference, found in judged] == [COMMITTED, 0x0119, 0x0112, 0x0122, COMMITTED]


def remove(bench: Bench) -> None:
    (row,) = bench.rows()
    (bench.data_dir / row["path"]).unlink()


def cut(bench: Bench) -> None:
    (row,) = bench.rows()
    path = bench.data_dir / row["path"]
    path.write_bytes(path.read_bytes()[:-1])


def quarantine(bench: Bench) -> None:
    with write_transaction(bench.engine) as connection:
        connection.execute(update(instances).values(state="quarantined", reason_code="file_missing"))


@pytest.mark.parametrize("lose", [remove, cut, quarantine])
def test_an_instance_that_is_lost_is_not_committed(
    bench: Bench, ledger: CommitmentLedger, lose: Callable[[Bench], None]
) -> None:
    bench.store(sent())
    assert reason(ledger, CT_1) == COMMITTED
    lose(bench)
    assert reason(ledger, CT_1) == 0x0112


def test_different_content_under_a_stored_uid_is_not_committed_to_its_sender(
    bench: Bench, ledger: CommitmentLedger
) -> None:
    bench.store(sent())
    assert bench.store(sent(value=7, sender="OTHER")).code == "duplicate_different"
    assert reason(ledger, CT_1) == COMMITTED
    assert bench.store(sent(value=8)).code == "duplicate_different"
    assert reason(ledger, CT_1) == 0x0110


def test_what_is_in_the_journal_is_filed_first(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.journal_bytes = 2 * SEGMENT_BYTES
    bench.restart()
    ledger = make_ledger(bench)
    monkeypatch.setattr(bench.spool, "file_all", file_now := CountCalls(bench.spool.file_all))
    assert bench.store(sent()).state == "stored"
    assert reason(ledger, CT_1) == COMMITTED
    assert file_now.calls == 1


class CountCalls:
    def __init__(self, function: Callable[[], bool]) -> None:
        self._function = function
        self.calls = 0

    def __call__(self) -> bool:
        self.calls += 1
        return self._function()


def test_what_may_be_in_a_journal_that_cannot_be_filed_is_a_failure_of_ours(
    bench: Bench, ledger: CommitmentLedger, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.store(sent(1))
    monkeypatch.setattr(bench.spool, "file_all", lambda: False)
    assert reason(ledger, CT_1) == COMMITTED
    assert reason(ledger, Reference(CTImageStorage, "1.2.3.2")) == 0x0110


def test_a_transaction_uid_is_used_once(bench: Bench, ledger: CommitmentLedger) -> None:
    bench.store(sent())
    first = record(ledger, CT_1, uid=TRANSACTION)
    second = record(ledger, CT_1, Reference(CTImageStorage, NOWHERE), uid=TRANSACTION)
    assert [found for _reference, found in ledger.judge(second)] == [0x0131, 0x0131]
    assert [found for _reference, found in ledger.judge(first)] == [COMMITTED]
    ledger.finish(first, "reported")
    assert [found for _r, found in ledger.judge(record(ledger, CT_1, uid=TRANSACTION))] == [0x0131]


def test_what_is_recorded_and_judged_survives(bench: Bench, ledger: CommitmentLedger) -> None:
    bench.store(sent())
    first, second, third = (record(ledger, CT_1) for _ in range(3))
    ledger.judge(first)
    ledger.finish(third, "given_up")
    (bench.data_dir / bench.rows()[0]["path"]).unlink()
    bench.engine.dispose()  # every connection is a new one
    after = make_ledger(bench)
    assert after.open_transactions() == [first, second]
    assert after.judge(first) == [(CT_1, COMMITTED)], "once judged, it stays so"
    assert after.judge(second) == [(CT_1, 0x0112)]


def test_finished_transactions_are_forgotten_in_the_end(bench: Bench, ledger: CommitmentLedger) -> None:
    bench.store(sent())
    ledger.finish(record(ledger, CT_1, uid=TRANSACTION), "reported")
    waiting = record(ledger, CT_1)
    bench.now += commitment_ledger.KEEP_SECONDS + 1
    again = record(ledger, CT_1, uid=TRANSACTION)
    assert ledger.judge(again) == [(CT_1, COMMITTED)]
    assert ledger.open_transactions() == [waiting, again]


def test_nothing_is_recorded_without_space(bench: Bench) -> None:
    bench.spool._floor = 1 << 62
    ledger = make_ledger(bench)
    with pytest.raises(OutOfSpace):
        record(ledger, CT_1)
    assert ledger.open_transactions() == []


def test_the_conformance_statement_names_every_status_and_reason() -> None:
    section = CONFORMANCE.read_text(encoding="utf-8").split("Storage Commitment SCP", 1)[1]
    for code, (_label, when) in {**N_ACTION_STATUSES, **FAILURE_REASONS}.items():
        assert f"| 0x{code:04X} | {when} |" in section, hex(code)
