"""Models that a pipeline needs, and models that it can do without."""

from __future__ import annotations

import pytest

from pipelines.chest_ct_triage import PIPELINE
from pipelines.errors import ModelMismatch, ModelNotServed
from pipelines.triton import ModelSpec, ServedModel
from tests.unit.pipelines.examples import ByRule


class Serving(ByRule):
    """Raises for these models; the real server's errors are tested in tests/integration/test_triton.py."""

    def __init__(self, **errors: Exception) -> None:
        super().__init__(lambda _hu: {})
        self._errors = errors

    def check(self, spec: ModelSpec) -> ServedModel:
        if spec.name in self._errors:
            raise self._errors[spec.name]
        return super().check(spec)


def test_an_optional_model_is_used_where_it_is_served() -> None:
    models, notes = PIPELINE.check(Serving())
    assert list(models) == ["lungs", "pneumonia_class", "fusion"]
    assert notes == ()


def test_without_an_optional_model_there_is_a_note() -> None:
    models, notes = PIPELINE.check(Serving(fusion=ModelNotServed("not there")))
    assert list(models) == ["lungs", "pneumonia_class"]
    assert notes == ("Without model fusion version 1, which isn't served here.",)


def test_an_optional_model_that_differs_is_an_error() -> None:
    with pytest.raises(ModelMismatch, match="other classes"):
        PIPELINE.check(Serving(fusion=ModelMismatch("other classes")))


def test_a_needed_model_must_be_served() -> None:
    with pytest.raises(ModelNotServed):
        PIPELINE.check(Serving(pneumonia_class=ModelNotServed("not there")))
