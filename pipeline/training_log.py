"""Follow a training: a progress bar with the loss, training_log.jsonl, and the picture of the loss curve."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm
from transformers import TrainerCallback

LOGGED = {
    "loss": "loss",
    "eval_loss": "validation_loss",
    "learning_rate": "learning_rate",
    "grad_norm": "grad_norm",
    "epoch": "epoch",
}


def read_log(path: Path) -> list[dict[str, Any]]:
    """Return the lines of a training log; a last line that was cut off is left out."""
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            lines.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return lines


def start_log(path: Path, after_step: int | None) -> None:
    """Begin a log, or keep that of an interrupted run up to the step at which it goes on."""
    kept = [line for line in read_log(path) if after_step is not None and line["step"] <= after_step]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")


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


class TrainingLog(TrainerCallback):
    """Shows one progress bar with loss and learning rate, and appends every logged value to training_log.jsonl."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.bar: tqdm | None = None
        self.started = self.evaluating = 0.0

    def on_train_begin(self, args, state, control, **kwargs) -> None:
        """Start the clock."""
        self.started, self.evaluating = time.perf_counter(), 0.0

    def on_step_begin(self, args, state, control, **kwargs) -> None:
        """Open the bar at the step at which the training begins."""
        if self.bar is None:
            self.bar = tqdm(
                total=state.max_steps, initial=state.global_step, desc="Training", unit="step", dynamic_ncols=True
            )

    def on_step_end(self, args, state, control, **kwargs) -> None:
        """Move the bar."""
        if self.bar is not None:
            self.bar.update(state.global_step - self.bar.n)

    def on_log(self, args, state, control, logs=None, **kwargs) -> None:
        """Append the values to the log and show them behind the bar."""
        values = {ours: logs[theirs] for theirs, ours in LOGGED.items() if theirs in (logs or {})}
        if "loss" not in values and "validation_loss" not in values:
            return
        self.evaluating += logs.get("eval_runtime", 0.0)
        values["seconds"] = round(time.perf_counter() - self.started - self.evaluating, 3)
        values["tokens"] = state.num_input_tokens_seen
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": state.global_step, **values}) + "\n")
        if "validation_loss" in values:
            perplexity = math.exp(min(values["validation_loss"], 100))
            tqdm.write(
                f"step {state.global_step}: validation loss {values['validation_loss']:.4f}, perplexity {perplexity:.2f}"
            )
        elif self.bar is not None:
            self.bar.set_postfix(loss=f"{values['loss']:.4f}", lr=f"{values['learning_rate']:.2e}")

    def on_train_end(self, args, state, control, **kwargs) -> None:
        """Close the bar."""
        if self.bar is not None:
            self.bar.close()
            self.bar = None
