"""The models this project ships: one table, importable without torch.

In: nothing.  Out: ``MODELS`` (name -> ``ModelEntry``) and helpers that find and fingerprint the served file.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

REPOSITORY = Path(__file__).parent / "repository"
NETWORK_SIZE = 256  # pixels a side inside both networks
HU_RANGE = (-1024, 600)  # HU outside of this range carry nothing for lungs; clipped before resizing
MAX_BATCH_SIZE = 16


@dataclass(frozen=True)
class TensorSpec:
    """A model input or output as in config.pbtxt: Triton data type and dims without the batch axis."""

    name: str
    data_type: str
    dims: tuple[int, ...]


@dataclass(frozen=True)
class ModelEntry:
    """One served model.

    paper: short name in the project's documents and a citation.  task: what it answers, one line.
    architecture: module and class under ``triton_models.architectures``.
    channels: what each output channel of the network means, in order.
    """

    name: str
    title: str
    task: str
    paper: str
    architecture: str
    channels: tuple[str, ...]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    weights_licence: str
    version: str = "1"
    network_size: int = NETWORK_SIZE
    max_batch_size: int = MAX_BATCH_SIZE

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

MODELS: Mapping[str, ModelEntry] = MappingProxyType(
    {
        "lungs": ModelEntry(
            name="lungs",
            title="Lung segmentation, 2D V-Net with self-attention on the skip connections",
            task="lung tissue (with its lesions and vessels, without trachea and effusion) on axial chest CT",
            paper="Deng et al. 2021, doi:10.1155/2021/7259414",
            architecture="vnet2d.VNet2D",
            channels=("lung",),
            inputs=(_HU,),
            outputs=(TensorSpec("LUNGS", "TYPE_UINT8", (-1, -1)),),
            weights_licence="CC-BY-4.0",
        ),
        "lesions": ModelEntry(
            name="lesions",
            title="Ground glass and consolidation segmentation, COVSeg-NET",
            task="ground glass and consolidation on axial chest CT",
            paper="Zhang et al. 2021, doi:10.1002/ima.22611",
            architecture="covseg.COVSegNet",
            channels=("ground_glass", "consolidation"),
            inputs=(_HU,),
            outputs=(
                TensorSpec("LABELS", "TYPE_UINT8", (-1, -1)),
                TensorSpec("PROBABILITIES", "TYPE_UINT8", (2, -1, -1)),
            ),
            weights_licence="CC-BY-4.0",
        ),
    }
)


def model(name: str) -> ModelEntry:
    """The entry of that name. Raises KeyError that lists the known names."""
    if name not in MODELS:
        raise KeyError(f"model {name!r} is unknown; known are {', '.join(MODELS)}")
    return MODELS[name]


def weights_sha256(entry: ModelEntry) -> str:
    """Hex SHA-256 of the served model.onnx. Raises FileNotFoundError when the model isn't exported yet."""
    with entry.onnx_path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
