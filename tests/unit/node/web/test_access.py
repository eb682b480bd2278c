"""Who may ask the web server for what."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest
from sqlalchemy import Engine

from node.config import WebConfig
from node.metrics import Metrics
from node.web.access import COOKIE, role_needed
from node.web.app import create_app
from node.web.users import Role, Users, write_users

PASSWORD = "a long enough one"
HOST = "node.example.org"
AUDITED: list[tuple[str, str, str, bool]] = []


@pytest.fixture(scope="module")
def users(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    path = tmp_path_factory.mktemp("users") / "users.yaml"
    some, token = Users().with_user("anna", "viewer", PASSWORD).with_token("prometheus", "viewer")
    write_users(path, some)
    return path, token


def asking(
    engine: Engine, users: Path | None, *, address: str = "192.0.2.7", host: str = HOST, **options: object
) -> httpx.AsyncClient:
    AUDITED.clear()
    app = create_app(
        engine,
        Metrics("1"),
        {"triton": lambda: "10.1.2.3 is down"},
        config=WebConfig(users=users, **options),  # type: ignore[arg-type]
        audited=lambda *what: AUDITED.append(what),
    )
    transport = httpx.ASGITransport(app=app, client=(address, 4000))
    return httpx.AsyncClient(transport=transport, base_url=f"http://{host}")


@pytest.mark.anyio
@pytest.mark.parametrize("path", ["/", "/metrics", "/api/jobs", "/api/series", "/anything"])
async def test_off_the_loopback_everything_needs_a_login(engine: Engine, path: str) -> None:
    async with asking(engine, None) as client:
        answer = await client.get(path)
        assert answer.status_code == 401
        assert answer.headers["WWW-Authenticate"] == "Bearer"
        page = await client.get(path, headers={"Accept": "text/html"})
        assert (page.status_code, page.headers["Location"]) == (303, f"/login?next={path}")


@pytest.mark.anyio
async def test_probes_are_open_and_tell_nothing(engine: Engine) -> None:
    async with asking(engine, None) as client:
        assert (await client.get("/healthz")).status_code == 200
        ready = await client.get("/readyz")
        assert (ready.status_code, ready.json()) == (503, {"ready": False})


@pytest.mark.anyio
async def test_the_loopback_is_open_unless_it_only_seems_to_be_it(engine: Engine) -> None:
    local = {"address": "127.0.0.1", "host": "localhost:8090"}
    async with asking(engine, None, **local) as client:
        assert (await client.get("/api/jobs")).status_code == 200
        assert "10.1.2.3" in (await client.get("/readyz")).text
        proxied = await client.get("/api/jobs", headers={"X-Forwarded-For": "192.0.2.7"})
        assert proxied.status_code == 401
    rebound = {"address": "127.0.0.1", "host": "attacker.example.org:8090"}
    async with asking(engine, None, **rebound) as client:
        assert (await client.get("/api/jobs")).status_code == 401
    async with asking(engine, None, open_loopback=False, **local) as client:
        assert (await client.get("/api/jobs")).status_code == 401


@pytest.mark.anyio
async def test_an_api_token(engine: Engine, users: tuple[Path, str]) -> None:
    path, token = users
    async with asking(engine, path) as client:
        good = await client.get("/metrics", headers={"Authorization": f"Bearer {token}"})
        assert good.status_code == 200
        bad = await client.get("/metrics", headers={"Authorization": f"Bearer {token}x"})
        assert bad.status_code == 401
        changing = await client.post("/api/jobs", headers={"Authorization": f"Bearer {token}"})
        assert changing.status_code == 403
        assert "needs the role operator, and prometheus is viewer" in changing.json()["error"]


async def log_in(client: httpx.AsyncClient, password: str = PASSWORD, **form: str) -> httpx.Response:
    data = {"name": "anna", "password": password, **form}
    return await client.post("/login", data=data, headers={"Origin": f"http://{HOST}"})


@pytest.mark.anyio
async def test_a_browser_logs_in_and_out(engine: Engine, users: tuple[Path, str]) -> None:
    async with asking(engine, users[0]) as client:
        assert "<form" in (await client.get("/login")).text
        wrong = await log_in(client, "wrong")
        assert wrong.status_code == 401 and "Name or password is wrong" in wrong.text
        right = await log_in(client, next="/api/jobs")
        assert (right.status_code, right.headers["Location"]) == (303, "/api/jobs")
        cookie = right.headers["Set-Cookie"]
        assert "HttpOnly" in cookie and "SameSite=strict" in cookie
        page = await client.get("/")
        assert page.status_code == 200 and "anna" in page.text and "Log out" in page.text
        elsewhere = await client.post("/logout", headers={"Origin": "http://attacker.example.org"})
        assert elsewhere.status_code == 403
        secret = client.cookies[COOKIE]
        assert (await client.post("/logout", headers={"Origin": f"http://{HOST}"})).status_code == 303
        client.cookies.set(COOKIE, secret)
        assert (await client.get("/api/jobs")).status_code == 401
    assert AUDITED == [
        ("anna", "192.0.2.7", "login", False),
        ("anna", "192.0.2.7", "login", True),
        ("anna", "192.0.2.7", "logout", True),
    ]


@pytest.mark.anyio
async def test_a_removed_user_is_out_at_once(engine: Engine, tmp_path: Path) -> None:
    path = tmp_path / "users.yaml"
    some = Users().with_user("anna", "viewer", PASSWORD)
    write_users(path, some)
    async with asking(engine, path) as client:
        assert (await log_in(client)).status_code == 303
        assert (await client.get("/api/jobs")).status_code == 200
        write_users(path, some.without("anna"))
        assert (await client.get("/api/jobs")).status_code == 401


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("target", "goes_to"),
    [
        ("//attacker.example.org", "/"),
        ("https://attacker.example.org/", "/"),
        ("/\\attacker", "/"),
        ("/a", "/a"),
    ],
)
async def test_a_link_to_the_form_leads_nowhere_else(
    engine: Engine, users: tuple[Path, str], target: str, goes_to: str
) -> None:
    async with asking(engine, users[0]) as client:
        assert (await log_in(client, next=target)).headers["Location"] == goes_to


@pytest.mark.anyio
async def test_forms_from_elsewhere_and_large_ones_are_refused(
    engine: Engine, users: tuple[Path, str]
) -> None:
    async with asking(engine, users[0]) as client:
        data = {"name": "anna", "password": PASSWORD}
        for headers in ({"Origin": "http://attacker.example.org"}, {}):
            assert (await client.post("/login", data=data, headers=headers)).status_code == 400
        assert (await log_in(client, "x" * 10_000)).status_code == 400


@pytest.mark.anyio
async def test_guessing_is_slowed_down(
    engine: Engine, users: tuple[Path, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Users, "verify", lambda *_: False)
    async with asking(engine, users[0]) as client:
        answers = [await log_in(client) for _ in range(7)]
    assert [answer.status_code for answer in answers] == [401] * 5 + [429] * 2
    assert int(answers[-1].headers["Retry-After"]) >= 1


@pytest.mark.anyio
async def test_every_answer_has_the_security_headers(engine: Engine) -> None:
    async with asking(engine, None) as client:
        for path in ("/login", "/healthz", "/api/jobs"):
            headers = (await client.get(path)).headers
            assert headers["X-Content-Type-Options"] == "nosniff"
            assert "default-src 'none'" in headers["Content-Security-Policy"]
            assert "frame-ancestors 'none'" in headers["Content-Security-Policy"]
            assert headers["Cache-Control"] == "no-store"


def test_what_the_table_does_not_name_is_closed() -> None:
    assert role_needed("GET", "/new/page") is Role.VIEWER
    assert role_needed("POST", "/new/page") is Role.OPERATOR
    assert role_needed("DELETE", "/") is Role.OPERATOR
    assert role_needed("GET", "/healthz") is None
    assert role_needed("GET", "/healthz/../api/jobs") is Role.VIEWER
