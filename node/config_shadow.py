"""The ``shadow`` section: candidates that run beside what is live, and are never delivered.

Part of ``node.config``, which names these models, too.
"""

from __future__ import annotations

from pydantic import Field, model_validator

from node.config_fields import Model


class ShadowModel(Model):
    """A model as Triton serves it."""

    name: str = Field(min_length=1)
    version: str = Field(default="1", pattern=r"^[0-9]+$")


class ShadowConfig(Model):
    """A candidate: other models in the places of a pipeline's, another pipeline in its place, or both.

    share: of the pipeline's jobs, 0 to 1; always the same ones of the same jobs.
    """

    pipeline: str
    models: dict[str, ShadowModel] = Field(default_factory=dict)
    candidate_pipeline: str | None = None
    share: float = Field(default=1.0, gt=0, le=1)

    def served(self) -> dict[str, tuple[str, str]]:
        """The models that take a place, as name and version, by the name that the pipeline knows."""
        return {role: (model.name, model.version) for role, model in self.models.items()}

    @model_validator(mode="after")
    def _something_differs(self) -> ShadowConfig:
        if not self.models and self.candidate_pipeline in (None, self.pipeline):
            raise ValueError("must have models, or another pipeline as candidate_pipeline")
        return self
