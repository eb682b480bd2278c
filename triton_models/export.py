"""From a checkpoint to what Triton serves.

In: a registry entry and a checkpoint (or any network).  Out: ``repository/<name>/1/model.onnx`` and
``config.pbtxt``, which carries the file's SHA-256.

Opset 18 with Resize in "linear" mode: TensorRT's ONNX parser takes every operator of these graphs. TensorRT
itself has no 16-bit integer tensors, so a stand-alone engine needs HU as INT32 or FP16; ONNX Runtime's
TensorRT execution provider serves the file as it is.
"""

from __future__ import annotations

from inspect import signature
from pathlib import Path

import onnx
import torch
from onnx import numpy_helper
from torch import Tensor, nn

from triton_models.registry import ModelEntry, TensorSpec, weights_sha256
from triton_models.served.base import build_served

OPSET = 18
HALVED_FROM = 1024  # values; what is smaller isn't worth a node
TORCH_TYPES = {
    "TYPE_INT16": torch.int16,
    "TYPE_UINT8": torch.uint8,
    "TYPE_FP32": torch.float32,
}
#: names of the dimensions that are dynamic, by how many an input has; sizes of the example, which divide
#: nothing so that none is taken for a constant; sizes of the warm-up
DYNAMIC = {2: ("rows", "columns"), 3: ("slices", "rows", "columns")}
EXAMPLE_SIZES = {"slices": 37, "rows": 331, "columns": 347}
WARM_UP_SIZES = {"slices": 64, "rows": 512, "columns": 512}
#: least, usual and most of a TensorRT profile
PROFILE_SIZES = {"slices": (8, 64, 512), "rows": (64, 512, 1024), "columns": (64, 512, 1024)}


def dimension_names(spec: TensorSpec) -> tuple[str | None, ...]:
    """Of each dim: its name if it is dynamic."""
    names = DYNAMIC.get(len(spec.dims), ())
    return tuple(names[i] if dim < 0 else None for i, dim in enumerate(spec.dims))


def example_inputs(entry: ModelEntry, batch: int = 2) -> tuple[Tensor, ...]:
    """Random inputs of the registry's types and sizes."""
    return tuple(_example(spec, batch) for spec in entry.inputs)


def _example(spec: TensorSpec, batch: int) -> Tensor:
    sizes = [
        dim if name is None else EXAMPLE_SIZES[name]
        for dim, name in zip(spec.dims, dimension_names(spec), strict=True)
    ]
    if spec.data_type == "TYPE_FP32":
        return torch.rand(batch, *sizes)
    if spec.data_type == "TYPE_UINT8":
        return torch.randint(0, 2, (batch, *sizes), dtype=torch.uint8)
    return torch.randint(-1024, 600, (batch, *sizes), dtype=TORCH_TYPES[spec.data_type])


def export_onnx(entry: ModelEntry, network: nn.Module, path: Path) -> None:
    """Write the served graph around ``network``; the batch and the registry's dims of -1 stay dynamic."""
    served = build_served(entry, network).eval()
    write_onnx(served, entry.inputs, entry.outputs, path, half_weights=entry.half_weights)


def write_onnx(
    graph: nn.Module,
    inputs: tuple[TensorSpec, ...],
    outputs: tuple[TensorSpec, ...],
    path: Path,
    *,
    half_weights: bool = False,
) -> None:
    """Write a module in evaluation mode; the batch and dims of -1 stay dynamic."""
    batch = torch.export.Dim("batch")
    dimensions = {name: torch.export.Dim(name) for names in DYNAMIC.values() for name in names}
    dynamic = tuple(
        {0: batch} | {i + 1: dimensions[name] for i, name in enumerate(dimension_names(spec)) if name}
        for spec in inputs
    )
    takes_any = any(p.kind is p.VAR_POSITIONAL for p in signature(graph.forward).parameters.values())
    program = torch.onnx.export(
        graph,
        tuple(_example(spec, 2) for spec in inputs),
        input_names=[spec.name for spec in inputs],
        output_names=[spec.name for spec in outputs],
        dynamic_shapes=(dynamic,) if takes_any else dynamic,
        opset_version=OPSET,
        dynamo=True,
        external_data=False,
        verbose=False,
    )
    if program is None:
        raise RuntimeError(f"{path}: torch.onnx.export returned no program")
    model = program.model_proto
    # traces of the machine that exported have no place in a file whose hash is published
    del model.metadata_props[:]
    for node in model.graph.node:
        del node.metadata_props[:]
    for value in [*model.graph.value_info, *model.graph.input, *model.graph.output]:
        del value.metadata_props[:]
    if half_weights:
        _halve_weights(model)
    onnx.checker.check_model(model, full_check=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".tmp")
    onnx.save(model, partial)
    partial.replace(path)


