"""Arrays in, arrays out, by Triton Inference Server: contract check, bounded batches, typed errors.

Tensors travel through shared memory where the server is on this host, else in bounded messages.

A stage states what it expects of its model as a ``ModelSpec``; ``InferenceClient.check`` compares that with
what is served and names both sides of a difference. Protocol: KServe v2 over gRPC.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import tritonclient.grpc as grpcclient
from numpy.typing import NDArray
from tritonclient.utils import InferenceServerException, np_to_triton_dtype, triton_to_np_dtype

from pipelines.errors import (
    InferenceFailed,
    InferenceInterrupted,
    InferenceUnavailable,
    ModelMismatch,
    ModelNotServed,
    PipelineError,
)
from pipelines.request import PLAIN, Access
from pipelines.shared_memory import Region, SharedMemory, padded
from pipelines.triton_access import connect
from pipelines.volume import ModelIdentity

#: requests under way at once: one computing, one travelling
REQUESTS_IN_FLIGHT = 2
#: inputs of one request, unless a single item is larger
LONGEST_MESSAGE_BYTES = 32 * 2**20
#: gRPC status codes of requests that may succeed once the server is there
UNAVAILABLE_STATUS = ("UNAVAILABLE",)
#: … and of requests that may succeed, or be what breaks the server
INTERRUPTED_STATUS = ("DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED", "CANCELLED")
#: states of a model that is about to be served, or was until now
_PASSING_STATES = ("LOADING", "UNLOADING")

Arrays = Mapping[str, NDArray[Any]]
Progress = Callable[[int, int], None]
#: called with (model, seconds, "" or the error's code) when a request has ended, from any thread
OnRequest = Callable[[str, float, str], object]


@dataclass(frozen=True)
class TensorSpec:
    """One tensor without its batch axis: Triton data type (``INT16``) and dims, -1 where any size will do."""

    name: str
    datatype: str
    dims: tuple[int, ...]

    @property
    def dtype(self) -> np.dtype[Any]:
        return np.dtype(triton_to_np_dtype(self.datatype))

    def __str__(self) -> str:
        return f"{self.name} {self.datatype}{list(self.dims)}"


@dataclass(frozen=True)
class ModelSpec:
    """What a stage expects to be served.

    classes: what a classifier's channels mean, in order; compared where the served configuration says it.
    """

    name: str
    version: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    classes: tuple[str, ...] = ()


@dataclass(frozen=True)
class ServedModel:
    """A model that passed the contract check."""

    spec: ModelSpec
    identity: ModelIdentity
    max_batch_size: int


class Inference(Protocol):
    """What a stage needs of an inference service."""

    def check(self, spec: ModelSpec) -> ServedModel: ...

    def run(
        self,
        model: ServedModel,
        inputs: Arrays,
        *,
        progress: Progress | None = None,
        out: Arrays | None = None,
    ) -> dict[str, NDArray[Any]]: ...


def put_into(out: Arrays | None, answer: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """What ``run`` returns of an answer computed elsewhere: in the arrays of ``out``, where there are."""
    for name, array in (out or {}).items():
        array[:] = answer[name]
    return {**answer, **(out or {})}


class InferenceClient:
    """A connection to one Triton server.

    url: ``host:port`` of its gRPC endpoint. timeout_seconds: for each request, unless ``access`` has another
    for its model. on_request: told of each request for inference that has ended. Use as a context manager, or
    call ``close``.
    """

    def __init__(
        self,
        url: str,
        *,
        timeout_seconds: float,
        access: Access = PLAIN,
        on_request: OnRequest = lambda _model, _seconds, _code: None,
    ) -> None:
        self.url = url
        self._on_request = on_request
        self._timeout = timeout_seconds
        self._access = access
        self._client = connect(url, access)
        self._shared = SharedMemory(self._client, url, timeout_seconds=timeout_seconds)

    def __enter__(self) -> InferenceClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._shared.close()
        self._client.close()

    def ready(self) -> bool:
        """Whether the server answers and all its models are ready."""
        try:
            return bool(self._client.is_server_ready(client_timeout=min(self._timeout, 5.0)))
        except InferenceServerException:
            return False

    def wait_ready(self, seconds: float) -> None:
        """Return once the server is ready; raises InferenceUnavailable after ``seconds``."""
        deadline = time.monotonic() + seconds
        while not self.ready():
            if time.monotonic() > deadline:
                raise InferenceUnavailable(
                    f"Triton at {self.url} isn't ready after {seconds:.0f} s",
                    hint="is it running and loaded?",
                )
            time.sleep(0.2)

    def check(self, spec: ModelSpec) -> ServedModel:
        """Compare what is served with ``spec``.

        Raises ModelMismatch naming both sides, ModelNotServed where there is no such model or version,
        InferenceUnavailable if the server can't be asked.
        """
        with self._errors(spec.name):
            if not self._client.is_model_ready(spec.name, spec.version, client_timeout=self._timeout):
                served_instead = self._served(spec.name)
                if any(state in served_instead for state in _PASSING_STATES):
                    raise InferenceUnavailable(
                        f"model {spec.name} version {spec.version} isn't ready at {self.url}: "
                        f"{served_instead}"
                    )
                raise ModelNotServed(
                    f"model {spec.name} version {spec.version} is expected; Triton at {self.url} serves "
                    f"{served_instead}",
                    hint="put the model into the repository or change the pipeline's expectation",
                )
            metadata = self._client.get_model_metadata(
                spec.name, spec.version, as_json=True, client_timeout=self._timeout
            )
            config = self._client.get_model_config(
                spec.name, spec.version, as_json=True, client_timeout=self._timeout
            )["config"]
        max_batch_size = int(config.get("max_batch_size", 0))
        for side, expected in (("inputs", spec.inputs), ("outputs", spec.outputs)):
            served = {t.name: t for t in _tensors(metadata.get(side, []), batched=max_batch_size > 0)}
            _compare(spec, side, expected, served, self.url)
        parameters = {k: v.get("string_value", "") for k, v in config.get("parameters", {}).items()}
        classes = parameters.get("classes", "")
        if spec.classes and classes and classes != ", ".join(spec.classes):
            raise ModelMismatch(
                f"model {spec.name} version {spec.version} at {self.url}: the pipeline expects classes "
                f"{', '.join(spec.classes)}; served are {classes}"
            )
        identity = ModelIdentity(
            spec.name,
            spec.version,
            *(parameters.get(name, "") for name in ("sha256", "description", "weights")),
        )
        return ServedModel(spec, identity, max(max_batch_size, 1))

    def run(
        self,
        model: ServedModel,
        inputs: Arrays,
        *,
        progress: Progress | None = None,
        out: Arrays | None = None,
    ) -> dict[str, NDArray[Any]]:
        """Run a model over a batch axis of any length.

        inputs: name -> (n, *dims), contiguous or not. out: likewise, outputs to be written there instead of
        into new arrays. Returns name -> (n, *dims) for every output of the spec. The batch is sent in pieces
        of at most the model's max_batch_size and LONGEST_MESSAGE_BYTES; the order is kept.
        """
        count = len(next(iter(inputs.values())))
        item_bytes = sum(array.nbytes for array in inputs.values()) // max(count, 1)
        most = max(1, min(model.max_batch_size, LONGEST_MESSAGE_BYTES // max(item_bytes, 1)))
        answers = _Answers(model, count, out or {})
        waiting: deque[tuple[slice, Future[None]]] = deque()

        def collect() -> None:
            piece, future = waiting.popleft()
            future.result()
            if progress is not None:
                progress(min(piece.stop, count), count)

        with ThreadPoolExecutor(REQUESTS_IN_FLIGHT) as pool:
            for start in range(0, count, most):
                piece = slice(start, min(start + most, count))
                batch = {name: array[piece] for name, array in inputs.items()}
                waiting.append((piece, pool.submit(self._infer, model, batch, answers, piece)))
                if len(waiting) >= REQUESTS_IN_FLIGHT:
                    collect()
            while waiting:
                collect()
        return answers.arrays

    def _infer(self, model: ServedModel, batch: Arrays, answers: _Answers, piece: slice) -> None:
        started, code = time.monotonic(), ""
        try:
            self._ask(model, batch, answers, piece)
        except PipelineError as error:
            code = error.code
            raise
        finally:
            self._on_request(model.spec.name, time.monotonic() - started, code)

    def _ask(self, model: ServedModel, batch: Arrays, answers: _Answers, piece: slice) -> None:
        expected = answers.sizes(piece)
        needed = [array.nbytes for array in batch.values()] + list(expected.values())
        with (
            self._shared.lend(sum(map(padded, needed))) as region,
            self._errors(model.spec.name, computing=True),
        ):
            wanted = [grpcclient.InferRequestedOutput(tensor.name) for tensor in model.spec.outputs]
            tensors = [_input(name, array, region) for name, array in batch.items()]
            offsets: dict[str, int] = {}
            if region is not None:
                for output in wanted:
                    if size := expected.get(output.name()):
                        offsets[output.name()] = region.take(size)
                        output.set_shared_memory(region.name, size, offsets[output.name()])
            answer = self._client.infer(
                model.spec.name,
                tensors,
                model_version=model.spec.version,
                outputs=wanted,
                client_timeout=self._access.model_timeouts_seconds.get(model.spec.name, self._timeout),
            )
            for tensor in model.spec.outputs:
                if region is None or tensor.name not in offsets:
                    part = answer.as_numpy(tensor.name)
                else:
                    shape = tuple(answer.get_output(tensor.name).shape)
                    part = region.array(offsets[tensor.name], shape, tensor.dtype)
                answers.put(tensor, piece, part)

    def _served(self, name: str) -> str:
        index = self._client.get_model_repository_index(as_json=True, client_timeout=self._timeout)
        found = [
            f"version {entry.get('version', '?')} ({entry.get('state', 'UNAVAILABLE')})"
            for entry in index.get("models", [])
            if entry.get("name") == name
        ]
        return ", ".join(found) or f"no model named {name}"

    @contextmanager
    def _errors(self, model_name: str, *, computing: bool = False) -> Iterator[None]:
        try:
            yield
        except InferenceServerException as error:
            status, message = str(error.status()), str(error.message())
            kind: type[PipelineError] = InferenceFailed
            crashed = "is not healthy" in message  # a backend process died: the server is to be restarted
            if crashed or any(code in status for code in UNAVAILABLE_STATUS):
                kind = InferenceUnavailable
            elif any(code in status for code in INTERRUPTED_STATUS):
                # nobody answers a question that takes no time; else the input may be to blame
                kind = InferenceInterrupted if computing else InferenceUnavailable
            raise kind(f"model {model_name} at {self.url}: {status}: {message}") from error


class _Answers:
    """A model's outputs over a whole batch axis, filled piece by piece from several threads."""

    def __init__(self, model: ServedModel, count: int, out: Arrays) -> None:
        self._model, self._count = model, count
        self._lock = threading.Lock()
        self.arrays: dict[str, NDArray[Any]] = dict(out)

    def sizes(self, piece: slice) -> dict[str, int]:
        """Bytes of each output of a piece; none until a first answer told the dims."""
        return {name: array[piece].nbytes for name, array in self.arrays.copy().items()}

    def put(self, tensor: TensorSpec, piece: slice, part: NDArray[Any]) -> None:
        """Raises InferenceFailed if a piece's dims differ from those of the pieces before."""
        with self._lock:
            if tensor.name not in self.arrays:
                self.arrays[tensor.name] = np.empty((self._count, *part.shape[1:]), tensor.dtype)
        whole = self.arrays[tensor.name][piece]
        if whole.shape != part.shape:
            raise InferenceFailed(
                f"model {self._model.spec.name}: output {tensor.name} from item {piece.start} on is "
                f"{list(part.shape)}; {list(whole.shape)} is expected"
            )
        whole[:] = part


