"""The seven backbones of Ji et al. 2021 (section 4.2), as keras.applications has them.

In: HU int16 (n, rows, columns).  Out: global average pooled features float32 (n, k).

ImageNet weights are loaded where keras can fetch or has them; otherwise the weights are seeded random
numbers, and ``weights`` says so. Needs keras 3 (`pip install 'pacsnode[fusion]'`), on its torch backend.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, cast

import torch
from torch import Tensor, nn

from triton_models.served.classification import grey_window

SIZE = 224  # pixels a side, for all of them
IMAGENET = "imagenet"


@dataclass(frozen=True)
class Preprocessing:
    """What a network's ImageNet weights expect of colours 0..255: (x / scale - mean) / deviation, a channel
    each, in the order that the network takes them."""

    scale: float
    mean: tuple[float, float, float]
    deviation: tuple[float, float, float] = (1.0, 1.0, 1.0)


_SYMMETRIC = Preprocessing(127.5, (1.0, 1.0, 1.0))
_CAFFE = Preprocessing(1.0, (103.939, 116.779, 123.68))
_TORCH = Preprocessing(255.0, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))

#: name in keras.applications -> what it expects
SEVEN: Mapping[str, Preprocessing] = MappingProxyType(
    {
        "InceptionV3": _SYMMETRIC,
        "DenseNet121": _TORCH,
        "ResNet50": _CAFFE,
        "Xception": _SYMMETRIC,
        "VGG19": _CAFFE,
        "NASNetLarge": _SYMMETRIC,
        "InceptionResNetV2": _SYMMETRIC,
    }
)


class KerasBody(nn.Module):
    """One backbone, frozen. ``weights``: IMAGENET or what the seed says."""

    mean: Tensor
    deviation: Tensor

    def __init__(self, name: str, preprocessing: Preprocessing, *, seed: int) -> None:
        super().__init__()
        self.model, self.weights = _load(name, seed)
        self.scale = preprocessing.scale
        self.register_buffer("mean", torch.tensor(preprocessing.mean))
        self.register_buffer("deviation", torch.tensor(preprocessing.deviation))
        self.feature_count = int(self.model.output_shape[-1])
        self.requires_grad_(requires_grad=False)

    def forward(self, hu: Tensor) -> Tensor:
        grey = grey_window(hu, SIZE) * 255.0
        colours = grey[..., None].expand(-1, -1, -1, 3)
        return cast(Tensor, self.model((colours / self.scale - self.mean) / self.deviation, training=False))


def _load(name: str, seed: int) -> tuple[Any, str]:
    os.environ.setdefault("KERAS_BACKEND", "torch")
    import keras  # noqa: PLC0415 - large, and needed here only

    if keras.backend.backend() != "torch":
        raise RuntimeError("keras was loaded with another backend than torch; set KERAS_BACKEND=torch")
    keras.backend.set_image_data_format("channels_last")
    builder = getattr(keras.applications, name)
    arguments = {"include_top": False, "pooling": "avg", "input_shape": (SIZE, SIZE, 3)}
    try:
        return builder(weights=IMAGENET, **arguments), IMAGENET
    except Exception:
        keras.utils.set_random_seed(seed)
        return builder(weights=None, **arguments), f"seeded {seed}"
