"""The pages of destinations, models and routes, the patient of a study, and result pictures."""

from __future__ import annotations

import json
from io import BytesIO
from pathlib import Path
from zipfile import ZIP_DEFLATED, ZipFile

import numpy as np
import pytest
from PIL import Image
from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, SecondaryCaptureImageStorage
from sqlalchemy import Engine, insert

from node.checks import ModelState
from node.config import FolderDestination, RouteConfig
from node.database import instances, jobs, series, shadows
from node.deliver.folder import FolderDeliverer
from node.deliver.gate import Gate, Postponed
from node.deliver.pauses import Pauses
from node.metrics import Metrics
from node.route.router import compile_routes
from node.web.pages import STATIC_TYPES
from node.web.sources import Models
from tests.unit.node.rows import instance_row, job_row, series_row
from tests.unit.node.web.asking import asking

STUDY = "1.2"


def gate(engine: Engine, folder: Path, name: str = "outbox") -> Gate:
    config = FolderDestination(type="folder", path=folder / name)
    pauses = Pauses(engine)
    return Gate(FolderDeliverer(name, config), config, Metrics("1"), paused=lambda: pauses.of(name))


def dicom(sop_class_uid: str = CTImageStorage, **values: object) -> bytes:
    image = Dataset()
    image.update({"SOPClassUID": sop_class_uid, "SOPInstanceUID": "1.2.3.4", "StudyInstanceUID": STUDY})
    image.SeriesInstanceUID = "1.2.3"
    image.update({"Modality": "CT", **values})
    image.file_meta = FileMetaDataset()
    image.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    file = BytesIO()
    image.save_as(file, enforce_file_format=True)
    return file.getvalue()


@pytest.mark.anyio
async def test_every_page_of_an_empty_node_says_so(engine: Engine, tmp_path: Path) -> None:
    async with asking(engine, tmp_path, "admin") as client:
        for path, said in (
            ("/", "Nothing received yet"),
            ("/studies", "No such studies"),
            ("/destinations", "destinations are with the workers"),
            ("/models", "models are with the workers"),
            ("/routes", "No routes are configured"),
        ):
            answer = await client.get(path)
            assert answer.status_code == 200 and said in answer.text, path
            assert "aria-current" in answer.text
        for name, kind in STATIC_TYPES.items():
            assert (await client.get(f"/static/{name}")).headers["content-type"].startswith(kind)
        assert (await client.get("/static/base.html")).status_code == 404
        assert (await client.get("/studies?state=nonsense")).status_code == 422
        assert (await client.get("/studies?before=nonsense")).status_code == 422


@pytest.mark.anyio
async def test_a_destination_is_paused_resumed_and_tested(engine: Engine, tmp_path: Path) -> None:
    outbox = gate(engine, tmp_path)
    async with asking(engine, tmp_path, "operator", gates=lambda: {"outbox": outbox}) as client:
        assert (await client.post("/destinations/outbox/pause")).status_code == 303
        page = (await client.get("/destinations")).text
        assert "paused" in page and "by someone" in page and "Resume outbox" in page
        with pytest.raises(Postponed, match="someone paused it"):
            outbox.deliver([])
        (told,) = (await client.get("/api/destinations")).json()
        assert (told["state"], told["paused"]["paused_by"]) == ("closed", "someone")
        assert (await client.post("/destinations/outbox/resume")).status_code == 303
        assert outbox.deliver([]) == ()
        assert "outbox answers." in (await client.post("/destinations/outbox/test")).text
        (tmp_path / "outbox").rmdir()
        (tmp_path / "outbox").write_text("in the way")
        assert "outbox" in (await client.post("/destinations/outbox/test")).text
        assert (await client.post("/destinations/nobody/pause")).status_code == 404
        assert (await client.post("/destinations/outbox/delete")).status_code == 404
    async with asking(engine, tmp_path, "viewer", gates=lambda: {"outbox": outbox}) as client:
        assert "Pause outbox" not in (await client.get("/destinations")).text
        assert (await client.post("/destinations/outbox/pause")).status_code == 403


