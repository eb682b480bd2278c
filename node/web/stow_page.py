"""STOW-RS (PS3.18 10.5): POST /dicom-web/studies and /dicom-web/studies/{study}, ``application/dicom`` parts.

In: a request with Part 10 files.  Out: what became of each, as C-STORE would have answered: an instance in
the Referenced SOP Sequence is durable. What sends it is known to routes by the AE title AE_TITLE.

    200  all are stored           409  none is          202  some are
    503  there was no room, or the receiver is down: send it again
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import structlog
from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from starlette.concurrency import run_in_threadpool

from node.receive.handing import Handing
from node.receive.part10 import is_uid
from node.receive.storage import STATUS_OUT_OF_RESOURCES, STATUS_STORED
from node.receive.taking import Taken
from node.web.intake import RETRY_AFTER, IntakeGate, receiver_of
from node.web.multipart import BadBody, Limits, Part, parameters, save_parts
from node.web.sources import Sources

log = structlog.get_logger("node.web")

AE_TITLE = "STOW-RS"
DICOM, DICOM_JSON = "application/dicom", "application/dicom+json"
_ACCEPTABLE = (DICOM_JSON, "application/json", "application/*", "*/*")
MOST_INSTANCES = 20_000

_SOP_CLASS_UID, _SOP_INSTANCE_UID, _FAILURE_REASON = "00081150", "00081155", "00081197"
_FAILED, _REFERENCED, _OTHER_FAILURES = "00081198", "00081199", "0008119A"


def stow_routes(sources: Sources, gate: IntakeGate, max_bytes: int) -> APIRouter:
    """The routes of STOW-RS."""
    router = APIRouter(prefix="/dicom-web")
    limits = Limits(max_bytes, MOST_INSTANCES)

    async def store(request: Request, study: str) -> Response:
        _check_types(request)
        handing = receiver_of(sources)
        with gate.enter(request) as room:
            parts = await save_parts(request, room.folder, limits)
            _check_parts(parts)
            taken = await run_in_threadpool(_take, handing, request, parts, study)
        status = status_of(taken)
        log.info(
            "stow_answered",
            status=status,
            instances=len(taken),
            stored=sum(one.status == STATUS_STORED for one in taken),
            user=request.scope["principal"].user,
        )
        headers = RETRY_AFTER if status == 503 else None
        return JSONResponse(answer_of(taken), status, headers, media_type=DICOM_JSON)

    @router.post("/studies")
    async def studies(request: Request) -> Response:
        return await store(request, "")

    @router.post("/studies/{study}")
    async def of_study(request: Request, study: str) -> Response:
        if not is_uid(study):
            raise BadBody(400, "the path ends in no UID")
        return await store(request, study)

    return router


def _check_types(request: Request) -> None:
    """Raises BadBody for what we don't read, or whoever doesn't read what we write."""
    kind, values = parameters(request.headers.get("content-type", ""))
    if kind != "multipart/related" or values.get("type", DICOM).lower() != DICOM:
        raise BadBody(415, f'Content-Type must be multipart/related; type="{DICOM}"')
    accepted = request.headers.get("accept", "*/*").lower()
    if not any(kind in accepted for kind in _ACCEPTABLE):
        raise BadBody(406, f"the answer is {DICOM_JSON}")


def _check_parts(parts: Sequence[Part]) -> None:
    if not parts:
        raise BadBody(400, "there are no instances in the request")
    if any(part.content_type not in ("", DICOM) for part in parts):
        raise BadBody(415, f"each part must be {DICOM}")


def _take(handing: Handing, request: Request, parts: Sequence[Part], study: str) -> list[Taken]:
    with handing.association(AE_TITLE, request.client.host if request.client else "") as association:
        return association.take([part.path for part in parts], study=study)


def status_of(taken: Sequence[Taken]) -> int:
    """HTTP's (PS3.18 table 10.5.3-1)."""
    if all(one.status == STATUS_STORED for one in taken):
        return 200
    if any(one.status == STATUS_STORED for one in taken):
        return 202
    return 503 if all(one.status == STATUS_OUT_OF_RESOURCES for one in taken) else 409


def answer_of(taken: Sequence[Taken]) -> dict[str, Any]:
    """The Store Instances Response Module (PS3.18 annex I) in JSON; what has no UIDs is among the other
    failures."""
    sequences: dict[str, list[dict[str, Any]]] = {}
    for one in taken:
        item: dict[str, Any] = {}
        if one.sop_instance_uid:
            item[_SOP_CLASS_UID] = {"vr": "UI", "Value": [one.sop_class_uid]}
            item[_SOP_INSTANCE_UID] = {"vr": "UI", "Value": [one.sop_instance_uid]}
        if one.status == STATUS_STORED:
            sequences.setdefault(_REFERENCED, []).append(item)
        else:
            item[_FAILURE_REASON] = {"vr": "US", "Value": [one.status]}
            sequences.setdefault(_FAILED if one.sop_instance_uid else _OTHER_FAILURES, []).append(item)
    return {tag: {"vr": "SQ", "Value": items} for tag, items in sorted(sequences.items())}
