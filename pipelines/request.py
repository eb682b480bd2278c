"""What a run of a pipeline is asked for, as an object and as a line of JSON. Imports nothing heavy."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

#: name of the file that a run leaves last, beside its result set
SUMMARY = "summary.json"
#: option of ``python -m pipelines.worker``: it doesn't warm up
COLD = "--cold"


@dataclass(frozen=True)
class NoResult:
    """Why a job has no result, as recorded. kind: report, picture or both."""

    code: str
    reason: str
    kind: Literal["report", "picture", "both"]


@dataclass(frozen=True)
class Shadow:
    """A candidate's run. live: folder of the live run's set, which it is compared with.

    models: what is asked instead, by the name that the pipeline knows: (name, version) as it is served.
    """

    live: Path
    models: Mapping[str, tuple[str, str]] = field(default_factory=dict)


@dataclass(frozen=True)
class Request:
    """One run. content_datetime is the job's, so that a re-run makes identical objects.

    encodings: names of those that destinations want beside the default (``pipelines.encoding``).
    predecessor: folder of the result set that this one supersedes; it must not change any more.
    reject: make notes that reject what is superseded.
    no_result: nothing is analysed, the set says why.
    shadow: this is a candidate's run.
    """

    pipeline: str
    paths: tuple[Path, ...]
    out: Path
    software_version: str
    content_datetime: datetime
    clinical_use: bool = False
    uid_root: str | None = None
    encodings: tuple[str, ...] = ()
    predecessor: Path | None = None
    reject: bool = False
    no_result: NoResult | None = None
    shadow: Shadow | None = None


@dataclass(frozen=True)
class Access:
    """What all servers of a list have in common.

    tls: whether TLS is used; then ca (PEM; None: those of gRPC), certificate and key (ours, PEM), and
    server_name (that the server's certificate is for, unless the URL's host).  token_file: holds what is sent
    as ``authorization: Bearer …``.  model_timeouts_seconds: of a request, by model.
    """

    tls: bool = False
    ca: str | None = None
    certificate: str | None = None
    key: str | None = None
    server_name: str | None = None
    token_file: str | None = None
    model_timeouts_seconds: Mapping[str, float] = field(default_factory=dict)


#: neither TLS nor a token
PLAIN = Access()


def encode_request(
    request: Request, *, triton_url: str, timeout_seconds: float, access: Access = PLAIN
) -> str:
    """One line for the worker's stdin."""
    return json.dumps(
        {
            "pipeline": request.pipeline,
            "paths": [str(path) for path in request.paths],
            "out": str(request.out),
            "software_version": request.software_version,
            "content_datetime": request.content_datetime.isoformat(),
            "clinical_use": request.clinical_use,
            "uid_root": request.uid_root,
            "encodings": request.encodings,
            "predecessor": str(request.predecessor) if request.predecessor else None,
            "reject": request.reject,
            "no_result": asdict(request.no_result) if request.no_result else None,
            "shadow": _encode_shadow(request.shadow) if request.shadow else None,
            "triton_url": triton_url,
            "timeout_seconds": timeout_seconds,
            "access": asdict(access),
        }
    )


def decode_request(message: dict[str, Any]) -> Request:
    """The inverse of ``encode_request``."""
    return Request(
        pipeline=message["pipeline"],
        paths=tuple(Path(path) for path in message["paths"]),
        out=Path(message["out"]),
        software_version=message["software_version"],
        content_datetime=datetime.fromisoformat(message["content_datetime"]),
        clinical_use=message["clinical_use"],
        uid_root=message["uid_root"],
        encodings=tuple(message["encodings"]),
        predecessor=Path(message["predecessor"]) if message["predecessor"] else None,
        reject=message["reject"],
        no_result=NoResult(**message["no_result"]) if message["no_result"] else None,
        shadow=_decode_shadow(message["shadow"]) if message["shadow"] else None,
    )


def _encode_shadow(shadow: Shadow) -> dict[str, Any]:
    return {"live": str(shadow.live), "models": dict(shadow.models)}


def _decode_shadow(message: dict[str, Any]) -> Shadow:
    models = {role: (name, version) for role, (name, version) in message["models"].items()}
    return Shadow(Path(message["live"]), models)
