"""The inference client against a real Triton: the contract, pieces of a batch, and failures."""

from __future__ import annotations

import hashlib
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc as grpcclient
from numpy.typing import NDArray

from node.config import TritonConfig
from node.metrics import Metrics
from node.triton_server import DEFAULT_REPOSITORY, EmbeddedTriton
from node.triton_watch import TritonWatch
from pipelines import classify, lesions, lungs, shared_memory
from pipelines.errors import (
    InferenceFailed,
    InferenceInterrupted,
    InferenceUnavailable,
    ModelMismatch,
    ModelNotServed,
)
from pipelines.triton import InferenceClient, ModelSpec, TensorSpec
from tests.integration.receiving import wait_for

pytestmark = pytest.mark.integration

#: doubles its input and says how many rows came together; a row that begins with -1 fails, -2 crashes it,
#: -3 takes two seconds
MODEL = """
import os
import time
import numpy as np
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def execute(self, requests):
        return [self._answer(request) for request in requests]

    def _answer(self, request):
        rows = pb_utils.get_input_tensor_by_name(request, "X").as_numpy()
        if -2 in rows[:, 0]:
            os._exit(1)
        if -3 in rows[:, 0]:
            time.sleep(2)
        if -1 in rows[:, 0]:
            return pb_utils.InferenceResponse(error=pb_utils.TritonError("a row is refused"))
        together = np.full((len(rows), 1), len(rows), np.int32)
        answers = [pb_utils.Tensor("TWICE", rows * 2), pb_utils.Tensor("N", together)]
        return pb_utils.InferenceResponse(answers)
"""
CONFIG = """
backend: "python"
max_batch_size: 4
input [ { name: "X" data_type: TYPE_INT16 dims: [ -1 ] } ]
output [
  { name: "TWICE" data_type: TYPE_INT16 dims: [ -1 ] },
  { name: "N" data_type: TYPE_INT32 dims: [ 1 ] }
]
parameters { key: "sha256" value { string_value: "abc" } }
parameters { key: "weights" value { string_value: "seeded 1" } }
parameters { key: "classes" value { string_value: "no, yes" } }
"""
X, TWICE, N = (
    TensorSpec("X", "INT16", (-1,)),
    TensorSpec("TWICE", "INT16", (-1,)),
    TensorSpec("N", "INT32", (1,)),
)
SPEC = ModelSpec("double", "1", (X,), (TWICE, N))
#: a client that is killed between two studies
KILLED = """
import os, signal, sys
from pipelines.triton import InferenceClient
from tests.integration.test_triton import SPEC, rows
client = InferenceClient(sys.argv[1], timeout_seconds=10.0)
client.run(client.check(SPEC), rows(9))
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model repository with ``double`` alone."""
    model = tmp_path_factory.mktemp("repository") / "double"
    (model / "1").mkdir(parents=True)
    (model / "1" / "model.py").write_text(MODEL)
    (model / "config.pbtxt").write_text(CONFIG)
    return model.parent


@pytest.fixture(scope="module")
def server(repository: Path) -> Iterator[EmbeddedTriton]:
    with EmbeddedTriton(repository) as server:
        yield server


@pytest.fixture
def client(server: EmbeddedTriton) -> Iterator[InferenceClient]:
    with InferenceClient(server.url, timeout_seconds=10.0) as client:
        yield client


def rows(count: int) -> dict[str, NDArray[np.int16]]:
    return {"X": np.arange(count * 3, dtype=np.int16).reshape(count, 3)}


@pytest.mark.parametrize(
    ("count", "pieces"), [(1, [1]), (3, [3]), (4, [4]), (5, [4, 1]), (23, [4, 4, 4, 4, 4, 3])]
)
def test_a_batch_goes_in_pieces_and_keeps_its_order(
    client: InferenceClient, count: int, pieces: list[int]
) -> None:
    reported: list[tuple[int, int]] = []
    answer = client.run(
        client.check(SPEC), rows(count), progress=lambda done, total: reported.append((done, total))
    )
    np.testing.assert_array_equal(answer["TWICE"], rows(count)["X"] * 2)
    assert answer["N"].ravel().tolist() == [n for n in pieces for _ in range(n)]
    assert reported == [(int(done), count) for done in np.cumsum(pieces)]


def shared(server: EmbeddedTriton) -> list[str]:
    """Names of the regions that the server has mapped."""
    asked = grpcclient.InferenceServerClient(server.url)
    return list(asked.get_system_shared_memory_status(as_json=True).get("regions", {}))


def left_behind() -> list[str]:
    return [path.name for path in shared_memory.FOLDER.glob(f"{shared_memory.PREFIX}*")]


