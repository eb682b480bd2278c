"""The training loop of every model.

In: a registry entry and ``TrainSettings``.  Out, in ``settings.out``: ``checkpoint.pt`` (network, moving
average, optimisers and random states, so that a run can be resumed), ``history.json`` and ``curve.png``.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm import tqdm

from triton_models.architectures.build import build_network
from triton_models.architectures.denormal import denormals_as_zeros
from triton_models.architectures.several import MeanOfNetworks
from triton_models.registry import ModelEntry
from triton_models.training.curve import plot_history
from triton_models.training.recipe import Random, Recipe, recipe_for
from triton_models.training.settings import TrainSettings

CHECKPOINT = "checkpoint.pt"
WARM_UP_STEPS = 50


@dataclass
class _Run:
    """Everything that a checkpoint holds."""

    recipe: Recipe[object]
    network: nn.Module
    average: AveragedModel
    optimisers: Sequence[torch.optim.Optimizer]
    random: Random
    step: int = 0
    seconds: float = 0.0
    history: list[dict[str, float]] = field(default_factory=list)

    @staticmethod
    def new(recipe: Recipe[object]) -> _Run:
        network: nn.Module = recipe.network()
        # oneDNN's bfloat16 convolutions are several times faster with channels last
        if all(parameter.ndim < 5 for parameter in network.parameters()):
            network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        moving = get_ema_multi_avg_fn(recipe.average_decay)  # type: ignore[no-untyped-call]
        seed = recipe.settings.seed
        return _Run(
            recipe,
            network,
            AveragedModel(network, multi_avg_fn=moving, use_buffers=True),
            recipe.optimisers(network),
            (np.random.default_rng(seed), torch.Generator().manual_seed(seed)),
        )

    @property
    def progress(self) -> float:
        """Share of the run that is done, by steps or by time, whichever is further."""
        settings = self.recipe.settings
        by_time = self.seconds / (60.0 * settings.minutes) if settings.minutes else 0.0
        return max(self.step / self.steps, by_time)

    @property
    def steps(self) -> int:
        return self.recipe.settings.steps or self.recipe.steps

    def take_step(self) -> float:
        started = time.monotonic()
        rate = min((self.step + 1) / WARM_UP_STEPS, 1.0) * (
            0.02 + 0.98 * 0.5 * (1.0 + math.cos(math.pi * self.progress))
        )
        for optimiser in self.optimisers:
            for group in optimiser.param_groups:
                group["lr"] = group.setdefault("peak_lr", group["lr"]) * rate
        self.network.train()
        loss = self.recipe.step(self.network, self.optimisers, self.random)
        self.average.update_parameters(self.network)
        self.step += 1
        self.seconds += time.monotonic() - started
        return loss

    def settle(self) -> None:
        self.average.eval()
        with denormals_as_zeros():
            self.recipe.settle(self.average.module)

    def measure(self) -> dict[str, float]:
        """The validation's figures of the averaged network, settled."""
        self.settle()
        with denormals_as_zeros():
            figures = self.recipe.validate(self.average.module)
        return {name: float(value) for name, value in figures.items()}

    def save(self, path: Path) -> None:
        rng, generator = self.random
        state = {
            "model": self.recipe.entry.name,
            "variant": self.recipe.settings.variant,
            "classes": list(self.recipe.classes),
            "network_size": self.recipe.entry.network_size,
            "asked_sizes": list(self.recipe.entry.asked_sizes),
            "network": self.network.state_dict(),
            "average": self.average.state_dict(),
            "optimisers": [optimiser.state_dict() for optimiser in self.optimisers],
            "rng": json.dumps(rng.bit_generator.state),
            "generator": generator.get_state(),
            "torch_rng": torch.get_rng_state(),
            "step": self.step,
            "finished": self.progress >= 1.0,
            "seconds": self.seconds,
            "history": self.history,
        }
        partial = path.with_suffix(".tmp")
        torch.save(state, partial)
        partial.replace(path)

    def load(self, path: Path) -> None:
        state = _read(path, self.recipe.entry)
        rng, generator = self.random
        _fill(self.network, state["network"], path, self.recipe.entry)
        _fill(self.average, state["average"], path, self.recipe.entry)
        for optimiser, saved in zip(self.optimisers, state["optimisers"], strict=True):
            optimiser.load_state_dict(saved)
        rng.bit_generator.state = json.loads(state["rng"])
        generator.set_state(state["generator"])
        torch.set_rng_state(state["torch_rng"])
        self.step, self.seconds = int(state["step"]), float(state["seconds"])
        self.history = list(state["history"])


