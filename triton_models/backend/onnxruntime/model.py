"""Python-based Triton backend "onnxruntime": serves ``<version>/model.onnx`` with ONNX Runtime.

In: a model folder whose config.pbtxt says ``backend: "onnxruntime"``.  Out: the answers of NVIDIA's C++
onnxruntime backend, on servers that don't carry it (the tritonserver in the nvidia-pytriton wheel).
Installed as ``onnxruntime/model.py`` in the server's backend folder; runs in tritonserver's Python stub.

Tensors pass by DLPack, because the stub's ``as_numpy`` returns empty arrays under numpy 2. Requests that
Triton hands over together are run as one batch where their shapes agree. On the CPU a batch is computed in
pieces, side by side (``SplitSession``).

Threads, first that is set: the config parameter ``intra_op_thread_count`` (the name that NVIDIA's backend
uses), the environment variable ``TRITON_ORT_INTRA_OP_THREADS``, the CPUs this process may use (at most 8).
"""

import ctypes
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnxruntime as ort
import triton_python_backend_utils as pb_utils

MODEL_FILE = "model.onnx"
THREADS_PARAMETER = "intra_op_thread_count"
THREADS_VARIABLE = "TRITON_ORT_INTRA_OP_THREADS"
MOST_THREADS = 8
#: inputs of one piece of a batch, unless a single item is larger: an axial slice of 512 x 512
PIECE_BYTES = 512 * 512 * 2

TRITON_TYPES = {
    "tensor(bool)": "TYPE_BOOL",
    "tensor(uint8)": "TYPE_UINT8",
    "tensor(uint16)": "TYPE_UINT16",
    "tensor(uint32)": "TYPE_UINT32",
    "tensor(uint64)": "TYPE_UINT64",
    "tensor(int8)": "TYPE_INT8",
    "tensor(int16)": "TYPE_INT16",
    "tensor(int32)": "TYPE_INT32",
    "tensor(int64)": "TYPE_INT64",
    "tensor(float16)": "TYPE_FP16",
    "tensor(float)": "TYPE_FP32",
    "tensor(double)": "TYPE_FP64",
}


class ContractError(Exception):
    """The ONNX file and config.pbtxt disagree."""


def thread_count(config: Mapping, environment: Mapping[str, str]) -> int:
    """Intra-op threads for one session; a setting of 0 means the default.

    Raises ContractError when a setting is no integer >= 0.
    """
    parameter = config.get("parameters", {}).get(THREADS_PARAMETER, {}).get("string_value")
    for source, text in (
        (THREADS_PARAMETER, parameter),
        (THREADS_VARIABLE, environment.get(THREADS_VARIABLE)),
    ):
        if text:
            if not text.isdigit():
                raise ContractError(f"{source} must be an integer >= 0, got {text!r}")
            if int(text) > 0:
                return int(text)
    return min(len(os.sched_getaffinity(0)), MOST_THREADS)


def tensor_configs(values: Iterable, *, batched: bool) -> list[dict]:
    """ONNX Runtime's node arguments as Triton tensor configs; symbolic dimensions become -1."""
    configs = []
    for value in values:
        dims = [dim if isinstance(dim, int) else -1 for dim in value.shape]
        if value.type not in TRITON_TYPES:
            raise ContractError(f"{value.name}: ONNX type {value.type} has no Triton type here")
        configs.append(
            {
                "name": value.name,
                "data_type": TRITON_TYPES[value.type],
                "dims": dims[1:] if batched else dims,
            }
        )
    return configs


