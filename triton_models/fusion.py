"""Builds ``fusion``: backbones as Triton models, their features concatenated by a head, an ensemble of all.

In: a checkpoint of `pacsnode models train fusion` (three light backbones), or none: the paper's seven then.
Out: folders in a model repository:
``fusion_<backbone>`` (HU in, FEATURES out), ``fusion_head`` (all FEATURES in, PROBABILITIES out) and
``fusion``, the ensemble that clients call.

Ji et al. 2021, sections 2.3 and 4.2: frozen backbones, global average pooling, concatenation, a trained
head. The seven take ImageNet weights where they can be loaded. Where weights are seeded random numbers
instead, the folder's config.pbtxt says so: such an ensemble shows that the plumbing works, never what a slice
shows.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from google.protobuf import text_format
from torch import Tensor, nn
from tqdm import tqdm
from tritonclient.grpc import model_config_pb2

from triton_models.architectures.keras_bodies import SEVEN, KerasBody
from triton_models.architectures.lung_pooled import (
    LungPooled,
    LungPooledClassifier,
    SmallFusion,
    StandardisedLinear,
)
from triton_models.data.image_list import read_image_list
from triton_models.export import profile_text, write_onnx
from triton_models.registry import ModelEntry, TensorSpec, file_sha256
from triton_models.served.classification import mean_features
from triton_models.training.linear_head import fit_linear_head
from triton_models.training.loop import load_trained
from triton_models.training.recipes.lung_pooled import HEAD_DECAY
from triton_models.training.settings import SEED

HEAD = "head"
SEEDED = f"seeded {SEED}"


class BackboneGraph(nn.Module):
    """HU int16 (n, rows, columns) -> FEATURES float32 (n, k) of one body, means of the slice's and its mirror
    image's at the sizes asked."""

    def __init__(self, pooled: LungPooled, sizes: Sequence[int]) -> None:
        super().__init__()
        self.pooled = pooled
        self.sizes = sizes

    def forward(self, hu: Tensor) -> Tensor:
        return mean_features(self.pooled.mirrored_features, hu, self.sizes)


class HeadGraph(nn.Module):
    """All backbones' FEATURES -> PROBABILITIES float32 (n, classes)."""

    def __init__(self, head: StandardisedLinear) -> None:
        super().__init__()
        self.head = head

    def forward(self, *features: Tensor) -> Tensor:
        return torch.softmax(self.head(torch.cat(features, dim=1)), dim=1)


@dataclass(frozen=True)
class _Backbone:
    """weights: where they come from."""

    name: str
    graph: nn.Module
    feature_count: int
    weights: str


@dataclass(frozen=True)
class _Fusion:
    """All that is written. head_weights: where the head's weights come from."""

    backbones: Sequence[_Backbone]
    head: HeadGraph
    head_weights: str
    classes: tuple[str, ...]


@dataclass(frozen=True)
class _Part:
    """One model of the ensemble."""

    name: str
    graph: nn.Module
    inputs: tuple[TensorSpec, ...]
    output: TensorSpec
    weights: str


def build_fusion(
    entry: ModelEntry,
    repository: Path,
    *,
    checkpoint: Path | None = None,
    data: Path | None = None,
    small: bool = False,
) -> list[Path]:
    """Write the ensemble and its parts; returns their folders.

    checkpoint: of the small fusion.  data: a list of pictures on which the seven's head is solved; without it
    the head is seeded.  small: the three light bodies, seeded.
    Raises FileNotFoundError or ValueError for a checkpoint or data that isn't there or isn't fusion's.
    """
    if checkpoint is not None:
        trained = load_trained(entry, checkpoint)
        network = cast(LungPooledClassifier, trained.network)
        fusion = _small(trained.entry, network, trained.classes, f"checkpoint {file_sha256(checkpoint)}")
    elif small:
        torch.manual_seed(SEED)
        network = SmallFusion(len(entry.classes), entry.network_size).eval()
        fusion = _small(entry, network, entry.classes, SEEDED)
    else:
        fusion = _seven(entry, data)
    parts = _parts(entry, fusion)
    classes = ", ".join(fusion.classes)
    folders = [_write_part(entry, part, repository, classes) for part in parts]
    folders.append(_write_ensemble(entry, parts, repository, classes))
    _write_card(entry, parts, repository, fusion)
    return folders


def _small(
    entry: ModelEntry, network: LungPooledClassifier, classes: tuple[str, ...], weights: str
) -> _Fusion:
    backbones = []
    for one in network.pooled:
        pooled = cast(LungPooled, one)
        graph = BackboneGraph(pooled, entry.sizes)
        name = type(pooled.body).__name__.lower()
        backbones.append(_Backbone(name, graph, pooled.feature_count, weights))
    return _Fusion(backbones, HeadGraph(network.head), weights, classes)


