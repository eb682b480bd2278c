"""TLS after PS3.15 B.12 (BCP 195: RFC 8996 and 9325), by files that may change while the node runs.

In: ``ServerTls`` and ``ClientTls`` of the configuration.  Out: ``TlsContext.current()``, an ssl.SSLContext
for the next connection. TLS 1.3 where the peer can, else TLS 1.2 with the four suites that RFC 9325 4.2
names; nothing older, no resumption, no renegotiation.
"""

from __future__ import annotations

import ssl
import stat
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import structlog

from node.config import (
    ClientTls,
    CommitmentConfig,
    FolderDestination,
    NodeConfig,
    QueryPeer,
    ServerTls,
    SyslogConfig,
)
from node.errors import ConfigError
from node.metrics import TlsMetrics

log = structlog.get_logger("node.tls")

#: RFC 9325 4.2. SECLEVEL=2: RSA of 2048 bits and more, no SHA-1 signatures.
TLS_1_2_SUITES = (
    "ECDHE-ECDSA-AES256-GCM-SHA384:ECDHE-RSA-AES256-GCM-SHA384:"
    "ECDHE-ECDSA-AES128-GCM-SHA256:ECDHE-RSA-AES128-GCM-SHA256:@SECLEVEL=2"
)
#: what to look at when a handshake with a destination failed
TLS_HINT = "do its certificate, our ca and server_name, and our certificate and its CA fit together?"
#: files are looked at for changes so often at most
LOOK_SECONDS = 1.0


@dataclass(frozen=True)
class _Files:
    """field: where the configuration names them."""

    field: str
    certificate: Path | None
    key: Path | None
    ca: Path | None
    ca_field: str

    @property
    def paths(self) -> list[Path]:
        return [path for path in (self.certificate, self.key, self.ca) if path is not None]


class TlsContext:
    """The context of one listener or destination. Safe to use from several threads."""

    def __init__(
        self, files: _Files, build: Callable[[], ssl.SSLContext], metrics: TlsMetrics | None
    ) -> None:
        """Raises ConfigError naming the field, the file and what to do."""
        self._files = files
        self._build = build
        self._metrics = metrics
        self._lock = threading.Lock()
        self._not_after: dict[str, float] = {}
        self._seen = _versions(files.paths)
        self._context = self._load()
        self._looked_at = time.monotonic()
        if metrics is not None:
            for name in self._not_after:
                metrics.watch(name, partial(self.not_after, name))

    def current(self) -> ssl.SSLContext:
        """The context of the newest usable files. Broken ones are logged, and the last good ones stay."""
        with self._lock:
            now = time.monotonic()
            if now - self._looked_at < LOOK_SECONDS:
                return self._context
            self._looked_at = now
            seen = _versions(self._files.paths)
            if seen == self._seen:
                return self._context
            self._seen = seen
            try:
                self._context = self._load()
                warnings = _warnings(self._files)
            except ConfigError as error:
                log.error("tls_reload_failed", reason=str(error), hint=error.hint, using="the files before")
                if self._metrics is not None:
                    self._metrics.reload_failed()
            else:
                log.info("tls_reloaded", files=self._files.field, warnings=warnings)
            return self._context

    def not_after(self, file: str) -> float:
        """When the first certificate of ``certificate`` or ``ca`` ends, seconds since the epoch."""
        self.current()
        return self._not_after[file]

    def warnings(self) -> list[str]:
        """What works but shouldn't be so."""
        return _warnings(self._files)

    def _load(self) -> ssl.SSLContext:
        ends = {
            name: min(end for _begin, end in _validities(path, field)).timestamp()
            for name, path, field in _certificate_files(self._files)
        }
        context = self._build()
        self._not_after = ends
        return context


def server_context(config: ServerTls, metrics: TlsMetrics | None = None) -> TlsContext:
    """The listener's. Raises ConfigError."""
    files = _Files("receive.tls", config.certificate, config.key, config.client_ca, "receive.tls.client_ca")

    def build() -> ssl.SSLContext:
        context = _context(ssl.PROTOCOL_TLS_SERVER)
        context.options |= ssl.OP_CIPHER_SERVER_PREFERENCE
        context.num_tickets = 0
        _use_files(context, files)
        if config.client_ca is not None:
            required = config.require_client_certificate
            context.verify_mode = ssl.CERT_REQUIRED if required else ssl.CERT_OPTIONAL
        return context

    return TlsContext(files, build, metrics)


