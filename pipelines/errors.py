"""Exceptions of the pipelines.

    PipelineError
    ├── SeriesRefused        the input can't be processed; names the tag or UID; never retried
    ├── ModelMismatch        Triton serves something else than the pipeline expects; never retried
    │   └── ModelNotServed   it doesn't serve that model at all, or not in that version
    ├── InferenceUnavailable Triton is down or loading; retried until it is there
    ├── InferenceInterrupted a request took too long, or Triton gave it up; retried so many times
    ├── InferenceFailed      Triton answered with an error for this input; never retried
    └── RenderingUnavailable no off-screen rendering here; the pipeline falls back to a montage

Every error has a ``code`` (stable, for metrics and the ops page), a ``hint`` (what to do) and ``retryable``.
"""

from __future__ import annotations


class PipelineError(Exception):
    """Base of all pipeline errors."""

    code = "pipeline_error"
    retryable = False

    def __init__(self, message: str, *, hint: str = "", code: str | None = None) -> None:
        super().__init__(message)
        self.hint = hint
        if code is not None:
            self.code = code


class SeriesRefused(PipelineError):
    """The series can't be represented or processed; ``code`` says why (``geometry_tilted`` …)."""

    code = "series_refused"


class ModelMismatch(PipelineError):
    """A served model's name, version, inputs or outputs differ from the pipeline's expectation."""

    code = "model_mismatch"


class ModelNotServed(ModelMismatch):
    """No model of that name and version is served: fatal unless the pipeline can do without."""

    code = "model_not_served"


class InferenceUnavailable(PipelineError):
    """Triton can't be reached or isn't ready."""

    code = "triton_unavailable"
    retryable = True


class InferenceInterrupted(PipelineError):
    """A request wasn't answered in its time, or Triton had no room for it."""

    code = "inference_interrupted"
    retryable = True


class InferenceFailed(PipelineError):
    """Triton refused or failed this request."""

    code = "inference_failed"


class RenderingUnavailable(PipelineError):
    """Off-screen 3D rendering isn't possible on this machine."""

    code = "rendering_unavailable"
