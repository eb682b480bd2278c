"""The drills of docs/operations.md: its commands, on real nodes, with a job under way; then everything is
lost."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import count
from pathlib import Path
from typing import Any

import onnx
import pytest
from pydicom import dcmread
from pydicom.uid import generate_uid

from node.receive.places import hash_of
from node.route.defaults import default_routes
from node.triton_server import EmbeddedTriton, free_port
from pipelines import infection, lesions
from pipelines.triton import InferenceClient
from tests.integration import drills
from tests.integration.receiving import wait_for
from tests.integration.running import Pacs, RunningNode, storescu
from tests.postgres import PostgresCluster, program
from tests.unit.deploy.scripts import load_script
from triton_models.registry import MODELS
from triton_models.tensorrt import engine_graph, overlay, read_config

pytestmark = pytest.mark.integration
build_engines = load_script(drills.ROOT / "deploy/triton/build_engines.py")


@pytest.fixture
def database_tools(postgres: PostgresCluster, monkeypatch: pytest.MonkeyPatch) -> PostgresCluster:
    """The server, with its own tools in PATH and its password in their environment."""
    monkeypatch.setenv("PATH", f"{Path(program('pg_dump')).parent}:/usr/bin:/bin")
    monkeypatch.setenv("PGPASSWORD", postgres.password_file.read_text().strip())
    return postgres


class Nodes:
    """Nodes that have one data_dir, one after the other; with the quicker pipeline."""

    def __init__(self, folder: Path, triton: EmbeddedTriton, stack: ExitStack) -> None:
        self._folder, self._triton, self._stack = folder, triton, stack
        self.data_dir = folder / "state/data"

    def start(self, name: str, **options: Any) -> RunningNode:
        route = default_routes(["pacs"])[0].model_dump(mode="json") | {"pipeline": "chest_ct_triage"}
        options |= {"data_dir": str(self.data_dir), "routes": [route]}
        node = RunningNode(self._folder / name, triton_url=self._triton.url, **options)
        self._stack.callback(node.stop)
        return node.start()


@pytest.fixture
def nodes(tmp_path: Path, triton: EmbeddedTriton) -> Iterator[Nodes]:
    with ExitStack() as stack:
        yield Nodes(tmp_path, triton, stack)


def another(series: Path, folder: Path, most: int | None = None) -> Path:
    """The same images, or the first so many, as a series of their own."""
    folder.mkdir()
    uid = generate_uid()
    for path in sorted(series.iterdir())[:most]:
        image = dcmread(path)
        image.SeriesInstanceUID = uid
        image.SOPInstanceUID = image.file_meta.MediaStorageSOPInstanceUID = generate_uid()
        image.save_as(folder / path.name)
    return folder


def restored(node: RunningNode) -> dict[str, Any]:
    """What start-up found."""
    (event,) = node.events("spool_reconciled")
    return event


def reports(pacs: Pacs) -> int:
    return [tags["Modality"] for tags in pacs.instances().values()].count("SR")


def test_a_node_is_lost_and_comes_back_with_a_delivery_under_way(
    nodes: Nodes, tmp_path: Path, pacs: Pacs, phantom_series: Path
) -> None:
    lost = nodes.start("lost", pacs_port=free_port())  # its PACS is down
    assert storescu(lost.port, phantom_series).returncode == 0
    job = lost.job_in("delivering")
    places = {"DATA_DIR": nodes.data_dir, "BACKUP": tmp_path / "backup"}
    assert lost.stop() == 0
    drills.run("sqlite-backup", **places)
    shutil.rmtree(lost.data_dir)
    drills.run("sqlite-restore", **places)
    back = nodes.start("back", pacs_port=pacs.port)
    found = restored(back)
    assert (found["missing"], found["foreign"], found["instances"]) == (0, 0, 24)
    assert back.job_in("done", "failed")["job_id"] == job["job_id"]
    assert reports(pacs) == 1
    assert pacs.count() == len(back.summary(back.jobs()[0])["results"])


def test_a_database_is_lost_with_all_files_and_what_came_after_the_dump_is_found(
    nodes: Nodes,
    tmp_path: Path,
    pacs: Pacs,
    phantom_series: Path,
    database_tools: PostgresCluster,
) -> None:
    """The second series comes between the dump and the copy of the journals, and is filed, and gone from its
    journal, before files are copied."""
    places = {"DATA_DIR": nodes.data_dir, "BACKUP": tmp_path / "backup"}
    *dump, journals, files = drills.commands("postgresql-backup")
    with database_tools.database() as database:
        section = {"url": database.url, "password_file": str(database.password_file)}
        lost = nodes.start("lost", pacs_port=free_port(), database=section)
        assert storescu(lost.port, phantom_series).returncode == 0
        lost.job_in("delivering")
        drills.run_lines(dump, DATABASE_URL=database.url, **places)
        assert storescu(lost.port, another(phantom_series, tmp_path / "second")).returncode == 0
        drills.run_lines([journals], **places)
        stored = nodes.data_dir / "spool/series"
        wait_for(lambda: len(list(stored.rglob("*.dcm"))) == 48, seconds=60, what="the second series' files")
        drills.run_lines([files], **places)
        lost.kill()
    shutil.rmtree(lost.data_dir)
    with database_tools.database() as database:
        drills.run("postgresql-restore", DATABASE_URL=database.url, **places)
        section = {"url": database.url, "password_file": str(database.password_file)}
        back = nodes.start("back", pacs_port=pacs.port, database=section)
        found = restored(back)
        assert (found["missing"], found["foreign"]) == (0, 0)
        wait_for(
            lambda: [job["state"] for job in back.jobs()] == ["done", "done"],
            seconds=240,
            what=f"both jobs; see {back.log_path}",
        )
        assert reports(pacs) == 2
        back.stop()


class Senders:
    """Some at once, each sending one series of three images after the other. ``acknowledged``: of which
    series."""

    def __init__(self, port: int, series: Path, folder: Path, number: int = 4) -> None:
        self.acknowledged: list[Path] = []
        self._port, self._series, self._folder = port, series, folder
        self._stopping = threading.Event()
        self._threads = [threading.Thread(target=self._send, args=(n,)) for n in range(number)]

    def _send(self, number: int) -> None:
        for k in count():
            if self._stopping.is_set():
                return
            images = another(self._series, self._folder / f"{number}-{k}", most=3)
            if storescu(self._port, images).returncode == 0:
                self.acknowledged.append(images)

    def __enter__(self) -> Senders:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        for thread in self._threads:
            thread.join()


def test_what_was_acknowledged_before_files_are_copied_is_in_the_copy(
    nodes: Nodes, tmp_path: Path, phantom_series: Path, database_tools: PostgresCluster
) -> None:
    """Instances go from journals to files all the while."""
    places = {"DATA_DIR": nodes.data_dir, "BACKUP": tmp_path / "backup"}
    *dump, journals, files = drills.commands("postgresql-backup")
    waiting = {"quiet_seconds": 60.0, "released_quiet_seconds": 60.0}  # no job is wanted
    with database_tools.database() as database:
        section = {"url": database.url, "password_file": str(database.password_file)}
        lost = nodes.start("lost", pacs_port=free_port(), database=section, series=waiting)
        with Senders(lost.port, phantom_series, tmp_path) as senders:
            wait_for(lambda: len(senders.acknowledged) >= 8, seconds=60, what="traffic")
            drills.run_lines(dump, DATABASE_URL=database.url, **places)
            before = {path for folder in senders.acknowledged for path in folder.iterdir()}
            drills.run_lines([journals, files], **places)
        lost.kill()
    shutil.rmtree(nodes.data_dir)
    with database_tools.database() as database:
        drills.run("postgresql-restore", DATABASE_URL=database.url, **places)
        section = {"url": database.url, "password_file": str(database.password_file)}
        back = nodes.start("back", pacs_port=free_port(), database=section, series=waiting)
        assert restored(back)["missing"] == 0
        wanted = {hash_of(str(dcmread(path, stop_before_pixels=True).SOPInstanceUID)) for path in before}
        kept = {path.stem for path in (nodes.data_dir / "spool/series").rglob("*.dcm")}
        assert len(wanted) >= 24
        assert wanted <= kept
        back.stop()


def test_engines_replace_models_and_are_taken_back(tmp_path: Path) -> None:
    """Copies, dry run, overlay, on and off, with ONNX Runtime in the engine's place."""
    models = tmp_path / "models"
    drills.run("tensorrt-copies", MODELS=models)
    said = drills.run("tensorrt-dry-run", MODELS=models)
    for name in ("lungs", "lesions", "candidates", "infection_type", "inpaint"):
        assert f"{name}: would write {name}" in said
    assert not list((models / "tensorrt").glob("*_engine"))
    for folder in (models / "shipped", models / "tensorrt"):  # two are enough for a server
        for other in set(folder.iterdir()) - {folder / "lesions", folder / "infection_type"}:
            shutil.rmtree(other)
    _overlay_without_tensorrt(models / "tensorrt")
    drills.run("tensorrt-on", MODELS=models)
    assert _served(models / "current") >= {"lesions_engine", "lesions"}
    drills.run("tensorrt-off", MODELS=models)
    assert _served(models / "current") == {"lesions", "infection_type"}


def _overlay_without_tensorrt(out: Path) -> None:
    entry = MODELS["lesions"]
    parts = overlay(read_config(entry.folder))
    config = parts.configs[parts.engine]
    config.platform, config.backend = "", "onnxruntime"
    config.instance_group[0].kind = config.instance_group[0].KIND_AUTO
    build_engines.write_overlay(out, parts, b"a plan", {"model": "lesions"})
    engine = out / parts.engine
    (engine / "1/model.plan").unlink()
    onnx.save(engine_graph(onnx.load(entry.onnx_path)), engine / "1/model.onnx")
    assert json.loads((engine / "engine.json").read_text()) == {"model": "lesions"}


def _served(repository: Path) -> set[str]:
    """Served, and fit for the pipeline."""
    with (
        EmbeddedTriton(repository) as server,
        InferenceClient(server.url, timeout_seconds=60) as client,
    ):
        client.check(lesions.SPEC)
        client.check(infection.SPEC)
        return {path.name for path in repository.iterdir()}