def test_tensors_go_through_shared_memory_of_which_nothing_remains(server: EmbeddedTriton) -> None:
    seen: list[int] = []
    with InferenceClient(server.url, timeout_seconds=10.0) as client:
        model = client.check(SPEC)
        for _ in range(2):
            answer = client.run(
                model, rows(23), progress=lambda _done, _total: seen.append(len(shared(server)))
            )
            np.testing.assert_array_equal(answer["TWICE"], rows(23)["X"] * 2)
        assert left_behind() == []
    assert set(seen) <= {1, 2}, "one region for each request under way"
    assert shared(server) == []


def test_messages_where_the_server_cannot_have_the_memory(
    server: EmbeddedTriton, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared_memory, "FOLDER", tmp_path)  # as if the server had another /dev/shm
    with InferenceClient(server.url, timeout_seconds=10.0) as client:
        answer = client.run(client.check(SPEC), rows(23))
        assert shared(server) == []
    np.testing.assert_array_equal(answer["TWICE"], rows(23)["X"] * 2)
    assert list(tmp_path.iterdir()) == []


def test_the_shipped_models_answer_the_same_both_ways(
    triton: EmbeddedTriton, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hu = np.random.default_rng(0).integers(-1024, 400, (19, 128, 96)).astype(np.int16)
    answers = []
    for folder in (shared_memory.FOLDER, tmp_path):
        monkeypatch.setattr(shared_memory, "FOLDER", folder)
        with InferenceClient(triton.url, timeout_seconds=60.0) as client:
            answers.append([client.run(client.check(s), {"HU": hu}) for s in (lungs.SPEC, lesions.SPEC)])
    for local, remote in zip(*answers, strict=True):
        assert {name: array.tobytes() for name, array in local.items()} == {
            name: array.tobytes() for name, array in remote.items()
        }


def test_what_a_killed_client_had_is_given_back_by_the_next(server: EmbeddedTriton) -> None:
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, server.url], capture_output=True, text=True, timeout=60, check=False
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert left_behind() == []
    of_the_dead = shared(server)
    assert of_the_dead, "the server doesn't know that its client is gone"
    unregistered = shared_memory.FOLDER / f"{of_the_dead[0]}1"  # killed before the server had it
    unregistered.touch()
    with InferenceClient(server.url, timeout_seconds=10.0) as client:
        client.run(client.check(SPEC), rows(1))
        assert not set(shared(server)) & set(of_the_dead)
    assert left_behind() == []


def test_memory_of_a_failed_request_is_not_used_again(
    server: EmbeddedTriton, client: InferenceClient
) -> None:
    """One that took too long may still be written to."""
    model = client.check(SPEC)
    with pytest.raises(InferenceFailed):
        client.run(model, {"X": np.full((1, 3), -1, np.int16)})
    failed = shared(server)
    client.run(model, rows(1))
    assert len(failed) == 1
    assert len(shared(server)) == 2


def test_memory_that_was_in_use_is_given_back_by_the_next_client(server: EmbeddedTriton) -> None:
    with InferenceClient(server.url, timeout_seconds=0.5) as impatient:
        model = impatient.check(SPEC)
        with pytest.raises(InferenceInterrupted):
            impatient.run(model, {"X": np.full((1, 3), -3, np.int16)})
    late = shared(server)
    assert late, "the server gave back what its model reads"
    with InferenceClient(server.url, timeout_seconds=10.0) as client:
        client.run(model, rows(1))  # waits until the model is free
    with InferenceClient(server.url, timeout_seconds=10.0) as client:
        client.run(model, rows(1))
        assert not set(late) & set(shared(server))


