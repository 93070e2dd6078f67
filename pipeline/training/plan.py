"""Decide whether and how a training is done: in which number format and precision, in how many passes, laid out how."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from config import Config, ModelConfig
from pipeline.models import devices, distributed, loading
from pipeline.models.language_model import Backend, LanguageModel
from pipeline.models.size import model_size
from pipeline.run.errors import UserError
from pipeline.run.run_folder import CHECKPOINTS
from pipeline.training import checkpoints, duration, memory

if TYPE_CHECKING:
    from pipeline.training.batching import Batching, Layout


def check_settings(config: Config) -> None:
    """Raise a UserError for settings with which this machine cannot train."""
    train = config.train
    devices.require_trainable(config.model.compute_dtype)
    if train.optimizer != "adamw_torch" and train.shard_weights:
        raise UserError("--train.shard-weights needs --train.optimizer adamw_torch.")
    if train.optimizer != "adamw_torch" and devices.best_device() != "cuda":
        raise UserError(
            f"--train.optimizer {train.optimizer} needs an NVIDIA GPU with CUDA. Use --train.optimizer adamw_torch."
        )
    if train.optimizer != "adamw_torch":
        loading.require_bitsandbytes(f"--train.optimizer {train.optimizer}", "give --train.optimizer adamw_torch")


def within(limit: int | None, config: Config, metrics: dict[str, Any]) -> Config:
    """Return the settings with no longer records than the base model reads, and print it if that is a change."""
    if limit is not None and config.train.max_length > limit:
        print(
            f"{config.model.name} reads {limit:,} tokens: records are cut at these, not at --train.max-length "
            f"{config.train.max_length}.\n"
        )
        config = dataclasses.replace(config, train=dataclasses.replace(config.train, max_length=limit))
    metrics["max_length"] = config.train.max_length
    return config


def plan_training(
    config: Config, backend: Backend, train_set: Any, layout: Layout = "end_to_end", keeps_scores: bool = False
) -> tuple[memory.TrainingPlan, Batching]:
    """Fit a training into memory, and print how.

    Args:
        config: of the run.
        backend: what trains.
        train_set: a datasets.Dataset of tokenized records.
        layout: of the records of a forward pass.
        keeps_scores: whether the model's attention keeps its scores for the backward pass.

    Returns:
        how it is done, and how the records are divided into forward passes.

    Raises:
        UserError: it does not fit.
    """
    from pipeline.training.batching import Batching, token_counts

    train, count, lengths = config.train, distributed.device_count(), token_counts(train_set)
    model, form = config.model, devices.compute_format("training", config.model.compute_dtype)
    if train.resume:
        model, form = as_before(model, form, config.run_dir / CHECKPOINTS)

    def batching(passes: int) -> Batching:
        packed = train.tokens_per_step if train.batching == "packed" else None
        return Batching(passes, train.seed, train.records_per_step, packed, layout)

    if train.batching == "packed":
        epochs = 1  # all have the same steps
    else:
        epochs = math.ceil(train.max_steps * train.records_per_step / len(lengths) if train.max_steps else train.epochs)
    size = model_size(model, config.lora)
    plan = memory.plan_training(
        size, model, train, backend, distributed.broadcast_from_main(form), count, distributed.least_free_memory(),
        lambda passes: batching(passes).largest_pass(lengths, epochs), keeps_scores,
    )  # fmt: skip
    print(f"{plan}\n", flush=True)
    if not train.resume:
        duration.warn_if_long(size, plan, train, lengths, devices.machine(devices.best_device()), count)
    return plan, batching(plan.passes * count)


def as_before(
    model: ModelConfig, form: devices.ComputeFormat, folder: Path
) -> tuple[ModelConfig, devices.ComputeFormat]:
    """Return the settings and the number format with the choices of an interrupted run, where these are up to the machine.

    Args:
        folder: of the checkpoints.

    Raises:
        UserError: the run computed in a format in which nothing can be trained here.
    """
    if model.compute_dtype == "auto":
        before = checkpoints.recorded_setting(folder, "model.compute_dtype")
        if before not in ("auto", form.name):
            devices.require_trainable(before)
            form = devices.ComputeFormat(before, "as the run that goes on")
    if model.precision == "auto":
        model = dataclasses.replace(model, precision=checkpoints.recorded_setting(folder, "model.precision"))
    return model, form


def lay_out_records(
    config: Config,
    base: LanguageModel,
    train_set: Any,
    chosen: memory.TrainingPlan,
    batching: Batching,
) -> tuple[memory.TrainingPlan, Batching]:
    """Return the plan for records that lie end to end if that is proved of the model, else one for padded records."""
    from pipeline.training import isolation

    found = isolation.layout_of(base, train_set) if distributed.is_main() else None
    layout, reason = distributed.broadcast_from_main(found)
    if layout == "end_to_end":
        return chosen, batching
    print(f"Records are trained in padded batches, since {reason}.")
    loaded = dataclasses.replace(config, model=dataclasses.replace(config.model, precision=chosen.precision))
    return plan_training(loaded, base.backend, train_set, layout, loading.keeps_scores(base.model))


def note(base: LanguageModel, chosen: memory.TrainingPlan, batching: Batching, metrics: dict[str, Any]) -> None:
    """Note for the manifest what the training runs on and how it is done."""
    metrics.update(
        base.runs_on, layout=batching.layout, memory_estimate_gib=round(chosen.estimate.total / memory.GIB, 2)
    )
    metrics.update(checkpointing=chosen.checkpointing, passes=chosen.passes, tokens_of_largest_pass=chosen.tokens)