def test_a_pause_is_kept_over_a_restart(engine: Engine, tmp_path: Path) -> None:
    assert Pauses(engine).pause("outbox", "anna")
    assert not Pauses(engine).pause("outbox", "otto")
    paused = gate(engine, tmp_path).condition.paused
    assert paused is not None and paused.paused_by == "anna"
    assert gate(engine, tmp_path, "other").condition.paused is None
    assert Pauses(engine).resume("outbox") and not Pauses(engine).resume("outbox")


@pytest.mark.anyio
async def test_models_say_what_is_wrong(engine: Engine, tmp_path: Path) -> None:
    states = (
        ModelState("lungs", "1", ("triage",), True, True, "ab" * 32, "", ""),
        ModelState("fusion", "1", ("triage",), False, False, "", "not served; pipelines do without it", ""),
        ModelState("lesions", "2", ("pneumonia",), True, False, "", "version 1 is served", "export it"),
    )
    async with asking(engine, tmp_path, "viewer", models=lambda: Models("10.0.0.1:8001", states)) as client:
        page = (await client.get("/models")).text
        for text in ("ab" * 32, "not served; pipelines do without it", "version 1 is served", "export it"):
            assert text in page
        assert (await client.get("/api/models")).json()["states"][0]["ready"] is True


RULE = {"all": [{"fact": "modality", "equals": "CT"}, {"fact": "study_description", "equals": "Thorax"}]}
ROUTES = compile_routes(
    [RouteConfig(name="chest", pipeline="chest_ct_triage", when=RULE, destinations=("pacs",))]
)


