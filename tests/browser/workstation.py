"""OHIF as a hospital would serve it: its built pages, and DICOMweb of the archive from the same origin.

In: OHIF's ``dist`` folder, the archive's URL.  Out: a server on the loopback, and its URL.
"""

from __future__ import annotations

import threading
import time
from pathlib import Path
from types import TracebackType

import httpx
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.routing import Route

from node.triton_server import free_port

_START_SECONDS = 20.0
_CONFIGURATION = """
window.config = {
  name: "tests/browser", routerBasename: "/", extensions: [], modes: [], customizationService: {},
  showStudyList: true, maxNumberOfWebWorkers: 2, showWarningMessageForCrossOrigin: false,
  showCPUFallbackMessage: false, showLoadingIndicator: true, strictZSpacingForVolumeViewport: true,
  investigationalUseDialog: { option: "never" }, disableConfirmationPrompts: true,
  maxNumRequests: { interaction: 100, thumbnail: 5, prefetch: 25 },
  defaultDataSourceName: "archive",
  dataSources: [{
    namespace: "@ohif/extension-default.dataSourcesModule.dicomweb", sourceName: "archive",
    configuration: {
      friendlyName: "Orthanc", name: "archive",
      wadoUriRoot: "/dicom-web", qidoRoot: "/dicom-web", wadoRoot: "/dicom-web",
      qidoSupportsIncludeField: false, supportsReject: false, supportsFuzzyMatching: false,
      supportsWildcard: true, imageRendering: "wadors", thumbnailRendering: "wadors",
      enableStudyLazyLoad: true, singlepart: "bulkdata", bulkDataURI: { enabled: true },
      acceptHeader: ["multipart/related; type=application/octet-stream; transfer-syntax=*"],
    },
  }],
};
"""
_PASSED_ON = ("accept", "content-type")
_PASSED_BACK = ("content-type",)


class Workstation:
    """The viewer's web server; use it as a context."""

    def __init__(self, pages: Path, archive_url: str) -> None:
        self._pages = pages.resolve()
        # Orthanc closes a connection that was idle for a second, maybe while our next request is on its way
        self._archive = httpx.AsyncClient(
            base_url=archive_url, timeout=60.0, limits=httpx.Limits(max_keepalive_connections=0)
        )
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        routes = [
            Route("/dicom-web/{path:path}", self._dicom_web, methods=["GET", "POST"]),
            Route("/app-config.js", self._configuration),
            Route("/{path:path}", self._page),
        ]
        self._server = uvicorn.Server(
            uvicorn.Config(Starlette(routes=routes), host="127.0.0.1", port=port, log_level="warning")
        )
        self._thread = threading.Thread(target=self._server.run, name="workstation", daemon=True)

    def __enter__(self) -> Workstation:
        self._thread.start()
        deadline = time.monotonic() + _START_SECONDS
        while not self._server.started:
            assert self._thread.is_alive() and time.monotonic() < deadline, "OHIF's server didn't start"
            time.sleep(0.05)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.should_exit = True
        self._thread.join(10)

    async def _configuration(self, _request: Request) -> Response:
        return Response(_CONFIGURATION, media_type="text/javascript")

    async def _page(self, request: Request) -> Response:
        """A file of ``dist``, or for any other path the one page of a single-page application."""
        wanted = (self._pages / request.path_params["path"]).resolve()
        inside = wanted.is_relative_to(self._pages) and wanted.is_file()
        return FileResponse(wanted if inside else self._pages / "index.html")

    async def _dicom_web(self, request: Request) -> Response:
        """Pass the request to the archive, naming our origin so that the URLs it writes lead here."""
        headers = {name: request.headers[name] for name in _PASSED_ON if name in request.headers}
        headers["forwarded"] = f"host={request.url.netloc};proto=http"
        answer = await self._archive.request(
            request.method,
            request.url.path,
            params=request.url.query.encode(),
            headers=headers,
            content=await request.body(),
        )
        kept = {name: answer.headers[name] for name in _PASSED_BACK if name in answer.headers}
        return Response(answer.content, answer.status_code, kept)
