"""An identity provider (OpenID Connect Core 1.0), authorization code flow with PKCE (RFC 7636).

In: ``web.oidc``, then the code that a browser brought back.  Out: who that is, and the role; or why not.

Nothing is asked before somebody logs in: a provider that is away holds neither the node nor password logins.
Signatures and claims are checked by joserfc; redirects aren't followed; no answer is quoted in an error.
"""

from __future__ import annotations

import base64
import hashlib
import os
import re
import ssl
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, urlencode, urlsplit

import httpx
from joserfc.errors import InvalidClaimError, JoseError
from joserfc.jwk import KeySet, import_key
from joserfc.jwt import JWTClaimsRegistry, Token, decode

from node.config_oidc import OidcConfig
from node.errors import ConfigError
from node.web.users import Role

Clock = Callable[[], float]

#: metadata and keys are asked for again after so long; keys at once when one isn't known, but not more often
KEPT_SECONDS, KEYS_AGAIN_SECONDS = 3600.0, 10.0
#: clocks may differ by so much
LEEWAY_SECONDS = 60
LONGEST_ANSWER_BYTES = 1_000_000
#: of single sign-on: no name in the users' file has a colon
PREFIX = "sso:"
_NAME = re.compile(r"[^A-Za-z0-9._@+-]")
_LONGEST_NAME = 60


