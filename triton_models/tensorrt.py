"""What of building TensorRT engines needs no GPU: graphs, profiles, the overlay's configurations, the check.

In: a model's folder in the repository (config.pbtxt, model.onnx).  Out: an ONNX graph that TensorRT takes,
its optimisation profile, and the ``config.pbtxt`` texts of an overlay repository.

TensorRT has no 16-bit integers. So in the overlay ``<name>`` becomes a Triton ensemble with the tensors of
the original: ``<name>_cast`` (ONNX Runtime, INT16 to INT32) feeds ``<name>_engine`` (``tensorrt_plan``).
Clients see no difference. ``deploy/triton/build_engines.py`` is the command.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from google.protobuf import text_format
from numpy.typing import NDArray
from onnx import TensorProto, helper
from tritonclient.grpc import model_config_pb2

PROFILE_PARAMETER = "tensorrt_profile_"
MOST_LABELS = 8
Shape = tuple[int, ...]


@dataclass(frozen=True)
class Profile:
    """Shapes of one input, batch axis first: the smallest, the one to be fast at, the largest."""

    least: Shape
    best: Shape
    most: Shape

    @staticmethod
    def parse(text: str) -> Profile:
        """From ``min=1x64x64 opt=8x512x512 max=16x1024x1024``. Raises ValueError that says what is wrong."""
        found = re.fullmatch(r"min=([\dx]+) opt=([\dx]+) max=([\dx]+)", text)
        if not found:
            raise ValueError(f"a profile wants 'min=1x64 opt=8x64 max=16x64', got {text!r}")
        least, best, most = (tuple(int(n) for n in part.split("x")) for part in found.groups())
        if not len(least) == len(best) == len(most):
            raise ValueError(f"the shapes of a profile have one length, got {text!r}")
        if any(not a <= b <= c for a, b, c in zip(least, best, most, strict=True)):
            raise ValueError(f"a profile wants min <= opt <= max in every dimension, got {text!r}")
        return Profile(least, best, most)

    def __str__(self) -> str:
        parts = zip(("min", "opt", "max"), (self.least, self.best, self.most), strict=True)
        return " ".join(f"{name}={'x'.join(map(str, shape))}" for name, shape in parts)


def read_config(folder: Path) -> model_config_pb2.ModelConfig:
    """A model's config.pbtxt. Raises FileNotFoundError, or ValueError for text that isn't a ModelConfig."""
    path = folder / "config.pbtxt"
    config = model_config_pb2.ModelConfig()
    try:
        text_format.Parse(path.read_text(encoding="utf-8"), config)
    except text_format.ParseError as error:
        raise ValueError(f"{path}: {error}") from error
    return config


def profiles(config: model_config_pb2.ModelConfig) -> dict[str, Profile]:
    """Input name -> profile, from the parameters ``tensorrt_profile_<input>``.

    Raises ValueError for an input without one, or with one that contradicts its dims or the largest batch.
    """
    result = {}
    for tensor in config.input:
        parameter = config.parameters.get(PROFILE_PARAMETER + tensor.name)
        if parameter is None:
            raise ValueError(f"{config.name}: config.pbtxt has no parameter {PROFILE_PARAMETER}{tensor.name}")
        profile = Profile.parse(parameter.string_value)
        for shape in (profile.least, profile.best, profile.most):
            fits = len(shape) == len(tensor.dims) + 1 and shape[0] <= config.max_batch_size
            if not fits or any(d not in (-1, n) for n, d in zip(shape[1:], tensor.dims, strict=True)):
                raise ValueError(
                    f"{config.name}: shape {shape} of {tensor.name}'s profile doesn't fit dims "
                    f"{list(tensor.dims)} and max_batch_size {config.max_batch_size}"
                )
        result[tensor.name] = profile
    return result


def engine_graph(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same graph with INT32 where inputs were INT16; they may only be cast and measured.

    Raises ValueError for a graph that computes with INT16 itself.
    """
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    narrow = {v.name for v in changed.graph.input if v.type.tensor_type.elem_type == TensorProto.INT16}
    for node in changed.graph.node:
        if narrow & set(node.input) and node.op_type not in {"Cast", "Shape"}:
            raise ValueError(f"{node.op_type} takes a 16-bit integer, which TensorRT doesn't have")
    for value in [*changed.graph.input, *changed.graph.value_info]:
        if value.name in narrow:
            value.type.tensor_type.elem_type = TensorProto.INT32
    wide = [v for v in changed.graph.value_info if v.type.tensor_type.elem_type == TensorProto.INT16]
    wide += [v for v in changed.graph.output if v.type.tensor_type.elem_type == TensorProto.INT16]
    names = {value.name for value in wide}
    for node in changed.graph.node:  # a result in INT16 leaves the engine as INT32 too
        if node.op_type == "Cast" and names & set(node.output):
            next(a for a in node.attribute if a.name == "to").i = TensorProto.INT32
    for value in wide:
        value.type.tensor_type.elem_type = TensorProto.INT32
    onnx.checker.check_model(changed, full_check=True)
    return changed


