"""The training loop of both networks.

In: a registry entry and ``TrainSettings``.  Out, in ``settings.out``: ``checkpoint.pt`` (network, moving
average, optimiser and random states, so that a run can be resumed), ``history.json`` and ``curve.png``.

Loss: Dice plus binary cross-entropy or focal loss; pixels labelled IGNORE count in neither. Validation is on
phantoms that training never sees; real data is too little to be split.
"""

from __future__ import annotations

import json
import math
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from monai.losses import DiceLoss
from monai.losses.focal_loss import sigmoid_focal_loss
from torch import Tensor, nn
from torch.nn import functional
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm import tqdm

from triton_models.architectures.served import build_network, windowed
from triton_models.data.augment import Augmentation, augment
from triton_models.data.slices import IGNORE, Slices, phantom_set
from triton_models.registry import ModelEntry
from triton_models.training.curve import plot_history
from triton_models.training.sampling import Mixture, target_channels, training_mixture
from triton_models.training.settings import TrainSettings

CHECKPOINT = "checkpoint.pt"


def segmentation_loss(logits: Tensor, targets: Tensor, *, focal: bool) -> Tensor:
    """Dice + cross-entropy (or focal) loss. logits, targets: (n, channels, rows, columns); IGNORE is masked.

    Dice is taken over the batch: a slice without foreground would otherwise make it all or nothing.
    """
    known = (targets != IGNORE).float()
    truth = targets.float() * known
    logits = logits.float()
    dice: Tensor = DiceLoss(batch=True, smooth_nr=1.0, smooth_dr=1.0)(torch.sigmoid(logits) * known, truth)
    if focal:
        pixelwise = 10.0 * sigmoid_focal_loss(logits, truth, gamma=2.0, alpha=0.6)
    else:
        pixelwise = functional.binary_cross_entropy_with_logits(logits, truth, reduction="none")
    total: Tensor = dice + (pixelwise * known).sum() / known.sum().clamp(min=1.0)
    return total