class SignOnFailed(Exception):
    """Nobody is logged in. status: of HTTP; the message is for the person; code: for the log."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.code = code


@dataclass(frozen=True)
class Identity:
    """user: as pages and the audit trail call them."""

    user: str
    role: Role


@dataclass(frozen=True)
class Asked:
    """What one login asks the provider with, and its answer must fit: secrets of the browser that asked."""

    state: str
    nonce: str
    verifier: str


class Provider:
    """The configured provider. Safe to use from several threads."""

    def __init__(self, config: OidcConfig, redirect_uri: str, clock: Clock = time.monotonic) -> None:
        """Raises ConfigError for a secret or CA file that can't be used."""
        self.config = config
        self._redirect_uri = redirect_uri
        self._clock = clock
        self._secret = _secret_of(config)
        self._verify = _trusting(config)
        self._lock = threading.Lock()
        self._metadata: tuple[float, Mapping[str, Any]] | None = None
        self._keys: tuple[float, KeySet] | None = None

    def authorization_url(self, asked: Asked) -> str:
        """Where the browser is to go. Raises SignOnFailed."""
        challenge = hashlib.sha256(asked.verifier.encode()).digest()
        query = {
            "response_type": "code",
            "client_id": self.config.client_id,
            "redirect_uri": self._redirect_uri,
            "scope": " ".join(self.config.scopes),
            "state": asked.state,
            "nonce": asked.nonce,
            "code_challenge": base64.urlsafe_b64encode(challenge).rstrip(b"=").decode(),
            "code_challenge_method": "S256",
        }
        return _with_query(self._endpoint("authorization_endpoint"), query)

    def logout_url(self, back: str) -> str:
        """Where the browser ends its session with the provider (RP-Initiated Logout 1.0).

        Raises SignOnFailed, also where the provider has no such place.
        """
        query = {"client_id": self.config.client_id, "post_logout_redirect_uri": back}
        return _with_query(self._endpoint("end_session_endpoint"), query)

    def identify(self, code: str, asked: Asked) -> Identity:
        """Who brought this code. Raises SignOnFailed."""
        answer = self._exchange(code, asked)
        claims = self._claims(str(answer.get("id_token") or ""), asked)
        if _claim(claims, self.config.roles_claim) is None:  # many providers tell it only there
            claims = {**self._user_info(str(answer.get("access_token") or ""), claims["sub"]), **claims}
        return Identity(self._user(claims), self._role(claims))

    def check(self) -> None:
        """Whether it answers. Raises SignOnFailed."""
        self._endpoint("authorization_endpoint")
        self._key_set(newer_than=0.0)

    def is_issuer(self, issuer: str) -> bool:
        """Of ``iss`` beside a code (RFC 9207): "" where the provider doesn't send it."""
        return issuer in ("", self.config.issuer)

    def _exchange(self, code: str, asked: Asked) -> Mapping[str, Any]:
        form = {
            "grant_type": "authorization_code",
            "code": code,
            "redirect_uri": self._redirect_uri,
            "code_verifier": asked.verifier,
        }
        url = self._endpoint("token_endpoint")
        methods = self._provider().get("token_endpoint_auth_methods_supported", ["client_secret_basic"])
        auth = httpx.Auth()  # none
        if self._secret is None:
            form["client_id"] = self.config.client_id
        elif "client_secret_basic" in methods:
            # RFC 6749 2.3.1 wants both as in a form
            auth = httpx.BasicAuth(quote(self.config.client_id, safe=""), quote(self._secret, safe=""))
        else:
            form |= {"client_id": self.config.client_id, "client_secret": self._secret}
        with self._client() as client:
            return self._ask(lambda: client.post(url, data=form, auth=auth), "token")

    def _claims(self, id_token: str, asked: Asked) -> Mapping[str, Any]:
        """Those of a valid ID token (Core 3.1.3.7)."""
        known_at = self._clock()
        try:
            try:
                token = self._decode(id_token, newer_than=known_at - KEPT_SECONDS)
            except JoseError:  # the provider may have new keys
                token = self._decode(id_token, newer_than=known_at - KEYS_AGAIN_SECONDS)
        except (JoseError, ValueError) as error:
            raise SignOnFailed(
                401, "signature", "The identity provider's answer isn't signed by a key of the provider."
            ) from error
        registry = JWTClaimsRegistry(
            leeway=LEEWAY_SECONDS,
            iss={"essential": True, "value": self.config.issuer},
            sub={"essential": True},
            aud={"essential": True, "value": self.config.client_id},
            exp={"essential": True},
            iat={"essential": True},
            nonce={"essential": True, "value": asked.nonce},
        )
        try:
            registry.validate(token.claims)
            several = isinstance(token.claims["aud"], list) and len(token.claims["aud"]) > 1
            if token.claims.get("azp", None if several else self.config.client_id) != self.config.client_id:
                raise InvalidClaimError("azp")
        except JoseError as error:
            claim = str(getattr(error, "claim", ""))
            wrong = _WRONG.get(claim, "it lacks what it must have")
            raise SignOnFailed(
                401, f"claim_{claim}", f"The identity provider's answer isn't for this login: {wrong}."
            ) from error
        return token.claims

    def _decode(self, id_token: str, *, newer_than: float) -> Token:
        return decode(id_token, self._key_set(newer_than), algorithms=list(self.config.algorithms))

    def _user_info(self, access_token: str, subject: str) -> Mapping[str, Any]:
        """More claims of the same person, where the provider has a place for them (Core 5.3)."""
        if not access_token or not self._provider().get("userinfo_endpoint"):
            return {}
        url = self._endpoint("userinfo_endpoint")
        bearer = {"Authorization": f"Bearer {access_token}"}
        with self._client() as client:
            found = self._ask(lambda: client.get(url, headers=bearer), "userinfo")
        if found.get("sub") != subject:
            raise SignOnFailed(401, "userinfo_sub", "The identity provider answered for another person.")
        return found

    def _user(self, claims: Mapping[str, Any]) -> str:
        said = _claim(claims, self.config.name_claim)
        name = said if isinstance(said, str) and said else str(claims["sub"])
        return f"{PREFIX}{_NAME.sub('_', name)[:_LONGEST_NAME]}"

    def _role(self, claims: Mapping[str, Any]) -> Role:
        said = _claim(claims, self.config.roles_claim)
        values = said if isinstance(said, list) else [said]
        found = [Role[self.config.roles[one].upper()] for one in values if one in self.config.roles]
        if not found:
            raise SignOnFailed(
                403,
                "no_role",
                "You are known to the identity provider, and have no role here: none of your "
                f"{self.config.roles_claim} is in web.oidc.roles.",
            )
        return max(found)

    def _endpoint(self, name: str) -> str:
        url = str(self._provider().get(name) or "")
        if not url.startswith(
            ("https://", "http://") if self.config.issuer.startswith("http:") else "https://"
        ):
            raise SignOnFailed(503, "metadata", f"The identity provider has no {name}.")
        return url

    def _provider(self) -> Mapping[str, Any]:
        """Its metadata (Discovery 1.0)."""
        with self._lock:
            if self._metadata is None or self._clock() - self._metadata[0] > KEPT_SECONDS:
                url = f"{self.config.issuer.rstrip('/')}/.well-known/openid-configuration"
                with self._client() as client:
                    found = self._ask(lambda: client.get(url), "metadata")
                if found.get("issuer") != self.config.issuer:
                    raise SignOnFailed(
                        503, "metadata", "The identity provider calls itself otherwise than web.oidc.issuer."
                    )
                self._metadata = self._clock(), found
            return self._metadata[1]

    def _key_set(self, newer_than: float) -> KeySet:
        """By the clock: asked for again if those known are older."""
        url = self._endpoint("jwks_uri")
        with self._lock:
            if self._keys is None or self._keys[0] < newer_than:
                with self._client() as client:
                    found = self._ask(lambda: client.get(url), "keys")
                self._keys = self._clock(), _key_set(found)
            return self._keys[1]

    def _client(self) -> httpx.Client:
        return httpx.Client(verify=self._verify, timeout=self.config.timeout_seconds, trust_env=False)

    def _ask(self, ask: Callable[[], httpx.Response], what: str) -> Mapping[str, Any]:
        """A JSON object."""
        try:
            answer = ask()
            found = answer.json() if len(answer.content) <= LONGEST_ANSWER_BYTES else None
        except httpx.HTTPError as error:
            raise SignOnFailed(
                503, "provider_down", "The identity provider can't be reached. Try again in a moment."
            ) from error
        except ValueError:
            found = None
        if answer.status_code != httpx.codes.OK or not isinstance(found, dict):
            if what == "token" and answer.is_client_error:  # a code that is old, or used already
                raise SignOnFailed(401, "code_refused", "The identity provider refused the login's code.")
            raise SignOnFailed(
                503, f"{what}_unusable", f"The identity provider answered with {answer.status_code}."
            )
        return found