def _seven(entry: ModelEntry, data: Path | None) -> _Fusion:
    backbones = []
    for name, preprocessing in tqdm(SEVEN.items(), desc="load backbones", unit="network"):
        body = KerasBody(name, preprocessing, seed=SEED).eval()
        backbones.append(_Backbone(name.lower(), body, body.feature_count, body.weights))
    count = sum(backbone.feature_count for backbone in backbones)
    torch.manual_seed(SEED)
    if data is None:
        head = StandardisedLinear(count, len(entry.classes))
        return _Fusion(backbones, HeadGraph(head), SEEDED, entry.classes)
    listed = read_image_list(data)
    images = listed.for_training.images
    with torch.inference_mode():
        features = [
            torch.cat([one.graph(torch.from_numpy(image.hu()[None])) for one in backbones], dim=1)
            for image in tqdm(images, desc="features", unit="picture")
        ]
    labels = torch.tensor([listed.classes.index(image.label) for image in images])
    head = StandardisedLinear(count, len(listed.classes))
    fit_linear_head(head, torch.cat(features).clone(), labels, decay=HEAD_DECAY * len(backbones))
    return _Fusion(backbones, HeadGraph(head), f"solved on {data.name}", listed.classes)


def _parts(entry: ModelEntry, fusion: _Fusion) -> list[_Part]:
    (hu,) = entry.inputs
    parts = []
    for one in fusion.backbones:
        features = TensorSpec(f"FEATURES_{one.name.upper()}", "TYPE_FP32", (one.feature_count,))
        parts.append(_Part(f"{entry.name}_{one.name}", one.graph, (hu,), features, one.weights))
    probabilities = TensorSpec("PROBABILITIES", "TYPE_FP32", (len(fusion.classes),))
    inputs = tuple(part.output for part in parts)
    return [*parts, _Part(f"{entry.name}_{HEAD}", fusion.head, inputs, probabilities, fusion.head_weights)]


def _write_part(entry: ModelEntry, part: _Part, repository: Path, classes: str) -> Path:
    folder = repository / part.name
    path = folder / entry.version / "model.onnx"
    write_onnx(part.graph.eval(), part.inputs, (part.output,), path)
    config = _config(part.name, entry, part.inputs, part.output)
    config.backend = "onnxruntime"
    config.dynamic_batching.max_queue_delay_microseconds = 0
    config.instance_group.add(count=1, kind=model_config_pb2.ModelInstanceGroup.KIND_AUTO)
    described = {"weights": part.weights, "classes": classes, "sha256": file_sha256(path)}
    for name, value in described.items():
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


def _write_ensemble(entry: ModelEntry, parts: Sequence[_Part], repository: Path, classes: str) -> Path:
    """Its sha256 is that of its parts' hashes, in order."""
    *backbones, head = parts
    hashes = [file_sha256(repository / part.name / entry.version / "model.onnx") for part in parts]
    sha256 = hashlib.sha256("".join(hashes).encode()).hexdigest()
    config = _config(entry.name, entry, entry.inputs, head.output)
    config.platform = "ensemble"
    weights = "; ".join(sorted({part.weights for part in parts}))
    described = {"weights": weights, "classes": classes, "description": entry.task, "sha256": sha256}
    for name, value in described.items():
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


CARD = """# fusion

Positive or negative for COVID-19 pneumonia on an axial chest CT slice, after Ji et al. 2021. **Not for
clinical use.** Written by `pacsnode models build fusion`.

| | |
|---|---|
| Input | `HU` INT16 [n, rows, columns], Hounsfield units, n <= {batch} |
| Output | `PROBABILITIES` FP32 [n, {count}]: {classes} |
| Graph | a Triton ensemble of the models below |

| model | weights | model.onnx, SHA-256 |
|---|---|---|
{rows}

Weights that are "seeded" are random numbers: with any of them the answers mean nothing. ImageNet weights know
nothing of CT; the head's weights say what it was solved on. How such ensembles measure: docs/evaluation.md.
"""


def _write_card(entry: ModelEntry, parts: Sequence[_Part], repository: Path, fusion: _Fusion) -> None:
    rows = []
    for part in parts:
        sha256 = file_sha256(repository / part.name / entry.version / "model.onnx")
        rows.append(f"| {part.name} | {part.weights} | `{sha256}` |")
    text = CARD.format(
        batch=entry.max_batch_size,
        count=len(fusion.classes),
        classes=", ".join(fusion.classes),
        rows="\n".join(rows),
    )
    (repository / entry.name / "README.md").write_text(text, encoding="utf-8")


def _write_config(folder: Path, config: model_config_pb2.ModelConfig) -> None:
    (folder / "config.pbtxt").write_text(text_format.MessageToString(config), encoding="utf-8")
