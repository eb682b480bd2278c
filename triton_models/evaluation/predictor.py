"""A model that can be asked: the served ONNX file, or a checkpoint with the served graph around it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import onnxruntime as ort
from numpy.typing import NDArray

from triton_models.registry import ModelEntry, file_sha256

Arrays = Mapping[str, NDArray[Any]]


class Predictor(Protocol):
    """weights_sha256: of the file.  classes: what the outputs mean, in order."""

    weights_sha256: str
    classes: tuple[str, ...]

    def __call__(self, inputs: Arrays) -> Arrays:
        """One batch: inputs and outputs by name, batch axis first, as the registry's tensors say."""


class OnnxPredictor:
    """The file that Triton loads."""

    def __init__(self, entry: ModelEntry, path: Path | None = None) -> None:
        path = path or entry.onnx_path
        if not path.is_file():
            raise FileNotFoundError(f"{path}: {entry.name} isn't built yet, see `pacsnode models list`")
        self.weights_sha256 = file_sha256(path)
        self.classes = entry.classes
        self._session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        self._names = [output.name for output in self._session.get_outputs()]

    def __call__(self, inputs: Arrays) -> Arrays:
        return dict(zip(self._names, self._session.run(self._names, dict(inputs)), strict=True))


class CheckpointPredictor:
    """A checkpoint of `pacsnode models train`; needs torch."""

    def __init__(self, entry: ModelEntry, path: Path) -> None:
        # torch only when it is needed: the shipped models are measured without it
        from triton_models.served.base import build_served  # noqa: PLC0415
        from triton_models.training.loop import load_trained  # noqa: PLC0415

        trained = load_trained(entry, path)
        self.weights_sha256 = file_sha256(path)
        self.classes = trained.classes
        self._entry = entry
        self._served = build_served(trained.entry, trained.network).eval()

    def __call__(self, inputs: Arrays) -> Arrays:
        import torch  # noqa: PLC0415

        from triton_models.architectures.denormal import denormals_as_zeros  # noqa: PLC0415

        with denormals_as_zeros(), torch.inference_mode():
            answer = self._served(*(torch.from_numpy(inputs[spec.name]) for spec in self._entry.inputs))
        tensors = answer if isinstance(answer, tuple) else (answer,)
        return {spec.name: t.numpy() for spec, t in zip(self._entry.outputs, tensors, strict=True)}


def predictor_for(entry: ModelEntry, weights: Path | None) -> Predictor:
    """weights: a model.onnx, a checkpoint.pt, or None for the repository's file.

    Raises FileNotFoundError, or ValueError for a checkpoint of another model.
    """
    if weights is None or weights.suffix == ".onnx":
        return OnnxPredictor(entry, weights)
    if not weights.is_file():
        raise FileNotFoundError(f"{weights}: no such file")
    return CheckpointPredictor(entry, weights)
