"""C-STORE however a peer cuts it: PDVs and PDUs of every size, and what violates PS3.8 or PS3.7."""

from __future__ import annotations

import os
import random
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydicom.uid import CTImageStorage, generate_uid

from node.receive.command import StoreCommand, command_field, read_elements
from tests.integration.raw_scu import (
    COMMAND,
    CT_CONTEXT,
    ECHO_CONTEXT,
    ECHO_REQUEST,
    LAST,
    RawScu,
    cut,
    element,
    pdu,
    pdv,
    store_request,
)
from tests.integration.receiving import ReceivingNode, ct_slice, encoded, wait_for
from tests.processes import peak_kilobytes


@pytest.fixture(params=[0, 2], ids=["receiver", "movers"])
def node(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[ReceivingNode]:
    running = ReceivingNode(tmp_path / "var")
    running.receive = running.receive.model_copy(update={"movers": request.param})
    running.start()
    yield running
    running.stop()


@pytest.mark.parametrize("size", [1, 2, 7, 100, 16_000])
@pytest.mark.parametrize("together", [False, True])
def test_pdvs_of_every_size(node: ReceivingNode, size: int, together: bool) -> None:
    """One PDV a PDU, or all of command and data set in a single PDU."""
    uid = generate_uid()
    with RawScu(node.port) as scu:
        for number in range(2):
            image = ct_slice(uid, number)
            pdvs = cut(store_request(image.SOPInstanceUID), COMMAND, size) + cut(encoded(image), 0, size)
            scu.socket.sendall(pdu(*pdvs) if together else b"".join(pdu(one) for one in pdvs))
            assert scu.status() == 0x0000
    rows = node.rows()
    assert [node.dataset_bytes(row) for row in rows] == [encoded(ct_slice(uid, n)) for n in range(2)]


def test_bytes_that_trickle_in_at_any_boundary(node: ReceivingNode) -> None:
    image = ct_slice(generate_uid(), 1)
    whole = pdu(pdv(store_request(image.SOPInstanceUID), COMMAND | LAST)) + b"".join(
        pdu(one) for one in cut(encoded(image), 0, 300)
    )
    rng = random.Random(1)  # noqa: S311 repeatable cuts
    with RawScu(node.port) as scu:
        while whole:
            count = rng.choice((1, 2, 3, 5, 8, 40))
            scu.socket.sendall(whole[:count])
            whole = whole[count:]
        assert scu.status() == 0x0000
    assert node.dataset_bytes(node.rows()[0]) == encoded(image)


def test_requests_that_do_not_wait_are_answered_in_order(node: ReceivingNode) -> None:
    """Ten C-STORE and C-ECHO requests in one go: the second kind is pynetdicom's, the first is ours."""
    uid = generate_uid()
    with RawScu(node.port) as scu:
        stream = b""
        for number in range(5):
            image = ct_slice(uid, number)
            stream += pdu(
                pdv(store_request(image.SOPInstanceUID, message_id=number), COMMAND | LAST),
                pdv(encoded(image), LAST),
            )
            stream += pdu(pdv(ECHO_REQUEST, COMMAND | LAST, ECHO_CONTEXT))
        scu.socket.sendall(stream)
        fields = []
        for _ in range(10):
            kind, content = scu.pdu()
            assert kind == 4
            elements = read_elements(content[6:])
            assert elements[0x0900] == b"\0\0"
            fields.append(command_field(elements))
        assert sorted(fields) == [0x8001] * 5 + [0x8030] * 5
        scu.socket.sendall(struct.pack(">BBL", 5, 0, 4) + bytes(4))
        assert scu.pdu()[0] == 6, "A-RELEASE-RP"
    wait_for(lambda: node.completed == [(uid, 1)])


def test_a_store_without_a_data_set_is_not_success(node: ReceivingNode) -> None:
    with RawScu(node.port) as scu:
        scu.socket.sendall(pdu(pdv(store_request("1.2.3", data_set=False), COMMAND | LAST)))
        assert scu.status() == 0xC000


def test_a_store_in_the_verification_context_is_not_supported(node: ReceivingNode) -> None:
    image = ct_slice(generate_uid(), 1)
    with RawScu(node.port) as scu:
        request = pdv(store_request(image.SOPInstanceUID), COMMAND | LAST, ECHO_CONTEXT)
        scu.socket.sendall(pdu(request, pdv(encoded(image), LAST, ECHO_CONTEXT)))
        assert scu.status() == 0x0122
        scu.socket.sendall(
            pdu(pdv(store_request(image.SOPInstanceUID), COMMAND | LAST), pdv(encoded(image), LAST))
        )
        assert scu.status() == 0x0000
    assert len(node.rows()) == 1


REQUEST = store_request("1.2.3.4")


@pytest.mark.parametrize(
    "sent",
    [
        pdu(b"\0\0\0"),  # no room for a PDV's header
        pdu(struct.pack(">LBB", 1, CT_CONTEXT, 0)),  # a PDV shorter than its header
        pdu(struct.pack(">LBB", 500, CT_CONTEXT, 0) + b"abc"),  # a PDV longer than its PDU
        pdu(pdv(b"data", LAST)),  # a data set without a command
        pdu(pdv(REQUEST, COMMAND | LAST), pdv(REQUEST, COMMAND | LAST)),  # a command instead of the data set
        pdu(pdv(REQUEST, COMMAND | LAST), pdv(b"x", LAST, ECHO_CONTEXT)),  # the data set in another context
        pdu(pdv(REQUEST[:30], COMMAND), pdv(REQUEST[30:], COMMAND | LAST, ECHO_CONTEXT)),  # a split context
        pdu(pdv(REQUEST, COMMAND | LAST, 99)),  # a context that was never proposed
        pdu(pdv(REQUEST[:-1], COMMAND | LAST)),  # a command set cut short
        pdu(pdv(b"garbage that is no command set", COMMAND | LAST)),
        pdu(pdv(element(0x0100, b"\1"), COMMAND | LAST)),  # a command field of one byte
        pdu(pdv(element(0x0100, b"\1\0"), COMMAND | LAST)),  # a C-STORE-RQ without anything else
        b"".join(pdu(pdv(bytes(16_000), COMMAND)) for _ in range(8)),  # a command set without end
    ],
)
def test_a_violation_aborts_its_association_only(node: ReceivingNode, sent: bytes) -> None:
    good = ct_slice(generate_uid(), 1)
    with RawScu(node.port) as neighbour, RawScu(node.port) as scu:
        scu.socket.sendall(sent)
        assert scu.pdu()[0] in (7, 0), "A-ABORT"
        request = pdv(store_request(good.SOPInstanceUID), COMMAND | LAST)
        neighbour.socket.sendall(pdu(request, pdv(encoded(good), LAST)))
        assert neighbour.status() == 0x0000
    assert [row["state"] for row in node.rows()] == ["stored"]
    assert not list((node.data_dir / "spool/incoming").iterdir())


@pytest.mark.parametrize("kind", [5, 7])
def test_release_or_abort_in_the_middle_of_a_data_set_leaves_nothing(node: ReceivingNode, kind: int) -> None:
    with RawScu(node.port) as scu:
        scu.socket.sendall(pdu(pdv(REQUEST, COMMAND | LAST), pdv(bytes(1000), 0)))
        scu.socket.sendall(struct.pack(">BBL", kind, 0, 4) + bytes(4))
        assert scu.pdu()[0] in (6, 7, 0)
    wait_for(lambda: node.listener.open_associations == 0)
    assert node.rows() == []
    assert not list((node.data_dir / "spool/incoming").iterdir())


def test_memory_does_not_grow_with_the_instance(node: ReceivingNode) -> None:
    """200 MB in one instance: the listener's buffers stay what they are."""
    image = ct_slice(generate_uid(), 1)
    small = encoded(image)
    size = 200_000_000
    start = small.index(b"\xe0\x7f\x10\x00OW")
    head = small[: start + 8] + struct.pack("<L", size)
    chunk = bytes(100_000)
    before = peak_kilobytes(os.getpid())
    with RawScu(node.port) as scu:
        scu.socket.sendall(pdu(pdv(store_request(image.SOPInstanceUID), COMMAND | LAST), pdv(head, 0)))
        for number in range(size // len(chunk)):
            scu.socket.sendall(pdu(pdv(chunk, LAST if (number + 1) * len(chunk) == size else 0)))
        assert scu.status() == 0x0000
    assert node.rows()[0]["bytes"] > size
    assert peak_kilobytes(os.getpid()) - before < 20_000


def test_the_response_repeats_the_request(node: ReceivingNode) -> None:
    command = StoreCommand(77, CTImageStorage, "1.2.3.4.5", has_data_set=True)
    image = ct_slice(generate_uid(), 1, SOPInstanceUID=command.sop_instance_uid)
    with RawScu(node.port) as scu:
        request = store_request(command.sop_instance_uid, message_id=command.message_id)
        scu.socket.sendall(pdu(pdv(request, COMMAND | LAST), pdv(encoded(image), LAST)))
        _, content = scu.pdu()
    length, context, control = struct.unpack(">LBB", content[:6])
    assert (length, context, control) == (len(content) - 4, CT_CONTEXT, COMMAND | LAST)
    elements = read_elements(content[6:])
    assert int.from_bytes(elements[0x0000], "little") == len(content) - 6 - 12
    assert int.from_bytes(elements[0x0120], "little") == 77
    assert elements[0x0002].rstrip(b"\0").decode() == CTImageStorage
    assert elements[0x1000].rstrip(b"\0").decode() == command.sop_instance_uid
