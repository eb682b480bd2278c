"""The models this project ships: one table, importable without torch.

In: nothing.  Out: ``MODELS`` (name -> ``ModelEntry``) and helpers that find and fingerprint the served file.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Literal

REPOSITORY = Path(__file__).parent / "repository"
NETWORK_SIZE = 256  # pixels a side inside the slice networks
HU_RANGE = (-1024, 600)  # HU outside of this range carry nothing for lungs; clipped before resizing
MAX_BATCH_SIZE = 16
#: a checkpoint or command line that names no variant means the model itself, not one of its baselines
MAIN = "main"

Kind = Literal["segmentation", "detection", "classification", "generation"]


@dataclass(frozen=True)
class TensorSpec:
    """A model input or output as in config.pbtxt: Triton data type and dims without the batch axis."""

    name: str
    data_type: str
    dims: tuple[int, ...]


@dataclass(frozen=True)
class ModelEntry:
    """One served model.

    task: what it answers, one line.  kind: which measures it is evaluated by.
    paper: short name in the project's documents and a citation.
    architecture: module and class under ``triton_models.architectures``, built as
    ``Class(out_channels, network_size)``; baselines: the same, of networks that the paper compares with it.
    served: module and class under ``triton_models.served``, the graph around the network.
    recipe: module and class under ``triton_models.training.recipes``.
    classes: what each output channel of the network means, in order.
    """

    name: str
    title: str
    task: str
    kind: Kind
    paper: str
    architecture: str
    served: str
    recipe: str
    classes: tuple[str, ...]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    weights_licence: str
    version: str = "1"
    network_size: int = NETWORK_SIZE
    max_batch_size: int = MAX_BATCH_SIZE
    baselines: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))

    @property
    def variants(self) -> Mapping[str, str]:
        """Name -> architecture, of the model itself (``MAIN``) and of its baselines."""
        return {MAIN: self.architecture, **self.baselines}

    @property
    def folder(self) -> Path:
        return REPOSITORY / self.name

    @property
    def onnx_path(self) -> Path:
        return self.folder / self.version / "model.onnx"

    @property
    def config_path(self) -> Path:
        return self.folder / "config.pbtxt"


_HU = TensorSpec("HU", "TYPE_INT16", (-1, -1))

_ENTRIES = (
    ModelEntry(
        name="lungs",
        title="Lung segmentation, 2D V-Net with self-attention on the skip connections",
        task="lung tissue (with its lesions and vessels, without trachea and effusion) on axial chest CT",
        kind="segmentation",
        paper="Deng et al. 2021, doi:10.1155/2021/7259414",
        architecture="vnet2d.VNet2D",
        served="segmentation.ServedLungs",
        recipe="segmentation.SegmentationRecipe",
        classes=("lungs",),
        inputs=(_HU,),
        outputs=(TensorSpec("LUNGS", "TYPE_UINT8", (-1, -1)),),
        weights_licence="CC-BY-4.0",
        baselines=MappingProxyType({"unet": "unet2d.UNet2D", "vnet": "vnet2d.PlainVNet2D"}),
    ),
    ModelEntry(
        name="lesions",
        title="Ground glass and consolidation segmentation, COVSeg-NET",
        task="ground glass and consolidation on axial chest CT",
        kind="segmentation",
        paper="Zhang et al. 2021, doi:10.1002/ima.22611",
        architecture="covseg.COVSegNet",
        served="segmentation.ServedLesions",
        recipe="segmentation.SegmentationRecipe",
        classes=("ground_glass", "consolidation"),
        inputs=(_HU,),
        outputs=(
            TensorSpec("LABELS", "TYPE_UINT8", (-1, -1)),
            TensorSpec("PROBABILITIES", "TYPE_UINT8", (2, -1, -1)),
        ),
        weights_licence="CC-BY-4.0",
    ),
)

MODELS: Mapping[str, ModelEntry] = MappingProxyType({entry.name: entry for entry in _ENTRIES})


def model(name: str) -> ModelEntry:
    """The entry of that name. Raises KeyError that lists the known names."""
    if name not in MODELS:
        raise KeyError(f"model {name!r} is unknown; known are {', '.join(MODELS)}")
    return MODELS[name]


def file_sha256(path: Path) -> str:
    """Hex SHA-256 of a file. Raises FileNotFoundError when it isn't there."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def weights_sha256(entry: ModelEntry) -> str:
    """Hex SHA-256 of the served model.onnx. Raises FileNotFoundError when the model isn't exported yet."""
    return file_sha256(entry.onnx_path)
