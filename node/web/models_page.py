"""GET /models and /api/models: what Triton serves of what the configured routes' pipelines need, and how far
candidates (section ``shadow``) agree with what is live."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response
from sqlalchemy import Engine

from node.run.operations import shadow_summary
from node.web.pages import render
from node.web.sources import Models
from pipelines.errors import PipelineError

#: so many of a candidate's runs are compared
NEWEST = 1000


def model_routes(engine: Engine, models: Callable[[], Models]) -> APIRouter:
    """The routes of models. Each asks Triton anew."""
    router = APIRouter()

    def asked() -> Models:
        try:
            return models()
        except PipelineError as error:  # it went away between two questions
            return Models(why=str(error))

    @router.get("/api/models")
    def as_json() -> dict[str, Any]:
        return asdict(asked()) | {"candidates": shadow_summary(engine, limit=NEWEST)}

    @router.get("/models")
    def page(request: Request) -> Response:
        found = asked()
        candidates = shadow_summary(engine, limit=NEWEST)
        shown: dict[str, Any] = {
            "models": found.states,
            "url": found.url,
            "why": found.why,
            "candidates": candidates,
        }
        return render("models.html", request, **shown)

    return router
