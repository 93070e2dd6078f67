"""Show a training as it goes on: a progress bar with the loss, and lines for training_log.jsonl."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path

import torch
from tqdm import tqdm
from transformers import TrainerCallback

from pipeline.run.errors import UserError
from pipeline.training import checkpoints
from pipeline.training.report import Diverged

LOGGED = {
    "loss": "loss",
    "eval_loss": "validation_loss",
    "learning_rate": "learning_rate",
    "grad_norm": "grad_norm",
    "epoch": "epoch",
}


def require_numbers(values: dict[str, float], step: int, model: torch.nn.Module) -> None:
    """Raise a UserError if the loss after a step is no number and no further step can make it one.

    With float16, a step whose gradients are not finite is left out: the loss may be no number once, and the adapter be fine.
    """
    if all(math.isfinite(values[name]) for name in ("loss", "validation_loss") if name in values):
        return
    if step == 0:
        raise UserError(
            "The loss of the base model is not a number: it leaves the range of its number format on these records. Give "
            "--model.compute-dtype float32."
        )
    trained = (weight for weight in model.parameters() if weight.requires_grad)
    if "validation_loss" in values or not all(weight.isfinite().all() for weight in trained):
        raise Diverged(
            f"The training broke down: at step {step:,}, the loss is not a number any more. No adapter is saved."
        )


class TrainingLog(TrainerCallback):
    """Shows one progress bar with loss and learning rate, appends every logged value to training_log.jsonl, seals checkpoints."""

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

    def on_log(self, args, state, control, logs=None, model=None, **kwargs) -> None:
        """Append the values to the log and show them behind the bar; a UserError if the training is beyond help."""
        values = {ours: logs[theirs] for theirs, ours in LOGGED.items() if theirs in (logs or {})}
        if "loss" not in values and "validation_loss" not in values:
            return
        self.evaluating += logs.get("eval_runtime", 0.0)
        require_numbers(values, state.global_step, model)
        values["seconds"] = round(time.perf_counter() - self.started - self.evaluating, 3)
        values["tokens"] = state.num_input_tokens_seen
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": state.global_step, "of": state.max_steps, **values}) + "\n")
        if "validation_loss" in values:
            perplexity = math.exp(min(values["validation_loss"], 100))
            tqdm.write(
                f"step {state.global_step}: validation loss {values['validation_loss']:.4f}, perplexity {perplexity:.2f}"
            )
        elif self.bar is not None:
            self.bar.set_postfix(loss=f"{values['loss']:.4f}", lr=f"{values['learning_rate']:.2e}")

    def on_save(self, args, state, control, **kwargs) -> None:
        """Seal the checkpoint that has been written."""
        checkpoints.seal(Path(args.output_dir) / f"checkpoint-{state.global_step}")

    def on_train_end(self, args, state, control, **kwargs) -> None:
        """Close the bar."""
        if self.bar is not None:
            self.bar.close()
            self.bar = None
