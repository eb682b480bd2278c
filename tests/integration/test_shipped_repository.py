"""The whole shipped repository in the embedded Triton: quick to load, small, and seen by Prometheus."""

from __future__ import annotations

import re
import subprocess
import time

import httpx
import numpy as np
import pytest
from tritonclient.grpc import InferenceServerClient

from node.triton_server import EmbeddedTriton
from tests.processes import children, kilobytes, read
from triton_models.evaluation.predictor import OnnxPredictor
from triton_models.export import example_inputs
from triton_models.registry import MODELS, ModelEntry

pytestmark = pytest.mark.integration

LOAD_SECONDS, LOADED_BYTES = 30.0, 3_000_000_000
BUILT = [entry for entry in MODELS.values() if entry.is_built]


def _proportional_bytes(pid: int) -> int:
    """What the processes take of memory, pages they share counted once."""
    tree = [pid, *children(pid, deep=True)]
    return sum(kilobytes(read(one, "smaps_rollup"), "Pss") for one in tree) * 1024


def test_it_loads_quickly_and_is_small() -> None:
    started = time.monotonic()
    with EmbeddedTriton() as server:
        assert time.monotonic() - started <= LOAD_SECONDS
        assert server._process is not None
        assert _proportional_bytes(server.pid) <= LOADED_BYTES
        client = InferenceServerClient(server.url)
        loaded = {
            model.name for model in client.get_model_repository_index().models if model.state == "READY"
        }
        client.close()
    assert {entry.name for entry in BUILT} <= loaded


def _requests(server: EmbeddedTriton, model: str) -> float:
    text = httpx.get(server.metrics_url).text
    found = re.search(rf'^nv_inference_request_success{{model="{model}",.*}} ([\d.]+)$', text, re.MULTILINE)
    assert found, f"no nv_inference_request_success of {model}"
    return float(found[1])


@pytest.mark.parametrize("entry", BUILT, ids=lambda entry: entry.name)
def test_triton_answers_as_onnx_runtime_does_and_counts_it(triton: EmbeddedTriton, entry: ModelEntry) -> None:
    from tritonclient.grpc import InferInput
    from tritonclient.utils import np_to_triton_dtype

    inputs = {
        spec.name: tensor.numpy()
        for spec, tensor in zip(
            entry.inputs, example_inputs(entry, min(2, entry.max_batch_size)), strict=True
        )
    }
    before = _requests(triton, entry.name)
    tensors = []
    for name, array in inputs.items():
        tensors.append(InferInput(name, array.shape, np_to_triton_dtype(array.dtype)))
        tensors[-1].set_data_from_numpy(array)
    client = InferenceServerClient(triton.url)
    answer = client.infer(entry.name, tensors)
    client.close()
    for name, expected in OnnxPredictor(entry)(inputs).items():
        served = answer.as_numpy(name)
        assert served.dtype == expected.dtype
        assert np.allclose(served.astype(float), expected.astype(float), atol=1e-4)
    assert _requests(triton, entry.name) > before


def test_promtool_takes_its_metrics(triton: EmbeddedTriton) -> None:
    text = httpx.get(triton.metrics_url).text
    checked = subprocess.run(
        ["promtool", "check", "metrics"], input=text, capture_output=True, text=True, check=False
    )
    # promtool's style advice on names that NVIDIA chose ends with 3, text it can't parse with 1
    assert checked.returncode in {0, 3}, checked.stderr
