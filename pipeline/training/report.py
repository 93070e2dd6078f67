"""What a training prints about itself: what it runs on, what is trained, and the figures at its end."""

from __future__ import annotations

import os
import platform
import sys
from typing import Any

from pipeline.models import language_model
from pipeline.run import manifests
from pipeline.run.errors import UserError

WORSE = 0.1
"""Nats per token by which the validation loss must have risen to say that the training made the model worse: a tenth more perplexity."""


class Diverged(UserError):
    """The learning rate was too high for the model."""


def print_environment(base: language_model.LanguageModel) -> None:
    """Print what the training runs on."""
    import torch

    device = base.device
    if device.startswith("cuda"):
        card = torch.cuda.get_device_properties(0)
        device += f" ({card.name}, {card.total_memory / 2**30:.0f} GiB)"
    else:
        device += f" ({torch.get_num_threads()} threads)"
    versions = manifests.installed_versions()
    named = ("torch", "transformers", "trl", "peft", "unsloth")
    shown = ", ".join(f"{name} {versions[name]}" for name in named if name in versions)
    print(f"Environment: {platform.system()} {platform.machine()}, Python {platform.python_version()}, {shown}")
    print(f"Model: {base.name}, {base.backend} backend, {base.model.dtype}, on {device}, {os.cpu_count()} cores\n")


def print_parameters(tuned: language_model.LanguageModel, metrics: dict[str, Any]) -> None:
    """Print how many parameters are trained."""
    trainable, total = language_model.trainable_parameters(tuned.peft_model)
    metrics.update(trainable_parameters=trainable, parameters=total)
    print(f"Trainable parameters: {trainable:,} of {total:,} ({trainable / total:.2%})\n")


def print_statistics(metrics: dict[str, Any]) -> None:
    """Print the figures of the run as a table."""
    rows = {
        "optimizer steps": f"{metrics['steps']:,} ({metrics['epochs']} epochs)",
        "seconds": f"{metrics['seconds']:,}",
        "samples/s": f"{metrics['samples_per_second']:,}",
        "tokens/s": f"{metrics['tokens_per_second']:,}",
        "final training loss": f"{metrics['final_training_loss']:.4f} (mean {metrics['mean_training_loss']:.4f})",
        "peak memory": f"{metrics['peak_memory_gib']} GiB",
    }
    if "validation_loss_after" in metrics:
        before, after = metrics["validation_loss_before"], metrics["validation_loss_after"]
        rows["validation loss"] = f"{before:.4f} → {after:.4f} ({after / before - 1:+.1%})"
        rows["perplexity"] = f"{metrics['perplexity_before']:.2f} → {metrics['perplexity_after']:.2f}"
    else:
        rows["validation loss"] = "not measured: no record is in the validation split"
    print("\n" + "\n".join(f"{name:<22}{value}" for name, value in rows.items()))


def require_better(metrics: dict[str, Any]) -> None:
    """Raise a Diverged if the validation loss has risen, by the figures of a training that has ended."""
    before, after = (metrics.get(f"validation_loss_{when}", 0.0) for when in ("before", "after"))
    if after > before + WORSE:
        raise Diverged(
            f"The training has made the model worse: the validation loss was {before:.4f} and is {after:.4f}. The adapter is "
            "kept, and later stages take it."
        )


def peak_memory_gib() -> float:
    """Return the most memory used so far: of the GPU if there is one, else of this process."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    if sys.platform == "win32":
        import psutil

        return psutil.Process().memory_info().peak_wset / 2**30
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30
