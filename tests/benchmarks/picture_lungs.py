"""Of a folder of pictures, how many show lungs as ``chest_ct_picture`` wants them, and which don't.

.venv/bin/python -m tests.benchmarks.picture_lungs FOLDER
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset

from node.web.decoding import Refused, decode
from pipelines import lungs
from pipelines.ct_picture import CtPicture
from pipelines.errors import SeriesRefused
from pipelines.picture_lungs import find_lungs
from pipelines.triton import Arrays, ModelSpec, Progress, ServedModel, put_into
from pipelines.volume import ModelIdentity
from triton_models.evaluation.predictor import OnnxPredictor
from triton_models.registry import MODELS


class _Onnx:
    """An ``Inference`` that asks the repository's file."""

    def __init__(self) -> None:
        self._predictor = OnnxPredictor(MODELS["lungs"])

    def check(self, spec: ModelSpec) -> ServedModel:
        return ServedModel(spec, ModelIdentity(spec.name, spec.version, self._predictor.weights_sha256), 1)

    def run(
        self,
        model: ServedModel,
        inputs: Arrays,
        *,
        progress: Progress | None = None,
        out: Arrays | None = None,
    ) -> dict[str, NDArray[Any]]:
        return put_into(out, dict(self._predictor(inputs)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("folder", type=Path)
    inference = _Onnx()
    model = inference.check(lungs.SPEC)
    taken, refused = 0, 0
    for path in sorted(parser.parse_args().folder.rglob("*")):
        if path.suffix.lower() not in (".png", ".jpg", ".jpeg"):
            continue
        try:
            grey, _ = decode(path)
            header = Dataset()
            header.SOPInstanceUID = f"1.2.{taken + refused}"
            find_lungs(CtPicture(np.asarray(grey), header), inference, model)
        except (Refused, SeriesRefused) as error:
            refused += 1
            print(f"{path.name}: {error}")
        else:
            taken += 1
    print(f"{taken} of {taken + refused} pictures show lungs as a lung window does")


if __name__ == "__main__":
    main()
