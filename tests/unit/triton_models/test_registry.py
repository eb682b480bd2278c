"""Registry, config.pbtxt, model card and ONNX file say the same."""

from __future__ import annotations

import json
import subprocess
import sys

import onnx
import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2
from typer.testing import CliRunner

from triton_models.cli import app
from triton_models.export import render_config
from triton_models.registry import MAIN, MODELS, ModelEntry, model, weights_sha256

ONNX_TYPES = {
    "TYPE_INT16": onnx.TensorProto.INT16,
    "TYPE_UINT8": onnx.TensorProto.UINT8,
    "TYPE_FP32": onnx.TensorProto.FLOAT,
}

BUILT = [entry for entry in MODELS.values() if entry.is_built]
all_built = pytest.mark.parametrize("entry", BUILT, ids=lambda entry: entry.name)


def _config(entry: ModelEntry) -> model_config_pb2.ModelConfig:
    config = model_config_pb2.ModelConfig()
    text_format.Parse(entry.config_path.read_text(encoding="utf-8"), config)
    return config


@all_built
def test_config_agrees_with_registry(entry: ModelEntry) -> None:
    config = _config(entry)
    assert (config.name, config.backend) == (entry.name, "onnxruntime")
    assert config.max_batch_size == entry.max_batch_size
    for tensors, specs in ((config.input, entry.inputs), (config.output, entry.outputs)):
        assert [(t.name, model_config_pb2.DataType.Name(t.data_type), tuple(t.dims)) for t in tensors] == [
            (s.name, s.data_type, s.dims) for s in specs
        ]
    assert config.HasField("dynamic_batching")


@all_built
def test_config_carries_the_hash_of_the_file(entry: ModelEntry) -> None:
    sha256 = weights_sha256(entry)
    assert _config(entry).parameters["sha256"].string_value == sha256
    assert entry.config_path.read_text(encoding="utf-8") == render_config(entry, sha256)
    assert sha256 in (entry.folder / "README.md").read_text(encoding="utf-8")


@all_built
def test_graph_agrees_with_registry(entry: ModelEntry) -> None:
    graph = onnx.load(entry.onnx_path).graph
    for values, specs in ((graph.input, entry.inputs), (graph.output, entry.outputs)):
        assert [v.name for v in values] == [s.name for s in specs]
        for value, spec in zip(values, specs, strict=True):
            tensor = value.type.tensor_type
            assert tensor.elem_type == ONNX_TYPES[spec.data_type]
            dims = [d.dim_value if d.HasField("dim_value") else -1 for d in tensor.shape.dim]
            assert dims == [-1, *spec.dims]


@all_built
def test_weights_are_small_enough_to_live_in_the_repository(entry: ModelEntry) -> None:
    assert entry.onnx_path.stat().st_size <= 8_000_000
    assert sum(one.onnx_path.stat().st_size for one in BUILT) <= 40_000_000


def test_what_the_pipelines_need_is_built() -> None:
    assert {"lungs", "lesions"} <= {entry.name for entry in BUILT}


def test_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(KeyError, match="known are lungs, lesions"):
        model("hearts")


def test_list_command_works_without_torch() -> None:
    code = "import sys; sys.modules['torch'] = None\nfrom triton_models.cli import app\napp(['list'])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    for entry in MODELS.values():
        assert entry.name in result.stdout
        assert not entry.is_built or weights_sha256(entry) in result.stdout


def test_list_as_json() -> None:
    rows = json.loads(CliRunner().invoke(app, ["list", "--json"]).output)
    assert [row["name"] for row in rows] == list(MODELS)
    for row, entry in zip(rows, MODELS.values(), strict=True):
        assert row["variants"][0] == MAIN
        assert (row["sha256"] is not None) == entry.is_built