def cast_graph(tensors: Mapping[str, int], source: int, target: int) -> onnx.ModelProto:
    """A graph that casts tensors (name -> number of dims without the batch) and appends nothing else.

    Names in are the tensors', names out have ``_CAST`` appended. source, target: ONNX element types.
    """
    inputs, outputs, nodes = [], [], []
    for name, rank in tensors.items():
        shape = [f"{name}_{i}" for i in range(rank + 1)]
        inputs.append(helper.make_tensor_value_info(name, source, shape))
        outputs.append(helper.make_tensor_value_info(f"{name}_CAST", target, shape))
        nodes.append(helper.make_node("Cast", [name], [f"{name}_CAST"], to=target))
    graph = helper.make_graph(nodes, "cast", inputs, outputs)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


@dataclass(frozen=True)
class Overlay:
    """The overlay's models for one model: folder name -> configuration, and graphs of those that cast."""

    configs: Mapping[str, model_config_pb2.ModelConfig]
    graphs: Mapping[str, onnx.ModelProto]
    engine: str


def overlay(config: model_config_pb2.ModelConfig) -> Overlay:
    """What replaces a model: the engine alone, or with casts around it as an ensemble."""
    narrow_in = [t for t in config.input if t.data_type == model_config_pb2.TYPE_INT16]
    narrow_out = [t for t in config.output if t.data_type == model_config_pb2.TYPE_INT16]
    engine = _engine_config(config, f"{config.name}_engine" if narrow_in or narrow_out else config.name)
    if not narrow_in and not narrow_out:
        return Overlay({config.name: engine}, {}, engine.name)
    configs, graphs = {engine.name: engine}, {}
    casts = (
        ("cast", narrow_in, TensorProto.INT16, TensorProto.INT32),
        ("narrow", narrow_out, TensorProto.INT32, TensorProto.INT16),
    )
    for suffix, tensors, source, target in casts:
        if tensors:
            name = f"{config.name}_{suffix}"
            graphs[name] = cast_graph({t.name: len(t.dims) for t in tensors}, source, target)
            configs[name] = _cast_config(config, name, tensors, source, target)
    configs[config.name] = _ensemble_config(config, configs, engine.name)
    return Overlay(configs, graphs, engine.name)


_TRITON = {TensorProto.INT16: model_config_pb2.TYPE_INT16, TensorProto.INT32: model_config_pb2.TYPE_INT32}


def _engine_config(config: model_config_pb2.ModelConfig, name: str) -> model_config_pb2.ModelConfig:
    engine = model_config_pb2.ModelConfig()
    engine.CopyFrom(config)
    engine.name, engine.backend, engine.platform = name, "", "tensorrt_plan"
    engine.ClearField(
        "model_warmup"
    )  # of the ensemble's types; the engine has no lazy initialisation to hide
    del engine.instance_group[:]
    engine.instance_group.add(count=1, kind=model_config_pb2.ModelInstanceGroup.KIND_GPU)
    for tensor in [*engine.input, *engine.output]:
        if tensor.data_type == model_config_pb2.TYPE_INT16:
            tensor.data_type = model_config_pb2.TYPE_INT32
    return engine


