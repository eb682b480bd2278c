"""``pacsnode demo``: a whole node on the loopback, from C-STORE in to results in an archive.

Starts an archive and the node (with its embedded Triton), sends DICOM, waits for the results, fetches them
back from the archive, validates them and shows them. Stops everything.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import yaml
from pydicom import dcmread
from pydicom.uid import UID
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from node import child
from node.demo.archive import AE_TITLE, Archive, start_archive
from node.demo.pictures import save_pictures
from node.demo.send import Outgoing, find_outgoing, send
from node.errors import NodeError
from node.reasons import unmatched
from node.route.defaults import default_routes
from node.triton_server import PORT_TRIES, free_port
from pipelines.request import SUMMARY
from pipelines.results.validation import validate_all

NODE_AE_TITLE = "PACSNODE"
START_SECONDS = 180.0
#: a demo takes seconds to a minute a series; a slow laptop may take its time
RESULT_SECONDS = 1200.0
PHANTOM_SEED = 9


@dataclass(frozen=True)
class Shown:
    """One job of a demo. out: its results' folder, "" without any.  valid: all of them came back, and no
    validator objects.  reason: why there are none."""

    series_instance_uid: str
    pipeline: str
    state: str
    out: str = ""
    valid: bool = False
    reason: str = ""


def run_demo(dicom: Sequence[Path], out: Path, console: Console) -> list[Shown]:
    """Run the demo; returns what came of each job.

    dicom: folders to send, or none for a generated chest CT phantom. out: made empty, then holds the results
    and summary.json (one subfolder a series when several series were processed) and node.log.
    """
    out = out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        work = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="pacsnode-demo-")))
        outgoing = find_outgoing(dicom or [_phantom(work / "phantom", console)])
        if not outgoing:
            raise NodeError(f"no DICOM files below {', '.join(str(folder) for folder in dicom)}")
        archive = start_archive(work / "archive")
        stack.callback(archive.stop)
        console.print(f"archive: {archive.name}")
        node = _Node(work, archive, out / "node.log", console)
        stack.callback(node.stop)
        jobs = _feed(node, outgoing, console)
        several = sum(job["state"] == "done" for job in jobs) > 1
        return [_show(node, archive, job, out, several=several, console=console) for job in jobs]


def _show(
    node: _Node, archive: Archive, job: dict[str, Any], out: Path, *, several: bool, console: Console
) -> Shown:
    uid = job["series_instance_uid"]
    if job["state"] != "done":
        console.print(f"[red]series {uid}: {escape(str(job['reason']))}[/red]")
        return Shown(uid, job["pipeline"], job["state"], reason=str(job["reason"]))
    folder = out / uid if several else out
    good = _collect(node, archive, job, folder, console=console)
    return Shown(uid, job["pipeline"], job["state"], str(folder), good)


def _phantom(folder: Path, console: Console) -> Path:
    from triton_models.data.dicom_series import write_series  # noqa: PLC0415 - only without DICOM of one's own
    from triton_models.data.phantom import chest_phantom  # noqa: PLC0415

    console.print("generating a chest CT phantom …")
    write_series(chest_phantom(PHANTOM_SEED, slices=60, lesions="peripheral"), folder, seed=PHANTOM_SEED)
    return folder


class _Node:
    """``pacsnode run`` as a child process."""

    def __init__(self, work: Path, archive: Archive, log: Path, console: Console) -> None:
        self.data_dir = work / "var"
        self._log = log
        with console.status("starting the node and its embedded Triton …"):
            for tries_left in reversed(range(PORT_TRIES)):
                self._start(work / "node.yaml", archive)
                if self._wait_ready(may_try_again=tries_left > 0):
                    break
        console.print(f"node: {NODE_AE_TITLE} on port {self.port}, web {self.url}, log {log}")

    def _start(self, configuration: Path, archive: Archive) -> None:
        self.port, web_port = free_port(), free_port()
        self.url = f"http://127.0.0.1:{web_port}"
        configuration.write_text(
            yaml.safe_dump(
                {
                    "data_dir": str(self.data_dir),
                    "receive": {
                        "ae_title": NODE_AE_TITLE,
                        "port": self.port,
                        "allowed_calling_ae_titles": ["DEMO_MODALITY"],
                        "free_disk_floor_bytes": 200_000_000,
                    },
                    "series": {"quiet_seconds": 5.0, "released_quiet_seconds": 0.5},
                    "web": {"port": web_port},
                    "log": {"format": "json"},
                    "destinations": {
                        "archive": {
                            "type": "cstore",
                            "ae_title": AE_TITLE,
                            "host": "127.0.0.1",
                            "port": archive.port,
                        }
                    },
                    "routes": [r.model_dump(mode="json") for r in default_routes(["archive"])],
                }
            )
        )
        with self._log.open("wb") as stream:
            self._process = subprocess.Popen(
                child.command(sys.executable, "-m", "node", "run", "--config", str(configuration)),
                stderr=stream,
            )

    def _wait_ready(self, *, may_try_again: bool) -> bool:
        """False if another program was faster to take a port, and it may be tried again with others."""
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline and self.alive:
            try:
                if httpx.get(f"{self.url}/readyz", timeout=5.0).status_code == httpx.codes.OK:
                    return True
            except httpx.TransportError:
                pass
            time.sleep(0.2)
        ended, said = not self.alive, self._log.read_text(errors="replace")
        self.stop()
        if may_try_again and ended and "Address already in use" in said:
            return False
        tail = "\n".join(said.splitlines()[-15:])
        raise NodeError(f"the node didn't become ready; its log ends:\n{tail}")

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def get(self, path: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = httpx.get(f"{self.url}{path}", timeout=30.0).json()
        return found

    def progress(self) -> dict[str, tuple[str, int, int]]:
        """Job id -> (stage, done, total) as last logged."""
        latest = {}
        for line in self._log.read_text(errors="replace").splitlines():
            if '"job_progress"' in line:
                event = json.loads(line)
                latest[event["job_id"]] = (event["stage"], event["done"], event["total"])
        return latest

    def stop(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def _feed(node: _Node, outgoing: Sequence[Outgoing], console: Console) -> list[dict[str, Any]]:
    """Send everything and wait until each series has its jobs ended, or its reason for having none."""
    columns = (TextColumn("{task.description:<28}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as bars:
        sending = bars.add_task("C-STORE", total=len(outgoing))
        failed = send(
            outgoing,
            port=node.port,
            ae_title=NODE_AE_TITLE,
            progress=lambda done, total: bars.update(sending, completed=done, total=total),
        )
        for line in failed:
            bars.console.print(f"[yellow]not accepted: {escape(line)}[/yellow]")
        wanted = {item.series_instance_uid for item in outgoing} - {""}
        tasks: dict[str, Any] = {}
        deadline = time.monotonic() + RESULT_SECONDS
        while time.monotonic() < deadline and node.alive:
            series = [s for s in node.get("/api/series?limit=1000") if s["series_instance_uid"] in wanted]
            jobs = node.get("/api/jobs?limit=1000")
            for job_id, (stage, done, total) in node.progress().items():
                if job_id not in tasks:
                    tasks[job_id] = bars.add_task(stage, total=None)
                bars.update(
                    tasks[job_id], description=f"{job_id[:8]} {stage}", completed=done, total=total or None
                )
            routed = series and all(s["state"] == "routed" for s in series)
            if routed and all(job["state"] in ("done", "failed", "cancelled") for job in jobs):
                break
            time.sleep(0.3)
        else:
            raise NodeError("the results didn't arrive in time, or the node ended", hint="see node.log")
    with_jobs = {job["series_instance_uid"] for job in jobs}
    for version in series:
        if version["series_instance_uid"] not in with_jobs:
            why = unmatched(version["reason_code"], version["decision"]["routes"]).sentence
            console.print(f"series {version['series_instance_uid']}: no result, because {escape(why)}")
    return jobs


def _collect(node: _Node, archive: Archive, job: dict[str, Any], folder: Path, *, console: Console) -> bool:
    """Fetch a job's results from the archive into ``folder``, validate and show them; whether all is well."""
    source = node.data_dir / job["result_dir"]
    summary = json.loads((source / SUMMARY).read_text(encoding="utf-8"))
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.dcm"):
        old.unlink()
    table = Table(title=f"series {job['series_instance_uid']}")
    for heading in ("object", "SOP class", "size", "validated by"):
        table.add_column(heading, overflow="fold")
    files = []
    for result in summary["results"]:
        content = archive.fetch(result["sop_instance_uid"])
        if content is not None:
            (folder / result["path"]).write_bytes(content)
            files.append(folder / result["path"])
    checked = validate_all(files)
    good = len(files) == len(summary["results"])
    for result in summary["results"]:
        path, sop_class = folder / result["path"], UID(result["sop_class_uid"]).name
        if path not in checked:
            table.add_row(path.name, sop_class, "[red]missing[/red]", "")
            continue
        checks = checked[path]
        good &= all(check.ok for check in checks)
        said = ", ".join(check.tool if check.ok else f"[red]{check.tool}: FAILED[/red]" for check in checks)
        table.add_row(path.name, sop_class, _size(path.stat().st_size), said)
        for check in checks:
            if not check.ok:
                messages = escape("; ".join(check.messages[:5]))
                console.print(f"[red]{path.name}: {check.tool}: {messages}[/red]")
    shutil.copyfile(source / SUMMARY, folder / SUMMARY)
    console.print(table)
    probabilities = ", ".join(f"{name} {p:.3f}" for name, p in summary["noisy_or"].items())
    seconds = sum(summary["timings_seconds"].values())
    console.print(
        f"{summary['case_type']}: Noisy-OR {probabilities} over {len(summary['findings'])} region(s), "
        f"{summary['involved_percent']:.1f} % of the lungs, {seconds:.1f} s"
    )
    for label, picture in save_pictures([dcmread(path) for path in files], folder).items():
        console.print(f"{label}: {picture}", soft_wrap=True)
    return good


def _size(count: int) -> str:
    return f"{count / 1e6:.1f} MB" if count >= 1e6 else f"{count / 1e3:.0f} kB"
