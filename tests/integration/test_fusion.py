"""The fusion ensemble in a real Triton answers as the one network that it was cut from."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import torch
from pydicom import dcmread
from tritonclient.grpc import InferenceServerClient, InferInput
from typer.testing import CliRunner

from node.triton_server import DEFAULT_REPOSITORY, EmbeddedTriton
from tests.integration.triaging import check_means, triage_twice
from tests.unit.triton_models.portable import check_portable
from triton_models.architectures.lung_pooled import SmallFusion
from triton_models.cli import app
from triton_models.fusion import SEEDED
from triton_models.registry import MODELS
from triton_models.served.classification import mean_features
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


@pytest.fixture(scope="module")
def server(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedTriton]:
    """A Triton with the ensemble and the models that triage needs beside it."""
    folder = tmp_path_factory.mktemp("served")
    shipped = [DEFAULT_REPOSITORY / name for name in ("lungs", "pneumonia_class")]
    for model in (*repository.iterdir(), *shipped):
        (folder / model.name).symlink_to(model)
    with EmbeddedTriton(folder) as running:
        yield running


def test_the_ensemble_answers_as_the_network(server: EmbeddedTriton) -> None:
    """Each body its features, and the ensemble what the head reads from them.

    Not in one: random weights give features near 0, where roots magnify rounding.
    """
    entry = MODELS["fusion"]
    torch.manual_seed(SEED)
    network = SmallFusion(len(entry.classes), entry.network_size).eval()
    hu = np.random.default_rng(0).integers(-1050, 250, (2, 180, 210)).astype(np.int16)
    tensor = InferInput("HU", hu.shape, "INT16")
    tensor.set_data_from_numpy(hu)
    with closing(InferenceServerClient(server.url)) as client:
        bodies = ("resnet34", "smalldensenet", "smallxception")
        features = [
            torch.from_numpy(
                client.infer(f"fusion_{body}", [tensor]).as_numpy(f"FEATURES_{body.upper()}").copy()
            )
            for body in bodies
        ]
        answer = client.infer("fusion", [tensor]).as_numpy("PROBABILITIES")
    with torch.inference_mode():
        expected = mean_features(network.features, torch.from_numpy(hu), entry.sizes)
        torch.testing.assert_close(torch.cat(features, dim=1), expected, atol=1e-4, rtol=1e-3)
        read = torch.softmax(network.head(torch.cat(features, dim=1)), dim=1).numpy()
    np.testing.assert_allclose(answer, read, atol=1e-5)
    assert np.allclose(answer.sum(axis=1), 1.0, atol=1e-5)


def test_triage_uses_it_and_says_that_its_weights_are_random(server: EmbeddedTriton, tmp_path: Path) -> None:
    summary = triage_twice(server.url, tmp_path)
    check_means(summary)
    assert set(summary["estimates"]) == set(summary["models"]) - {"lungs"} == {"pneumonia_class", "fusion"}
    (note,) = summary["notes"]
    assert note == f"The weights of model fusion are random ({SEEDED}): its estimates mean nothing."
    report = dcmread(tmp_path / "second" / "triage_report.dcm")
    texts = [element.value for element in report.iterall() if element.keyword == "TextValue"]
    assert note in texts and f"weights: {SEEDED}" in texts
    sha256 = summary["models"]["fusion"]["sha256"]
    assert f"Model, sha256 {sha256}" in [
        item.ContributionDescription for item in report.ContributingEquipmentSequence
    ]


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
        if name != "fusion":
            check_portable(repository / name / "1" / "model.onnx")
    assert read_config(repository / "fusion").platform == "ensemble"
    card = (repository / "fusion" / "README.md").read_text()
    assert all(f"| {name} | {SEEDED} |" in card for name in folders if name != "fusion")


def test_only_an_ensemble_is_built(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["build", "lungs", "--out", str(tmp_path)])
    assert result.exit_code == 2
    assert "no ensemble" in result.output
