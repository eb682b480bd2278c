"""The TensorRT overlay in a real Triton, with ONNX Runtime in the engine's place."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from google.protobuf import text_format

from node.triton_server import EmbeddedTriton
from pipelines import lesions
from pipelines.triton import InferenceClient, TensorSpec
from triton_models.evaluation.predictor import OnnxPredictor
from triton_models.registry import MODELS
from triton_models.tensorrt import engine_graph, overlay, read_config

pytestmark = pytest.mark.integration


def test_the_overlay_serves_what_the_model_serves(tmp_path: Path) -> None:
    entry = MODELS["lesions"]
    parts = overlay(read_config(entry.folder))
    for name, config in parts.configs.items():
        folder = tmp_path / "overlay" / name / "1"
        folder.mkdir(parents=True)
        graph = parts.graphs.get(name)
        if name == parts.engine:
            # what TensorRT would be given; the embedded server has no TensorRT
            graph = engine_graph(onnx.load(entry.onnx_path))
            config.platform, config.backend = "", "onnxruntime"
            config.instance_group[0].kind = config.instance_group[0].KIND_AUTO
        if graph is not None:
            onnx.save(graph, folder / "model.onnx")
        (folder.parent / "config.pbtxt").write_text(text_format.MessageToString(config))
    hu = np.random.default_rng(4).integers(-1024, 600, (3, 96, 120)).astype(np.int16)
    with (
        EmbeddedTriton(tmp_path / "overlay") as server,
        InferenceClient(server.url, timeout_seconds=60) as client,
    ):
        probabilities = TensorSpec("PROBABILITIES", "UINT8", (2, -1, -1))
        everything = replace(lesions.SPEC, outputs=(*lesions.SPEC.outputs, probabilities))
        answer = client.run(client.check(everything), {"HU": hu})
    expected = OnnxPredictor(entry)({"HU": hu})
    for name, values in expected.items():
        assert np.array_equal(answer[name], values)
