"""Arrays in, arrays out, by Triton Inference Server: contract check, bounded batches, typed errors.

A stage states what it expects of its model as a ``ModelSpec``; ``InferenceClient.check`` compares that with
what is served and names both sides of a difference. Protocol: KServe v2 over gRPC.
"""

from __future__ import annotations

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
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from pipelines.errors import (
    InferenceFailed,
    InferenceUnavailable,
    ModelMismatch,
    ModelNotServed,
    PipelineError,
)
from pipelines.volume import ModelIdentity

#: requests under way at once: one computing, one travelling
REQUESTS_IN_FLIGHT = 2
#: gRPC status codes after which the same request may succeed later
RETRYABLE_STATUS = ("UNAVAILABLE", "DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED", "CANCELLED")

Arrays = Mapping[str, NDArray[Any]]
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class TensorSpec:
    """One tensor without its batch axis: Triton data type (``INT16``) and dims, -1 where any size will do."""

    name: str
    datatype: str
    dims: tuple[int, ...]

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
        self, model: ServedModel, inputs: Arrays, *, progress: Progress | None = None
    ) -> dict[str, NDArray[Any]]: ...


class InferenceClient:
    """A connection to one Triton server.

    url: ``host:port`` of its gRPC endpoint. timeout_seconds: for each request.
    Use as a context manager, or call ``close``.
    """

    def __init__(self, url: str, *, timeout_seconds: float) -> None:
        self.url = url
        self._timeout = timeout_seconds
        self._client = grpcclient.InferenceServerClient(url)

    def __enter__(self) -> InferenceClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
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
                raise ModelNotServed(
                    f"model {spec.name} version {spec.version} is expected; Triton at {self.url} serves "
                    f"{self._served(spec.name)}",
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
        self, model: ServedModel, inputs: Arrays, *, progress: Progress | None = None
    ) -> dict[str, NDArray[Any]]:
        """Run a model over a batch axis of any length.

        inputs: name -> (n, *dims). Returns name -> (n, *dims) for every output of the spec. The batch is
        sent in pieces of the model's max_batch_size, so messages stay bounded; the order is kept.
        """
        count = len(next(iter(inputs.values())))
        pieces = [slice(i, i + model.max_batch_size) for i in range(0, count, model.max_batch_size)]
        collected: dict[str, list[NDArray[Any]]] = {tensor.name: [] for tensor in model.spec.outputs}
        waiting: deque[tuple[slice, Future[dict[str, NDArray[Any]]]]] = deque()

        def collect() -> None:
            piece, future = waiting.popleft()
            for name, array in future.result().items():
                collected[name].append(array)
            if progress is not None:
                progress(min(piece.stop, count), count)

        with ThreadPoolExecutor(REQUESTS_IN_FLIGHT) as pool:
            for piece in pieces:
                batch = {name: np.ascontiguousarray(array[piece]) for name, array in inputs.items()}
                waiting.append((piece, pool.submit(self._infer, model, batch)))
                if len(waiting) >= REQUESTS_IN_FLIGHT:
                    collect()
            while waiting:
                collect()
        return {name: np.concatenate(arrays) for name, arrays in collected.items()}

    def _infer(self, model: ServedModel, batch: Arrays) -> dict[str, NDArray[Any]]:
        tensors = []
        for name, array in batch.items():
            tensor = grpcclient.InferInput(name, array.shape, np_to_triton_dtype(array.dtype))
            tensor.set_data_from_numpy(array)
            tensors.append(tensor)
        wanted = [grpcclient.InferRequestedOutput(tensor.name) for tensor in model.spec.outputs]
        with self._errors(model.spec.name):
            answer = self._client.infer(
                model.spec.name,
                tensors,
                model_version=model.spec.version,
                outputs=wanted,
                client_timeout=self._timeout,
            )
        return {tensor.name: answer.as_numpy(tensor.name) for tensor in model.spec.outputs}

    def _served(self, name: str) -> str:
        index = self._client.get_model_repository_index(as_json=True, client_timeout=self._timeout)
        found = [
            f"version {entry.get('version', '?')} ({entry.get('state', 'UNAVAILABLE')})"
            for entry in index.get("models", [])
            if entry.get("name") == name
        ]
        return ", ".join(found) or f"no model named {name}"

    @contextmanager
    def _errors(self, model_name: str) -> Iterator[None]:
        try:
            yield
        except InferenceServerException as error:
            status, message = str(error.status()), str(error.message())
            kind: type[PipelineError] = InferenceFailed
            crashed = "is not healthy" in message  # a backend process died: the server is to be restarted
            if crashed or any(code in status for code in RETRYABLE_STATUS):
                kind = InferenceUnavailable
            raise kind(f"model {model_name} at {self.url}: {status}: {message}") from error


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
