"""Single sign-on at a real provider; and at one that answers wrongly, as no real one can be made to."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from html import unescape
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest
from sqlalchemy import Engine

from node.checks import check_login
from node.config import NodeConfig, WebConfig, parse_config
from node.config_oidc import OidcConfig
from node.errors import ConfigError
from node.metrics import Metrics
from node.web import oidc
from node.web.access import COOKIE
from node.web.app import create_app
from node.web.single_sign_on import LoginsUnderWay
from node.web.users import Users, write_users
from tests.identity_provider import CLIENT, SECRET, IdentityProvider, clicked_through, signing_key
from tests.unit.node.web.test_sessions import Clock
from tests.unit.node.web.wrong_provider import (
    Wrong,
    by_another,
    by_nobody,
    by_our_secret,
    by_the_public_key_as_secret,
    changed_after,
    wrong,
)

__all__ = ["wrong"]

URL = "http://node.example.org"
CALLBACK = f"{URL}/login/sso/callback"
PEOPLE = {
    "anna": {"preferred_username": "anna", "groups": ["staff", "radiology", "radiology-it"]},
    "vera": {"preferred_username": "vera", "groups": "radiology"},
    "adam": {"preferred_username": "adam <b>", "groups": ["pacs-admins"]},
    "otto": {"preferred_username": "otto", "groups": ["kitchen"]},
    "nora": {"preferred_username": "nora"},
}
# the environment variable that a test puts the secret into
NAMED = "OIDC_SECRET"
ROLES = {"radiology": "viewer", "radiology-it": "operator", "pacs-admins": "admin"}
AUDITED: list[tuple[str, str, str, bool]] = []


@pytest.fixture(scope="module")
def provider(tmp_path_factory: pytest.TempPathFactory) -> Iterator[IdentityProvider]:
    with IdentityProvider(tmp_path_factory.mktemp("provider"), PEOPLE, CALLBACK) as running:
        yield running


def config_of(issuer: str, folder: Path, **options: Any) -> WebConfig:
    secret = folder / "secret"
    secret.write_text(f"{SECRET}\n")
    users = folder / "users.yaml"
    write_users(users, Users().with_user("anna", "viewer", "a long enough one"))
    section = {"issuer": issuer, "client_id": CLIENT, "client_secret_file": secret, "roles": ROLES}
    with_oidc = {key: options.pop(key) for key in list(options) if key in OidcConfig.model_fields}
    return WebConfig(
        users=users,
        public_url=URL,
        oidc=OidcConfig(**{**section, **with_oidc}),
        **options,
    )


def asking(engine: Engine, config: WebConfig) -> httpx.AsyncClient:
    AUDITED.clear()
    app = create_app(engine, Metrics("1"), {}, config=config, audited=lambda *what: AUDITED.append(what))
    transport = httpx.ASGITransport(app=app, client=("192.0.2.7", 4000))
    return httpx.AsyncClient(transport=transport, base_url=URL)


async def signed_on(browser: httpx.AsyncClient, login: str, path: str = "/studies") -> httpx.Response:
    begun = await browser.get("/login/sso", params={"next": path})
    assert begun.status_code == 303, begun.text
    return await browser.get(clicked_through(begun.headers["Location"], login, CALLBACK))


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("login", "user", "answers"),
    [
        ("vera", "sso:vera", (403, 403)),
        ("anna", "sso:anna", (404, 403)),
        ("adam", "sso:adam__b_", (404, 404)),
    ],
)
async def test_a_role_is_what_the_provider_says(  # noqa: PLR0917 - fixtures and parameters
    engine: Engine,
    tmp_path: Path,
    provider: IdentityProvider,
    login: str,
    user: str,
    answers: tuple[int, int],
) -> None:
    """The groups are at the userinfo endpoint, as the standard has it for a code.

    answers: to what needs an operator, and an admin; 404 as nothing is received or reloaded here.
    """
    async with asking(engine, config_of(provider.issuer, tmp_path)) as browser:
        page = await signed_on(browser, login)
        assert page.status_code == 200 and 'url=/studies"' in page.text
        cookies = page.headers.get_list("Set-Cookie")
        (session,) = [one for one in cookies if one.startswith(COOKIE)]
        assert "HttpOnly" in session and "SameSite=strict" in session
        shown = await browser.get("/studies")
        assert shown.status_code == 200 and user.replace("<", "&lt;") in shown.text
        same = {"Origin": URL}
        upload, reload = await browser.get("/upload"), await browser.post("/reload", headers=same)
        assert (upload.status_code, reload.status_code) == answers
        assert (await browser.post("/reload")).status_code == 403, "not from a page of ours"
        assert [(user, "192.0.2.7", "login", True)] == AUDITED
        out = await browser.post("/logout", headers=same)
        assert out.headers["Location"] == "/login?out=sso"
        assert AUDITED[-1] == (user, "192.0.2.7", "logout", True)
        assert "Log out at the identity provider, too" in (await browser.get("/login?out=sso")).text
        ending = (await browser.get("/login/sso/out")).headers["Location"]
        assert ending.startswith(f"{provider.issuer}/session/end?") and "client_id=pacsnode" in ending
        assert (await browser.get("/studies")).status_code == 401


@pytest.mark.anyio
@pytest.mark.parametrize("login", ["otto", "nora"])
async def test_who_has_no_role_is_told_so(
    engine: Engine, tmp_path: Path, provider: IdentityProvider, login: str
) -> None:
    async with asking(engine, config_of(provider.issuer, tmp_path)) as browser:
        page = await signed_on(browser, login)
        assert page.status_code == 403
        assert "have no role here: none of your groups is in web.oidc.roles" in page.text
        assert COOKIE not in browser.cookies
        assert AUDITED == [("sso:unknown", "192.0.2.7", "login", False)]


@pytest.mark.anyio
async def test_a_path_of_claims_in_the_token_a_public_client_and_no_passwords(
    engine: Engine, tmp_path: Path
) -> None:
    claims = {"preferred_username": "kim", "groups": {"realm": ["radiology"]}}
    client = {"client_id": CLIENT, "token_endpoint_auth_method": "none", "redirect_uris": [CALLBACK]}
    options = {"claims_in_id_token": True, "clients": [client]}
    with IdentityProvider(tmp_path, {"kim": claims}, CALLBACK, **options) as own:
        config = config_of(
            own.issuer,
            tmp_path,
            roles_claim="groups.realm",
            client_secret_file=None,
            password_login=False,
            name_claim="nothing",
        )
        async with asking(engine, config) as browser:
            form = (await browser.get("/login?next=/studies")).text
            assert "password" not in form
            assert f'href="{URL}/login/sso?next=%2Fstudies"' in form
            by_password = {"name": "anna", "password": "a long enough one"}
            refused = await browser.post("/login", data=by_password, headers={"Origin": URL})
            assert refused.status_code == 403
            assert (await signed_on(browser, "kim")).status_code == 200
            assert "sso:kim" in (await browser.get("/studies")).text, "by the subject"


@pytest.mark.anyio
async def test_an_answer_is_for_one_login_of_one_browser(
    engine: Engine, tmp_path: Path, provider: IdentityProvider
) -> None:
    async with asking(engine, config_of(provider.issuer, tmp_path)) as browser:
        begun = await browser.get("/login/sso")
        cookie = begun.headers["Set-Cookie"]
        for part in ("HttpOnly", "SameSite=lax", "Path=/login/sso"):
            assert part in cookie
        back = clicked_through(begun.headers["Location"], "anna", CALLBACK)
        async with httpx.AsyncClient(transport=browser._transport, base_url=URL) as other:
            stolen = await other.get(back)
            assert stolen.status_code == 400 and "isn't one that this browser began" in unescape(stolen.text)
        changed = await browser.get(back.replace("state=", "state=x"))
        assert changed.status_code == 400
        mixed = await browser.get(f"{back}&iss=https://elsewhere.example.org")  # RFC 9207
        assert mixed.status_code == 401 and "of another identity provider" in mixed.text
        assert (await browser.get(back)).status_code == 400, "used already"


@pytest.mark.anyio
async def test_what_brings_no_code(engine: Engine, tmp_path: Path, provider: IdentityProvider) -> None:
    async with asking(engine, config_of(provider.issuer, tmp_path)) as browser:
        for answer, status, message in (
            ({"error": "access_denied"}, 403, "refused the login"),
            ({"error": "server_error"}, 401, "didn't log you in"),
            ({"code": "nonsense"}, 401, "refused the login's code"),
        ):
            begun = await browser.get("/login/sso")
            state = parse_qs(urlsplit(begun.headers["Location"]).query)["state"][0]
            page = await browser.get("/login/sso/callback", params={"state": state, **answer})
            assert (page.status_code, message in unescape(page.text)) == (status, True)
        assert (await browser.get("/login/sso/callback")).status_code == 400


@pytest.mark.anyio
async def test_a_provider_that_is_away_holds_nobody_else(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with IdentityProvider(tmp_path, PEOPLE, CALLBACK) as own:
        own.stop()
        config = config_of(own.issuer, tmp_path)
        async with asking(engine, config) as browser:
            down = await browser.get("/login/sso")
            assert down.status_code == 503 and "can't be reached" in unescape(down.text)
            assert AUDITED == [], "nobody's guess"
            form = {"name": "anna", "password": "a long enough one"}
            by_password = await browser.post("/login", data=form, headers={"Origin": URL})
            assert by_password.status_code == 303
            own.start()
            assert (await signed_on(browser, "anna")).status_code == 200, "once it is back"
            own.stop()
            own.start(jwks={"keys": [signing_key()]})
            monkeypatch.setattr(oidc, "KEYS_AGAIN_SECONDS", 0.0)
            assert (await signed_on(browser, "vera")).status_code == 200, "with other keys"


async def tried(engine: Engine, folder: Path, wrong: Wrong) -> httpx.Response:
    async with asking(engine, config_of(wrong.issuer, folder)) as browser:
        begun = await browser.get("/login/sso")
        if begun.status_code != 303:
            return begun
        query = parse_qs(urlsplit(begun.headers["Location"]).query)
        assert query["code_challenge_method"] == ["S256"] and len(query["code_challenge"][0]) == 43
        wrong.nonce = query["nonce"][0]
        return await browser.get("/login/sso/callback", params={"state": query["state"][0], "code": "c"})


@pytest.mark.anyio
async def test_the_wrong_provider_is_right_if_it_wants_to(
    engine: Engine, tmp_path: Path, wrong: Wrong
) -> None:
    assert (await tried(engine, tmp_path, wrong)).status_code == 200
    wrong.change = lambda claims: claims.update(aud=[CLIENT, "another"], azp=CLIENT)
    assert (await tried(engine, tmp_path, wrong)).status_code == 200


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"nonce": "of another"}, "of another login (nonce)"),
        ({"nonce": None}, "of another login (nonce)"),
        ({"aud": "another"}, "for another client"),
        ({"aud": [CLIENT, "another"]}, "for another client"),
        ({"azp": "another"}, "for another client"),
        ({"iss": "https://login.example.org"}, "of another issuer"),
        ({"exp": 1_000_000_000}, "it has expired"),
        ({"iat": 4_000_000_000, "exp": 4_000_000_100}, "it is from the future"),
        ({"sub": None}, "it names nobody"),
        ({"groups": ["kitchen"]}, "have no role here"),
    ],
)
async def test_claims_that_are_not_for_this_login(
    engine: Engine, tmp_path: Path, wrong: Wrong, change: dict[str, Any], message: str
) -> None:
    def changed(claims: dict[str, Any]) -> None:
        claims.update({name: value for name, value in change.items() if value is not None})
        for name in [name for name, value in change.items() if value is None]:
            del claims[name]

    wrong.change = changed
    page = await tried(engine, tmp_path, wrong)
    assert page.status_code in (401, 403) and message in unescape(page.text)
    assert COOKIE not in page.cookies
    assert AUDITED == [("sso:unknown", "192.0.2.7", "login", False)]


@pytest.mark.anyio
@pytest.mark.parametrize(
    "sign",
    [
        by_another,
        by_our_secret,
        by_the_public_key_as_secret,
        by_nobody,
        changed_after,
        lambda _claims, _key: "nonsense",
        lambda _claims, _key: "",
    ],
)
async def test_signatures_that_are_not_the_providers(
    engine: Engine, tmp_path: Path, wrong: Wrong, sign: Callable[..., str]
) -> None:
    wrong.sign = sign
    page = await tried(engine, tmp_path, wrong)
    assert page.status_code == 401 and "isn't signed by a key of the provider" in unescape(page.text)
    assert COOKIE not in page.cookies


@pytest.mark.anyio
async def test_a_provider_that_is_not_the_one_configured(
    engine: Engine, tmp_path: Path, wrong: Wrong
) -> None:
    wrong.metadata = {"issuer": "https://elsewhere.example.org"}
    page = await tried(engine, tmp_path, wrong)
    assert page.status_code == 503 and "calls itself otherwise" in page.text
    wrong.metadata = {"authorization_endpoint": "javascript:alert(1)"}
    page = await tried(engine, tmp_path, wrong)
    assert page.status_code == 503 and "has no authorization_endpoint" in page.text
    wrong.metadata, wrong.token_status = {}, 500
    assert (await tried(engine, tmp_path, wrong)).status_code == 503


@pytest.mark.anyio
async def test_who_fails_too_often_has_to_wait(engine: Engine, tmp_path: Path, wrong: Wrong) -> None:
    async with asking(engine, config_of(wrong.issuer, tmp_path)) as browser:
        answers = [(await browser.get("/login/sso/callback")).status_code for _ in range(6)]
        assert answers == [400] * 6
        waits = await browser.get("/login/sso")
        assert waits.status_code == 429 and "Too many tries" in waits.text
        form = {"name": "anna", "password": "a long enough one"}
        by_password = await browser.post("/login", data=form, headers={"Origin": URL})
        assert by_password.status_code == 429, "one limit for both"


@pytest.mark.anyio
async def test_a_slow_provider_keeps_so_many_threads_only(
    engine: Engine, tmp_path: Path, wrong: Wrong, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("node.web.single_sign_on.AT_ONCE", 0)
    page = await tried(engine, tmp_path, wrong)
    assert page.status_code == 503 and "Many are logging in just now" in page.text
    assert AUDITED == []


@pytest.mark.anyio
async def test_links_lead_nowhere_else(engine: Engine, tmp_path: Path, wrong: Wrong) -> None:
    async with asking(engine, config_of(wrong.issuer, tmp_path)) as browser:
        begun = await browser.get("/login/sso", params={"next": "https://attacker.example.org/"})
        query = parse_qs(urlsplit(begun.headers["Location"]).query)
        assert query["redirect_uri"] == [CALLBACK]
        wrong.nonce = query["nonce"][0]
        page = await browser.get("/login/sso/callback", params={"state": query["state"][0], "code": "c"})
        assert "attacker" not in page.text and 'url=/"' in page.text


def test_check_says_whether_the_provider_answers(tmp_path: Path, wrong: Wrong) -> None:
    config = NodeConfig(web=config_of(wrong.issuer, tmp_path))
    (found,) = check_login(config)
    assert (found.level, found.name) == ("ok", wrong.issuer)
    wrong.metadata = {"issuer": "https://elsewhere.example.org"}
    (found,) = check_login(config)
    assert found.level == "warning" and "calls itself otherwise" in found.said
    assert not list(check_login(NodeConfig()))


def test_logins_under_way_end_and_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("node.web.single_sign_on.MOST_OF_ONE", 2)
    monkeypatch.setattr("node.web.single_sign_on.MOST", 3)
    clock = Clock()
    under_way = LoginsUnderWay(clock)
    first, second, third = (under_way.begin("/", "192.0.2.7") for _ in range(3))
    assert under_way.take(first.state) is None, "an address has so many"
    other = [under_way.begin("/", f"192.0.2.{n}") for n in (8, 9)]
    assert under_way.take(second.state) is None, "all have so many"
    assert under_way.take(third.state) == (third, "/")
    assert under_way.take(third.state) is None, "once"
    clock.now += 601.0
    assert under_way.take(other[0].state) is None


@pytest.mark.anyio
async def test_without_oidc_there_is_no_such_page(engine: Engine) -> None:
    async with asking(engine, WebConfig()) as browser:
        assert (await browser.get("/login/sso")).status_code == 404
        assert "single sign-on" not in (await browser.get("/login")).text


SECTION = {"issuer": "https://login.example.org", "client_id": "pacsnode", "roles": {"a": "viewer"}}


@pytest.mark.parametrize(
    ("web", "message"),
    [
        ({"oidc": SECTION}, "oidc needs public_url"),
        ({"password_login": False}, "leaves no way to log in"),
        ({"public_url": URL, "oidc": SECTION | {"issuer": "http://login.example.org"}}, "begin with https"),
        ({"public_url": URL, "oidc": SECTION | {"algorithms": ["HS256"]}}, "web.oidc.algorithms"),
        ({"public_url": URL, "oidc": SECTION | {"algorithms": ["none"]}}, "web.oidc.algorithms"),
        ({"public_url": URL, "oidc": SECTION | {"roles": {}}}, "web.oidc.roles"),
        ({"public_url": URL, "oidc": SECTION | {"roles": {"a": "root"}}}, "web.oidc.roles.a"),
        ({"public_url": URL, "oidc": SECTION | {"scopes": ["profile"]}}, "must have openid"),
        (
            {
                "public_url": URL,
                "oidc": SECTION | {"client_secret_file": "a", "client_secret_variable": "B"},
            },
            "name one",
        ),
    ],
)
def test_what_is_no_configuration(web: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message.replace("(", r"\(")):
        parse_config({"web": web}, source="test", base=Path("/"))


def test_secrets_and_certificates_that_are_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def provider_of(**options: Any) -> oidc.Provider:
        return oidc.Provider(OidcConfig(**{**SECTION, **options}), CALLBACK)

    with pytest.raises(ConfigError, match="client_secret_file"):
        provider_of(client_secret_file=tmp_path / "missing")
    with pytest.raises(ConfigError, match="the environment has no OIDC_SECRET"):
        provider_of(client_secret_variable=NAMED)
    monkeypatch.setenv(NAMED, "x")
    provider_of(client_secret_variable=NAMED)
    with pytest.raises(ConfigError, match=r"web\.oidc\.ca"):
        provider_of(ca=tmp_path / "missing")
    assert NodeConfig().web.oidc is None
