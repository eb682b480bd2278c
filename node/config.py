"""One YAML file -> frozen models.

Parsed once, at start-up; nothing reads the environment or a global later. Every error names the file, the
field, the value and what is allowed. ``deploy/config.example.yaml`` is the manual: a test keeps its
defaults equal to those here.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, Field, ValidationError, model_validator
from sqlalchemy import make_url
from sqlalchemy.exc import ArgumentError

from node.config_destinations import (
    CommitmentOptions,
    CStoreDestination,
    DeliveryOptions,
    DestinationConfig,
    FolderDestination,
    StowDestination,
)
from node.config_fields import (
    AETitle,
    ClientTls,
    Model,
    Name,
    Network,
    NodeId,
    PeerPort,
    Port,
    Seconds,
    TritonUrl,
)
from node.config_oidc import OidcConfig
from node.config_shadow import ShadowConfig, ShadowModel
from node.errors import ConfigError
from pipelines.request import Access

__all__ = [
    "AuditConfig",
    "CStoreDestination",
    "ClientTls",
    "CommitmentConfig",
    "CommitmentOptions",
    "CommitmentPeer",
    "DatabaseConfig",
    "DeliveryOptions",
    "DestinationConfig",
    "FolderDestination",
    "LogConfig",
    "NodeConfig",
    "QueryPeer",
    "ReceiveConfig",
    "ResultsConfig",
    "Role",
    "RouteConfig",
    "RunConfig",
    "SeriesConfig",
    "ServerTls",
    "ShadowConfig",
    "ShadowModel",
    "StowDestination",
    "TritonConfig",
    "TritonTls",
    "WebConfig",
    "load_config",
    "parse_config",
]


#: what a process of the node does: receive and route, run and deliver, or both
Role = Literal["all", "listener", "worker"]


class DatabaseConfig(Model):
    """Where state is kept. Without ``url``, in SQLite files in data_dir; PostgreSQL is for several nodes.

    password_file comes before password_env; without both, libpq's own ways are used (~/.pgpass).
    """

    url: str | None = None
    password_file: Path | None = None
    password_env: str | None = Field(default=None, pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")

    @model_validator(mode="after")
    def _url_without_password(self) -> DatabaseConfig:
        if self.url is None:
            return self
        try:
            url = make_url(self.url)
        except ArgumentError:
            raise ValueError("url: must be postgresql://USER@HOST:PORT/DATABASE") from None
        if url.password is not None:
            raise ValueError("url: must not hold the password; use password_file or password_env")
        if url.drivername != "postgresql" or not url.username or not url.database:
            raise ValueError("url: must be postgresql://USER@HOST:PORT/DATABASE")
        return self


class ServerTls(Model):
    """TLS of the listener. PEM files; the node follows their changes without a restart."""

    certificate: Path
    key: Path
    client_ca: Path | None = None
    require_client_certificate: bool = True

    @model_validator(mode="after")
    def _clients_can_be_verified(self) -> ServerTls:
        if self.require_client_certificate and self.client_ca is None:
            raise ValueError(
                "client_ca is needed to require client certificates: name the file of the CA that signs "
                "them, or set require_client_certificate: false"
            )
        return self


class CommitmentPeer(Model):
    """Where an AE that asks for storage commitment receives reports."""

    host: str
    port: PeerPort
    tls: ClientTls | None = None


class CommitmentConfig(Model):
    """How storage commitment is reported to those who asked for it."""

    peers: dict[AETitle, CommitmentPeer] = Field(default_factory=dict)
    report_delay_seconds: float = Field(default=1.0, ge=0)
    timeout_seconds: Seconds = 30.0
    retry_seconds: Seconds = 10.0
    max_retry_seconds: Seconds = 900.0
    give_up_seconds: Seconds = 172800.0


class ReceiveConfig(Model):
    """The C-STORE listener."""

    ae_title: AETitle = "PACSNODE"
    host: str = "127.0.0.1"
    port: Port = 11112
    allowed_calling_ae_titles: tuple[AETitle, ...] = ()
    allow_any_calling_ae_title: bool = False
    require_called_ae_title: bool = True
    allowed_hosts: tuple[Network, ...] = ()
    tls: ServerTls | None = None
    max_associations: int = Field(default=50, ge=1, le=1000)
    max_associations_per_peer: int = Field(default=25, ge=1, le=1000)
    max_pdu_bytes: int = Field(default=131072, ge=4096, le=1048576)
    network_timeout_seconds: Seconds = 60.0
    acse_timeout_seconds: Seconds = 30.0
    accept_unknown_sop_classes: bool = True
    free_disk_floor_bytes: int = Field(default=2_000_000_000, ge=0)
    journal_bytes: int = Field(default=536_870_912, ge=0)
    movers: int = Field(default=2, ge=0, le=16)
    commitment: CommitmentConfig = CommitmentConfig()


class SeriesConfig(Model):
    """When a series is judged complete."""

    quiet_seconds: Seconds = 30.0
    released_quiet_seconds: Seconds = 5.0
    expected_quiet_seconds: Seconds = 1.0
    missing_wait_seconds: Seconds = 60.0
    interrupted_wait_seconds: Seconds = 600.0
    hard_limit_seconds: Seconds = 3600.0


class QueryPeer(Model):
    """A query/retrieve SCP that is asked how many instances a series has, and for those that are missing."""

    ae_title: AETitle
    host: str
    port: PeerPort
    senders: tuple[AETitle, ...] = ()
    calling_ae_title: AETitle | None = None
    retrieve: Literal["get", "move", "none"] = "get"
    timeout_seconds: Seconds = 10.0
    retrieve_timeout_seconds: Seconds = 300.0
    retry_seconds: Seconds = 5.0
    max_fetches: int = Field(default=3, ge=1, le=100)
    tls: ClientTls | None = None


class TritonTls(Model):
    """TLS to Triton. PEM files; the node follows their changes from job to job."""

    ca: Path | None = None
    certificate: Path | None = None
    key: Path | None = None
    server_name: str | None = Field(default=None, min_length=1)

    @model_validator(mode="after")
    def _certificate_with_key(self) -> TritonTls:
        if (self.certificate is None) != (self.key is None):
            raise ValueError("certificate and key belong together: name both, or neither")
        return self


class TritonConfig(Model):
    """Where inference happens. Without ``url`` the node starts the embedded server itself."""

    url: TritonUrl | None = None
    fallback_urls: tuple[TritonUrl, ...] = ()
    tls: TritonTls | None = None
    token_file: Path | None = None
    model_repository: Path | None = None
    metrics_port: Port = 0
    start_timeout_seconds: Seconds = 120.0
    request_timeout_seconds: Seconds = 120.0
    model_timeouts_seconds: dict[str, Seconds] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _external_options_with_url(self) -> TritonConfig:
        if self.url is None and (self.fallback_urls or self.tls or self.token_file):
            raise ValueError("fallback_urls, tls and token_file are for servers that you run: set url")
        return self

    @property
    def urls(self) -> tuple[str, ...]:
        """Of servers that someone else runs, in the order of preference; none: the embedded one."""
        return () if self.url is None else (self.url, *self.fallback_urls)

    def access(self) -> Access:
        """How they are reached."""
        tls = self.tls or TritonTls()
        files = {"ca": tls.ca, "certificate": tls.certificate, "key": tls.key, "token_file": self.token_file}
        return Access(
            tls=self.tls is not None,
            server_name=tls.server_name,
            model_timeouts_seconds=self.model_timeouts_seconds,
            **{name: None if path is None else str(path) for name, path in files.items()},
        )


class RunConfig(Model):
    """Workers and the durable job engine."""

    workers: int = Field(default=1, ge=1, le=64)
    concurrency: dict[str, Annotated[int, Field(ge=1, le=64)]] = Field(default_factory=dict)
    max_attempts: int = Field(default=5, ge=1, le=100)
    retry_seconds: Seconds = 5.0
    step_timeout_seconds: Seconds = 1800.0


class WebConfig(Model):
    """Health, metrics, web pages and what is taken in by HTTP."""

    host: str = "127.0.0.1"
    port: Port = 8090
    users: Path | None = None
    password_login: bool = True
    oidc: OidcConfig | None = None
    open_loopback: bool = True
    session_hours: float = Field(default=12.0, gt=0, le=168)
    public_url: str | None = Field(default=None, pattern=r"^https?://[^/\s?#@]+$")
    upload_minutes: float = Field(default=30.0, gt=0, le=1440)
    max_upload_bytes: int = Field(default=4_000_000_000, ge=1_000_000)

    @property
    def redirect_uri(self) -> str:
        """Where an identity provider sends browsers back to."""
        return f"{self.public_url}/login/sso/callback"

    @model_validator(mode="after")
    def _somebody_can_log_in(self) -> WebConfig:
        if self.oidc is not None and self.public_url is None:
            raise ValueError("oidc needs public_url, to which the identity provider sends browsers back")
        if self.oidc is None and not self.password_login:
            raise ValueError("password_login: false leaves no way to log in without oidc")
        return self


class ResultsConfig(Model):
    """What result objects say about themselves."""

    clinical_use: bool = False
    uid_root: str | None = Field(default=None, pattern=r"^[0-2](\.(0|[1-9][0-9]*))+$", max_length=32)
    no_result: Literal["none", "report", "picture", "both"] = "none"


class LogConfig(Model):
    format: Literal["auto", "json", "console"] = "auto"
    level: Literal["debug", "info", "warning", "error"] = "info"


class SyslogConfig(Model):
    """A collector of audit messages: syslog over TLS (PS3.15 A.6)."""

    host: str = Field(min_length=1)
    port: PeerPort = 6514
    tls: ClientTls
    timeout_seconds: Seconds = 10.0


class AuditConfig(Model):
    """The audit trail (PS3.15 A.5): who connected, who was refused, what was transferred."""

    enabled: bool = True
    folder: Path | None = None
    max_file_bytes: int = Field(default=16_777_216, ge=65_536)
    max_files: int = Field(default=10, ge=2, le=1000)
    enterprise_site_id: str | None = Field(default=None, min_length=1, max_length=64)
    syslog: SyslogConfig | None = None


class RouteConfig(Model):
    """A rule -> a pipeline -> destinations, or none. The rule's language is in ``node/route/rules.py``."""

    name: Name
    pipeline: str
    when: dict[str, Any]
    destinations: tuple[Name, ...]
    priority: int = Field(default=100, ge=1, le=1000)
    retention_seconds: float | None = Field(default=None, ge=0)