@dataclass
class _Run:
    """Everything that a checkpoint holds."""

    network: nn.Module
    average: AveragedModel
    optimiser: torch.optim.Optimizer
    rng: np.random.Generator
    generator: torch.Generator
    step: int = 0
    seconds: float = 0.0
    history: list[dict[str, float]] = field(default_factory=list)

    def save(self, path: Path) -> None:
        state = {
            "network": self.network.state_dict(),
            "average": self.average.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "rng": json.dumps(self.rng.bit_generator.state),
            "generator": self.generator.get_state(),
            "torch_rng": torch.get_rng_state(),
            "step": self.step,
            "seconds": self.seconds,
            "history": self.history,
        }
        partial = path.with_suffix(".tmp")
        torch.save(state, partial)
        partial.replace(path)

    def load(self, path: Path) -> None:
        state = torch.load(path, weights_only=True)
        self.network.load_state_dict(state["network"])
        self.average.load_state_dict(state["average"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.rng.bit_generator.state = json.loads(state["rng"])
        self.generator.set_state(state["generator"])
        torch.set_rng_state(state["torch_rng"])
        self.step, self.seconds = int(state["step"]), float(state["seconds"])
        self.history = list(state["history"])


def train(entry: ModelEntry, settings: TrainSettings, *, resume: bool = False) -> Path:
    """Train and return the checkpoint's path.

    resume: go on from ``settings.out/checkpoint.pt``. Raises FileNotFoundError when it isn't there, or when
    a data folder has no axial CT.
    """
    torch.manual_seed(settings.seed)
    settings.out.mkdir(parents=True, exist_ok=True)
    run = _new_run(entry, settings)
    checkpoint = settings.out / CHECKPOINT
    if resume:
        run.load(checkpoint)
    mixture = training_mixture(entry, settings)
    validation = phantom_set(settings.validation_seeds, settings.cache)
    with tqdm(total=settings.steps, initial=run.step, desc=f"train {entry.name}", unit="step") as bar:
        while _progress(run, settings) < 1.0:
            started = time.monotonic()
            loss = _step(run, mixture, settings)
            run.step += 1
            run.seconds += time.monotonic() - started
            bar.update()
            bar.set_postfix(loss=f"{loss:.4f}", refresh=False)
            if run.step % settings.validate_every == 0 or _progress(run, settings) >= 1.0:
                run.history.append(
                    {"step": run.step, "loss": loss, **validate(entry, run.average, validation)}
                )
                run.save(checkpoint)
                (settings.out / "history.json").write_text(json.dumps(run.history, indent=1) + "\n")
                plot_history(entry, run.history, settings.out / "curve.png")
                bar.set_postfix(run.history[-1])
    return checkpoint


def _new_run(entry: ModelEntry, settings: TrainSettings) -> _Run:
    # oneDNN's bfloat16 convolutions are several times faster with channels last
    network: nn.Module = build_network(entry)
    network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    moving = get_ema_multi_avg_fn(settings.average_decay)  # type: ignore[no-untyped-call]
    average = AveragedModel(network, multi_avg_fn=moving, use_buffers=True)
    optimiser = torch.optim.AdamW(
        network.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay
    )
    generator = torch.Generator().manual_seed(settings.seed)
    return _Run(network, average, optimiser, np.random.default_rng(settings.seed), generator)


def _progress(run: _Run, settings: TrainSettings) -> float:
    """Share of the run that is done, by steps or by time, whichever is further."""
    by_time = run.seconds / (60.0 * settings.minutes) if settings.minutes else 0.0
    return max(run.step / settings.steps, by_time)


def _step(run: _Run, mixture: Mixture, settings: TrainSettings) -> float:
    done = _progress(run, settings)
    warm_up = min((run.step + 1) / 50.0, 1.0)
    rate = settings.learning_rate * warm_up * (0.02 + 0.98 * 0.5 * (1.0 + math.cos(math.pi * done)))
    for group in run.optimiser.param_groups:
        group["lr"] = rate
    hu, targets = mixture.draw(settings.batch_size, run.rng)
    hu, targets = augment(hu, targets, Augmentation(), run.generator)
    if settings.crop is not None:
        top, left = (int(v) for v in run.rng.integers(0, hu.shape[-1] - settings.crop + 1, 2))
        window = (..., slice(top, top + settings.crop), slice(left, left + settings.crop))
        hu, targets = hu[window], targets[window]
    run.network.train()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=settings.bf16):
        logits = run.network(windowed(hu.unsqueeze(1)).contiguous(memory_format=torch.channels_last))
    loss = segmentation_loss(logits, targets, focal=settings.focal)
    run.optimiser.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    nn.utils.clip_grad_norm_(run.network.parameters(), 5.0)
    run.optimiser.step()
    run.average.update_parameters(run.network)
    return float(loss.detach())


def validate(entry: ModelEntry, network: nn.Module, slices: Slices, *, every: int = 2) -> dict[str, float]:
    """Pooled Dice of each channel on every ``every``-th slice, at the network's resolution."""
    network.eval()
    overlap = np.zeros(len(entry.channels))
    total = np.zeros(len(entry.channels))
    with torch.inference_mode():
        for start in range(0, len(slices), 16 * every):
            index = np.arange(start, min(start + 16 * every, len(slices)), every)
            hu = torch.from_numpy(slices.hu[index]).float().unsqueeze(1)
            predicted = network(windowed(hu)) >= 0
            targets = target_channels(entry, slices, index)
            known = targets != IGNORE
            truth, predicted = (targets == 1) & known, predicted & known
            overlap += (truth & predicted).sum(dim=(0, 2, 3)).numpy()
            total += (truth.sum(dim=(0, 2, 3)) + predicted.sum(dim=(0, 2, 3))).numpy()
    return {
        f"dice_{name}": float(2 * o / t) if t else 1.0
        for name, o, t in zip(entry.channels, overlap, total, strict=True)
    }


def load_network(entry: ModelEntry, checkpoint: Path) -> nn.Module:
    """The averaged network of a checkpoint, in evaluation mode."""
    average = AveragedModel(build_network(entry), use_buffers=True)
    average.load_state_dict(torch.load(checkpoint, weights_only=True)["average"])
    network: nn.Module = average.module
    return network.eval()
