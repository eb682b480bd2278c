"""C-STORE to DCMTK's storescp beyond the contract: byte for byte, transfer syntaxes, its faults."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from pydicom import dcmread
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRLittleEndian, RLELossless

from node.deliver.cstore import CStoreDeliverer
from node.errors import DeliveryError
from tests.contract.destinations import storescp
from tests.contract.test_destinations import files
from tests.integration.receiving import dataset_bytes, wait_for
from tests.unit.node.deliver.conftest import write_object

pytestmark = pytest.mark.integration
__all__ = ["files"]


def received(tmp_path: Path) -> list[Path]:
    return list((tmp_path / "received").iterdir())


def test_result_objects_arrive_byte_for_byte(tmp_path: Path, files: list[Path]) -> None:
    it = storescp(tmp_path)
    it.destination.deliver(files)
    it.end()
    assert sorted(map(dataset_bytes, received(tmp_path))) == sorted(map(dataset_bytes, files))


def compressed(tmp_path: Path, number: int, syntax: str) -> Path:
    pixels = np.arange(256, dtype=np.uint16).tobytes()
    path = write_object(tmp_path, number, PixelData=pixels, **PIXELS)
    image = dcmread(path)
    if syntax == DeflatedExplicitVRLittleEndian:
        image.file_meta.TransferSyntaxUID = syntax
    else:
        image.compress(syntax, generate_instance_uid=False)
    image.save_as(path, enforce_file_format=True)
    return path


PIXELS = {
    "SamplesPerPixel": 1,
    "PhotometricInterpretation": "MONOCHROME2",
    "BitsAllocated": 16,
    "BitsStored": 16,
    "HighBit": 15,
    "PixelRepresentation": 0,
}


@pytest.mark.parametrize("syntax", [RLELossless, DeflatedExplicitVRLittleEndian])
@pytest.mark.parametrize("takes_it", [True, False])
def test_compressed_if_it_is_accepted_and_uncompressed_if_not(
    tmp_path: Path, syntax: str, takes_it: bool
) -> None:
    """Over one association with an object that was never compressed."""
    it = storescp(tmp_path, *(["+xa"] if takes_it else []))
    source = compressed(tmp_path, 1, syntax)
    stored = it.destination.deliver([source, write_object(tmp_path, 2, **PIXELS)])
    it.end()
    found = {str(image.SOPInstanceUID): image for image in map(dcmread, received(tmp_path))}
    image = found[stored[0].sop_instance_uid]
    assert image.file_meta.TransferSyntaxUID == (syntax if takes_it else ExplicitVRLittleEndian)
    assert np.array_equal(image.pixel_array, dcmread(source).pixel_array)
    assert set(found) == {each.sop_instance_uid for each in stored}


@pytest.mark.parametrize("takes_it", [True, False])
def test_deflated_where_that_is_wanted_and_accepted(
    tmp_path: Path, files: list[Path], takes_it: bool
) -> None:
    it = storescp(tmp_path, *(["+xa"] if takes_it else []))
    peer = it.destination.peer  # type: ignore[attr-defined]  # it is one for C-STORE
    config = peer.config.model_copy(update={"deflate": True})
    CStoreDeliverer(replace(peer, config=config)).deliver([*files, compressed(tmp_path, 9, RLELossless)])
    it.end()
    found = {str(image.SOPInstanceUID): image for image in map(dcmread, received(tmp_path))}
    assert len(found) == len(files) + 1
    for file in files:
        sent = dcmread(file)
        image = found[str(sent.SOPInstanceUID)]
        syntax = DeflatedExplicitVRLittleEndian if takes_it else ExplicitVRLittleEndian
        assert image.file_meta.TransferSyntaxUID == syntax
        assert image == sent


def test_implicit_vr_where_nothing_else_is_taken(tmp_path: Path) -> None:
    it = storescp(tmp_path, "+xi")
    it.destination.deliver([compressed(tmp_path, 1, RLELossless), write_object(tmp_path, 2, **PIXELS)])
    it.end()
    assert {dcmread(file).file_meta.TransferSyntaxUID for file in received(tmp_path)} == {"1.2.840.10008.1.2"}


@pytest.mark.parametrize("option", ["--abort-during", "--abort-after"])
def test_a_storescp_that_aborts(tmp_path: Path, files: list[Path], option: str) -> None:
    it = storescp(tmp_path, option)
    with pytest.raises(DeliveryError, match="no answer to C-STORE") as raised:
        it.destination.deliver(files)
    it.end()
    assert raised.value.retryable


def test_a_storescp_that_refuses(tmp_path: Path, files: list[Path]) -> None:
    it = storescp(tmp_path, "--refuse")

    def rejected() -> bool:
        with pytest.raises(DeliveryError) as raised:
            it.destination.deliver(files)
        assert raised.value.retryable
        return "association rejected" in str(raised.value)

    wait_for(rejected, what="storescp to refuse")
    it.end()
