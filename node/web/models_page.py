"""GET /models and /api/models: what Triton serves of what the configured routes' pipelines need."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response

from node.web.pages import render
from node.web.sources import Models
from pipelines.errors import PipelineError


def model_routes(models: Callable[[], Models]) -> APIRouter:
    """The routes of models. Each asks Triton anew."""
    router = APIRouter()

    def asked() -> Models:
        try:
            return models()
        except PipelineError as error:  # it went away between two questions
            return Models(why=str(error))

    @router.get("/api/models")
    def as_json() -> dict[str, Any]:
        return asdict(asked())

    @router.get("/models")
    def page(request: Request) -> Response:
        found = asked()
        return render("models.html", request, models=found.states, url=found.url, why=found.why)

    return router