def zipped(**files: bytes) -> bytes:
    packed = BytesIO()
    with ZipFile(packed, "w", ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return packed.getvalue()


@pytest.mark.anyio
async def test_a_dry_run_says_what_would_happen_and_keeps_nothing(engine: Engine, tmp_path: Path) -> None:
    files = [
        ("file", ("a/../../b.dcm", dicom(StudyDescription="Thorax"))),
        ("file", ("c.txt", b"hello")),
        ("file", ("d.zip", zipped(readme=b"x" * 200, other=dicom(SeriesInstanceUID="1.2.9", Modality="MR")))),
    ]
    async with asking(engine, tmp_path, "operator", routes=lambda: ROUTES) as client:
        answer = await client.post("/routes/dry-run", files=files, headers={"Accept": "application/json"})
        first, second = answer.json()["series"]
        assert (first["runs"], first["routes"][0]["destinations"]) == (["chest_ct_triage"], ["pacs"])
        assert (second["runs"], second["matched"]) == ([], [])
        assert [one["path"] for one in answer.json()["skipped"]] == ["c.txt", "readme"]
        page = (await client.post("/routes/dry-run", files=files)).text
        assert "It would run chest_ct_triage." in page and "no route matches" in page
        assert "Thorax" in page, "the rule's free text goes back to who sent it"
        wrong = await client.post("/routes/dry-run", content=b"x", headers={"Content-Type": "text/plain"})
        assert wrong.status_code == 415 and "must be multipart" in wrong.text
    assert not list((tmp_path / "uploads").iterdir())
    async with asking(engine, tmp_path, "viewer", routes=lambda: ROUTES) as client:
        assert (await client.post("/routes/dry-run", files=files)).status_code == 403
        assert "chest_ct_triage" in (await client.get("/routes")).text


@pytest.mark.anyio
async def test_the_patient_is_for_operators_and_audited(engine: Engine, tmp_path: Path) -> None:
    (tmp_path / "0.dcm").write_bytes(dicom(PatientName="Doe^Jane", PatientID="4711"))
    with engine.begin() as connection:
        connection.execute(insert(series), [series_row()])
        row = instance_row(study_instance_uid=STUDY, series_instance_uid="1.2.3", series_version=1)
        connection.execute(insert(instances), [row])
    seen: list[tuple[str, ...]] = []
    async with asking(engine, tmp_path, "operator", accessed=lambda *what: seen.append(what)) as client:
        assert "Doe" not in (await client.get(f"/studies/{STUDY}")).text
        page = (await client.get(f"/studies/{STUDY}/patient")).text
        assert "Doe^Jane" in page and "4711" in page
        assert (await client.get("/studies/9.9/patient")).status_code == 404
    assert seen == [("someone", "192.0.2.7", STUDY)]
    async with asking(engine, tmp_path, "viewer") as client:
        assert (await client.get(f"/studies/{STUDY}/patient")).status_code == 403
        assert "Show it" not in (await client.get(f"/studies/{STUDY}")).text


@pytest.mark.anyio
async def test_result_pictures_are_shown(engine: Engine, tmp_path: Path) -> None:
    folder = tmp_path / "results/j1"
    folder.mkdir(parents=True)
    pixels = np.zeros((4, 6, 3), np.uint8)
    pixels[..., 0] = 200
    values = {
        "Rows": 4,
        "Columns": 6,
        "SamplesPerPixel": 3,
        "PhotometricInterpretation": "RGB",
        "PlanarConfiguration": 0,
        "BitsAllocated": 8,
        "BitsStored": 8,
        "HighBit": 7,
        "PixelRepresentation": 0,
        "PixelData": pixels.tobytes(),
    }
    (folder / "picture.dcm").write_bytes(dicom(SecondaryCaptureImageStorage, **values))
    results = [
        {"sop_class_uid": "1.2.840.10008.5.1.4.1.1.66.4", "path": "segmentation.dcm"},
        {"sop_class_uid": SecondaryCaptureImageStorage, "path": "picture.dcm"},
    ]
    summary = {"results": results, "timings_seconds": {"lungs": 1.0}, "conclusion": "Nothing is found."}
    (folder / "summary.json").write_text(json.dumps(summary))
    with engine.begin() as connection:
        connection.execute(insert(series), [series_row()])
        connection.execute(insert(jobs), [job_row(state="done", result_dir="results/j1")])
    address = f"/studies/{STUDY}/jobs/j1/pictures"
    async with asking(engine, tmp_path, "viewer") as client:
        page = (await client.get(f"/studies/{STUDY}")).text
        assert f"{address}/1" in page and f"{address}/0" not in page
        assert "Nothing is found." in page
        shown = await client.get(f"{address}/1")
        assert shown.headers["content-type"] == "image/png"
        assert np.array_equal(np.asarray(Image.open(BytesIO(shown.content))), pixels)
        for other in (f"{address}/0", f"{address}/2", f"{address}/-1", "/studies/9.9/jobs/j1/pictures/1"):
            assert (await client.get(other)).status_code == 404


@pytest.mark.anyio
async def test_candidates_show_how_far_they_agree(engine: Engine, tmp_path: Path) -> None:
    agreement = {
        "dice": {"Region": 0.875},
        "case_type": {"live": "covid19", "candidate": "covid19", "equal": True},
        "noisy_or": {"covid19": {"live": 0.5, "candidate": 0.75, "difference": 0.25}},
    }
    rows = [
        {"job_id": "a1" * 32, "candidate": "next", "state": "done", "created_at": 1.0, "finished_at": 2.0}
        | {"agreement": agreement},
        {"job_id": "a1" * 32, "candidate": "other", "state": "waiting", "created_at": 1.0}
        | {"finished_at": None, "agreement": None},
    ]
    with engine.begin() as connection:
        connection.execute(insert(jobs), [job_row(job_id="a1" * 32)])
        connection.execute(insert(shadows), rows)
    async with asking(engine, tmp_path, "viewer") as client:
        page = (await client.get("/models")).text
        assert "100.0 % of 1" in page and "Region: 0.875, 0.875" in page and "covid19: 0.250, 0.250" in page
        assert "waiting 1" in page and "nothing to compare yet" in page
        found = (await client.get("/api/models")).json()["candidates"]
        assert [one["candidate"] for one in found] == ["next", "other"]
