"""From a checkpoint to what Triton serves.

In: a registry entry and a checkpoint (or any network).  Out: ``repository/<name>/1/model.onnx`` and
``config.pbtxt``, which carries the file's SHA-256.

Opset 18 with Resize in "linear" mode: TensorRT's ONNX parser takes every operator of these graphs. TensorRT
itself has no 16-bit integer tensors, so a stand-alone engine needs HU as INT32 or FP16; ONNX Runtime's
TensorRT execution provider serves the file as it is.
"""

from __future__ import annotations

from pathlib import Path

import onnx
import torch
from torch import nn

from triton_models.architectures.served import build_served
from triton_models.registry import ModelEntry, TensorSpec, weights_sha256

OPSET = 18


def export_onnx(entry: ModelEntry, network: nn.Module, path: Path) -> None:
    """Write the served graph around ``network``; batch, rows and columns stay dynamic."""
    served = build_served(entry, network).eval()
    # sizes that divide nothing, so that no dimension is taken for a constant
    example = torch.randint(-1024, 600, (2, 331, 347), dtype=torch.int16)
    dynamic = {0: torch.export.Dim("batch"), 1: torch.export.Dim("rows"), 2: torch.export.Dim("columns")}
    program = torch.onnx.export(
        served,
        (example,),
        input_names=[spec.name for spec in entry.inputs],
        output_names=[spec.name for spec in entry.outputs],
        dynamic_shapes=(dynamic,),
        opset_version=OPSET,
        dynamo=True,
        external_data=False,
        verbose=False,
    )
    if program is None:
        raise RuntimeError(f"{entry.name}: torch.onnx.export returned no program")
    model = program.model_proto
    # traces of the machine that exported have no place in a file whose hash is published
    del model.metadata_props[:]
    for node in model.graph.node:
        del node.metadata_props[:]
    for value in [*model.graph.value_info, *model.graph.input, *model.graph.output]:
        del value.metadata_props[:]
    onnx.checker.check_model(model, full_check=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".tmp")
    onnx.save(model, partial)
    partial.replace(path)


def render_config(entry: ModelEntry, sha256: str) -> str:
    """The text of config.pbtxt; a pure function of the registry and the model file's hash."""

    def tensors(kind: str, specs: tuple[TensorSpec, ...]) -> str:
        lines = []
        for spec in specs:
            dims = ", ".join(str(dim) for dim in spec.dims)
            lines.append(f'  {{ name: "{spec.name}" data_type: {spec.data_type} dims: [ {dims} ] }}')
        return f"{kind} [\n" + ",\n".join(lines) + "\n]\n"

    warm_up = ", ".join("512" for _ in entry.inputs[0].dims)
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
        '    name: "one slice"\n'
        "    batch_size: 1\n"
        f'    inputs {{ key: "{entry.inputs[0].name}" value {{ data_type: {entry.inputs[0].data_type} '
        f"dims: [ {warm_up} ] zero_data: true }} }}\n"
        "  }\n"
        "]\n"
        f'parameters {{ key: "description" value {{ string_value: "{entry.task}" }} }}\n'
        f'parameters {{ key: "paper" value {{ string_value: "{entry.paper}" }} }}\n'
        f'parameters {{ key: "weights_licence" value {{ string_value: "{entry.weights_licence}" }} }}\n'
        f'parameters {{ key: "sha256" value {{ string_value: "{sha256}" }} }}\n'
    )


def export_model(entry: ModelEntry, network: nn.Module) -> Path:
    """Write model.onnx and config.pbtxt into the model repository; returns the ONNX file's path."""
    export_onnx(entry, network, entry.onnx_path)
    entry.config_path.write_text(render_config(entry, weights_sha256(entry)), encoding="utf-8")
    return entry.onnx_path
