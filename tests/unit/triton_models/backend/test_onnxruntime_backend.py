"""The backend's logic outside of a server: threads, contract, batching, and execution on stand-in requests.

A real tritonserver runs it in tests/integration. ``triton_python_backend_utils`` exists only inside the
server's stub, so a stand-in with the same classes takes its place.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper

import triton_models

MODEL_PY = Path(triton_models.__file__).parent / "backend" / "onnxruntime" / "model.py"
#: of the inputs of a request, by name
Shapes = tuple[tuple[str, tuple[int, ...]], ...]


class _Tensor:
    def __init__(self, name: str, array: NDArray[Any]) -> None:
        self._name, self.array = name, array

    def name(self) -> str:
        return self._name

    def __dlpack__(self, **_arguments: object) -> object:
        return self.array.__dlpack__()

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.array.__dlpack_device__()

    @classmethod
    def from_dlpack(cls, name: str, source: Any) -> _Tensor:
        return cls(name, np.array(source._array))


class _TritonError(Exception):
    INTERNAL, INVALID_ARG, CANCELLED = 1, 2, 3

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


class _Response:
    def __init__(self, output_tensors: Iterable[_Tensor] = (), error: _TritonError | None = None) -> None:
        self.tensors = {tensor.name(): tensor.array for tensor in output_tensors}
        self.error = error


class _Request:
    def __init__(
        self,
        arrays: Mapping[str, NDArray[Any]],
        outputs: Iterable[str] = ("SUM", "TWICE"),
        cancelled: bool = False,
    ) -> None:
        self._inputs = [_Tensor(name, array) for name, array in arrays.items()]
        self._outputs, self._cancelled = list(outputs), cancelled

    def inputs(self) -> list[_Tensor]:
        return self._inputs

    def requested_output_names(self) -> list[str]:
        return self._outputs

    def is_cancelled(self) -> bool:
        return self._cancelled


class _Model(Protocol):
    """A loaded model."""

    def execute(self, requests: Sequence[_Request]) -> list[_Response]: ...


class _ModelException(Exception):
    pass


@pytest.fixture(scope="module")
def backend() -> Iterator[ModuleType]:
    stand_in = ModuleType("triton_python_backend_utils")
    vars(stand_in).update(
        Tensor=_Tensor,
        TritonError=_TritonError,
        InferenceResponse=_Response,
        TritonModelException=_ModelException,
    )
    sys.modules[stand_in.__name__] = stand_in
    spec = importlib.util.spec_from_file_location("onnxruntime_backend_model", MODEL_PY)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    del sys.modules[stand_in.__name__]


CONFIG: dict[str, Any] = {
    "max_batch_size": 4,
    "input": [
        {"name": "A", "data_type": "TYPE_FP32", "dims": ["-1"]},
        {"name": "B", "data_type": "TYPE_FP32", "dims": ["-1"]},
    ],
    "output": [
        {"name": "SUM", "data_type": "TYPE_FP32", "dims": ["-1"]},
        {"name": "TWICE", "data_type": "TYPE_FP32", "dims": ["-1"]},
    ],
    "parameters": {"intra_op_thread_count": {"string_value": "1"}},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder whose graph gives SUM = A + B and TWICE = A + A."""

    def value(name: str) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", "length"])

    graph = helper.make_graph(
        [helper.make_node("Add", ["A", "B"], ["SUM"]), helper.make_node("Add", ["A", "A"], ["TWICE"])],
        "sums",
        [value("A"), value("B")],
        [value("SUM"), value("TWICE")],
    )
    folder = tmp_path_factory.mktemp("sums")
    (folder / "1").mkdir()
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.save(model, folder / "1" / "model.onnx")
    return folder


def _initialized(backend: ModuleType, folder: Path, config: dict[str, Any] = CONFIG) -> _Model:
    model = backend.TritonPythonModel()
    model.initialize(
        {
            "model_config": json.dumps(config),
            "model_repository": str(folder),
            "model_version": "1",
            "model_name": "sums",
            "model_instance_kind": "CPU",
        }
    )
    initialized: _Model = model
    return initialized


@pytest.fixture(autouse=True)
def _subnormals() -> Iterator[None]:
    """A session that takes them for zero leaves the thread that made it so, and other tests need them."""
    yield
    torch.set_flush_denormal(False)


def _ones(n: int, length: int = 3, value: float = 1.0) -> NDArray[np.float32]:
    return np.full((n, length), value, dtype=np.float32)


def test_threads_come_from_config_then_environment_then_cpus(backend: ModuleType) -> None:
    parameter = {"parameters": {"intra_op_thread_count": {"string_value": "3"}}}
    variable = {"TRITON_ORT_INTRA_OP_THREADS": "5"}
    assert backend.thread_count(parameter, variable) == 3
    assert backend.thread_count({}, variable) == 5
    assert (
        1 <= backend.thread_count({"parameters": {"intra_op_thread_count": {"string_value": "0"}}}, {}) <= 8
    )
    with pytest.raises(backend.ContractError, match="TRITON_ORT_INTRA_OP_THREADS must be an integer"):
        backend.thread_count({}, {"TRITON_ORT_INTRA_OP_THREADS": "many"})


