"""training_log.jsonl, one line for each logged step, and the picture of the loss curve."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline.run.errors import UserError
from pipeline.run.files import atomic_write
from pipeline.training.checkpoints import START_ANEW


def read_log(path: Path) -> list[dict[str, Any]]:
    """Return the lines of a training log; a last line that was cut off is left out."""
    lines = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []:
        try:
            values = json.loads(line)
        except json.JSONDecodeError:
            break
        if not isinstance(values, dict) or "step" not in values:
            break
        lines.append(values)
    return lines


def start_log(path: Path, after_step: int | None) -> None:
    """Begin a log, or keep that of an interrupted run up to the step at which it goes on.

    Raises:
        UserError: the log of the interrupted run has lost its beginning, which the figures of the training need.
    """
    if after_step is not None and not any(line["step"] <= 1 for line in read_log(path)):
        raise UserError(f"{path} is missing or damaged. {START_ANEW}")
    kept = [line for line in read_log(path) if after_step is not None and line["step"] <= after_step]
    with atomic_write(path) as file:
        file.writelines(json.dumps(line) + "\n" for line in kept)


def validation_losses(path: Path) -> dict[int, float]:
    """Return the validation loss at each step at which it was measured."""
    return {line["step"]: line["validation_loss"] for line in read_log(path) if "validation_loss" in line}


def draw_loss_curve(log: Path, picture: Path, title: str) -> None:
    """Draw training and validation loss over the steps."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    lines = read_log(log)
    training = [(line["step"], line["loss"]) for line in lines if "loss" in line]
    validation = sorted(validation_losses(log).items())
    figure, axes = pyplot.subplots(figsize=(8, 4.5), layout="constrained")
    if training:
        steps, losses = zip(*training, strict=True)
        axes.plot(steps, losses, color="#4c78a8", linewidth=0.8, alpha=0.45, label="training loss")
        axes.plot(steps, running_mean(losses), color="#4c78a8", linewidth=2, label="training loss, running mean")
    if validation:
        axes.plot(*zip(*validation, strict=True), color="#e45756", marker="o", linewidth=2, label="validation loss")
        for step, loss in (validation[0], validation[-1]):
            axes.annotate(f"{loss:.3f}", (step, loss), textcoords="offset points", xytext=(0, 8), ha="center")
    axes.set(xlabel="optimizer step", ylabel="loss per token (nats)", title=title)
    axes.margins(y=0.15)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(picture, dpi=120, format="png")
    pyplot.close(figure)


def running_mean(values: Sequence[float], weight: float = 0.7) -> list[float]:
    """Return the exponential moving average of values, without its bias towards the beginning (Kingma & Ba 2015)."""
    means, total = [], 0.0
    for count, value in enumerate(values, 1):
        total = weight * total + (1 - weight) * value
        means.append(total / (1 - weight**count))
    return means
