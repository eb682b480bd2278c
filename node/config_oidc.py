"""The ``web.oidc`` section: who logs in at an identity provider, and which role that gives here."""

from __future__ import annotations

from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator

from node.config_fields import Model, Seconds

#: signatures by a key pair (RFC 7518): never "none", nor one that our own secret could make
Algorithm = Literal["RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512"]


class OidcConfig(Model):
    """OpenID Connect, authorization code flow with PKCE."""

    issuer: str = Field(pattern=r"^https?://[^/\s?#@]+(/[^\s?#@]*)?$")
    client_id: str = Field(min_length=1, max_length=255)
    client_secret_file: Path | None = None
    client_secret_variable: str | None = Field(default=None, pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")
    scopes: tuple[str, ...] = ("openid", "profile")
    name_claim: str = Field(default="preferred_username", min_length=1)
    roles_claim: str = Field(default="groups", min_length=1)
    roles: dict[str, Literal["viewer", "operator", "admin"]] = Field(min_length=1)
    algorithms: tuple[Algorithm, ...] = Field(default=("RS256", "PS256", "ES256"), min_length=1)
    ca: Path | None = None
    timeout_seconds: Seconds = 10.0

    @field_validator("scopes")
    @classmethod
    def _openid(cls, scopes: tuple[str, ...]) -> tuple[str, ...]:
        if "openid" not in scopes:
            raise ValueError("must have openid, without which there is no ID token")
        return scopes

    @model_validator(mode="after")
    def _secrets_are_safe(self) -> OidcConfig:
        if self.client_secret_file is not None and self.client_secret_variable is not None:
            raise ValueError(
                "client_secret_file and client_secret_variable are two ways to the same secret: name one"
            )
        local = urlsplit(self.issuer).hostname in ("localhost", "127.0.0.1", "::1")
        if self.issuer.startswith("http:") and not local:
            raise ValueError("issuer must begin with https://, unless it is on this machine")
        return self
