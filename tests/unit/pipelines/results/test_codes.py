"""Codes exist where they are said to come from."""

from __future__ import annotations

from pydicom.sr import _concepts_dict
from pydicom.sr.coding import Code

from pipelines.classify import FUSION_SPEC, SPEC
from pipelines.results import codes
from pipelines.triage_picture import CLASSES

#: not in pydicom's dictionary; where they were looked up is said in codes.py
_ELSEWHERE = {
    *("CONSOLIDATION", "PIXELS", "ENGLISH_US", "QUALITATIVE_EVALUATIONS"),
    *("COVID19", "FINDING/covid19", "INFLUENZA_A_PNEUMONIA", "FINDING/iavp"),
    *("BACTERIAL_PNEUMONIA", "VIRAL_PNEUMONIA"),
}


def all_codes() -> dict[str, Code]:
    found = {name: value for name, value in vars(codes).items() if isinstance(value, Code)}
    for name in (
        *("CASE_TYPE_PROBABILITY", "FINDING", "HU_PERCENTILE", "SEVERITY_GRADE"),
        *("CLASS_PROBABILITY", "PREDICTED_CLASS"),
    ):
        found |= {f"{name}/{key}": value for key, value in vars(codes)[name].items()}
    for key, several in codes.PATCH_PROBABILITY.items():
        found |= {f"PATCH_PROBABILITY/{key}/{number}": value for number, value in enumerate(several)}
    return found


def test_standard_codes_are_in_pydicoms_dictionary() -> None:
    for name, code in all_codes().items():
        if code.scheme_designator == codes.PRIVATE_DESIGNATOR or name in _ELSEWHERE:
            continue
        known = {
            value for entry in _concepts_dict.concepts[code.scheme_designator].values() for value in entry
        }
        assert code.value in known, name


def test_codes_fit_their_value_representations() -> None:
    for name, code in all_codes().items():
        assert len(code.value) <= 16, name
        assert len(code.scheme_designator) <= 16, name
        assert len(code.meaning) <= 64, name
        assert code.meaning.isascii(), name


def test_private_codes_are_unique() -> None:
    private = {c for c in all_codes().values() if c.scheme_designator == codes.PRIVATE_DESIGNATOR}
    assert len({c.value for c in private}) == len({c.meaning for c in private}) == len(private)


def test_every_class_of_a_slice_classifier_has_its_codes() -> None:
    specs = (SPEC, FUSION_SPEC)
    assert [name for spec in specs for name in spec.classes] == list(codes.SLICE_CLASS)
    assert list(codes.SLICE_CLASS) == list(codes.CLASS_PROBABILITY) == list(CLASSES)
    assert [spec.name for spec in specs] == list(codes.PREDICTED_CLASS)


def test_a_concept_is_always_a_new_item() -> None:
    assert codes.concept(codes.LUNG) is not codes.concept(codes.LUNG)
