"""The validation curve as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure


def plot_history(title: str, measure: str, history: Sequence[dict[str, float]], path: Path) -> None:
    """Write the loss and the validation's figures over the steps as a small PNG.

    measure: the label of the figures' axis.
    """
    figure = Figure(figsize=(6, 3.2), layout="constrained")
    loss_axis = figure.subplots()
    steps = [row["step"] for row in history]
    loss_axis.plot(steps, [row["loss"] for row in history], color="0.6", label="training loss (one batch)")
    loss_axis.set_xlabel("optimiser step")
    loss_axis.set_ylabel("training loss")
    axis = loss_axis.twinx()
    names = [name for name in history[-1] if name not in {"step", "loss"}]
    for name in names:
        axis.plot(steps, [row[name] for row in history], marker=".", label=name.replace("_", " "))
    axis.set_ylabel(f"{measure} on validation data")
    if all(0 <= row[name] <= 1 for row in history for name in names):
        axis.set_ylim(0, 1)
    axis.legend(loc="lower right", fontsize=7)
    loss_axis.set_title(title, fontsize=8)
    figure.savefig(path, dpi=90)