def _input(name: str, array: NDArray[Any], region: Region | None) -> grpcclient.InferInput:
    tensor = grpcclient.InferInput(name, array.shape, np_to_triton_dtype(array.dtype))
    if region is None:
        tensor.set_data_from_numpy(np.ascontiguousarray(array))
    else:
        offset = region.take(array.nbytes)
        region.array(offset, array.shape, array.dtype)[:] = array
        tensor.set_shared_memory(region.name, array.nbytes, offset)
    return tensor


def _tensors(entries: Sequence[Mapping[str, Any]], *, batched: bool) -> Iterator[TensorSpec]:
    for entry in entries:
        dims = tuple(int(d) for d in entry.get("shape", []))
        yield TensorSpec(str(entry["name"]), str(entry["datatype"]), dims[1:] if batched else dims)


def _compare(
    spec: ModelSpec, side: str, expected: Sequence[TensorSpec], served: Mapping[str, TensorSpec], url: str
) -> None:
    for tensor in expected:
        found = served.get(tensor.name)
        if found == tensor:
            continue
        others = ", ".join(str(t) for t in served.values()) or "none"
        raise ModelMismatch(
            f"model {spec.name} version {spec.version} at {url}: the pipeline expects {side} {tensor}; "
            f"served are {others}"
        )
    extra = set(served) - {tensor.name for tensor in expected}
    if extra and side == "inputs":
        raise ModelMismatch(
            f"model {spec.name} version {spec.version} at {url}: the pipeline sends "
            f"{', '.join(str(t) for t in expected) or 'nothing'}; the served model also needs "
            f"{', '.join(str(served[name]) for name in sorted(extra))}"
        )
