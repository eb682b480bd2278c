"""STOW-RS as destination: requests of bounded size, each instance judged by the response (PS3.18 10.5).

In: the files of a result set.  Out: them stored at a DICOMweb server, and what was sent in the audit trail.

Files are streamed as they are, in their own transfer syntax. Redirects aren't followed: they would carry the
token elsewhere. By httpx, not dicomweb-client: that keeps whole studies in memory, and keeps Retry-After and
the body of a 409 to itself.
"""

from __future__ import annotations

import os
import ssl
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import structlog

from node.audit import AuditTrail
from node.audit_message import Peer
from node.config import StowDestination
from node.deliver.auditing import audited
from node.deliver.base import Instance, Judged, Pace, Stored, unhindered
from node.deliver.statuses import Outcome
from node.deliver.stow_response import Answer, error_of, read_answer
from node.errors import ConfigError, DeliveryError
from node.tls import TLS_HINT, TlsContext, reason_of

log = structlog.get_logger(__name__)

_CHUNK_BYTES = 1 << 18
#: A connection a request: kept, one may be closed by the server while the next request is on its way, whose
#: body is streamed and so isn't sent twice. A handshake is little beside a request of many MB.
_LIMITS = httpx.Limits(max_keepalive_connections=0)
#: the server is there, and doesn't offer this search
_REACHABLE = frozenset((400, 405, 406, 501))


class StowDeliverer:
    """Sends to one DICOMweb server."""

    def __init__(
        self,
        name: str,
        config: StowDestination,
        *,
        tls: TlsContext | None = None,
        audit: AuditTrail | None = None,
    ) -> None:
        """Raises ConfigError when the environment lacks ``token_variable``."""
        self.name = name
        self._config = config
        self._tls = tls
        self._audit = audit
        self._token = _token_of(name, config.token_variable)
        self._studies = f"{config.url.rstrip('/')}/studies"
        # without a tls section: the CAs of this machine, which take a moment to load; with http, none
        is_https = config.url.startswith("https:")
        self._default = ssl.create_default_context() if is_https else ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)

    def __str__(self) -> str:
        return f"destination {self.name} ({self._studies})"

    def deliver(self, files: Sequence[Path], pace: Pace = unhindered) -> tuple[Stored, ...]:
        """See ``Destination``, and ``statuses`` for what counts as stored and what is tried again."""
        instances = [Instance.read(file) for file in files]
        judged = Judged(str(self), "STOW-RS", code="stow_failed")
        address = Peer("", urlsplit(self._studies).hostname or "")
        with self._client() as client, audited(self._audit, address, instances) as sent:
            for batch in _batches(instances, self._config.max_request_bytes):
                for instance in batch:
                    pace(instance.size)
                answer = self._post(client, batch)
                outcomes = [self._judge(answer, instance, judged) for instance in batch]
                sent += [each for each, outcome in zip(batch, outcomes, strict=True) if outcome.is_stored]
                if Outcome.REFUSED in outcomes:
                    break  # it wouldn't take more of the next request
            return judged.settle()

    def check(self) -> None:
        """A search that finds nothing (QIDO-RS); any answer will do that isn't a refusal of who we are, or of
        the address: the server may not offer that. OPTIONS is answered as it pleases them.
        """
        with self._client() as client:
            response = self._request(client, "GET", query="?StudyInstanceUID=2.25.0&limit=1")
            if response.status_code not in _REACHABLE:
                self._refuse(response)

    def close(self) -> None:
        """Nothing is kept open between deliveries."""

    def _client(self) -> httpx.Client:
        verify = self._tls.current() if self._tls is not None else self._default
        return httpx.Client(
            verify=verify, timeout=self._config.timeout_seconds, trust_env=False, limits=_LIMITS
        )

    def _post(self, client: httpx.Client, batch: Sequence[Instance]) -> Answer:
        body = _Multipart(batch)
        response = self._request(
            client,
            "POST",
            headers={
                "Content-Type": f'multipart/related; type="application/dicom"; boundary={body.boundary}',
                "Content-Length": str(body.length),
            },
            content=body.chunks(),
        )
        answer = read_answer(response)
        if answer is None:
            self._refuse(response)
            raise DeliveryError(
                f"{self}: HTTP status {response.status_code}, and what it says of instances can't be read",
                hint="the server has to answer in application/dicom+json (PS3.18 10.5.3)",
                code="stow_failed",
            )
        return answer

    def _request(
        self,
        client: httpx.Client,
        method: str,
        *,
        query: str = "",
        headers: dict[str, str] | None = None,
        content: Iterator[bytes] | None = None,
    ) -> httpx.Response:
        """Raises DeliveryError when there is no answer."""
        sent = {"Accept": "application/dicom+json", **(headers or {}), **self._authorization()}
        tls = self._config.tls
        extensions = {"sni_hostname": tls.server_name} if tls is not None and tls.server_name else {}
        try:
            return client.request(
                method, f"{self._studies}{query}", headers=sent, content=content, extensions=extensions
            )
        except httpx.TransportError as error:
            raise self._unreachable(error) from error

    def _authorization(self) -> dict[str, str]:
        """The file is read anew each time: tokens are renewed."""
        token, file = self._token, self._config.token_file
        if file is not None:
            try:
                token = file.read_text(encoding="ascii").strip()
            except (OSError, UnicodeDecodeError) as error:
                raise DeliveryError(
                    f"destinations.{self.name}.token_file: {file} can't be read: {type(error).__name__}",
                    hint="does it exist, may we read it, and is it one line of ASCII?",
                    code="token_unreadable",
                ) from error
        return {} if token is None else {"Authorization": f"Bearer {token}"}

    def _judge(self, answer: Answer, instance: Instance, judged: Judged) -> Outcome:
        outcome = judged.add(instance, answer.status_of(instance.sop_instance_uid))
        if outcome is Outcome.WARNING:
            log.warning("stow_warning", destination=self.name, sop_instance_uid=instance.sop_instance_uid)
        return outcome

    def _refuse(self, response: httpx.Response) -> None:
        """Raises what the status means, if it is that of an error."""
        error = error_of(response, str(self))
        if error is not None:
            raise error

    def _unreachable(self, error: httpx.TransportError) -> DeliveryError:
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, ssl.SSLError):
            cause = cause.__cause__ or cause.__context__
        if isinstance(cause, ssl.SSLError):
            why = f"TLS failed: {reason_of(cause)}"
            if self._audit is not None:
                address = Peer("", urlsplit(self._studies).hostname or "")
                self._audit.refused(address, "tls", f"{self}: {why}")
            return DeliveryError(
                f"{self}: {why}",
                hint=TLS_HINT,
                code="tls_failed",
            )
        if isinstance(error, httpx.TimeoutException):
            why = f"no answer within {self._config.timeout_seconds} s"
        else:
            why = f"no connection: {error}" if str(error) else "no connection"
        return DeliveryError(f"{self}: {why}", hint="is it up, and is url right?", code="destination_down")


