"""A study that no one sent, so that the first real one needn't wait for what it alone would wait for.

A worker runs it at its start. In: nothing.  Out: nothing; libraries that load a table when they first need it
have done so, VTK's shaders are compiled, and memory is the process's own. No model is asked: the answers are
read off the HU of a phantom of three ellipsoids.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.uid import CTImageStorage

from pipelines.chest_ct_pneumonia import PIPELINE
from pipelines.infection import CLASSES
from pipelines.pipeline import Stages
from pipelines.triton import Arrays, ModelSpec, Progress, ServedModel, put_into
from pipelines.volume import Lesion, ModelIdentity, ResultContext, Volume

_SHAPE = (24, 64, 64)
_SPACING_MM = (8.0, 4.0, 4.0)
_LUNG_HU, _LESION_HU, _TISSUE_HU = -850, -400, 40
_ROOT = "1.2.826.0.1.3680043.10.1"


def warm_up() -> None:
    """Analyse a phantom with a lesion and encode its results, which are then forgotten."""
    volume, inference = _phantom(), _ByThreshold()
    models = {spec.name: inference.check(spec) for spec in PIPELINE.models}
    findings = PIPELINE.analyse(volume, inference, models, Stages())
    context = ResultContext(
        pipeline=PIPELINE.name,
        pipeline_version=PIPELINE.version,
        software_version="0",
        models=tuple(model.identity for model in models.values()),
        content_datetime=datetime(2000, 1, 1),
    )
    PIPELINE.build_results(volume, findings, context)


def _phantom() -> Volume:
    affine = np.eye(4)
    affine[:3, :3] = np.diag(_SPACING_MM)[::-1]  # slices ascend along z, rows along y, columns along x
    hu = np.full(_SHAPE, _TISSUE_HU, np.int16)
    for centre, radius, value in (
        ((12, 32, 18), (10, 18, 11), _LUNG_HU),
        ((12, 32, 46), (10, 18, 11), _LUNG_HU),
        ((12, 32, 46), (2, 5, 5), _LESION_HU),
    ):
        away = [(np.arange(n) - c) / r for n, c, r in zip(_SHAPE, centre, radius, strict=True)]
        z, y, x = np.meshgrid(*away, indexing="ij")
        hu[z**2 + y**2 + x**2 <= 1.0] = value
    sources = tuple(_header(affine, number) for number in range(_SHAPE[0]))
    return Volume(hu, affine, sources, tuple((number, 1) for number in range(_SHAPE[0])))


def _header(affine: NDArray[np.float64], number: int) -> Dataset:
    header = Dataset()
    header.SOPClassUID, header.Modality = CTImageStorage, "CT"
    header.StudyInstanceUID, header.SeriesInstanceUID = f"{_ROOT}.1", f"{_ROOT}.1.1"
    header.FrameOfReferenceUID, header.SOPInstanceUID = f"{_ROOT}.2", f"{_ROOT}.1.1.{number + 1}"
    header.Rows, header.Columns = _SHAPE[1:]
    header.ImagePositionPatient = [float(x) for x in affine[:3] @ [number, 0, 0, 1]]
    header.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    header.PixelSpacing, header.SliceThickness = list(_SPACING_MM[1:]), _SPACING_MM[0]
    return header


class _ByThreshold:
    """An ``Inference`` that knows the phantom."""

    def check(self, spec: ModelSpec) -> ServedModel:
        return ServedModel(spec, ModelIdentity(spec.name, spec.version, "0" * 64), _SHAPE[0])

    def run(
        self,
        model: ServedModel,
        inputs: Arrays,
        *,
        progress: Progress | None = None,  # noqa: ARG002 - the protocol's
        out: Arrays | None = None,
    ) -> dict[str, NDArray[Any]]:
        return put_into(out, self._answer(model.spec.name, inputs["HU"]))

    def _answer(self, model: str, hu: NDArray[Any]) -> dict[str, NDArray[Any]]:
        if model == "lungs":
            return {"LUNGS": (hu < _TISSUE_HU).astype(np.uint8)}
        if model == "lesions":
            return {"LABELS": (hu == _LESION_HU).astype(np.uint8) * np.uint8(Lesion.GROUND_GLASS)}
        if model == "candidates":
            boxes = np.array([[(0, 0, 0, *hu.shape[1:])]], np.float32)
            return {"BOXES": boxes, "SCORES": np.ones((1, 1), np.float32)}
        if model == "infection_type":
            return {"PROBABILITIES": np.eye(len(CLASSES), dtype=np.float32)[np.zeros(len(hu), np.intp)]}
        return {"INPAINTED": hu}
