"""The exported graph answers as torch does, at any batch and image size."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
import torch

from tests.unit.triton_models.portable import check_portable
from triton_models.architectures.build import build_network
from triton_models.export import example_inputs, export_onnx, render_config
from triton_models.registry import MODELS, ModelEntry
from triton_models.served.base import Served, build_served

#: the graph in torch, and its file
Exported = tuple[ModelEntry, Served, Path]

#: fusion is exported part by part: see tests/integration/test_fusion.py
EXPORTED = {name: entry for name, entry in MODELS.items() if name != "fusion"}


@pytest.fixture(scope="module", params=EXPORTED.values(), ids=list(EXPORTED))
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    entry: ModelEntry = request.param
    torch.manual_seed(1)
    network = build_network(entry).eval()
    path = tmp_path_factory.mktemp("export") / "model.onnx"
    export_onnx(entry, network, path)
    return entry, build_served(entry, network).eval(), path


@pytest.fixture
def segmentation(exported: Exported) -> Exported:
    if exported[0].kind != "segmentation":
        pytest.skip("takes more than slices of any size")
    return exported


def test_torch_and_onnx_runtime_agree_on_example_inputs(exported: Exported) -> None:
    entry, served, path = exported
    if entry.kind == "detection":
        pytest.skip("an untrained detector's scores tie, and so do its ranks: see test_detector_export")
    inputs = example_inputs(entry, batch=3)
    with torch.inference_mode():
        expected = served(*inputs)
    expected = expected if isinstance(expected, tuple) else (expected,)
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [spec.name for spec in entry.inputs]
    actual = session.run(None, {n: x.numpy() for n, x in zip(names, inputs, strict=True)})
    for spec, ours, theirs in zip(entry.outputs, actual, expected, strict=True):
        assert ours.shape == tuple(theirs.shape)
        assert ours.shape[0] == 3
        assert ours.dtype == theirs.numpy().dtype
        difference = np.abs(ours.astype(float) - theirs.numpy())
        if spec.data_type == "TYPE_FP32":
            assert difference.max() < 1e-4
        else:  # float rounding may tip a pixel that sits on a threshold
            assert (difference > 0).mean() < 1e-2


@pytest.mark.parametrize("shape", [(1, 512, 512), (3, 200, 331), (2, 768, 640)])
def test_torch_and_onnx_runtime_agree(segmentation: Exported, shape: tuple[int, int, int]) -> None:
    entry, served, path = segmentation
    hu = np.random.default_rng(2).integers(-3024, 3071, shape).astype(np.int16)
    with torch.inference_mode():
        expected = served(torch.from_numpy(hu))
    expected = expected if isinstance(expected, tuple) else (expected,)
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    actual = session.run(None, {"HU": hu})
    for spec, ours, theirs in zip(entry.outputs, actual, expected, strict=True):
        assert ours.dtype == np.uint8
        assert ours.shape == (shape[0], *[d for d in spec.dims if d > 0], *shape[1:])
        difference = np.abs(ours.astype(int) - theirs.numpy().astype(int))
        # float rounding may tip a pixel that sits on a threshold
        assert (difference > 0).mean() < 1e-3
        if spec.name == "PROBABILITIES":
            assert difference.max() <= 1


def test_batch_does_not_change_a_slice(segmentation: Exported) -> None:
    _, _, path = segmentation
    hu = np.random.default_rng(3).integers(-1024, 600, (4, 150, 170)).astype(np.int16)
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    together = session.run(None, {"HU": hu})[0]
    alone = np.concatenate([session.run(None, {"HU": hu[i : i + 1]})[0] for i in range(4)])
    assert (together != alone).mean() < 1e-3


def test_graph_is_portable(exported: Exported) -> None:
    _, _, path = exported
    check_portable(path)
    assert path.stat().st_size < 8_000_000


def test_config_is_a_function_of_registry_and_hash() -> None:
    text = render_config(MODELS["lesions"], "ab" * 32)
    assert 'string_value: "' + "ab" * 32 + '"' in text
    assert '{ name: "PROBABILITIES" data_type: TYPE_UINT8 dims: [ 2, -1, -1 ] }' in text