def client_context(
    name: str, config: ClientTls, metrics: TlsMetrics | None = None, *, section: str = "destinations"
) -> TlsContext:
    """Of a destination, or of what ``section`` of the configuration holds by name. Raises ConfigError."""
    field = f"{section}.{name}.tls"
    files = _Files(field, config.certificate, config.key, config.ca, f"{field}.ca")

    def build() -> ssl.SSLContext:
        context = _context(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = config.verify_host
        context.sslsocket_class = _TellingSocket
        _use_files(context, files)
        return context

    return TlsContext(files, build, metrics)


def commitment_contexts(config: CommitmentConfig) -> dict[str, TlsContext]:
    """Of the peers that storage commitment is reported to through TLS, by AE title. Raises ConfigError."""
    return {
        title: client_context(title, peer.tls, section="receive.commitment.peers")
        for title, peer in config.peers.items()
        if peer.tls is not None
    }


def query_context(name: str, config: QueryPeer) -> TlsContext | None:
    """Of a query AE; None for plain TCP. Raises ConfigError."""
    return None if config.tls is None else client_context(name, config.tls, section="query")


def syslog_context(config: SyslogConfig, metrics: TlsMetrics | None = None) -> TlsContext:
    """Of the collector of audit messages. Raises ConfigError."""
    return client_context("syslog", config.tls, metrics, section="audit")


def check_tls(config: NodeConfig) -> list[str]:
    """Try every certificate, key and CA that is configured. Returns warnings. Raises ConfigError."""
    contexts = [server_context(config.receive.tls)] if config.receive.tls is not None else []
    for name, destination in config.destinations.items():
        if not isinstance(destination, FolderDestination) and destination.tls is not None:
            contexts.append(client_context(name, destination.tls))
    contexts += commitment_contexts(config.receive.commitment).values()
    queries = [query_context(name, peer) for name, peer in config.query.items()]
    contexts += [context for context in queries if context is not None]
    if config.audit.enabled and config.audit.syslog is not None:
        contexts.append(syslog_context(config.audit.syslog))
    return [warning for context in contexts for warning in context.warnings()]


class ClientHandshake:
    """One connection of pynetdicom as TLS client, and why it failed: pynetdicom keeps that to itself.

    It takes this for an SSLContext.
    """

    def __init__(self, context: ssl.SSLContext) -> None:
        self._context = context
        self.error: ssl.SSLError | None = None

    def wrap_socket(self, connection: Any, *, server_side: bool, server_hostname: str) -> ssl.SSLSocket:
        wrapped = self._context.wrap_socket(
            connection, server_side=server_side, server_hostname=server_hostname
        )
        assert isinstance(wrapped, _TellingSocket)  # noqa: S101 - client_context makes it so
        wrapped.handshake = self
        return wrapped


class _TellingSocket(ssl.SSLSocket):
    """Tells its ``ClientHandshake`` what goes wrong. With TLS 1.3 a server refuses our certificate only after
    the handshake, in answer to what is read first."""

    handshake: ClientHandshake | None = None  # of those who ask

    def do_handshake(self, block: bool = False) -> None:
        try:
            super().do_handshake(block)
        except ssl.SSLError as error:
            self._tell(error)
            raise

    def recv(self, buflen: int = 1024, flags: int = 0) -> bytes:
        try:
            return super().recv(buflen, flags)
        except ssl.SSLError as error:
            self._tell(error)
            raise

    def _tell(self, error: ssl.SSLError) -> None:
        if self.handshake is not None:
            self.handshake.error = error


def reason_of(error: OSError) -> str:
    """Why a handshake failed, without OpenSSL's source lines."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"certificate verify failed: {error.verify_message}"
    if isinstance(error, TimeoutError):
        return "no TLS handshake in time"
    if isinstance(error, ssl.SSLError) and error.reason:
        return error.reason.lower().replace("_", " ")
    return error.strerror or type(error).__name__


def _context(protocol: int) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(TLS_1_2_SUITES)
    context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_TICKET
    return context


def _use_files(context: ssl.SSLContext, files: _Files) -> None:
    if files.certificate is not None and files.key is not None:
        _check_key(files.key, f"{files.field}.key")
        try:
            context.load_cert_chain(files.certificate, files.key)
        except OSError as error:
            if isinstance(error, ssl.SSLError) and error.reason == "KEY_VALUES_MISMATCH":
                raise ConfigError(
                    f"{files.field}.key: {files.key} isn't the key of certificate {files.certificate}",
                    hint="name the key that the certificate was requested with",
                ) from error
            raise ConfigError(
                f"{files.field}: {files.certificate} with {files.key} can't be used: {reason_of(error)}",
                hint="RSA keys need 2048 bits or more, EC keys 224; signatures SHA-256 or better",
            ) from error
    if files.ca is not None:
        try:
            context.load_verify_locations(files.ca)
        except OSError as error:
            raise ConfigError(
                f"{files.ca_field}: {files.ca} can't be used: {reason_of(error)}",
                hint="a PEM file with one or more CA certificates",
            ) from error


def _check_key(path: Path, field: str) -> None:
    pem = _read(path, field)
    if b"ENCRYPTED" in pem:
        raise ConfigError(
            f"{field}: {path} is encrypted, and there is nobody to ask for its passphrase",
            hint="store it decrypted, readable by the node's user only",
        )
    if b"PRIVATE KEY-----" not in pem:
        raise ConfigError(f"{field}: {path} holds no private key in PEM format", hint="openssl pkey converts")


def _certificate_files(files: _Files) -> list[tuple[str, Path, str]]:
    """(file's role, path, field) of what holds certificates."""
    found = []
    if files.certificate is not None:
        found.append(("certificate", files.certificate, f"{files.field}.certificate"))
    if files.ca is not None:
        found.append(("ca", files.ca, files.ca_field))
    return found


def _validities(path: Path, field: str) -> list[tuple[datetime, datetime]]:
    """From when until when the certificates of a PEM file are valid; one or more."""
    from cryptography import x509  # noqa: PLC0415 - 11 MB that a receiver without TLS needn't hold

    try:
        certificates = x509.load_pem_x509_certificates(_read(path, field))
        return [(each.not_valid_before_utc, each.not_valid_after_utc) for each in certificates]
    except ValueError as error:
        raise ConfigError(
            f"{field}: {path} holds no certificate in PEM format", hint="openssl x509 converts"
        ) from error


def _read(path: Path, field: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise _unreadable(path, field, error) from error


def _mode(path: Path, field: str) -> int:
    try:
        return path.stat().st_mode
    except OSError as error:
        raise _unreadable(path, field, error) from error


def _unreadable(path: Path, field: str, error: OSError) -> ConfigError:
    return ConfigError(
        f"{field}: {path} can't be read: {error.strerror}", hint="does it exist, and may we read it?"
    )


def _warnings(files: _Files) -> list[str]:
    found = []
    if files.key is not None and _mode(files.key, f"{files.field}.key") & stat.S_IROTH:
        found.append(f"{files.field}.key: {files.key} can be read by every user of this machine; chmod o= it")
    now = datetime.now(UTC)
    for _name, path, field in _certificate_files(files):
        validities = _validities(path, field)
        ended = [end for _begin, end in validities if end < now]
        if ended:
            found.append(f"{field}: {path} holds a certificate that ended on {min(ended):%Y-%m-%d}")
        if any(begin > now for begin, _end in validities):
            found.append(f"{field}: {path} holds a certificate that isn't valid yet")
    return found


def _versions(paths: list[Path]) -> tuple[tuple[int, ...] | None, ...]:
    """Tells whether a file was changed or replaced; None for one that isn't there."""
    found: list[tuple[int, ...] | None] = []
    for path in paths:
        try:
            status = path.stat()
        except OSError:
            found.append(None)
        else:
            found.append((status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns))
    return tuple(found)