_WRONG = {
    "iss": "it is of another issuer",
    "aud": "it is for another client",
    "azp": "it is for another client",
    "nonce": "it is of another login (nonce)",
    "exp": "it has expired",
    "iat": "it is from the future",
    "nbf": "it isn't valid yet",
    "sub": "it names nobody",
}


def _claim(claims: Mapping[str, Any], name: str) -> Any:
    """A claim by its name, or by a path of names with dots (realm_access.roles)."""
    if name in claims:
        return claims[name]
    found: Any = claims
    for part in name.split("."):
        found = found.get(part) if isinstance(found, Mapping) else None
    return found


def _key_set(found: Mapping[str, Any]) -> KeySet:
    """Those that we know how to use."""
    keys = []
    for one in found.get("keys") or ():
        try:
            keys.append(import_key(one))
        except (JoseError, ValueError, TypeError, KeyError):
            continue
    return KeySet(keys)


def _with_query(url: str, query: Mapping[str, str]) -> str:
    return f"{url}{'&' if urlsplit(url).query else '?'}{urlencode(query)}"


def _secret_of(config: OidcConfig) -> str | None:
    if config.client_secret_variable is not None:
        secret = os.environ.get(config.client_secret_variable, "")
        if not secret:
            raise ConfigError(
                f"web.oidc.client_secret_variable: the environment has no {config.client_secret_variable}"
            )
        return secret
    if config.client_secret_file is None:
        return None
    try:
        return config.client_secret_file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"web.oidc.client_secret_file: {config.client_secret_file} can't be read"
        ) from error


def _trusting(config: OidcConfig) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=str(config.ca) if config.ca is not None else None)
    except OSError as error:
        raise ConfigError(f"web.oidc.ca: {config.ca} holds no certificates that can be read") from error
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context
