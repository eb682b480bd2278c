"""What headers say together: numbers expected, concatenations, positions; in every encoding."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pydicom import Dataset
from pydicom.sequence import Sequence
from pydicom.uid import (
    CTImageStorage,
    DeflatedExplicitVRLittleEndian,
    EnhancedCTImageStorage,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
)
from pynetdicom.dsutils import encode

from node.receive.completeness import Headers
from node.receive.dataset import UnreadableDataset
from node.receive.header_reader import HeaderReader
from node.receive.headers import SeriesHeaders, read_values
from node.receive.part10 import encode_header, header_length
from tests.integration.receiving import ct_slice, wait_for
from tests.unit.node.receive.conftest import Bench
from tests.unit.node.receive.test_spool import incoming

SYNTAXES = (
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    ExplicitVRBigEndian,
    DeflatedExplicitVRLittleEndian,
    JPEG2000Lossless,
)


def stored(folder: Path, image: Dataset, syntax: str = ExplicitVRLittleEndian) -> Path:
    """A file as the spool writes it."""
    header = encode_header(
        sop_class_uid=image.SOPClassUID,
        sop_instance_uid=image.SOPInstanceUID,
        transfer_syntax_uid=syntax,
        calling_ae_title="SCANNER",
    )
    data = encode(image, syntax == ImplicitVRLittleEndian, syntax != ExplicitVRBigEndian, syntax.is_deflated)  # type: ignore[attr-defined]
    assert data is not None
    path = folder / f"{image.SOPInstanceUID}.dcm"
    path.write_bytes(header + data)
    return path


def summary(folder: Path, images: Iterable[Dataset], syntax: str = ExplicitVRLittleEndian) -> Headers:
    collected = SeriesHeaders()
    for image in images:
        collected.add(image.SOPClassUID, read_values(stored(folder, image, syntax), syntax))
    return collected.summary()


def slices(numbers: Iterable[int], **changes: Any) -> list[Dataset]:
    return [ct_slice("1.2.3", number, **changes) for number in numbers]


def volume(number: int, **changes: Any) -> Dataset:
    return ct_slice(
        "1.2.3", number, **{"SOPClassUID": EnhancedCTImageStorage, "NumberOfFrames": 20} | changes
    )


def part(number: int, parts: int | None, concatenation: str = "1.9") -> Dataset:
    changes = {"ConcatenationUID": concatenation, "InConcatenationNumber": number}
    if parts is not None:
        changes["InConcatenationTotalNumber"] = parts
    return volume(number, **changes)


@pytest.mark.parametrize("syntax", SYNTAXES)
def test_numbers_and_positions_in_every_encoding(tmp_path: Path, syntax: str) -> None:
    images = slices([n for n in range(20) if n != 7], ImagesInAcquisition=20, AcquisitionNumber=3)
    headers = summary(tmp_path, images, syntax)
    assert headers == Headers(acquisitions_count=20, spacing_mm=2.5, missing_positions_mm=(17.5,))


@pytest.mark.parametrize("syntax", SYNTAXES)
def test_concatenations_in_every_encoding(tmp_path: Path, syntax: str) -> None:
    assert summary(tmp_path, [part(1, 3), part(3, 3)], syntax).concatenation_count == 3


def test_sequences_of_undefined_length_are_skipped(tmp_path: Path) -> None:
    image = ct_slice("1.2.3", 1, NumberOfSeriesRelatedInstances=30)
    item = Dataset()
    item.NumberOfSeriesRelatedInstances = 7  # an item's attributes aren't the data set's
    image.ReferencedImageSequence = Sequence([item])
    image["ReferencedImageSequence"].is_undefined_length = True
    assert summary(tmp_path, [image]).series_count == 30


@pytest.mark.parametrize(
    ("numbers", "count"),
    [
        ([10] * 10, 10),
        ([12] * 10, 12),
        ([9] * 10, None),  # contradicted
        ([1] * 10, None),  # says nothing
        ([10] * 9 + [11], None),  # contradict each other
        ([10] * 9 + [None], None),
        ([0] * 10, None),
        ([-5] * 10, None),
        ([2_000_000] * 10, None),
    ],
)
def test_images_in_acquisition(tmp_path: Path, numbers: list[int | None], count: int | None) -> None:
    images = slices(range(10))
    for image, number in zip(images, numbers, strict=True):
        if number is not None:
            image.ImagesInAcquisition = number
    assert summary(tmp_path, images).acquisitions_count == count


def test_several_acquisitions_add_up(tmp_path: Path) -> None:
    first = slices(range(6), AcquisitionNumber=1, ImagesInAcquisition=6)
    second = slices(range(6, 10), AcquisitionNumber=2, ImagesInAcquisition=8)
    assert summary(tmp_path, first + second).acquisitions_count == 14
    # one acquisition reconstructed twice: more images than it says it has
    twice = slices(range(6, 14), AcquisitionNumber=1, ImagesInAcquisition=6)
    assert summary(tmp_path, first + twice).acquisitions_count is None


@pytest.mark.parametrize("value", ["20", " 20 ", "20.0"])
def test_numbers_as_they_occur(tmp_path: Path, value: str) -> None:
    image = ct_slice("1.2.3", 1)
    image.add_new(0x00201209, "IS", "1")
    image["NumberOfSeriesRelatedInstances"]._value = value
    assert summary(tmp_path, [image]).series_count == 20


def test_one_object_is_a_volume(tmp_path: Path) -> None:
    assert summary(tmp_path, [volume(1)]).whole_objects
    assert summary(tmp_path, [volume(1), volume(2)]).whole_objects
    assert not summary(tmp_path, [volume(1, NumberOfFrames=1)]).whole_objects
    assert not summary(tmp_path, [volume(1), ct_slice("1.2.3", 2)]).whole_objects
    assert not summary(tmp_path, [ct_slice("1.2.3", 1, NumberOfFrames=20)]).whole_objects  # not enhanced


def test_parts_of_a_concatenation_belong_together(tmp_path: Path) -> None:
    whole = summary(tmp_path, [part(2, 2), part(1, 2), volume(3)])
    assert (whole.whole_objects, whole.concatenation_count) == (True, 3)
    short = summary(tmp_path, [part(1, 3), part(3, 3)])
    assert (short.whole_objects, short.concatenation_count) == (False, 3)
    told_by_one = summary(tmp_path, [part(1, None), part(2, 2)])
    assert (told_by_one.whole_objects, told_by_one.concatenation_count) == (True, 2)
    untold = summary(tmp_path, [part(1, None)])
    assert (untold.whole_objects, untold.concatenation_count) == (False, None)


def test_localizers_and_slices_are_different_stacks(tmp_path: Path) -> None:
    localizer = ct_slice("1.2.3", 500, ImageOrientationPatient=[1, 0, 0, 0, 0, -1])
    headers = summary(tmp_path, [localizer, *slices(n for n in range(20) if n != 7)])
    assert headers.missing_positions_mm == (17.5,)


def test_instance_numbers_count_where_positions_do_not_tell(tmp_path: Path) -> None:
    without_positions = slices((n for n in range(20) if n != 7), ImagePositionPatient=None)
    assert summary(tmp_path, without_positions).missing_instance_numbers == 1
    numbered_with_a_gap = slices(range(20))
    for image in numbered_with_a_gap[10:]:
        image.InstanceNumber += 1
    assert summary(tmp_path, numbered_with_a_gap).missing_instance_numbers == 0


def test_a_file_cut_short_is_unreadable(tmp_path: Path) -> None:
    path = stored(tmp_path, ct_slice("1.2.3", 1))
    with path.open("r+b") as file:
        file.truncate(header_length(file) + 12)
    with pytest.raises(UnreadableDataset):
        read_values(path, ExplicitVRLittleEndian)


def test_the_reader_reads_each_file_once(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[Path] = []

    def counting(path: Path, syntax: str) -> dict[int, bytes]:
        read.append(path)
        return read_values(path, syntax)

    monkeypatch.setattr("node.receive.header_reader.read_values", counting)
    for number in range(10):
        bench.store(incoming("1.2.3", number))
        bench.headers.request("1.2.3", number + 1, bench.now)
    assert len(read) == len(set(read)) == 10
    assert bench.headers.of("1.2.3", 10)[0] is not None
    assert bench.headers.of("1.2.3", 11)[0] is None


def test_a_large_series_gives_way_to_a_small_one(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("node.receive.header_reader._TURN_FILES", 5)
    for number in range(40):
        bench.store(incoming("1.2.3", number))
    bench.store(incoming("1.2.4", 1))
    reader = HeaderReader(bench.engine, bench.data_dir, threads=1)
    order: list[str] = []
    go_on, waited = threading.Event(), []
    reader._workers.submit(lambda: waited.append(go_on.wait(10)))
    reader.on_read = order.append
    reader.request("1.2.3", 40, bench.now)
    reader.request("1.2.4", 1, bench.now)
    go_on.set()
    wait_for(lambda: len(order) == 2, what="both to be read")
    reader.stop()
    assert order == ["1.2.4", "1.2.3"]


def test_a_file_that_is_gone_or_no_data_set_is_counted(bench: Bench) -> None:
    paths = [bench.data_dir / bench.store(incoming("1.2.3", number)).path for number in range(6)]
    paths[0].unlink()
    with paths[1].open("r+b") as file:
        file.seek(header_length(file))
        file.write(b"\x08\0" * 250)
    bench.headers.request("1.2.3", 6, bench.now)
    headers, _since = bench.headers.of("1.2.3", 6)
    assert headers is not None and headers.unreadable == 2


def test_memory_of_a_series_is_a_few_numbers_an_instance() -> None:
    collected = SeriesHeaders()
    position = {0x00200037: b"1\\0\\0\\0\\1\\0"}
    for number in range(2000):
        values = position | {0x00200032: b"0\\0\\%d" % number, 0x00200013: b"%d" % number}
        collected.add(CTImageStorage, values)
    assert collected.summary() == replace(Headers(), spacing_mm=None)
    (only,) = collected._stacks.values()
    assert only.positions.itemsize + only.numbers.itemsize == 16