def _token_of(name: str, variable: str | None) -> str | None:
    if variable is None:
        return None
    token = os.environ.get(variable)
    if not token:
        raise ConfigError(
            f"destinations.{name}.token_variable: {variable} isn't set in the environment",
            hint="set it where the node is started, or use token_file",
        )
    return token


class _Multipart:
    """The body of one request (PS3.18 8.7.1.1), made while it is sent."""

    def __init__(self, instances: Sequence[Instance]) -> None:
        self._instances = instances
        self.boundary = uuid.uuid4().hex
        self._head = f"--{self.boundary}\r\nContent-Type: application/dicom\r\n\r\n".encode()
        self._end = f"--{self.boundary}--\r\n".encode()

    @property
    def length(self) -> int:
        """In bytes."""
        parts = sum(len(self._head) + each.size + len(b"\r\n") for each in self._instances)
        return parts + len(self._end)

    def chunks(self) -> Iterator[bytes]:
        for each in self._instances:
            yield self._head
            with each.path.open("rb") as file:
                while chunk := file.read(_CHUNK_BYTES):
                    yield chunk
            yield b"\r\n"
        yield self._end


def _batches(instances: Sequence[Instance], max_bytes: int) -> Iterator[list[Instance]]:
    """Parts of at most ``max_bytes``, in order; one that is larger goes alone."""
    batch: list[Instance] = []
    size = 0
    for instance in instances:
        if batch and size + instance.size > max_bytes:
            yield batch
            batch, size = [], 0
        batch.append(instance)
        size += instance.size
    if batch:
        yield batch