def check_contract(kind: str, configured: Sequence[Mapping], actual: Sequence[Mapping]) -> None:
    """Raise ContractError unless every configured tensor exists in the file with that type and those dims.

    A configured -1 accepts any size, and so does a symbolic dimension of the file. Required inputs of the
    file must all be configured; outputs may be left out.
    """
    by_name = {tensor["name"]: tensor for tensor in actual}
    for tensor in configured:
        name = tensor["name"]
        if name not in by_name:
            raise ContractError(f"{kind} {name!r} is not in {MODEL_FILE}, which has {sorted(by_name)}")
        found = by_name[name]
        if tensor["data_type"] != found["data_type"]:
            raise ContractError(f"{kind} {name!r} is {found['data_type']}, config says {tensor['data_type']}")
        dims, real = [int(dim) for dim in tensor["dims"]], found["dims"]
        if len(dims) != len(real) or any(
            want not in (-1, have) and have != -1 for want, have in zip(dims, real, strict=True)
        ):
            raise ContractError(f"{kind} {name!r} has dims {real}, config says {dims}")
    if kind == "input" and (missing := set(by_name) - {tensor["name"] for tensor in configured}):
        raise ContractError(f"inputs {sorted(missing)} of {MODEL_FILE} are not in the config")


def group_requests(shapes: Sequence[tuple], most: int) -> list[list[int]]:
    """Indices of requests that can run as one batch, in order of arrival.

    shapes: for each request, its inputs' (name, shape) pairs, with the batch axis first in each shape.
    most: largest batch to build; 0 means no batching, every request alone.
    """
    groups: list[list[int]] = []
    open_groups: dict[tuple, tuple[list[int], int]] = {}
    for index, inputs in enumerate(shapes):
        if most <= 0 or not inputs:
            groups.append([index])
            continue
        size = inputs[0][1][0]
        key = tuple((name, shape[1:]) for name, shape in inputs)
        members, filled = open_groups.get(key, ([], most))
        if filled + size > most:
            members, filled = [], 0
            groups.append(members)
        members.append(index)
        open_groups[key] = (members, filled + size)
    return groups


