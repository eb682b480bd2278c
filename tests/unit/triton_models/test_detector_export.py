"""The exported detectors answer as torch does, at any batch and size of the image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import onnxruntime as ort
import pytest
import torch
from numpy.typing import NDArray

from triton_models.architectures.build import build_network
from triton_models.data.phantom import Phantom
from triton_models.export import export_onnx
from triton_models.registry import MODELS, ModelEntry
from triton_models.served.base import Served, build_served

#: the graph in torch, and in ONNX Runtime
Exported = tuple[ModelEntry, Served, ort.InferenceSession]
Outputs = Sequence[NDArray[np.float32]]

SIZES: dict[str, list[tuple[int, ...]]] = {
    "candidates": [(1, 12, 160, 160), (2, 11, 150, 131)],
    "lesion_boxes": [(1, 160, 160), (3, 150, 131)],
}
#: layers whose answers are ranked, and by how much their untrained weights must grow to tell places apart
RANKED = {"candidates": {"peak": 2.0}, "lesion_boxes": {"propose_logits": 30.0, "classify": 100.0}}


@pytest.fixture(scope="module", params=list(SIZES))
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    # weights in half precision would add a difference of their own
    entry = replace(MODELS[request.param], half_weights=False)
    torch.manual_seed(1)
    network = build_network(entry).eval()
    with torch.no_grad():
        for name, factor in RANKED[entry.name].items():
            getattr(network, name).weight *= factor
    path = tmp_path_factory.mktemp("export") / "model.onnx"
    export_onnx(entry, network, path)
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return entry, build_served(entry, network).eval(), session


def _image(phantom: Phantom, shape: tuple[int, ...]) -> NDArray[np.int16]:
    if len(shape) == 4:
        return np.stack(
            [phantom.hu[-shape[1] :, -shape[2] - i :][:, : shape[2], : shape[3]] for i in range(shape[0])]
        )
    return phantom.hu[4 : 4 + shape[0], : shape[1], : shape[2]].copy()


def _same(ours: Outputs, theirs: Outputs) -> None:
    """Ranks may swap where scores nearly tie."""
    np.testing.assert_allclose(ours[1], theirs[1], atol=1e-3)
    assert (np.abs(ours[0] - theirs[0]).max(axis=-1) < 0.1).mean() > 0.9
    if len(ours) == 3:
        assert (np.abs(ours[2] - theirs[2]).max(axis=-1) < 1e-3).mean() > 0.9


def test_torch_and_onnx_runtime_agree(exported: Exported, small_phantom: Phantom) -> None:
    entry, served, session = exported
    for shape in SIZES[entry.name]:
        hu = _image(small_phantom, shape)
        assert hu.shape == shape
        with torch.inference_mode():
            expected = [part.numpy() for part in served(torch.from_numpy(hu))]
        actual = session.run(None, {"HU": hu})
        for spec, part in zip(entry.outputs, actual, strict=True):
            assert part.shape == (shape[0], *spec.dims)
            assert part.dtype == np.float32
        assert (np.diff(actual[1], axis=1) <= 0).all()
        sides = np.asarray(shape[1:], np.float32)
        axes = len(sides)
        assert (actual[0] >= 0).all()
        assert (actual[0] <= np.concatenate([sides, sides])).all()
        assert (actual[0][..., axes:] >= actual[0][..., :axes]).all()
        _same(actual, expected)


def test_batch_does_not_change_an_image(exported: Exported, small_phantom: Phantom) -> None:
    entry, _, session = exported
    hu = _image(small_phantom, SIZES[entry.name][1])
    together = session.run(None, {"HU": hu})
    alone = [session.run(None, {"HU": one[None]}) for one in hu]
    _same(together, [np.concatenate(parts) for parts in zip(*alone, strict=True)])
