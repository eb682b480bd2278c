"""Single sign-on in Chromium: to a provider of another site and back, with the cookies that browsers send."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, expect

from node.config import WebConfig
from node.config_oidc import OidcConfig
from node.database import open_database
from node.metrics import Metrics
from node.triton_server import free_port
from node.web.app import WebServer, create_app
from tests.browser.axe import Axe
from tests.browser.conftest import BUILD
from tests.identity_provider import CLIENT, SECRET, IdentityProvider

pytestmark = pytest.mark.integration


@pytest.fixture
def node(tmp_path: Path, installed: None) -> Iterator[str]:
    """The address of web pages that nobody may see without a login."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    secret = tmp_path / "secret"
    secret.write_text(SECRET)
    engine = open_database(tmp_path)
    people = {"anna": {"preferred_username": "anna", "groups": ["radiology"]}}
    with IdentityProvider(tmp_path, people, f"{url}/login/sso/callback") as provider:
        oidc = OidcConfig(
            issuer=provider.issuer,  # localhost: to browsers another site than 127.0.0.1
            client_id=CLIENT,
            client_secret_file=secret,
            roles={"radiology": "operator"},
        )
        config = WebConfig(port=port, open_loopback=False, public_url=url, oidc=oidc)
        server = WebServer(config, create_app(engine, Metrics("1"), {}, config=config))
        server.start()
        yield url
        server.stop()
    engine.dispose()


def test_a_browser_logs_in_at_the_provider_and_out(node: str, browser: Browser) -> None:
    context = browser.new_context()
    page = context.new_page()
    page.goto(f"{node}/studies")
    assert page.url == f"{node}/login?next=/studies"
    axe = Axe(BUILD)
    assert axe.violations(page) == []
    page.get_by_role("link", name="Log in with single sign-on").click()
    assert page.url.startswith("http://localhost:")
    page.locator("input[name=login]").fill("anna")
    page.locator("input[name=password]").fill("any")
    page.locator("button[type=submit]").click()
    page.locator("button[type=submit]").click()  # agrees
    expect(page.get_by_text("sso:anna")).to_be_visible(timeout=60_000)
    page.wait_for_url(f"{node}/studies", timeout=60_000)
    page.get_by_role("button", name="Log out").click()
    page.get_by_role("link", name="Log out at the identity provider, too").click()
    assert page.url.startswith("http://localhost:")
    page.goto(f"{node}/studies")
    assert page.url == f"{node}/login?next=/studies"
    page.goto(f"{node}/login/sso/callback?state=x&code=y")
    expect(page.get_by_role("alert")).to_contain_text("isn't one that this browser began")
    assert axe.violations(page) == []
    context.close()
