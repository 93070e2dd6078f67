"""Run a training, from its start or from a checkpoint, and tell its figures."""

from __future__ import annotations

import math
import pickle
import time
from pathlib import Path
from typing import Any

from config import TrainConfig
from pipeline.models import distributed
from pipeline.models.language_model import LanguageModel
from pipeline.run import files
from pipeline.run.errors import UserError
from pipeline.run.run_folder import CHECKPOINTS, TRAINING_LOG, RunFolder
from pipeline.training import checkpoints, report
from pipeline.training.attention import own_or_end_to_end_attention
from pipeline.training.batching import Batching
from pipeline.training.log import start_log, validation_losses
from pipeline.training.memory import TrainingPlan
from pipeline.training.progress import TrainingLog
from pipeline.training.trainer import gathered_adapter, make_trainer, sft_arguments


def run_training(
    train: TrainConfig,
    folder: RunFolder,
    settings: dict[str, Any],
    tuned: LanguageModel,
    plan: TrainingPlan,
    batching: Batching,
    train_set: Any,
    validation_set: Any,
    metrics: dict[str, Any],
) -> dict[str, Any] | None:
    """Evaluate, train, evaluate; print the figures of the run and note them in `metrics`.

    Args:
        train: the settings.
        folder: of the run.
        settings: what a training that goes on must have in common with the interrupted one, as flat names and values.
        tuned: the base model with a new adapter.
        plan, batching: from plan_training.
        train_set, validation_set: datasets.Dataset with the columns input_ids and labels.

    Returns:
        the weights of the adapter if the devices had a part of them each, else None.
    """
    checkpoint_folder, log = folder / CHECKPOINTS, folder / TRAINING_LOG
    # Only now: a model that cannot be loaded must not cost the checkpoints of the run before.
    checkpoint = checkpoints.find(checkpoint_folder, settings) if train.resume else None
    distributed.wait_for_all()
    if distributed.is_main():
        if checkpoint is None:
            checkpoints.start(checkpoint_folder, settings)
        start_log(log, checkpoints.step_of(checkpoint) if checkpoint else None)
    arguments = sft_arguments(
        train, checkpoint_folder, plan.passes, batching.layout, plan.checkpointing, len(validation_set) > 0,
        checkpoint is not None, tuned.model.dtype,
    )  # fmt: skip
    callbacks = [TrainingLog(log)] if distributed.is_main() else []
    trainer = make_trainer(tuned, arguments, batching, train_set, validation_set, callbacks)
    with own_or_end_to_end_attention(tuned.model, tuned.backend, batching.layout):
        figures = run_trainer(trainer, checkpoint)
    if distributed.is_main():
        metrics.update(figures, **validation_figures(log))
        report.print_statistics(metrics)
    return gathered_adapter(trainer)


def run_trainer(trainer: Any, checkpoint: Path | None) -> dict[str, Any]:
    """Evaluate, train, evaluate, and return the figures of the training."""
    if trainer.args.eval_on_start:
        print("Measuring the validation loss before training …", flush=True)
    first_step, first_epoch, first_tokens = 0, 0, 0
    if checkpoint is not None:
        state = files.read_json(checkpoint / "trainer_state.json")
        first_step, first_epoch, first_tokens = state["global_step"], state["epoch"], state["num_input_tokens_seen"]
    started = time.perf_counter()
    try:
        result = trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    except pickle.UnpicklingError as error:  # torch reads numbers alone from it, and no code
        raise UserError(f"{checkpoint} is damaged. {checkpoints.START_ANEW}") from error
    state = trainer.state
    session = [line for line in state.log_history if line["step"] > first_step or checkpoint is None]
    seconds = time.perf_counter() - started - sum(line.get("eval_runtime", 0) for line in session)
    if trainer.eval_dataset is not None and not any(
        "eval_loss" in line for line in state.log_history if line["step"] == state.global_step
    ):
        trainer.evaluate()
    steps = state.global_step - first_step
    samples = (state.epoch - first_epoch) * len(trainer.train_dataset)
    return {
        "steps": state.global_step,
        "epochs": round(state.epoch, 3),
        "seconds": round(seconds, 1),
        "samples_per_second": round(samples / seconds, 3),
        "tokens_per_second": round((state.num_input_tokens_seen - first_tokens) / seconds, 1),
        "final_training_loss": next((line["loss"] for line in reversed(state.log_history) if "loss" in line), math.nan),
        # transformers divides the losses of this session by the steps of all sessions.
        "mean_training_loss": round(result.training_loss * state.global_step / max(steps, 1), 4),
        "peak_memory_gib": round(report.peak_memory_gib(), 2),
    }


def validation_figures(log: Path) -> dict[str, float]:
    """Return the first and the last validation loss in a training log, and the perplexities that they stand for."""
    losses = validation_losses(log)
    if not losses:
        return {}
    first, last = losses[min(losses)], losses[max(losses)]
    return {
        "validation_loss_before": first,
        "validation_loss_after": last,
        "perplexity_before": math.exp(min(first, 100)),
        "perplexity_after": math.exp(min(last, 100)),
    }
