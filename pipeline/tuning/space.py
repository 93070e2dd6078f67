"""What a hyperparameter search chooses among, and the settings that a choice stands for."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from config import Config
from pipeline.run.errors import UserError

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

Values = dict[str, Any]  # learning_rate and r of a trial, and epochs where they are searched


def check_start(config: Config) -> None:
    """Raise a UserError for ranges that do not hold the settings of the training, or have no whole alpha."""
    train, lora, ranges = config.train, config.lora, config.study
    outside = []
    if not ranges.learning_rate_low <= train.learning_rate <= ranges.learning_rate_high:
        outside.append(f"--train.learning-rate {train.learning_rate} (--study.learning-rate-low and -high)")
    if lora.r not in ranges.ranks:
        outside.append(f"--lora.r {lora.r} (--study.ranks)")
    if lengths(config) and train.epochs not in ranges.epochs:
        outside.append(f"--train.epochs {train.epochs} (--study.epochs)")
    if outside:
        raise UserError(
            f"The first trial has the settings of the training, and these are not in the ranges: {', '.join(outside)}. "
            "Change one or the other."
        )
    for rank in ranges.ranks:
        if rank * lora.alpha % lora.r:
            raise UserError(
                f"Rank {rank} of --study.ranks cannot have the alpha / r of {lora.alpha} / {lora.r} with a whole alpha. "
                "Leave it out, or change --lora.alpha."
            )


def lengths(config: Config) -> tuple[float, ...]:
    """Return the epochs to choose from; none where all trials have the same number of steps."""
    return () if config.train.max_steps else config.study.epochs


def distributions(config: Config) -> dict[str, BaseDistribution]:
    """Return the ranges of the search as Optuna has them."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution

    ranges = config.study
    found = {
        "learning_rate": FloatDistribution(ranges.learning_rate_low, ranges.learning_rate_high, log=True),
        "r": CategoricalDistribution(ranges.ranks),
    }
    return {**found, "epochs": CategoricalDistribution(lengths(config))} if lengths(config) else found


def starting_values(config: Config) -> Values:
    """Return the values of the first trial: those of the training itself."""
    values = {"learning_rate": config.train.learning_rate, "r": config.lora.r}
    return {**values, "epochs": config.train.epochs} if lengths(config) else values


def with_values(config: Config, values: Values) -> Config:
    """Return the settings of a training with the values of a trial; alpha / r stays."""
    rank = values["r"]
    lora = dataclasses.replace(config.lora, r=rank, alpha=rank * config.lora.alpha // config.lora.r)
    epochs = values.get("epochs", config.train.epochs)
    train = dataclasses.replace(config.train, learning_rate=values["learning_rate"], epochs=epochs)
    return dataclasses.replace(config, lora=lora, train=train)


def settings_of(config: Config, values: Values) -> dict[str, Any]:
    """Return the settings that the values of a trial stand for."""
    own = with_values(config, values)
    settings = {"learning_rate": own.train.learning_rate, "r": own.lora.r, "alpha": own.lora.alpha}
    return {**settings, "epochs": own.train.epochs} if lengths(config) else settings
