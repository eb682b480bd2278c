"""Building engines, as far as it needs no GPU."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper
from tritonclient.grpc import model_config_pb2

from triton_models.registry import MODELS, ModelEntry
from triton_models.tensorrt import (
    TOLERANCES,
    Profile,
    differences,
    engine_graph,
    overlay,
    profiles,
    read_config,
)

ROOT = Path(__file__).parents[3]
BUILT = [entry for entry in MODELS.values() if entry.is_built]
all_models = pytest.mark.parametrize("entry", BUILT, ids=lambda entry: entry.name)


@pytest.fixture(scope="module")
def command() -> ModuleType:
    spec = importlib.util.spec_from_file_location("build_engines", ROOT / "deploy/triton/build_engines.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _is_int16(value: onnx.ValueInfoProto) -> bool:
    return bool(value.type.tensor_type.elem_type == TensorProto.INT16)


@all_models
def test_each_model_has_profiles_that_fit_its_inputs(entry: ModelEntry) -> None:
    found = profiles(read_config(entry.folder))
    assert set(found) == {spec.name for spec in entry.inputs}
    for spec in entry.inputs:
        assert found[spec.name].most[0] == entry.max_batch_size
        assert found[spec.name].least[0] == 1


@all_models
def test_engine_graph_answers_the_same_without_16_bit_integers(
    entry: ModelEntry, command: ModuleType
) -> None:
    original = onnx.load(entry.onnx_path)
    changed = engine_graph(original)
    graph = changed.graph
    assert not [v.name for v in [*graph.input, *graph.output, *graph.value_info] if _is_int16(v)]
    config = read_config(entry.folder)
    small = {name: Profile(p.least, p.least, p.least) for name, p in profiles(config).items()}
    inputs = command.sample_inputs(config, small)
    wide = {k: v.astype(np.int32) if v.dtype == np.int16 else v for k, v in inputs.items()}
    names = [output.name for output in original.graph.output]
    sessions = [
        ort.InferenceSession(m.SerializeToString(), providers=["CPUExecutionProvider"])
        for m in (original, changed)
    ]
    expected, actual = (
        dict(zip(names, session.run(names, given), strict=True))
        for session, given in zip(sessions, (inputs, wide), strict=True)
    )
    assert all(
        one["share_different"] == 0 for one in differences(expected, actual, TOLERANCES["fp32"]).values()
    )


def test_a_graph_that_computes_with_16_bit_integers_is_refused() -> None:
    values = [helper.make_tensor_value_info(name, TensorProto.INT16, ["n"]) for name in ("HU", "OUT")]
    graph = helper.make_graph([helper.make_node("Abs", ["HU"], ["OUT"])], "g", values[:1], values[1:])
    with pytest.raises(ValueError, match="Abs takes a 16-bit integer"):
        engine_graph(helper.make_model(graph))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("min=1x2 opt=1x2", "a profile wants"),
        ("min=1 opt=1x2 max=1x2", "have one length"),
        ("min=1x9 opt=1x2 max=1x9", "min <= opt <= max"),
    ],
)
def test_a_bad_profile_is_explained(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Profile.parse(text)


def test_a_profile_that_contradicts_the_config_is_explained() -> None:
    config = read_config(MODELS["lungs"].folder)
    config.parameters["tensorrt_profile_HU"].string_value = "min=1x64x64 opt=8x512x512 max=99x512x512"
    with pytest.raises(ValueError, match="doesn't fit dims"):
        profiles(config)
    del config.parameters["tensorrt_profile_HU"]
    with pytest.raises(ValueError, match="has no parameter tensorrt_profile_HU"):
        profiles(config)


@all_models
def test_overlay_keeps_the_tensors_that_clients_see(entry: ModelEntry) -> None:
    config = read_config(entry.folder)
    parts = overlay(config)
    whole = parts.configs[entry.name]
    for kind in ("input", "output"):
        assert [(t.name, t.data_type, list(t.dims)) for t in getattr(whole, kind)] == [
            (t.name, t.data_type, list(t.dims)) for t in getattr(config, kind)
        ]
    assert whole.parameters["sha256"].string_value == config.parameters["sha256"].string_value
    engine = parts.configs[parts.engine]
    assert (engine.platform, engine.backend) == ("tensorrt_plan", "")
    types = {t.data_type for t in [*engine.input, *engine.output]}
    assert model_config_pb2.TYPE_INT16 not in types


def test_tolerances_tell_labels_from_probabilities() -> None:
    labels = np.zeros(10_000, dtype=np.uint8)
    labels[:5000] = 2
    tipped = labels.copy()
    tipped[:40] = 1
    assert differences({"L": labels}, {"L": tipped}, TOLERANCES["fp16"])["L"]["within"]
    tipped[:80] = 1
    assert not differences({"L": labels}, {"L": tipped}, TOLERANCES["fp16"])["L"]["within"]
    probabilities = np.linspace(0, 255, 1000).astype(np.uint8)
    shifted = np.minimum(probabilities.astype(int) + 4, 255).astype(np.uint8)
    assert differences({"P": probabilities}, {"P": shifted}, TOLERANCES["fp16"])["P"]["within"]
    assert not differences({"P": probabilities}, {"P": shifted}, TOLERANCES["fp32"])["P"]["within"]
    floats = np.zeros(5, dtype=np.float32)
    assert not differences({"S": floats}, {"S": floats + 0.1}, TOLERANCES["fp16"])["S"]["within"]
    with pytest.raises(ValueError, match="shape"):
        differences({"S": floats}, {"S": floats[:2]}, TOLERANCES["fp16"])
    with pytest.raises(ValueError, match="outputs are"):
        differences({"S": floats}, {"T": floats}, TOLERANCES["fp16"])


def test_dry_run_says_what_and_writes_nothing(
    command: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command.main(["--dry-run", "--out", str(tmp_path / "overlay"), "lungs"]) == 0
    said = capsys.readouterr().out
    assert "lungs: fp16, HU min=1x64x64 opt=8x512x512 max=16x1024x1024" in said
    assert "would write" in said
    assert not (tmp_path / "overlay").exists()


def test_unknown_models_and_a_missing_tensorrt_are_explained(
    command: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command.main(["--out", str(tmp_path), "hearts"]) == 2
    assert "no model hearts" in capsys.readouterr().err
    if importlib.util.find_spec("tensorrt") is None:
        assert command.main(["--out", str(tmp_path), "lungs"]) == 1
        assert "needs TensorRT and polygraphy" in capsys.readouterr().err


def test_overlay_is_written_whole_with_its_provenance(command: ModuleType, tmp_path: Path) -> None:
    parts = overlay(read_config(MODELS["lungs"].folder))
    for _ in range(2):  # the second replaces the first
        command.write_overlay(tmp_path, parts, b"plan", {"tensorrt": "10"})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["lungs", "lungs_cast", "lungs_engine"]
    assert (tmp_path / "lungs_engine/1/model.plan").read_bytes() == b"plan"
    assert json.loads((tmp_path / "lungs_engine/engine.json").read_text()) == {"tensorrt": "10"}
    for name in parts.configs:
        assert read_config(tmp_path / name).name == name
