"""How long a training will take, told before it begins where that is long."""

from __future__ import annotations

import math
from collections.abc import Sequence

from config import TrainConfig
from pipeline.models.devices import Machine
from pipeline.models.size import ModelSize
from pipeline.training.memory import FOUR_BIT_TIME, TrainingPlan

LONG = 3600  # seconds
EFFICIENCY = 0.6  # of the matrix products; benchmarks/first_run.py and benchmarks/fine_tuning.py found 0.2 to 0.8


def warn_if_long(
    size: ModelSize, plan: TrainingPlan, train: TrainConfig, lengths: Sequence[int], on: Machine, devices: int
) -> None:
    """Print how long a training will take, and the setting to change, if that is more than an hour.

    Args:
        size: of the model.
        plan: how it is trained.
        train: the settings.
        lengths: tokens of each training record.
        on: what trains.
        devices: how many train together.
    """
    steps, tokens = training_operations(train, lengths)
    seconds = expected_seconds(size, plan, tokens / devices, on)
    if seconds > LONG:
        print(
            f"By the speed of its matrix products, this machine will need about {seconds / 3600:,.0f} h for the {steps:,} steps "
            f"of this training. In an hour it makes about {max(1, int(steps * LONG / seconds)):,}: --train.max-steps sets them.\n",
            flush=True,
        )


def training_operations(train: TrainConfig, lengths: Sequence[int]) -> tuple[int, float]:
    """Return the optimizer steps of a training on records of these lengths, and the tokens that it learns from."""
    tokens = sum(lengths)
    if train.batching == "packed":
        tokens_per_step: float = min(train.tokens_per_step, tokens)
        steps = train.max_steps or math.ceil(train.epochs * math.ceil(tokens / tokens_per_step))
    else:
        tokens_per_step = min(train.records_per_step, len(lengths)) * tokens / len(lengths)
        steps = train.max_steps or math.ceil(train.epochs * math.ceil(len(lengths) / train.records_per_step))
    return steps, steps * tokens_per_step


def expected_seconds(size: ModelSize, plan: TrainingPlan, tokens: float, on: Machine) -> float:
    """Return the seconds in which a device learns from so many tokens.

    A token costs two operations a weight in the forward pass and, since the weights are frozen, as many in the backward
    pass; with checkpointing the forward pass is made twice.
    """
    operations = 2 * tokens * (size.linear + size.hidden * size.vocabulary)
    forward, backward = (
        operations * on.seconds_per_operation(plan.compute_format.name, product)
        for product in ("output", "gradient of the inputs")
    )
    seconds = (forward * (2 if plan.checkpointing else 1) + backward) / EFFICIENCY
    return seconds * (FOUR_BIT_TIME if plan.precision == "4bit" else 1)
