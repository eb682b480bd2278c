"""Whatever is asked of what the OpenAPI document lists, no answer is an error of the server."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis.core.result import Ok
from schemathesis.schemas import APIOperation
from sqlalchemy import insert

from node.config import WebConfig
from node.database import jobs, open_database, series
from node.metrics import Metrics
from node.web.app import create_app
from node.web.sources import Sources
from node.web.users import Users, write_users
from tests.unit.node.rows import job_row, series_row

DOCUMENT = "/openapi.json"
EXAMPLES = 10
#: it goes on until somebody leaves
ENDLESS = "/events"


@dataclass(frozen=True)
class Asked:
    schema: schemathesis.BaseSchema
    headers: dict[str, str]


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Asked]:
    folder: Path = tmp_path_factory.mktemp("node")
    engine = open_database(folder)
    with engine.begin() as connection:
        connection.execute(insert(series), [series_row()])
        connection.execute(insert(jobs), [job_row(job_id="a1" * 32, state="failed")])
    users, token = Users().with_token("ops", "admin")
    write_users(folder / "users.yaml", users)
    app = create_app(
        engine,
        Metrics("1"),
        {},
        sources=Sources(data_dir=folder, uploads=folder / "uploads"),
        config=WebConfig(users=folder / "users.yaml"),
    )
    headers = {"Authorization": f"Bearer {token}"}
    yield Asked(schemathesis.openapi.from_asgi(DOCUMENT, app, headers=headers), headers)
    engine.dispose()


def operations(schema: schemathesis.BaseSchema) -> Iterator[APIOperation[Any, Any, Any, Any]]:
    for result in schema.get_all_operations():
        assert isinstance(result, Ok), result
        yield result.ok()


def test_no_request_makes_the_server_fail(asked: Asked) -> None:
    for operation in operations(asked.schema.exclude(path=ENDLESS)):

        @given(case=operation.as_strategy())
        @settings(
            max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True
        )
        def ask(case: schemathesis.Case[Any]) -> None:
            answer = case.call(headers=asked.headers)
            # 503 is an answer: what isn't there now, with the reason
            assert answer.status_code < 500 or answer.status_code == 503, answer.content

        ask()


def test_the_document_lists_what_there_is(asked: Asked) -> None:
    listed = {operation.path for operation in operations(asked.schema)}
    assert {"/api/jobs", "/api/jobs/{job_id}/retry", "/dicom-web/studies", "/metrics", ENDLESS} <= listed