class NodeConfig(Model):
    """The whole configuration file."""

    data_dir: Path = Path("var")
    database: DatabaseConfig = DatabaseConfig()
    node_id: NodeId = "node"
    receive: ReceiveConfig = ReceiveConfig()
    series: SeriesConfig = SeriesConfig()
    query: dict[Name, QueryPeer] = Field(default_factory=dict)
    triton: TritonConfig = TritonConfig()
    run: RunConfig = RunConfig()
    shadow: dict[Name, ShadowConfig] = Field(default_factory=dict)
    web: WebConfig = WebConfig()
    results: ResultsConfig = ResultsConfig()
    log: LogConfig = LogConfig()
    audit: AuditConfig = AuditConfig()
    destinations: dict[Name, DestinationConfig] = Field(default_factory=dict)
    routes: tuple[RouteConfig, ...] = ()

    @property
    def shared(self) -> bool:
        """Whether other nodes may use the same database and data_dir."""
        return self.database.url is not None

    @property
    def own_dir(self) -> Path:
        """For what belongs to this node alone: data_dir, or a folder in one that nodes share."""
        return self.data_dir / "nodes" / self.node_id if self.shared else self.data_dir

    @property
    def expects_commitment(self) -> bool:
        """Whether a destination is to confirm what it keeps."""
        each = self.destinations.values()
        return any(isinstance(one, CStoreDestination) and one.commitment is not None for one in each)

    @model_validator(mode="after")
    def _one_query_peer_a_sender(self) -> NodeConfig:
        asked: dict[str | None, str] = {}
        for name, peer in self.query.items():
            for sender in peer.senders or (None,):
                other = asked.setdefault(sender, name)
                if other != name:
                    what = "no senders, which stands for all others" if sender is None else f"{sender!r}"
                    raise ValueError(
                        f"query.{name}.senders: {what}, is in query.{other} as well; "
                        "name each sender in one of them, and leave senders out in one at most"
                    )
        return self

    @model_validator(mode="after")
    def _references_exist(self) -> NodeConfig:
        names = [route.name for route in self.routes]
        if twice := {name for name in names if names.count(name) > 1}:
            raise ValueError(f"routes: the name {sorted(twice)[0]!r} is used twice; names must be unique")
        for route in self.routes:
            for destination in route.destinations:
                if destination not in self.destinations:
                    raise ValueError(
                        f"routes[{route.name}].destinations: {destination!r} is not defined; "
                        f"defined are {sorted(self.destinations) or 'none'}"
                    )
        return self


