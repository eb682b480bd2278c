"""The web application with what a test puts behind it, and someone who asks it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
from sqlalchemy import Engine

from node.config import WebConfig
from node.metrics import Metrics
from node.web.app import create_app
from node.web.sources import Sources
from node.web.users import RoleName, Users, write_users


def asking(
    engine: Engine, folder: Path, role: RoleName, *, metrics: Metrics | None = None, **sources: Any
) -> httpx.AsyncClient:
    """A client with an API token of the role."""
    users, token = Users().with_token("someone", role)
    path = folder / f"{role}.yaml"
    write_users(path, users)
    app = create_app(
        engine,
        metrics or Metrics("1"),
        {},
        sources=Sources(**{"data_dir": folder, "uploads": folder / "uploads", **sources}),
        config=WebConfig(users=path),
    )
    transport = httpx.ASGITransport(app=app, client=("192.0.2.7", 4000))
    headers = {"Authorization": f"Bearer {token}"}
    return httpx.AsyncClient(transport=transport, base_url="http://node", headers=headers)
