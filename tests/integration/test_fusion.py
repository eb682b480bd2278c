"""The fusion ensemble in a real Triton answers as the one network that it was cut from."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tritonclient.grpc import InferenceServerClient, InferInput
from typer.testing import CliRunner

from node.triton_server import EmbeddedTriton
from triton_models.architectures.lung_pooled import SmallFusion
from triton_models.cli import app
from triton_models.fusion import SEEDED
from triton_models.registry import MODELS
from triton_models.served.base import build_served
from triton_models.tensorrt import profiles, read_config
from triton_models.training.settings import SEED

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fusion")
    result = CliRunner().invoke(app, ["build", "fusion", "--small", "--out", str(folder)])
    assert result.exit_code == 0, result.output
    assert "seeded random numbers" in result.output
    return folder


def test_the_ensemble_answers_as_the_network(repository: Path) -> None:
    entry = MODELS["fusion"]
    torch.manual_seed(SEED)
    network = SmallFusion(len(entry.classes), entry.network_size).eval()
    hu = np.random.default_rng(0).integers(-1050, 250, (2, 180, 210)).astype(np.int16)
    with torch.inference_mode():
        expected = build_served(entry, network).eval()(torch.from_numpy(hu)).numpy()
    with EmbeddedTriton(repository) as server:
        client = InferenceServerClient(server.url)
        tensor = InferInput("HU", hu.shape, "INT16")
        tensor.set_data_from_numpy(hu)
        answer = client.infer("fusion", [tensor]).as_numpy("PROBABILITIES")
        client.close()
    assert np.allclose(answer, expected, atol=1e-4)
    assert np.allclose(answer.sum(axis=1), 1.0, atol=1e-5)


def test_every_folder_says_that_its_weights_are_random(repository: Path) -> None:
    folders = sorted(path.name for path in repository.iterdir())
    assert folders == [
        "fusion",
        "fusion_head",
        "fusion_resnet34",
        "fusion_smalldensenet",
        "fusion_smallxception",
    ]
    for name in folders:
        config = read_config(repository / name)
        assert config.parameters["weights"].string_value == SEEDED
        assert len(config.parameters["sha256"].string_value) == 64
        assert profiles(config)
    assert read_config(repository / "fusion").platform == "ensemble"
    card = (repository / "fusion" / "README.md").read_text()
    assert all(f"| {name} | {SEEDED} |" in card for name in folders if name != "fusion")


def test_only_an_ensemble_is_built(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["build", "lungs", "--out", str(tmp_path)])
    assert result.exit_code == 2
    assert "no ensemble" in result.output
