"""Upload by phone: a QR code to a link that one phone may use for a while, and that phone's page.

GET  /upload                            a new link as a QR code: for operators
GET  /upload/{token}                    the phone's page; the first phone that opens it has the link
POST /upload/{token}/files              one file as the body: DICOM, a zip of it, or a picture (``wrapping``)
POST /upload/{token}/done               that was all for now
GET  /upload/{token}/state              what became of it
GET  /upload/{token}/pictures/{job}/{n} a result picture of it
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import segno
import structlog
from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from sqlalchemy import Engine
from starlette.concurrency import run_in_threadpool

from node.config import WebConfig
from node.receive.storage import STATUS_OUT_OF_RESOURCES, STATUS_STORED
from node.receive.taking import Taken
from node.web.access import LOOPBACK_NAMES, same_origin
from node.web.intake import IntakeGate
from node.web.multipart import BadBody, Part, save_body
from node.web.pages import problem, render
from node.web.pictures import picture
from node.web.sources import Sources
from node.web.study import Series, find_study
from node.web.unpack import PICTURE_SKIPPED, kind_of, unpack
from node.web.uploads import Upload, UploadLinks
from node.web.wrapping import Wrapping

log = structlog.get_logger("node.web")

COOKIE = "pacsnode_upload"
_NOTHING = "it is neither a DICOM file, nor a zip with one, nor a JPEG or PNG picture"
_PICTURES_IN_ZIP = "the zip has pictures and no DICOM file; choose the pictures themselves"
_OVER = "This link is over, or another device uses it. Make a new one on the upload page of the node."


def upload_routes(
    engine: Engine, sources: Sources, gate: IntakeGate, links: UploadLinks, config: WebConfig
) -> APIRouter:
    """The routes of uploads."""
    router = APIRouter(prefix="/upload")
    wrapping = Wrapping(sources.uid_root)

    @router.get("")
    def code(request: Request) -> Response:
        if sources.handing is None:
            return problem(request, 404, "Upload", "This process receives nothing: files go to a listener.")
        token = links.make(request.scope["principal"].user)
        base = config.public_url or f"{request.url.scheme}://{request.headers.get('host', '')}"
        link = f"{base}/upload/{token}"
        host = urlsplit(base).netloc.rpartition(":")[0] or urlsplit(base).netloc
        return render(
            "upload.html",
            request,
            link=link,
            qr=segno.make(link, error="m").svg_inline(scale=6, border=2),
            minutes=round(links.seconds / 60),
            unreachable=host in LOOPBACK_NAMES,
        )

    @router.get("/{token}")
    def phone(token: str, request: Request) -> Response:
        claimed = links.claim(token, request.cookies.get(COOKIE, ""))
        if claimed is None:
            return problem(request, 404, "Upload", _OVER)
        upload, cookie = claimed
        seconds = links.left_seconds(upload)
        page = render(
            "phone.html", request, token=token, minutes=round(seconds / 60), size=config.max_upload_bytes
        )
        page.set_cookie(
            COOKIE,
            cookie,
            max_age=round(seconds),
            path="/upload",
            httponly=True,
            samesite="strict",
            secure=request.url.scheme == "https",
        )
        return page

    def known(token: str, request: Request) -> Upload:
        """Raises BadBody for who hasn't claimed the link."""
        upload = links.find(token, request.cookies.get(COOKIE, ""))
        if upload is None or (request.method != "GET" and not same_origin(request)):
            raise BadBody(404, _OVER)
        return upload

    @router.post("/{token}/files")
    async def files(token: str, request: Request) -> Response:
        upload = known(token, request)
        if not upload.admit():
            raise BadBody(429, "too many files came over this link; make a new one")
        with gate.enter(request) as room:
            path = room.folder / "upload"
            size = await save_body(request, path, config.max_upload_bytes)
            address = request.client.host if request.client else ""
            part, limit = Part(path, "", "", size), min(config.max_upload_bytes, room.free_bytes)
            said = await run_in_threadpool(_take, upload, part, room.folder, limit, address, wrapping)
        log.info(
            "upload_taken", stored=said["stored"], refused=sum(said["refused"].values()), user=upload.user
        )
        return JSONResponse(said, 200 if said["stored"] else 422)

    @router.post("/{token}/done")
    def done(token: str, request: Request) -> Response:
        known(token, request).end(released=True)
        return JSONResponse({"done": True})

    @router.get("/{token}/state")
    def state(token: str, request: Request) -> Response:
        upload = known(token, request)
        return JSONResponse({"series": [_said(one) for one in _series(engine, sources.data_dir, upload)]})

    @router.get("/{token}/pictures/{job_id}/{number}")
    def shown(token: str, job_id: str, number: int, request: Request) -> Response:
        upload = known(token, request)
        png = None
        for one in _series(engine, sources.data_dir, upload):
            if sources.data_dir is not None and any(job.job_id == job_id for job in one.jobs):
                png = picture(engine, sources.data_dir, _study_of(upload, one), job_id, number)
        if png is None:
            raise BadBody(404, "there is no such picture")
        return Response(png, media_type="image/png")

    return router


def _take(  # noqa: PLR0917 - run by a thread pool, which passes them on in order
    upload: Upload, part: Part, folder: Path, limit_bytes: int, address: str, wrapping: Wrapping
) -> dict[str, Any]:
    """What became of one file, zip or picture. Raises BadBody and SpoolError."""
    if kind_of(part.path) == "picture":
        if not upload.admit_picture():
            raise BadBody(429, "too many pictures came over this link; make a new one")
        files, skipped = [wrapping.wrap(part, folder)], 0
    else:
        found = unpack([part], folder, limit_bytes)
        if not found.dicom:
            pictures = any(why == PICTURE_SKIPPED for _, why in found.skipped)
            raise BadBody(415, f"not taken: {_PICTURES_IN_ZIP if pictures else _NOTHING}")
        files, skipped = [one.path for one in found.dicom], len(found.skipped)
    taken = upload.take(files, address)
    return {
        "stored": sum(one.status == STATUS_STORED for one in taken),
        "refused": dict(Counter(_why(one) for one in taken if one.status != STATUS_STORED)),
        "skipped": skipped,
    }


def _why(one: Taken) -> str:
    if one.status == STATUS_OUT_OF_RESOURCES:
        return "there is no room on the disk now"
    return one.comment or f"status {one.status:#06x}"


def _series(engine: Engine, data_dir: Path | None, upload: Upload) -> list[Series]:
    """What the phone may see: the series that came over its link, not others of their studies."""
    own = upload.series
    found: list[Series] = []
    for study in dict.fromkeys(study for study, _ in own):
        whole = find_study(engine, data_dir, study) if data_dir is not None else None
        for one in whole.series if whole is not None else ():
            if (study, one.series_instance_uid) in own:
                found.append(one)
    return found


def _study_of(upload: Upload, one: Series) -> str:
    return next(study for study, series in upload.series if series == one.series_instance_uid)


def _said(one: Series) -> dict[str, Any]:
    return {
        "sentence": one.sentence,
        "tone": one.tone,
        "version": one.version,
        "jobs": [
            {
                "job_id": job.job_id,
                "state": job.state,
                "conclusion": job.conclusion,
                "estimates": job.estimates,
                "pictures": [{"number": each.number, "title": each.title} for each in job.pictures],
            }
            for job in one.jobs
        ],
    }