def _cast_config(
    config: model_config_pb2.ModelConfig, name: str, tensors: list[Any], source: int, target: int
) -> model_config_pb2.ModelConfig:
    cast = model_config_pb2.ModelConfig(
        name=name, backend="onnxruntime", max_batch_size=config.max_batch_size
    )
    for tensor in tensors:
        cast.input.add(name=tensor.name, data_type=_TRITON[source], dims=tensor.dims)
        cast.output.add(name=f"{tensor.name}_CAST", data_type=_TRITON[target], dims=tensor.dims)
    cast.instance_group.add(count=1, kind=model_config_pb2.ModelInstanceGroup.KIND_AUTO)
    return cast


def _ensemble_config(
    config: model_config_pb2.ModelConfig, parts: Mapping[str, model_config_pb2.ModelConfig], engine: str
) -> model_config_pb2.ModelConfig:
    whole = model_config_pb2.ModelConfig(
        name=config.name, platform="ensemble", max_batch_size=config.max_batch_size
    )
    whole.input.extend(config.input)
    whole.output.extend(config.output)
    for key, parameter in config.parameters.items():
        whole.parameters[key].CopyFrom(parameter)
    before, after = parts.get(f"{config.name}_cast"), parts.get(f"{config.name}_narrow")
    if before is not None:
        step = whole.ensemble_scheduling.step.add(model_name=before.name, model_version=-1)
        for source, target in zip(before.input, before.output, strict=True):
            step.input_map[source.name] = source.name
            step.output_map[target.name] = f"{source.name}_as_int32"
    step = whole.ensemble_scheduling.step.add(model_name=engine, model_version=-1)
    cast = {t.name for t in before.input} if before is not None else set()
    narrowed = {t.name for t in after.input} if after is not None else set()
    for tensor in config.input:
        step.input_map[tensor.name] = f"{tensor.name}_as_int32" if tensor.name in cast else tensor.name
    for tensor in config.output:
        step.output_map[tensor.name] = f"{tensor.name}_as_int32" if tensor.name in narrowed else tensor.name
    if after is not None:
        step = whole.ensemble_scheduling.step.add(model_name=after.name, model_version=-1)
        for source, target in zip(after.input, after.output, strict=True):
            step.input_map[source.name] = f"{source.name}_as_int32"
            step.output_map[target.name] = source.name
    return whole


@dataclass(frozen=True)
class Tolerance:
    """How far an engine may be from ONNX Runtime.

    labels: share of integer values that may differ (a pixel on a threshold tips).  values: largest absolute
    difference of floating-point outputs; of probabilities in UINT8 it counts in 1/255.
    """

    labels: float
    values: float


TOLERANCES = {"fp32": Tolerance(labels=1e-4, values=1e-3), "fp16": Tolerance(labels=5e-3, values=2e-2)}


def differences(
    expected: Mapping[str, NDArray[Any]], actual: Mapping[str, NDArray[Any]], tolerance: Tolerance
) -> dict[str, dict[str, float | bool]]:
    """Output name -> {"share_different", "largest", "within"}; ValueError for other names or shapes.

    UINT8 that goes beyond a few labels is taken for probabilities.
    """
    if expected.keys() != actual.keys():
        raise ValueError(f"outputs are {sorted(actual)}, not {sorted(expected)}")
    result: dict[str, dict[str, float | bool]] = {}
    for name, want in expected.items():
        have = actual[name]
        if have.shape != want.shape:
            raise ValueError(f"{name} has shape {have.shape}, not {want.shape}")
        gap = np.abs(have.astype(np.float64) - want.astype(np.float64))
        share, largest = float((gap > 0).mean()), float(gap.max(initial=0.0))
        if np.issubdtype(want.dtype, np.floating):
            within = largest <= tolerance.values
        else:
            probabilities = want.dtype == np.uint8 and want.max(initial=0) > MOST_LABELS
            over = gap > (tolerance.values * 255 if probabilities else 0)
            within = float(over.mean()) <= tolerance.labels
        result[name] = {"share_different": share, "largest": largest, "within": within}
    return result