def train(entry: ModelEntry, settings: TrainSettings, *, resume: bool = False) -> Path:
    """Train and return the checkpoint's path.

    resume: go on from ``settings.out/checkpoint.pt``. Raises FileNotFoundError when it isn't there or when
    data is missing, ValueError for data or a checkpoint that doesn't fit.
    """
    torch.manual_seed(settings.seed)
    recipe = recipe_for(entry, settings)
    networks = settings.networks or recipe.networks
    if networks > 1:
        return _train_several(entry, settings, networks, resume=resume)
    settings.out.mkdir(parents=True, exist_ok=True)
    recipe.prepare()
    run = _Run.new(recipe)
    checkpoint = settings.out / CHECKPOINT
    if resume:
        run.load(checkpoint)
    with tqdm(total=run.steps, initial=run.step, desc=f"train {entry.name}", unit="step") as bar:
        while run.progress < 1.0:
            with denormals_as_zeros():
                loss = run.take_step()
            bar.update()
            bar.set_postfix(loss=f"{loss:.4f}", refresh=False)
            if run.step % recipe.validate_every == 0 or run.progress >= 1.0:
                run.history.append({"step": run.step, "loss": loss, **run.measure()})
                run.save(checkpoint)
                (settings.out / "history.json").write_text(json.dumps(run.history, indent=1) + "\n")
                plot_history(entry.title, recipe.curve, run.history, settings.out / "curve.png")
                bar.set_postfix(run.history[-1])
    return checkpoint


def _train_several(entry: ModelEntry, settings: TrainSettings, networks: int, *, resume: bool) -> Path:
    """Train one after the other in ``settings.out``/network-0, 1, … and join them to one checkpoint.

    resume: those that are finished are kept, one that was broken off goes on.
    """
    members = []
    for number in range(networks):
        out = settings.out / f"network-{number}"
        one = replace(settings, out=out, seed=settings.seed + number, networks=1)
        if not (resume and finished(out / CHECKPOINT)):
            train(entry, one, resume=resume and (out / CHECKPOINT).is_file())
        members.append(_read(out / CHECKPOINT, entry))
    kept = ("model", "variant", "classes", "network_size", "asked_sizes", "finished")
    joined = {name: members[0][name] for name in kept} | {"members": [one["average"] for one in members]}
    torch.save(joined, settings.out / CHECKPOINT)
    return settings.out / CHECKPOINT


def settle_again(entry: ModelEntry, settings: TrainSettings, checkpoint: Path) -> Path:
    """A run's checkpoint, settled for other settings (another part left out) without training."""
    recipe = recipe_for(entry, settings)
    recipe.prepare()
    run = _Run.new(recipe)
    run.load(checkpoint)
    run.settle()
    settings.out.mkdir(parents=True, exist_ok=True)
    run.save(settings.out / CHECKPOINT)
    return settings.out / CHECKPOINT


def finished(checkpoint: Path) -> bool:
    """Whether a run got to its end."""
    return checkpoint.is_file() and bool(torch.load(checkpoint, weights_only=True)["finished"])


def _read(path: Path, entry: ModelEntry) -> dict[str, Any]:
    state: dict[str, Any] = torch.load(path, weights_only=True)
    if state["model"] != entry.name:
        raise ValueError(f"{path}: is a checkpoint of {state['model']}, not of {entry.name}")
    return state


def _fill(network: nn.Module, weights: dict[str, Any], checkpoint: Path, entry: ModelEntry) -> None:
    try:
        network.load_state_dict(weights)
    except RuntimeError as error:  # it lists what is missing, or too much, or of another shape
        what = " ".join(str(error).split())[:300]
        raise ValueError(
            f"{checkpoint}: holds no network of this version's {entry.name}; train it again ({what})"
        ) from error


@dataclass(frozen=True)
class Trained:
    """The averaged network of a checkpoint, in evaluation mode.

    entry: the registry's, with the network's size that was trained.  classes: what its outputs mean.
    """

    entry: ModelEntry
    network: nn.Module
    variant: str
    classes: tuple[str, ...]


def load_trained(entry: ModelEntry, checkpoint: Path) -> Trained:
    """Read a checkpoint. Raises FileNotFoundError, or ValueError for another model's or version's."""
    state = _read(checkpoint, entry)
    classes = tuple(state["classes"])
    entry = replace(
        entry,
        network_size=state.get("network_size", entry.network_size),
        asked_sizes=tuple(state.get("asked_sizes", entry.asked_sizes)),
    )
    networks = []
    for average in state.get("members") or [state["average"]]:
        averaged = AveragedModel(build_network(entry, state["variant"], classes), use_buffers=True)
        _fill(averaged, average, checkpoint, entry)
        networks.append(averaged.module)
    network = networks[0] if len(networks) == 1 else MeanOfNetworks(networks)
    return Trained(entry, network.eval(), state["variant"], classes)
