"""Which abstract syntaxes C-STORE is accepted under."""

from __future__ import annotations

import pytest
from pydicom import uid
from pynetdicom import ALL_TRANSFER_SYNTAXES, AllStoragePresentationContexts
from pynetdicom.sop_class import (
    HangingProtocolStorage,
    ModalityWorklistInformationFind,
    PatientRootQueryRetrieveInformationModelMove,
    StorageCommitmentPushModel,
    Verification,
)

from node.receive.listener import TRANSFER_SYNTAXES
from node.receive.storage import STANDARD_STORAGE_CLASSES, STATUS_BY_QUARANTINE_CODE, is_accepted_storage


def test_every_storage_class_current_and_retired() -> None:
    for context in AllStoragePresentationContexts:
        assert is_accepted_storage(str(context.abstract_syntax), accept_unknown=False)
    for retired in ("1.2.840.10008.5.1.4.1.1.3", "1.2.840.10008.5.1.4.1.1.88.1", "1.2.840.10008.5.1.1.29"):
        assert retired in STANDARD_STORAGE_CLASSES


@pytest.mark.parametrize("accept_unknown", [True, False])
@pytest.mark.parametrize(
    "other",
    [
        Verification,
        PatientRootQueryRetrieveInformationModelMove,
        ModalityWorklistInformationFind,
        StorageCommitmentPushModel,
        HangingProtocolStorage,
        "1.2.840.10008.1.3.10",
        uid.ExplicitVRLittleEndian,
    ],
)
def test_known_classes_of_other_services_are_never_storage(other: str, accept_unknown: bool) -> None:
    assert not is_accepted_storage(str(other), accept_unknown=accept_unknown)


def test_unknown_classes_when_configured() -> None:
    assert is_accepted_storage("1.2.840.113619.4.26", accept_unknown=True)
    assert not is_accepted_storage("1.2.840.113619.4.26", accept_unknown=False)
    assert not is_accepted_storage("not a uid", accept_unknown=True)


def test_every_transfer_syntax_explicit_first() -> None:
    assert set(TRANSFER_SYNTAXES) >= set(ALL_TRANSFER_SYNTAXES)
    assert {"1.2.840.10008.1.2.1.98", "1.2.840.10008.1.2.4.55"} <= set(TRANSFER_SYNTAXES)
    assert len(TRANSFER_SYNTAXES) == len(set(TRANSFER_SYNTAXES))
    assert TRANSFER_SYNTAXES[0] == uid.ExplicitVRLittleEndian


def test_statuses_are_failures_of_the_storage_service() -> None:
    assert all(status & 0xF000 in (0xA000, 0xC000) for status in STATUS_BY_QUARANTINE_CODE.values())
