"""Why reports may not reach us, and what a report has to say."""

from __future__ import annotations

from io import BytesIO
from typing import Any

import pytest
from pydicom import Dataset, dcmwrite
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian

from node.commitment_requests import MAX_REPORT_BYTES, InvalidReport, Report
from node.config import NodeConfig
from node.deliver import check_commitment


def config(receive: dict[str, Any], **destination: Any) -> NodeConfig:
    pacs = {"type": "cstore", "ae_title": "PACS", "host": "h", "port": 104, "commitment": {}}
    raw = {"receive": receive, "destinations": {"pacs": pacs | destination}}
    return NodeConfig.model_validate(raw)


@pytest.mark.parametrize(
    ("receive", "destination", "mentions"),
    [
        ({"allowed_calling_ae_titles": ["PACS"]}, {}, []),
        ({"allow_any_calling_ae_title": True}, {}, []),
        ({}, {"commitment": None}, []),
        ({}, {}, ["PACS isn't in receive.allowed_calling_ae_titles"]),
        (
            {"allowed_calling_ae_titles": ["PACS"]},
            {"commitment": {"ae_title": "COMMIT"}},
            ["COMMIT isn't in receive.allowed_calling_ae_titles"],
        ),
        (
            {"allowed_calling_ae_titles": ["PACS"]},
            {"calling_ae_title": "OTHER"},
            ["OTHER, which isn't receive.ae_title"],
        ),
    ],
)
def test_why_reports_may_not_reach_us(
    receive: dict[str, Any], destination: dict[str, Any], mentions: list[str]
) -> None:
    found = check_commitment(config(receive, **destination))
    assert len(found) == len(mentions)
    for text, mention in zip(found, mentions, strict=True):
        assert text.startswith("destinations.pacs.commitment: ") and mention in text


def information(**changes: Any) -> Dataset:
    found = Dataset()
    found.TransactionUID = "1.2.3"
    kept, failed = Dataset(), Dataset()
    kept.ReferencedSOPClassUID, kept.ReferencedSOPInstanceUID = "1.2", "1.2.1"
    failed.ReferencedSOPClassUID, failed.ReferencedSOPInstanceUID = "1.2", "1.2.2"
    failed.FailureReason = 0x0112
    found.ReferencedSOPSequence, found.FailedSOPSequence = [kept], [failed]
    for keyword, value in changes.items():
        setattr(found, keyword, value)
    return found


def encoded(dataset: Dataset, syntax: str) -> bytes:
    buffer = BytesIO()
    dcmwrite(buffer, dataset, implicit_vr=syntax == ImplicitVRLittleEndian, little_endian=True)
    return buffer.getvalue()


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian])
def test_a_report(syntax: str) -> None:
    read = Report.read(encoded(information(), syntax), implicit_vr=syntax == ImplicitVRLittleEndian)
    assert read == Report("1.2.3", ("1.2.1",), (("1.2.2", 0x0112),))


def test_reports_that_cannot_be_read() -> None:
    without_reason = information()
    del without_reason.FailedSOPSequence[0].FailureReason
    without_uid = information()
    del without_uid.TransactionUID
    for dataset in (without_reason, without_uid):
        with pytest.raises(InvalidReport):
            Report.of(dataset)
    for data in (b"\x08\x00\x99\x11SQ\x00\x00\xff\xff\xff\x7f", bytes(MAX_REPORT_BYTES + 1)):
        with pytest.raises(InvalidReport):
            Report.read(data, implicit_vr=False)
