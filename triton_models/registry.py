"""The models this project ships: one table, importable without torch.

In: nothing.  Out: ``MODELS`` (name -> ``ModelEntry``) and helpers that find and fingerprint the served file.
"""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

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
    network_size: pixels a side of what the network sees.  asked_sizes: where several are asked and averaged.
    half_weights: large weights are stored in half precision and widened when the file is loaded.
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
    asked_sizes: tuple[int, ...] = ()
    max_batch_size: int = MAX_BATCH_SIZE
    half_weights: bool = False
    baselines: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))

    @property
    def sizes(self) -> tuple[int, ...]:
        """The sizes that the served graph asks its network at."""
        return self.asked_sizes or (self.network_size,)

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
    def is_built(self) -> bool:
        """Whether its file is in the repository; what is too large to be shipped is built by a command."""
        return self.onnx_path.is_file()

    @property
    def config_path(self) -> Path:
        return self.folder / "config.pbtxt"


_HU = TensorSpec("HU", "TYPE_INT16", (-1, -1))
_HU_VOLUME = TensorSpec("HU", "TYPE_INT16", (-1, -1, -1))

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
        recipe="lesions.LesionsRecipe",
        classes=("ground_glass", "consolidation"),
        inputs=(_HU,),
        outputs=(
            TensorSpec("LABELS", "TYPE_UINT8", (-1, -1)),
            TensorSpec("PROBABILITIES", "TYPE_UINT8", (2, -1, -1)),
        ),
        weights_licence="CC-BY-4.0",
    ),
    ModelEntry(
        name="infection_type",
        title="Infection type of candidate patches, ResNet-18 with location attention",
        task="COVID-19, influenza A viral pneumonia or neither, for 24 mm patches of candidate regions",
        kind="classification",
        paper="Xu et al. 2020, doi:10.1016/j.eng.2020.04.010",
        architecture="infection_type.LocationAttention",
        served="infection_type.ServedInfectionType",
        recipe="infection_type.InfectionTypeRecipe",
        classes=("covid19", "iavp", "irrelevant"),
        inputs=(TensorSpec("HU", "TYPE_INT16", (64, 64)), TensorSpec("DISTANCE", "TYPE_FP32", (1,))),
        outputs=(TensorSpec("PROBABILITIES", "TYPE_FP32", (3,)),),
        weights_licence="CC-BY-4.0",
        network_size=64,
        max_batch_size=64,
        baselines=MappingProxyType({"plain": "infection_type.PlainResNet"}),
    ),
    ModelEntry(
        name="candidates",
        title="Candidate regions, 3D V-Net with inception-residual blocks and a region proposal head",
        task="boxes around regions of a chest CT that may be infected, many of them falsely",
        kind="detection",
        paper="Xu et al. 2020, doi:10.1016/j.eng.2020.04.010",
        architecture="vnet_ir.VNetIR",
        served="detection.ServedCandidates",
        recipe="candidates.CandidatesRecipe",
        classes=("lesion",),
        inputs=(_HU_VOLUME,),
        outputs=(TensorSpec("BOXES", "TYPE_FP32", (64, 6)), TensorSpec("SCORES", "TYPE_FP32", (64,))),
        weights_licence="CC-BY-4.0",
        network_size=160,
        max_batch_size=2,
        half_weights=True,
    ),
    ModelEntry(
        name="lesion_boxes",
        title="Lesion boxes on slices, Faster R-CNN with a feature pyramid",
        task="boxes around ground glass and consolidation on axial chest CT",
        kind="detection",
        paper="Deng et al. 2021, doi:10.1155/2021/7259414",
        architecture="faster_rcnn.FasterRCNN",
        served="detection.ServedLesionBoxes",
        recipe="lesion_boxes.LesionBoxesRecipe",
        classes=("ground_glass", "consolidation"),
        inputs=(_HU,),
        outputs=(
            TensorSpec("BOXES", "TYPE_FP32", (32, 4)),
            TensorSpec("SCORES", "TYPE_FP32", (32,)),
            TensorSpec("TYPES", "TYPE_FP32", (32, 2)),
        ),
        weights_licence="CC-BY-4.0",
        half_weights=True,
    ),
    ModelEntry(
        name="inpaint",
        title="Filling in of masked lung, WGAN-GP",
        task="fills masked parts of 128 x 128 windows of chest CT as if they were without disease",
        kind="generation",
        paper="Deng et al. 2021, doi:10.1155/2021/7259414",
        architecture="inpaint.InpaintGAN",
        served="inpaint.ServedInpaint",
        recipe="inpaint.InpaintRecipe",
        classes=("normal",),
        inputs=(TensorSpec("HU", "TYPE_INT16", (128, 128)), TensorSpec("MASK", "TYPE_UINT8", (128, 128))),
        outputs=(TensorSpec("INPAINTED", "TYPE_INT16", (128, 128)),),
        weights_licence="CC-BY-4.0",
        network_size=128,
        baselines=MappingProxyType({"dcgan": "inpaint.DCGAN", "pggan": "pggan.PGGAN"}),
    ),
    ModelEntry(
        name="pneumonia_class",
        title="Slice classifier, ResNet-34 with features pooled over the lungs",
        task="normal, bacterial or viral pneumonia on an axial chest CT slice",
        kind="classification",
        paper="Independent CT virus recognition platform 2021 (ctcloud)",
        architecture="lung_pooled.PneumoniaNet",
        served="classification.ServedClasses",
        recipe="lung_pooled.LungPooledRecipe",
        classes=("normal", "bacterial", "viral"),
        inputs=(_HU,),
        outputs=(TensorSpec("PROBABILITIES", "TYPE_FP32", (3,)),),
        weights_licence="CC-BY-4.0",
        network_size=224,
        half_weights=True,
    ),
    ModelEntry(
        name="fusion",
        title="Fusion of several backbones' features, an ensemble",
        task="positive or negative for COVID-19 pneumonia on an axial chest CT slice",
        kind="classification",
        paper="Ji et al. 2021, Recognition of COVID-19 images (fusion)",
        architecture="lung_pooled.SmallFusion",
        served="classification.ServedClasses",
        recipe="small_fusion.SmallFusionRecipe",
        classes=("negative", "positive"),
        inputs=(_HU,),
        outputs=(TensorSpec("PROBABILITIES", "TYPE_FP32", (2,)),),
        weights_licence="CC-BY-4.0",
        network_size=224,
        asked_sizes=(192, 224),
        half_weights=True,
    ),
)

MODELS: Mapping[str, ModelEntry] = MappingProxyType({entry.name: entry for entry in _ENTRIES})


def model(name: str) -> ModelEntry:
    """The entry of that name. Raises KeyError that lists the known names."""
    if name not in MODELS:
        raise KeyError(f"model {name!r} is unknown; known are {', '.join(MODELS)}")
    return MODELS[name]


def named(package: str, name: str) -> Any:
    """The class or function that an entry names, "module.Class" in that package; imported only here."""
    module, attribute = name.split(".")
    return getattr(importlib.import_module(f"{package}.{module}"), attribute)


def file_sha256(path: Path) -> str:
    """Hex SHA-256 of a file. Raises FileNotFoundError when it isn't there."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def weights_sha256(entry: ModelEntry) -> str:
    """Hex SHA-256 of the served model.onnx. Raises FileNotFoundError when the model isn't exported yet."""
    return file_sha256(entry.onnx_path)