def test_requests_of_one_shape_are_grouped_up_to_the_limit(backend: ModuleType) -> None:
    def shape(n: int, length: int) -> Shapes:
        return (("A", (n, length)),)

    shapes = [shape(1, 3), shape(2, 3), shape(1, 5), shape(2, 3), shape(1, 5), shape(9, 5)]
    assert backend.group_requests(shapes, 4) == [[0, 1], [2, 4], [3], [5]]
    assert backend.group_requests(shapes[:3], 0) == [[0], [1], [2]]


def test_answers_keep_the_order_and_the_batch_boundaries(backend: ModuleType, folder: Path) -> None:
    model = _initialized(backend, folder)
    requests = [
        _Request({"A": _ones(1, 3, 1), "B": _ones(1, 3, 10)}),
        _Request({"A": _ones(1, 5, 2), "B": _ones(1, 5, 20)}),
        _Request({"A": _ones(2, 3, 3), "B": _ones(2, 3, 30)}),
    ]
    responses = model.execute(requests)
    assert [r.error for r in responses] == [None] * 3
    for response, n, length, value in zip(responses, (1, 1, 2), (3, 5, 3), (11, 22, 33), strict=True):
        assert np.array_equal(response.tensors["SUM"], _ones(n, length, value))


def test_a_batch_in_pieces_gives_the_answers_of_a_whole_one(
    backend: ModuleType, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(1)
    a, b = rng.random((4, 3), dtype=np.float32), rng.random((4, 3), dtype=np.float32)
    monkeypatch.setattr(backend, "PIECE_BYTES", 24)  # an item of both inputs
    assert backend.piece_length({"A": a, "B": b}) == 1
    config = {**CONFIG, "parameters": {"intra_op_thread_count": {"string_value": "3"}}}
    (response,) = _initialized(backend, folder, config).execute([_Request({"A": a, "B": b})])
    np.testing.assert_array_equal(response.tensors["SUM"], a + b)
    np.testing.assert_array_equal(response.tensors["TWICE"], a + a)


class _Recording:
    """A session that keeps how many items it was given at once."""

    def __init__(self, session: ort.InferenceSession, lengths: list[int]) -> None:
        self._session, self._lengths = session, lengths

    def run(self, names: list[str], feeds: dict[str, NDArray[Any]]) -> list[NDArray[Any]]:
        self._lengths.append(len(feeds["A"]))
        answers: list[NDArray[Any]] = self._session.run(names, feeds)
        return answers

    def __getattr__(self, name: str) -> object:
        return getattr(self._session, name)


@pytest.mark.parametrize("threads", ["1", "3"])
def test_the_pieces_do_not_depend_on_the_threads(
    backend: ModuleType, folder: Path, monkeypatch: pytest.MonkeyPatch, threads: str
) -> None:
    lengths: list[int] = []
    opened = backend.open_session
    monkeypatch.setattr(backend, "open_session", lambda *terms: _Recording(opened(*terms), lengths))
    monkeypatch.setattr(backend, "PIECE_BYTES", 24)
    config = {**CONFIG, "parameters": {"intra_op_thread_count": {"string_value": threads}}}
    _initialized(backend, folder, config).execute([_Request({"A": _ones(4), "B": _ones(4)})])
    assert lengths == [1, 1, 1, 1]


def test_a_piece_is_as_long_as_its_bytes_allow(backend: ModuleType) -> None:
    def slices(count: int, pixels: int) -> dict[str, NDArray[np.int16]]:
        return {"HU": np.zeros((count, pixels, pixels), np.int16)}

    assert [backend.piece_length(slices(n, 512)) for n in (1, 16)] == [1, 1]
    assert backend.piece_length(slices(3, 1024)) == 1
    assert [backend.piece_length(slices(n, 64)) for n in (1, 64)] == [64, 64]


def test_only_requested_outputs_are_answered(backend: ModuleType, folder: Path) -> None:
    model = _initialized(backend, folder)
    first, second = model.execute(
        [
            _Request({"A": _ones(1), "B": _ones(1)}, outputs=("SUM",)),
            _Request({"A": _ones(1), "B": _ones(1)}, outputs=("TWICE",)),
        ]
    )
    assert (set(first.tensors), set(second.tensors)) == ({"SUM"}, {"TWICE"})


def test_a_bad_request_fails_alone(backend: ModuleType, folder: Path) -> None:
    model = _initialized(backend, folder)
    responses = model.execute(
        [
            _Request({"A": _ones(1)}),
            _Request({"A": _ones(1, 3), "B": _ones(1, 7)}),
            _Request({"A": _ones(1), "B": _ones(1)}, cancelled=True),
            _Request({"A": _ones(1), "B": _ones(1)}),
        ]
    )
    codes = [response.error and response.error.code for response in responses]
    assert codes == [_TritonError.INVALID_ARG, _TritonError.INTERNAL, _TritonError.CANCELLED, None]
    assert "inputs ['B'] are missing" in str(responses[0].error)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"output": [{"name": "NO", "data_type": "TYPE_FP32", "dims": ["-1"]}]}, "'NO' is not in model.onnx"),
        ({"output": [{"name": "SUM", "data_type": "TYPE_INT8", "dims": ["-1"]}]}, "config says TYPE_INT8"),
        ({"output": [{"name": "SUM", "data_type": "TYPE_FP32", "dims": ["-1", "2"]}]}, "config says"),
        ({"input": CONFIG["input"][:1]}, r"inputs \['B'\]"),
    ],
)
def test_a_config_that_disagrees_with_the_file_does_not_load(
    backend: ModuleType, folder: Path, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(_ModelException, match=message):
        _initialized(backend, folder, {**CONFIG, **change})
