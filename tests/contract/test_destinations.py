"""What every destination holds to (``node.deliver.base.Destination``), against real counterparts."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from pydicom import dcmread

from node.deliver.base import Instance
from node.errors import DeliveryError
from pipelines.results import ResultSet, write_result_set
from pipelines.results.capture import build_capture
from pipelines.results.report import build_report
from pipelines.results.segmentation import build_segmentation
from tests.contract.destinations import COUNTERPARTS, Counterpart
from tests.unit.node.deliver.conftest import write_object
from tests.unit.pipelines.results.synthetic import chest, context

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A result set: a segmentation, a report with non-ASCII text and a secondary capture."""
    volume, findings = chest()
    segmentation = build_segmentation(volume, findings, context())
    report = build_report(volume, findings, segmentation, context())
    picture = build_capture(np.zeros((1, 16, 16, 3), np.uint8), volume, context(), role="picture")
    objects = (("segmentation", segmentation), ("report", report), ("picture", picture))
    return [entry.path for entry in write_result_set(ResultSet(objects), tmp_path_factory.mktemp("results"))]


@pytest.fixture(scope="module", params=COUNTERPARTS)
def it(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Counterpart]:
    """One of each kind, for the whole module; it ends with the last test."""
    counterpart = COUNTERPARTS[request.param](tmp_path_factory.mktemp(request.param))
    yield counterpart
    counterpart.end()


def uids(files: list[Path]) -> list[str]:
    return [str(dcmread(file, stop_before_pixels=True).SOPInstanceUID) for file in files]


def test_it_has_a_name_and_can_be_checked(it: Counterpart) -> None:
    assert it.destination.name == "it"
    it.destination.check()


def test_all_is_stored_and_each_is_named_in_order(it: Counterpart, files: list[Path]) -> None:
    stored = it.destination.deliver(files)
    instances = [Instance.read(file) for file in files]
    assert [(each.sop_class_uid, each.sop_instance_uid, each.warning) for each in stored] == [
        (each.sop_class_uid, each.sop_instance_uid, "") for each in instances
    ]
    assert set(uids(files)) <= set(it.held())


def test_again_is_harmless(it: Counterpart, files: list[Path]) -> None:
    for _ in range(2):
        it.destination.deliver(files)
    held = it.held()
    assert [held.count(uid) for uid in uids(files)] == [1] * len(files)


def test_every_instance_waits_for_its_turn(it: Counterpart, files: list[Path]) -> None:
    sizes: list[int] = []
    it.destination.deliver(files, sizes.append)
    assert sizes == [file.stat().st_size for file in files]


def test_nothing_is_nothing(it: Counterpart) -> None:
    assert it.destination.deliver([]) == ()


def test_several_threads_at_once(it: Counterpart, tmp_path: Path) -> None:
    sets = [[write_object(tmp_path, 10 * which + number) for number in (1, 2)] for which in range(3)]
    threads = [threading.Thread(target=it.destination.deliver, args=(files,)) for files in sets]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert {uid for files in sets for uid in uids(files)} <= set(it.held())


def test_a_file_that_is_gone_is_ours_to_explain(it: Counterpart, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        it.destination.deliver([tmp_path / "gone.dcm"])


def test_closed_it_can_be_used_again(it: Counterpart, files: list[Path]) -> None:
    it.destination.close()
    it.destination.deliver(files)


@pytest.mark.parametrize("kind", COUNTERPARTS)
def test_one_that_is_gone_may_come_back(tmp_path: Path, files: list[Path], kind: str) -> None:
    it = COUNTERPARTS[kind](tmp_path)
    it.end()
    for attempt in (it.destination.check, lambda: it.destination.deliver(files)):
        with pytest.raises(DeliveryError) as raised:
            attempt()
        assert raised.value.retryable and raised.value.hint
        assert str(raised.value).startswith("destination it")