def _halve_weights(model: onnx.ModelProto) -> None:
    """Store large float32 weights as float16 with a Cast behind each, which is folded away when loaded."""
    casts = []
    for weights in model.graph.initializer:
        values = numpy_helper.to_array(weights)
        if weights.data_type == onnx.TensorProto.FLOAT and values.size >= HALVED_FROM:
            name = weights.name
            weights.CopyFrom(numpy_helper.from_array(values.astype("float16"), f"{name}_half"))
            casts.append(onnx.helper.make_node("Cast", [f"{name}_half"], [name], to=onnx.TensorProto.FLOAT))
    nodes = [*casts, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)


def render_config(entry: ModelEntry, sha256: str) -> str:
    """The text of config.pbtxt; a pure function of the registry and the model file's hash."""

    def tensors(kind: str, specs: tuple[TensorSpec, ...]) -> str:
        lines = []
        for spec in specs:
            dims = ", ".join(str(dim) for dim in spec.dims)
            lines.append(f'  {{ name: "{spec.name}" data_type: {spec.data_type} dims: [ {dims} ] }}')
        return f"{kind} [\n" + ",\n".join(lines) + "\n]\n"

    return (
        f"# {entry.title}. Written by `pacsnode models export {entry.name}`; the model card is README.md.\n"
        f'name: "{entry.name}"\n'
        'backend: "onnxruntime"\n'
        f"max_batch_size: {entry.max_batch_size}\n"
        + tensors("input", entry.inputs)
        + tensors("output", entry.outputs)
        + "version_policy { latest { num_versions: 1 } }\n"
        "# requests that wait are joined to batches; nobody waits for company that isn't there\n"
        "dynamic_batching { max_queue_delay_microseconds: 0 }\n"
        "instance_group [ { count: 1 kind: KIND_AUTO } ]\n"
        "model_warmup [\n"
        "  {\n"
        '    name: "one case"\n'
        "    batch_size: 1\n" + "".join(_warm_up(spec) for spec in entry.inputs) + "  }\n"
        "]\n"
        f'parameters {{ key: "description" value {{ string_value: "{entry.task}" }} }}\n'
        f'parameters {{ key: "paper" value {{ string_value: "{entry.paper}" }} }}\n'
        f'parameters {{ key: "weights_licence" value {{ string_value: "{entry.weights_licence}" }} }}\n'
        f'parameters {{ key: "sha256" value {{ string_value: "{sha256}" }} }}\n'
        "# shapes for TensorRT engines (deploy/triton/build_engines.py)\n"
        + "".join(
            f'parameters {{ key: "tensorrt_profile_{spec.name}" '
            f'value {{ string_value: "{profile_text(entry, spec)}" }} }}\n'
            for spec in entry.inputs
        )
    )


def profile_text(entry: ModelEntry, spec: TensorSpec) -> str:
    """The TensorRT optimisation profile of an input: shapes with the batch, least, usual and most."""

    def shape(batch: int, which: int) -> str:
        sizes = [
            dim if name is None else PROFILE_SIZES[name][which]
            for dim, name in zip(spec.dims, dimension_names(spec), strict=True)
        ]
        return "x".join(str(n) for n in (batch, *sizes))

    most = entry.max_batch_size
    return f"min={shape(1, 0)} opt={shape((most + 1) // 2, 1)} max={shape(most, 2)}"


def _warm_up(spec: TensorSpec) -> str:
    dims = ", ".join(
        str(dim if name is None else WARM_UP_SIZES[name])
        for dim, name in zip(spec.dims, dimension_names(spec), strict=True)
    )
    value = f"{{ data_type: {spec.data_type} dims: [ {dims} ] zero_data: true }}"
    return f'    inputs {{ key: "{spec.name}" value {value} }}\n'


def export_model(entry: ModelEntry, network: nn.Module) -> Path:
    """Write model.onnx and config.pbtxt into the model repository; returns the ONNX file's path."""
    export_onnx(entry, network, entry.onnx_path)
    entry.config_path.write_text(render_config(entry, weights_sha256(entry)), encoding="utf-8")
    return entry.onnx_path