def load_config(path: Path, *, node_id: str | None = None) -> NodeConfig:
    """Read and check a configuration file. Relative paths in it are relative to the file's folder.

    node_id: instead of the file's.

    Raises ConfigError for anything wrong, naming file, field, value and what is allowed.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(
            f"{path}: cannot be read: {error.strerror}", hint="start from deploy/config.example.yaml"
        ) from error
    try:
        raw = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: is not valid YAML: {error}") from error
    if not isinstance(raw, dict):
        raise ConfigError(f"{path}: must be a mapping of sections, got {type(raw).__name__}")
    if node_id is not None:
        raw["node_id"] = node_id
    return parse_config(raw, source=str(path), base=path.resolve().parent)


def parse_config(raw: dict[str, Any], *, source: str, base: Path) -> NodeConfig:
    """Check an already parsed mapping; ``source`` names it in errors, ``base`` anchors relative paths."""
    try:
        config = NodeConfig.model_validate(raw)
    except ValidationError as error:
        raise ConfigError(_describe(error, source), hint="see deploy/config.example.yaml") from error
    anchored: NodeConfig = _anchored(config, base)
    return anchored


def _anchored(value: Any, base: Path) -> Any:
    """The same with every relative path in it made absolute."""
    if isinstance(value, Path):
        return base / value
    if isinstance(value, BaseModel):
        return value.model_copy(update={name: _anchored(field, base) for name, field in value})
    if isinstance(value, dict):
        return {key: _anchored(item, base) for key, item in value.items()}
    return value


def _describe(error: ValidationError, source: str) -> str:
    lines = []
    for item in error.errors():
        field = ".".join(str(part) for part in item["loc"]) or "file"
        value = item.get("input")
        shown = f" (got {value!r})" if isinstance(value, str | int | float | bool | None) else ""
        lines.append(f"{source}: {field}: {item['msg']}{shown}")
    return "\n".join(lines)
