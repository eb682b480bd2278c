"""Files whose sequences were encoded ahead are what pydicom alone writes."""

from __future__ import annotations

from io import BytesIO

import pytest
from pydicom import Dataset, dcmread, dcmwrite
from pydicom.dataset import FileMetaDataset
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    SecondaryCaptureImageStorage,
)

from pipelines.results.report import build_report
from pipelines.results.segmentation import build_segmentation
from pipelines.results.sequences import with_encoded_sequences
from tests.unit.pipelines.results.synthetic import chest, context


def written(dataset: Dataset) -> bytes:
    file = BytesIO()
    dcmwrite(file, dataset, enforce_file_format=True)
    return file.getvalue()


def example(
    characters: str | list[str] | None = "ISO_IR 192", syntax: str = ExplicitVRLittleEndian
) -> Dataset:
    """Nested items with values of many kinds, the same ones at several places."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.SOPClassUID, dataset.SOPInstanceUID = SecondaryCaptureImageStorage, "1.2.3"
    if characters is not None:
        dataset.SpecificCharacterSet = characters
    code, other = Dataset(), Dataset()
    code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = "1", "99X", "a meaning"
    code.MappingResource = ""
    other.update(code)
    other.ContextGroupVersion = None
    item = Dataset()
    item.ConceptNameCodeSequence, item.PersonName = [code, other], "Doe^Jane"
    item.NumericValue, item.ReferencedFrameNumber = ["1.50", "1.5"], [1, 2]
    item.FloatingPointValue, item.Rows, item.PixelSpacing = 1.5, 3, [0.1, 1e-7]
    item.TextValue = "words " * 30_000
    item.ContentSequence = []
    dataset.ContentSequence = [item, item, code]
    return dataset


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, DeflatedExplicitVRLittleEndian])
@pytest.mark.parametrize(
    ("characters", "name"),
    [
        (None, "Doe^Jane"),
        ("ISO_IR 100", "Müller^Jörg"),
        ("ISO_IR 192", "张^伟"),
        (["", "ISO 2022 IR 87"], "Yamada^Tarou=山田^太郎"),
    ],
)
def test_the_bytes_are_pydicoms(characters: str | list[str] | None, name: str, syntax: str) -> None:
    dataset = example(characters, syntax)
    dataset.ContentSequence[0].PersonName = name
    expected = written(dataset)
    assert written(with_encoded_sequences(dataset)) == expected
    read = dcmread(BytesIO(expected))
    assert str(read.ContentSequence[0].PersonName) == name


@pytest.mark.parametrize("what", ["item", "sequence", "character set"])
def test_items_that_are_special(what: str) -> None:
    dataset = example()
    if what == "item":
        dataset.ContentSequence[1].is_undefined_length_sequence_item = True
    elif what == "sequence":
        dataset.ContentSequence[0]["ConceptNameCodeSequence"].is_undefined_length = True
    else:
        dataset.ContentSequence[2].SpecificCharacterSet = "ISO_IR 100"
        dataset.ContentSequence[2].CodeMeaning = "Schädel"
    assert written(with_encoded_sequences(dataset)) == written(dataset)


def test_items_as_they_were_read_from_implicit_little_endian() -> None:
    source = dcmread(BytesIO(written(example(syntax=ImplicitVRLittleEndian))))
    dataset = example()
    dataset.ContentSequence = source.ContentSequence
    assert written(with_encoded_sequences(dataset)) == written(dataset)


def test_what_depends_on_other_elements_is_left_to_pydicom() -> None:
    dataset = example()
    dataset.PixelRepresentation = 1
    dataset.ContentSequence[0].SmallestImagePixelValue = -3
    dataset.SmallestImagePixelValue = -4
    assert written(with_encoded_sequences(dataset)) == written(dataset)
    assert with_encoded_sequences(example(syntax=ImplicitVRLittleEndian)).ContentSequence


def test_results() -> None:
    volume, findings = chest(shape=(12, 48, 56), spacing=(16.0, 5.6, 4.8))
    segmentation = build_segmentation(volume, findings, context())
    for dataset in (segmentation, build_report(volume, findings, segmentation, context())):
        encoded = with_encoded_sequences(dataset)
        assert encoded is not dataset
        assert written(encoded) == written(dataset)