def test_no_message_is_longer_than_the_bound(
    client: InferenceClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipelines.triton.LONGEST_MESSAGE_BYTES", 2 * rows(1)["X"].nbytes)
    assert client.run(client.check(SPEC), rows(5))["N"].ravel().tolist() == [2, 2, 2, 2, 1]


def test_a_view_that_is_not_contiguous_arrives_as_it_reads(client: InferenceClient) -> None:
    flipped = rows(6)["X"][::-1, ::-1]
    np.testing.assert_array_equal(client.run(client.check(SPEC), {"X": flipped})["TWICE"], flipped * 2)


@pytest.mark.parametrize("local", [True, False])
def test_outputs_are_written_where_they_are_wanted(
    client: InferenceClient, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, local: bool
) -> None:
    if not local:
        monkeypatch.setattr(shared_memory, "FOLDER", tmp_path)
    whole = np.full((8, 11), -1, np.int16)
    place = whole[::-1, 2:8:2][1:7]
    answer = client.run(client.check(SPEC), rows(6), out={"TWICE": place})
    assert answer["TWICE"] is place
    np.testing.assert_array_equal(place, rows(6)["X"] * 2)
    assert np.count_nonzero(whole != -1) == place.size
    assert answer["N"].ravel().tolist() == [4, 4, 4, 4, 2, 2]
    with pytest.raises(InferenceFailed, match="TWICE"):
        client.run(client.check(SPEC), rows(6), out={"TWICE": np.zeros((6, 2), np.int16)})


def test_only_the_outputs_that_are_wanted_come_back(client: InferenceClient) -> None:
    model = client.check(replace(SPEC, outputs=(N,)))
    assert list(client.run(model, rows(2))) == ["N"]


def test_who_is_served(client: InferenceClient) -> None:
    model = client.check(SPEC)
    assert (model.identity.name, model.identity.version, model.identity.sha256) == ("double", "1", "abc")
    assert model.identity.is_random
    assert model.max_batch_size == 4
    assert client.check(replace(SPEC, classes=("no", "yes"))).spec.classes == ("no", "yes")


@pytest.mark.parametrize("spec", [lungs.SPEC, lesions.SPEC, classify.SPEC], ids=lambda spec: spec.name)
def test_the_shipped_models_keep_the_pipelines_contract(triton: EmbeddedTriton, spec: ModelSpec) -> None:
    with InferenceClient(triton.url, timeout_seconds=30.0) as client:
        model = client.check(spec)
    weights = DEFAULT_REPOSITORY / spec.name / spec.version / "model.onnx"
    assert model.identity.sha256 == hashlib.sha256(weights.read_bytes()).hexdigest()


@pytest.mark.parametrize(
    ("changed", "expected", "served"),
    [
        (replace(SPEC, version="2"), "model double version 2 is expected", "serves version 1 (READY)"),
        (replace(SPEC, name="triple"), "model triple version 1 is expected", "serves no model named triple"),
        (
            replace(SPEC, inputs=(replace(X, datatype="FP32"),)),
            "expects inputs X FP32[-1]",
            "served are X INT16[-1]",
        ),
        (
            replace(SPEC, inputs=(replace(X, dims=(-1, 3)),)),
            "expects inputs X INT16[-1, 3]",
            "served are X INT16[-1]",
        ),
        (
            replace(SPEC, inputs=(replace(X, name="Y"),)),
            "expects inputs Y INT16[-1]",
            "served are X INT16[-1]",
        ),
        (
            replace(SPEC, outputs=(replace(N, dims=(2,)),)),
            "expects outputs N INT32[2]",
            "served are TWICE INT16[-1], N INT32[1]",
        ),
        (replace(SPEC, inputs=()), "the pipeline sends nothing", "also needs X INT16[-1]"),
        (replace(SPEC, classes=("yes", "no")), "expects classes yes, no", "served are no, yes"),
    ],
)
def test_a_difference_from_the_contract_names_both_sides(
    client: InferenceClient, changed: ModelSpec, expected: str, served: str
) -> None:
    with pytest.raises(ModelMismatch) as raised:
        client.check(changed)
    assert expected in str(raised.value)
    assert served in str(raised.value)
    assert client.url in str(raised.value)
    assert not raised.value.retryable
    assert isinstance(raised.value, ModelNotServed) == (
        (changed.name, changed.version) != (SPEC.name, SPEC.version)
    )


def test_what_the_model_refuses_is_not_tried_again(client: InferenceClient) -> None:
    batch = rows(10)
    batch["X"][9, 0] = -1
    with pytest.raises(InferenceFailed, match=r"model double at .*a row is refused") as raised:
        client.run(client.check(SPEC), batch)
    assert not raised.value.retryable


def test_a_shape_that_the_model_does_not_take(client: InferenceClient) -> None:
    with pytest.raises(InferenceFailed, match="model double"):
        client.run(client.check(SPEC), {"X": np.zeros((2, 3, 3), np.int16)})


def test_a_backend_that_died_is_noticed_and_the_server_restarted(repository: Path) -> None:
    """Left alone, the server would say that it is ready and answer no request any more."""
    before = set(shared_memory.FOLDER.glob("pacsnode-*"))
    watch = TritonWatch(TritonConfig(model_repository=repository), Metrics("test"))
    watch.start()
    try:
        first = watch.url
        wait_for(lambda: watch.why_not_ready() is None)
        with InferenceClient(first, timeout_seconds=10.0) as client:
            model = client.check(SPEC)
            with pytest.raises(InferenceUnavailable, match="is not healthy") as raised:
                client.run(model, {"X": np.full((1, 3), -2, np.int16)})
        assert raised.value.retryable
        wait_for(lambda: watch.url != first and watch.why_not_ready() is None, seconds=60)
        with InferenceClient(watch.url, timeout_seconds=10.0) as client:
            np.testing.assert_array_equal(client.run(model, rows(1))["TWICE"], rows(1)["X"] * 2)
    finally:
        watch.stop()
    assert set(shared_memory.FOLDER.glob("pacsnode-*")) <= before