def open_session(path: Path, threads: int, kind: str) -> ort.InferenceSession:
    """ONNX Runtime session for a model file; on the GPU when the instance is one and CUDA is there."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # spinning threads would take the CPU from the client that prepares the next slices
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    # numbers below 1e-38 mean nothing in an answer, and cost a CPU many times an ordinary one's time
    options.add_session_config_entry("session.set_denormal_as_zero", "1")
    providers = ["CPUExecutionProvider"]
    if kind == "GPU" and "CUDAExecutionProvider" in ort.get_available_providers():
        providers.insert(0, "CUDAExecutionProvider")
    return ort.InferenceSession(str(path), options, providers=providers)


def piece_length(feeds: Mapping[str, np.ndarray]) -> int:
    """Items of a batch that one thread computes at once: PIECE_BYTES of them, so that it doesn't depend on
    the number of threads or of items."""
    count = len(next(iter(feeds.values())))
    item_bytes = sum(array.nbytes for array in feeds.values()) // max(count, 1)
    return max(1, PIECE_BYTES // max(item_bytes, 1))


class SplitSession:
    """Computes a batch in pieces, each on a thread of its own; what is one piece has all threads together.

    Threads that share each operator wait for one another at its end, and a large batch's intermediate
    results don't fit into a core's cache; pieces on threads of their own have neither trouble. Models that
    are served with a batch axis treat its items independently, so the answers are the same.
    """

    def __init__(self, whole: ort.InferenceSession, alone: ort.InferenceSession, threads: int) -> None:
        """whole: a session of ``threads`` threads.  alone: of the same model, one of a single thread: pieces
        in a session of several would share out their operators among them all the same."""
        self._whole = whole
        self._alone = alone
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="pieces")

    def run(self, names: Sequence[str], feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """Outputs ``names`` for inputs with a batch axis, like ``InferenceSession.run``."""
        count, length = len(next(iter(feeds.values()))), piece_length(feeds)
        if count <= length:
            return self._whole.run(names, feeds)

        def compute(start: int) -> list[np.ndarray]:
            return self._alone.run(names, {k: v[start : start + length] for k, v in feeds.items()})

        answers = list(self._pool.map(compute, range(0, count, length)))
        return [np.concatenate(parts) for parts in zip(*answers, strict=True)]


class _Handover:
    """An array that gives itself away by DLPack to the stub.

    The stub takes the tensor over and frees it as the protocol wants, but marks the capsule "used_dlpack"
    where the protocol says "used_dltensor", so that numpy's destructor of the capsule complains on every
    response. A capsule without destructor keeps quiet.
    """

    def __init__(self, array):
        self._array = array

    def __dlpack__(self, stream=None):
        capsule = self._array.__dlpack__()
        ctypes.pythonapi.PyCapsule_SetDestructor(ctypes.py_object(capsule), None)
        return capsule

    def __dlpack_device__(self):
        return self._array.__dlpack_device__()


class TritonPythonModel:
    """One model instance.

    There is no ``auto_complete_config``: the stub doesn't tell it where the model is, so config.pbtxt lists
    inputs and outputs, and ``initialize`` checks them against the file.
    """

    def initialize(self, args):
        """Load the version's ONNX file and check it against the config."""
        self.config = json.loads(args["model_config"])
        path = Path(args["model_repository"]) / args["model_version"] / MODEL_FILE
        try:
            threads, kind = thread_count(self.config, os.environ), args["model_instance_kind"]
            session = open_session(path, threads, kind)
            batched = self.config["max_batch_size"] > 0
            check_contract(
                "input", self.config["input"], tensor_configs(session.get_inputs(), batched=batched)
            )
            check_contract(
                "output", self.config["output"], tensor_configs(session.get_outputs(), batched=batched)
            )
            self.session = session
            if batched and session.get_providers() == ["CPUExecutionProvider"]:
                alone = session if threads == 1 else open_session(path, 1, kind)
                self.session = SplitSession(session, alone, threads)
        except ContractError as error:
            raise pb_utils.TritonModelException(f"{args['model_name']}: {error}") from error
        self.required = {
            tensor["name"] for tensor in self.config["input"] if not tensor.get("optional", False)
        }
        self.output_names = [tensor["name"] for tensor in self.config["output"]]

    def execute(self, requests):
        """Run the requests; the answers come in the requests' order, failures as errors of their request."""
        responses = [None] * len(requests)
        feeds, runnable = [], []
        for index, request in enumerate(requests):
            if request.is_cancelled():
                responses[index] = _failure("the request was cancelled", pb_utils.TritonError.CANCELLED)
                continue
            feed = {tensor.name(): np.from_dlpack(tensor) for tensor in request.inputs()}
            if missing := self.required - set(feed):
                responses[index] = _failure(
                    f"inputs {sorted(missing)} are missing", pb_utils.TritonError.INVALID_ARG
                )
                continue
            feeds.append(feed)
            runnable.append(index)
        shapes = [tuple(sorted((name, array.shape) for name, array in feed.items())) for feed in feeds]
        for group in group_requests(shapes, self.config["max_batch_size"]):
            members = [runnable[i] for i in group]
            answers = self._run([requests[i] for i in members], [feeds[i] for i in group])
            for index, answer in zip(members, answers, strict=True):
                responses[index] = answer
        return responses

    def _run(self, requests, feeds):
        """Responses of requests that share one batch."""
        wanted = set().union(*(request.requested_output_names() for request in requests))
        names = [name for name in self.output_names if name in wanted]
        try:
            if len(feeds) == 1:
                batch = feeds[0]
            else:
                batch = {name: np.concatenate([feed[name] for feed in feeds]) for name in feeds[0]}
            results = dict(zip(names, self.session.run(names, batch), strict=True))
        except Exception as error:  # the boundary to the server: the failure is the requests' answer
            return [_failure(str(error), pb_utils.TritonError.INTERNAL) for _ in requests]
        responses, start = [], 0
        for request, feed in zip(requests, feeds, strict=True):
            size = len(next(iter(feed.values())))
            own = set(request.requested_output_names())
            parts = {
                name: result if len(requests) == 1 else np.ascontiguousarray(result[start : start + size])
                for name, result in results.items()
                if name in own
            }
            responses.append(
                pb_utils.InferenceResponse(
                    [pb_utils.Tensor.from_dlpack(name, _Handover(part)) for name, part in parts.items()]
                )
            )
            start += size
        return responses


def _failure(message, code):
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(message, code))
