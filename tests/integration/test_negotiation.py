"""What the listener answers to an A-ASSOCIATE-RQ, beyond who may have an association."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterable, Iterator

import pytest
from pydicom.uid import (
    JPEG2000,
    BasicTextSRStorage,
    CTImageStorage,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    MRImageStorage,
)
from pynetdicom import AE, build_context, build_role
from pynetdicom.association import Association
from pynetdicom.pdu_primitives import (
    AsynchronousOperationsWindowNegotiation,
    SOPClassCommonExtendedNegotiation,
    SOPClassExtendedNegotiation,
    UserIdentityNegotiation,
)
from pynetdicom.presentation import PresentationContext
from pynetdicom.sop_class import StorageCommitmentPushModel, Verification

from node.config import ReceiveConfig
from node.receive.storage import STANDARD_STORAGE_CLASSES
from tests.integration.raw_scu import association_request
from tests.integration.receiving import CALLING, ReceivingNode

pytestmark = pytest.mark.integration

PRIVATE = "1.2.826.0.1.3680043.10.99999.1"
ACCEPTED, USER_REJECTION, NO_ABSTRACT_SYNTAX, NO_TRANSFER_SYNTAX = 0, 1, 3, 4
A_ASSOCIATE_AC, A_ABORT = 2, 7


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ReceivingNode]:
    receive = ReceiveConfig(
        port=0,
        allowed_calling_ae_titles=(CALLING,),
        free_disk_floor_bytes=0,
        journal_bytes=0,
        accept_unknown_sop_classes=False,
    )
    running = ReceivingNode(tmp_path_factory.mktemp("node"), receive).start()
    yield running
    running.stop()


def associate(
    node: ReceivingNode, contexts: Iterable[PresentationContext], *items: object
) -> tuple[Association, list[int]]:
    """The association, and the result of each context in the order in which they were proposed."""
    ae = AE(ae_title=CALLING)
    proposed = list(contexts)
    association = ae.associate(
        "127.0.0.1", node.port, ae_title="PACSNODE", contexts=proposed, ext_neg=list(items) or None
    )
    answered = association.acceptor.primitive.presentation_context_definition_results_list
    by_id = {context.context_id: context.result for context in answered}
    return association, [by_id[number] for number in sorted(by_id)]


def test_every_standard_storage_class_is_accepted_128_contexts_at_a_time(node: ReceivingNode) -> None:
    classes = sorted(STANDARD_STORAGE_CLASSES)
    assert len(classes) > 150
    for start in range(0, len(classes), 127):
        some = [build_context(uid) for uid in classes[start : start + 127]]
        association, results = associate(node, [*some, build_context(Verification)])
        assert set(results) == {ACCEPTED}
        assert association.send_c_echo().Status == 0x0000
        association.release()


def test_what_is_not_supported_is_rejected_with_its_reason(node: ReceivingNode) -> None:
    verification = build_context(Verification)
    association, results = associate(
        node,
        [
            verification,
            build_context(PRIVATE),
            build_context("1.2.840.10008.5.1.4.1.2.2.1"),  # Study Root FIND
            build_context(CTImageStorage, "1.2.3.4"),
            build_context(StorageCommitmentPushModel, JPEG2000),
            build_context(StorageCommitmentPushModel, ImplicitVRLittleEndian),
        ],
    )
    assert results == [
        ACCEPTED,
        NO_ABSTRACT_SYNTAX,
        NO_ABSTRACT_SYNTAX,
        NO_TRANSFER_SYNTAX,
        NO_TRANSFER_SYNTAX,
        ACCEPTED,
    ]
    association.release()


@pytest.mark.parametrize("sop_class", [CTImageStorage, StorageCommitmentPushModel])
@pytest.mark.parametrize(
    ("proposed", "result", "answer"),
    [
        ((True, False), ACCEPTED, (True, False)),
        ((True, True), ACCEPTED, (True, False)),
        ((False, True), USER_REJECTION, None),
    ],
)
def test_a_requestor_may_be_scu_only(
    node: ReceivingNode,
    sop_class: str,
    proposed: tuple[bool, bool],
    result: int,
    answer: tuple[bool, bool] | None,
) -> None:
    contexts = [build_context(sop_class, ExplicitVRLittleEndian), build_context(Verification)]
    role = build_role(sop_class, scu_role=proposed[0], scp_role=proposed[1])
    association, results = associate(node, contexts, role)
    assert results == [result, ACCEPTED]
    roles = association.acceptor.role_selection
    answered = {uid: (item.scu_role, item.scp_role) for uid, item in roles.items()}
    assert answered == ({sop_class: answer} if answer is not None else {})
    association.release()


def test_without_proposed_roles_none_are_answered(node: ReceivingNode) -> None:
    association, results = associate(node, [build_context(CTImageStorage)])
    assert results == [ACCEPTED]
    assert association.acceptor.role_selection == {}
    assert association.acceptor.sop_class_extended == {}
    association.release()


def test_the_level_of_storage_is_answered(node: ReceivingNode) -> None:
    """PS3.4 B.3.1: SCU only, asks; of classes that aren't supported, or aren't storage, nothing is said."""
    asked = []
    for uid in (CTImageStorage, MRImageStorage, PRIVATE, Verification):
        item = SOPClassExtendedNegotiation()
        item.sop_class_uid = uid
        item.service_class_application_information = b"\3\0\0\0\2\0"
        asked.append(item)
    contexts = [build_context(uid) for uid in (CTImageStorage, PRIVATE, Verification)]
    association, _results = associate(node, contexts, *asked)
    assert association.acceptor.sop_class_extended == {CTImageStorage: b"\2\0\3\0\0\0"}
    association.release()


def test_other_items_get_no_answer_and_disturb_nothing(node: ReceivingNode) -> None:
    identity = UserIdentityNegotiation()
    identity.user_identity_type, identity.primary_field, identity.secondary_field = 2, b"someone", b"secret"
    identity.positive_response_requested = True
    window = AsynchronousOperationsWindowNegotiation()
    window.maximum_number_operations_invoked = window.maximum_number_operations_performed = 0
    common = SOPClassCommonExtendedNegotiation()
    common.sop_class_uid, common.service_class_uid = BasicTextSRStorage, "1.2.840.10008.4.2"
    common.related_general_sop_class_identification = [CTImageStorage]
    association, results = associate(
        node, [build_context(BasicTextSRStorage), build_context(Verification)], identity, window, common
    )
    assert results == [ACCEPTED, ACCEPTED]
    assert association.acceptor.asynchronous_operations == (1, 1)
    assert association.acceptor.user_identity is None
    assert association.send_c_echo().Status == 0x0000
    association.release()


def user_item(kind: int, content: bytes) -> bytes:
    return struct.pack(">BxH", kind, len(content)) + content


def uid_field(uid: str) -> bytes:
    return struct.pack(">H", len(uid)) + uid.encode()


@pytest.mark.parametrize(
    ("item", "answer"),
    [
        pytest.param(user_item(0x5B, b"from the future"), A_ASSOCIATE_AC, id="unknown type"),
        pytest.param(user_item(0xFF, b""), A_ASSOCIATE_AC, id="unknown type, empty"),
        pytest.param(user_item(0x58, b"\x09\1\0\1x\0\0"), A_ASSOCIATE_AC, id="unknown kind of identity"),
        pytest.param(user_item(0x58, b"\1"), A_ASSOCIATE_AC, id="identity cut short"),
        pytest.param(user_item(0x53, b"\0"), A_ASSOCIATE_AC, id="window cut short"),
        pytest.param(user_item(0x57, b"\0\4x"), A_ASSOCIATE_AC, id="common extended cut short"),
        pytest.param(user_item(0x56, uid_field(CTImageStorage)), A_ASSOCIATE_AC, id="extended, empty"),
        pytest.param(user_item(0x54, uid_field("1.2.3") + b"\1\1"), A_ASSOCIATE_AC, id="role of no context"),
        pytest.param(user_item(0x54, uid_field(CTImageStorage)), A_ABORT, id="role cut short"),
        pytest.param(user_item(0x5B, b"x")[:-1], A_ABORT, id="item longer than what is left"),
    ],
)
def test_items_that_mean_nothing_to_us_are_skipped(node: ReceivingNode, item: bytes, answer: int) -> None:
    with socket.create_connection(("127.0.0.1", node.port), timeout=10) as peer:
        peer.sendall(with_user_item(association_request(), item))
        assert peer.recv(1)[0] == answer


def test_an_item_outside_of_the_user_information_is_skipped(node: ReceivingNode) -> None:
    request = bytearray(association_request() + user_item(0x70, b"x"))
    request[2:6] = struct.pack(">L", len(request) - 6)
    with socket.create_connection(("127.0.0.1", node.port), timeout=10) as peer:
        peer.sendall(request)
        assert peer.recv(1)[0] == A_ASSOCIATE_AC


def with_user_item(request: bytes, item: bytes) -> bytes:
    """The A-ASSOCIATE-RQ with one more sub-item at the end of its User Information, its last item."""
    at = 74
    while request[at] != 0x50:
        at += 4 + struct.unpack_from(">H", request, at + 2)[0]
    longer = bytearray(request + item)
    longer[at + 2 : at + 4] = struct.pack(">H", len(longer) - at - 4)
    longer[2:6] = struct.pack(">L", len(longer) - 6)
    return bytes(longer)
