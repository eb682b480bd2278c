"""Builds ``fusion``: backbones as Triton models, their features concatenated by a head, an ensemble of all.

In: a checkpoint of `pacsnode models train fusion`, or none.  Out: folders in a model repository:
``fusion_<backbone>`` (HU in, FEATURES out), ``fusion_head`` (all FEATURES in, PROBABILITIES out) and
``fusion``, the ensemble that clients call.

Ji et al. 2021, sections 2.3 and 4.2: frozen backbones, global average pooling, concatenation, a trained
head. Without a checkpoint the weights are seeded random numbers, and each folder says so: such an ensemble
shows that the plumbing works, never what a slice shows.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from google.protobuf import text_format
from torch import Tensor, nn
from tritonclient.grpc import model_config_pb2

from triton_models.architectures.lung_pooled import LungPooled, LungPooledClassifier, SmallFusion
from triton_models.export import profile_text, write_onnx
from triton_models.registry import ModelEntry, TensorSpec, file_sha256
from triton_models.served.classification import lung_window
from triton_models.training.loop import load_trained
from triton_models.training.settings import SEED

HEAD = "head"
SEEDED = f"seeded {SEED}"


class BackboneGraph(nn.Module):
    """HU int16 (n, rows, columns) -> FEATURES float32 (n, k) of one body, slice and mirror image averaged."""

    def __init__(self, pooled: LungPooled, size: int) -> None:
        super().__init__()
        self.pooled = pooled
        self.size = size

    def forward(self, hu: Tensor) -> Tensor:
        x = lung_window(hu, self.size)
        features = self.pooled.features(torch.cat([x, x.flip(-1)]))
        return features.reshape(2, -1, features.shape[1]).mean(dim=0)


class HeadGraph(nn.Module):
    """All backbones' FEATURES -> PROBABILITIES float32 (n, classes)."""

    def __init__(self, classifier: LungPooledClassifier) -> None:
        super().__init__()
        self.linear = classifier.linear
        self.register_buffer("middle", classifier.middle.clone())
        self.register_buffer("scale", classifier.scale.clone())

    def forward(self, *features: Tensor) -> Tensor:
        standard = (torch.cat(features, dim=1) - self.get_buffer("middle")) / self.get_buffer("scale")
        return torch.softmax(self.linear(standard), dim=1)


@dataclass(frozen=True)
class _Part:
    """One model of the ensemble."""

    name: str
    graph: nn.Module
    inputs: tuple[TensorSpec, ...]
    output: TensorSpec


def build_fusion(entry: ModelEntry, repository: Path, checkpoint: Path | None = None) -> list[Path]:
    """Write the ensemble and its parts; returns their folders.

    Raises FileNotFoundError or ValueError for a checkpoint that isn't there or isn't fusion's.
    """
    if checkpoint is None:
        torch.manual_seed(SEED)
        classifier: LungPooledClassifier = SmallFusion(len(entry.classes), entry.network_size)
        classes, weights = entry.classes, SEEDED
    else:
        trained = load_trained(entry, checkpoint)
        classifier, classes = cast(LungPooledClassifier, trained.network), trained.classes
        weights = f"checkpoint {file_sha256(checkpoint)}"
    parts = _parts(entry, classifier.eval(), len(classes))
    notes = {"weights": weights, "classes": ", ".join(classes)}
    folders = [_write_part(entry, part, repository, notes) for part in parts]
    return [*folders, _write_ensemble(entry, parts, repository, notes)]


def _parts(entry: ModelEntry, classifier: LungPooledClassifier, classes: int) -> list[_Part]:
    (hu,) = entry.inputs
    backbones = []
    for one in classifier.pooled:
        pooled = cast(LungPooled, one)
        name = type(pooled.body).__name__.lower()
        features = TensorSpec(f"FEATURES_{name.upper()}", "TYPE_FP32", (pooled.feature_count,))
        graph = BackboneGraph(pooled, entry.network_size)
        backbones.append(_Part(f"{entry.name}_{name}", graph, (hu,), features))
    probabilities = TensorSpec("PROBABILITIES", "TYPE_FP32", (classes,))
    head = _Part(
        f"{entry.name}_{HEAD}", HeadGraph(classifier), tuple(b.output for b in backbones), probabilities
    )
    return [*backbones, head]


def _write_part(entry: ModelEntry, part: _Part, repository: Path, notes: Mapping[str, str]) -> Path:
    folder = repository / part.name
    path = folder / entry.version / "model.onnx"
    write_onnx(part.graph.eval(), part.inputs, (part.output,), path)
    config = _config(part.name, entry, part.inputs, part.output)
    config.backend = "onnxruntime"
    config.dynamic_batching.max_queue_delay_microseconds = 0
    config.instance_group.add(count=1, kind=model_config_pb2.ModelInstanceGroup.KIND_AUTO)
    for name, value in {**notes, "sha256": file_sha256(path)}.items():
        config.parameters[name].string_value = value
    _write_config(folder, config)
    return folder


def _config(
    name: str, entry: ModelEntry, inputs: Sequence[TensorSpec], output: TensorSpec
) -> model_config_pb2.ModelConfig:
    config = model_config_pb2.ModelConfig(name=name, max_batch_size=entry.max_batch_size)
    for tensors, specs in ((config.input, inputs), (config.output, [output])):
        for spec in specs:
            kind = model_config_pb2.DataType.Value(spec.data_type)
            tensors.add(name=spec.name, data_type=kind, dims=spec.dims)
    config.parameters["paper"].string_value = entry.paper
    for spec in inputs:
        config.parameters[f"tensorrt_profile_{spec.name}"].string_value = profile_text(entry, spec)
    return config


def _write_ensemble(
    entry: ModelEntry, parts: Sequence[_Part], repository: Path, notes: Mapping[str, str]
) -> Path:
    """Its sha256 is that of its parts' hashes, in order."""
    *backbones, head = parts
    hashes = [file_sha256(repository / part.name / entry.version / "model.onnx") for part in parts]
    sha256 = hashlib.sha256("".join(hashes).encode()).hexdigest()
    config = _config(entry.name, entry, entry.inputs, head.output)
    config.platform = "ensemble"
    for name, value in {**notes, "description": entry.task, "sha256": sha256}.items():
        config.parameters[name].string_value = value
    (hu,) = entry.inputs
    for part in backbones:
        step = config.ensemble_scheduling.step.add(model_name=part.name, model_version=-1)
        step.input_map[hu.name] = hu.name
        step.output_map[part.output.name] = part.output.name
    step = config.ensemble_scheduling.step.add(model_name=head.name, model_version=-1)
    for spec in head.inputs:
        step.input_map[spec.name] = spec.name
    step.output_map[head.output.name] = head.output.name
    folder = repository / entry.name
    (folder / entry.version).mkdir(parents=True, exist_ok=True)
    _write_config(folder, config)
    return folder


def _write_config(folder: Path, config: model_config_pb2.ModelConfig) -> None:
    (folder / "config.pbtxt").write_text(text_format.MessageToString(config), encoding="utf-8")
