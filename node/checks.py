"""What can be asked of a configuration before and while a node runs: certificates, destinations, models.

In: a configuration, where Triton is.  Out: one ``Finding`` a question, for ``pacsnode check``, and the state
of each model, for the web page.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Literal

from node.audit_syslog import check_collector
from node.config import NodeConfig
from node.deliver import check_commitment, make_destination
from node.errors import NodeError
from node.files import is_locked
from node.listening import listen
from node.tls import check_tls
from node.web.oidc import Provider, SignOnFailed
from pipelines.errors import ModelNotServed, PipelineError
from pipelines.registry import find_pipeline
from pipelines.request import Access
from pipelines.shadow import Instead
from pipelines.triton import InferenceClient, ModelSpec


@dataclass(frozen=True)
class Finding:
    """level: warning for what works, and should be looked at."""

    kind: Literal["configuration", "port", "destination", "collector", "login", "model", "candidate"]
    name: str
    level: Literal["ok", "warning", "error"]
    said: str
    hint: str = ""


@dataclass(frozen=True)
class ModelState:
    """One model that pipelines ask for.  required: by at least one of them; the others do without it.
    problem: "" when it is ready."""

    name: str
    version: str
    pipelines: tuple[str, ...]
    required: bool
    ready: bool
    sha256: str
    problem: str
    hint: str


def check_configuration(config: NodeConfig) -> Iterator[Finding]:
    """Of its files and references; raises ConfigError for what can't be used at all."""
    for warning in (*check_tls(config), *check_commitment(config)):
        yield Finding("configuration", "tls and commitment", "warning", warning)


def check_ports(config: NodeConfig) -> Iterator[Finding]:
    """Whether the node could listen where it is to. Not asked while it runs: then it has them."""
    try:
        running = is_locked(config.own_dir / "lock")
    except OSError:
        running = True  # it is another user's: the node may well be running
    if running:
        return
    for name, (host, port) in {
        "receive.port": (config.receive.host, config.receive.port),
        "web.port": (config.web.host, config.web.port),
    }.items():
        if port == 0:  # any that is free
            continue
        address = f"{host}:{port}"
        try:
            listen(host, port).close()
        except OSError as error:
            hint = "choose another port, or an address of this machine"
            if error.errno == errno.EADDRINUSE:
                hint = f"which program has it? `ss -ltnp 'sport = {port}'`; stop it, or choose another port"
            why = os.strerror(error.errno) if error.errno else str(error)
            yield Finding("port", name, "error", f"{name}: {address}: {why}", hint)
        else:
            yield Finding("port", name, "ok", f"{address} is free")


def check_destinations(config: NodeConfig) -> Iterator[Finding]:
    """Whether each answers: C-ECHO, a request, or a file."""
    for name, each in config.destinations.items():
        try:
            make_destination(name, each, calling_ae_title=config.receive.ae_title).check()
        except NodeError as error:
            yield Finding("destination", name, "error", str(error), error.hint)
        else:
            yield Finding("destination", name, "ok", "reachable")


def check_audit(config: NodeConfig) -> Iterator[Finding]:
    """Whether the collector of audit messages takes a connection."""
    syslog = config.audit.syslog
    if not config.audit.enabled or syslog is None:
        return
    name = f"{syslog.host}:{syslog.port}"
    try:
        check_collector(syslog)
    except NodeError as error:
        yield Finding("collector", name, "error", str(error), error.hint)
    else:
        yield Finding("collector", name, "ok", "reachable")


def check_login(config: NodeConfig) -> Iterator[Finding]:
    """Whether the identity provider answers; raises ConfigError for a secret or CA that can't be used."""
    if config.web.oidc is None:
        return
    try:
        Provider(config.web.oidc, config.web.redirect_uri).check()
    except SignOnFailed as failed:  # a warning: the node runs without it
        yield Finding("login", config.web.oidc.issuer, "warning", f"{config.web.oidc.issuer}: {failed}")
    else:
        yield Finding("login", config.web.oidc.issuer, "ok", "reachable")


def model_states(
    pipelines: Collection[str], url: str, access: Access, *, timeout_seconds: float = 10.0
) -> list[ModelState]:
    """What is served of what the pipelines ask for; the required ones first."""
    users: dict[str, set[str]] = {}
    specs: dict[str, ModelSpec] = {}
    required: set[str] = set()
    for pipeline in map(find_pipeline, sorted(pipelines)):
        for spec in (*pipeline.models, *pipeline.optional_models):
            specs.setdefault(spec.name, spec)
            users.setdefault(spec.name, set()).add(pipeline.name)
        required |= {spec.name for spec in pipeline.models}
    found = []
    with InferenceClient(url, timeout_seconds=timeout_seconds, access=access) as client:
        for name in sorted(specs, key=lambda name: (name not in required, name)):
            said = (name, str(specs[name].version), tuple(sorted(users[name])), name in required)
            try:
                identity = client.check(specs[name]).identity
            except PipelineError as error:
                missing = isinstance(error, ModelNotServed) and name not in required
                problem = "not served; pipelines do without it" if missing else str(error)
                found.append(ModelState(*said, False, "", problem, "" if missing else error.hint))
            else:
                found.append(ModelState(*said, True, identity.sha256, "", ""))
    return found


def check_models(config: NodeConfig, url: str) -> Iterator[Finding]:
    """Of the configured routes' pipelines, at a Triton that runs."""
    for model in model_states({route.pipeline for route in config.routes}, url, config.triton.access()):
        name = f"{model.name} version {model.version}"
        if model.ready:
            yield Finding("model", name, "ok", f"served, sha256 {model.sha256[:12]}")
        else:
            optional = not model.required and not model.hint
            yield Finding("model", name, "ok" if optional else "error", model.problem, model.hint)


def check_shadows(config: NodeConfig, url: str) -> Iterator[Finding]:
    """Of the candidates of shadow mode, at the same Triton."""
    with InferenceClient(url, timeout_seconds=10.0, access=config.triton.access()) as client:
        for name, candidate in config.shadow.items():
            pipeline = find_pipeline(candidate.candidate_pipeline or candidate.pipeline)
            try:
                pipeline.check(Instead(client, candidate.served(), pipeline))
            except PipelineError as error:
                yield Finding("candidate", name, "error", str(error), error.hint)
            else:
                yield Finding("candidate", name, "ok", "served")
