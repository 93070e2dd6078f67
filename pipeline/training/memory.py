"""How much memory a model needs, told before any is spent, and how a training is fitted into what is free."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from config import ModelConfig, TrainConfig
from pipeline.models import distributed
from pipeline.models.devices import GIB, ComputeFormat, best_device
from pipeline.models.language_model import Backend, Precision
from pipeline.models.loading import INSTALL_BITSANDBYTES, has_bitsandbytes
from pipeline.models.precision import precisions
from pipeline.models.size import ModelSize
from pipeline.run.errors import UserError

if TYPE_CHECKING:
    from pipeline.training.batching import PassSize

LOSS_BYTES_PER_LOGIT = 14.0  # logits of a chunk in 16 and 32 bits, their softmax and their gradient
SCORE_BYTES = {
    2: 14,
    4: 10,
}  # of a score of an attention that keeps its scores, by the bytes of a number; fitted to Gemma 2
LOSS_CHUNK = 256  # tokens whose logits exist at a time
KEPT_SHARE = {"unsloth": 0.68, "transformers": 1.2}  # of the inputs and outputs of a block's linear layers, in 16 bits
DROPOUT_BYTES = 3  # of an input of the adapter: its value and whether it was dropped
# A CPU's allocator holds on to pieces that fit no later record. Fitted to the peak resident size of trainings of SmolLM2-135M's,
# Qwen2-0.5B's and TinyLlama's shapes; tests/training/test_memory.py holds them to those of three others, test_peak_memory.py to
# the one that it measures of a fourth.
CPU_KEPT = {4: 2.0, 2: 2.85}  # by the bytes of a number, of the inputs and outputs of a block's linear layers
CPU_RECOMPUTED = 16.0  # with checkpointing, of the inputs of the blocks
CPU_LOSS_BYTES_PER_LOGIT = 25.0
CPU_PROGRAM, CPU_LOADING = 0.5 * GIB, 0.65 * GIB  # Python and the libraries; the same while the model is loaded
BUSY_TOKENS = 4096  # of a forward pass; one with fewer takes as long, since a GPU waits for the program then
CHECKPOINTING_TIME, FOUR_BIT_TIME = 1.33, 1.4  # times what the same pass takes without
GATHERED_BLOCKS = 2  # whose weights a device holds for a while, where it has a part of the others
SPARE_SHARE = 0.05  # of the memory, for what is split into pieces too small to use


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes at the peak of a training, by what they are for."""

    weights: float
    adapter: float
    """Its weights, gradients and the optimizer's state."""
    activations: float
    """What the backward pass needs of the forward pass, and the logits of the loss."""
    loading: float
    """Of the weights while they are loaded, which may be more than all of these."""

    @property
    def total(self) -> float:
        """Return the peak."""
        return max(self.weights + self.adapter + self.activations, self.loading)


@dataclass(frozen=True)
class TrainingPlan:
    """How a training is fitted into memory."""

    precision: Precision
    compute_format: ComputeFormat
    checkpointing: bool
    passes: int
    """Forward passes of an optimizer step on each device."""
    tokens: int
    """Of the largest forward pass."""
    estimate: MemoryEstimate
    usable: float
    """Bytes that it may take."""

    @property
    def relative_time(self) -> float:
        """Return how long a step takes, in units in which a token of a pass that keeps a GPU busy takes 1."""
        factor = (CHECKPOINTING_TIME if self.checkpointing else 1) * (FOUR_BIT_TIME if self.precision == "4bit" else 1)
        return self.passes * max(self.tokens, BUSY_TOKENS) * factor

    def __str__(self) -> str:
        """Return the plan as a user reads it."""
        parts = (("weights", self.estimate.weights), ("adapter and optimizer", self.estimate.adapter),
                 ("activations", self.estimate.activations))  # fmt: skip
        shown = " + ".join(f"{name} {value / GIB:.1f}" for name, value in parts)
        kept = "computed again" if self.checkpointing else "kept"
        return (
            f"Memory: {self.estimate.total / GIB:.1f} GiB expected ({shown}) of {self.usable / GIB:.1f} GiB that can be used\n"
            f"  base in {'4 bits' if self.precision == '4bit' else self.compute_format.name}, activations {kept}, {self.passes} "
            f"pass{'es' * (self.passes > 1)} a step, of {self.tokens:,} tokens at most"
        )


def estimate_training(
    size: ModelSize,
    backend: Backend,
    precision: Precision,
    checkpointing: bool,
    tokens: int,
    optimizer: str,
    shards: int = 1,
    number: int = 2,
    scores: int = 0,
) -> MemoryEstimate:
    """Estimate the peak of a training.

    Args:
        size: of the model.
        backend: what trains.
        precision: of the base model.
        checkpointing: whether activations are computed again in the backward pass.
        tokens: of the largest forward pass.
        optimizer: as in TrainConfig.
        shards: parts that the weights are divided into, one a device.
        number: bytes of a number of the format that is computed in.
        scores: of the attention of a block in the largest pass, where they are kept; fused attention keeps none.
    """
    on_cpu = best_device() == "cpu"
    optimizer_bytes = 8 if optimizer == "adamw_torch" else 2
    kept_share = CPU_KEPT[number] if on_cpu else KEPT_SHARE[backend]
    block = tokens * (size.features * number * kept_share + size.adapter_inputs * DROPOUT_BYTES)
    block += scores * SCORE_BYTES[number]
    kept = size.layers * block
    if checkpointing:
        # Unsloth keeps the inputs of the blocks in the memory of the CPU.
        recomputed_share = CPU_RECOMPUTED if on_cpu else 0 if backend == "unsloth" else 1
        kept = block + recomputed_share * size.layers * tokens * size.hidden * number
    loss_bytes = CPU_LOSS_BYTES_PER_LOGIT if on_cpu else LOSS_BYTES_PER_LOGIT
    loss = min(tokens, LOSS_CHUNK) * size.vocabulary * loss_bytes
    dequantized = number * size.largest if precision == "4bit" else 0
    weights, adapter = size.weights(precision, number) / shards, size.adapter * (4 + 4 + optimizer_bytes) / shards
    if shards > 1:
        weights += number * (size.other + GATHERED_BLOCKS * size.linear / size.layers)
    loading = weights
    if size.quantized_files and precision == "16bit":
        loading += size.weights("4bit", number)
    activations = kept + loss + dequantized
    if on_cpu:
        activations, loading = activations + CPU_PROGRAM, loading + CPU_LOADING
        if number == 4:  # files of 16 bits are converted
            loading += size.weights("16bit", 2)
    return MemoryEstimate(weights, adapter, activations, loading)


def plan_training(
    size: ModelSize,
    model: ModelConfig,
    train: TrainConfig,
    backend: Backend,
    form: ComputeFormat,
    devices: int,
    free: float,
    largest_pass: Callable[[int], PassSize],
    keeps_scores: bool = False,
) -> TrainingPlan:
    """Choose the fastest way to train that fits into memory, by what benchmarks/fine_tuning.py measured.

    Args:
        size: of the model.
        model: says which precision is asked for.
        train: says what else is asked for, and how much memory may be used.
        backend: what trains.
        form: what is computed in.
        devices: how many train together.
        free: bytes that each of them may use.
        largest_pass: returns the size of the largest forward pass, for a number of passes per step over all devices.
        keeps_scores: whether the model's attention keeps its scores for the backward pass.

    Raises:
        UserError: nothing fits; it names the setting to change.
    """
    allowed = math.inf if train.memory_gb is None else train.memory_gb * GIB
    limited = allowed < free
    usable = min(allowed, free) * (1 - SPARE_SHARE)
    plans: list[TrainingPlan] = []
    fastest, shards = None, devices if distributed.shards_weights() else 1
    for passes in pass_counts(train, devices):
        if fastest is not None and passes * BUSY_TOKENS >= fastest.relative_time:
            break  # so many passes cannot be faster
        tokens, pairs = largest_pass(passes * devices)
        for precision in precisions(model.precision):
            for checkpointing in {"auto": (False, True), "on": (True,), "off": (False,)}[train.gradient_checkpointing]:
                estimate = estimate_training(
                    size, backend, precision, checkpointing, tokens, train.optimizer, shards, form.bytes,
                    size.heads * pairs if keeps_scores else 0,
                )  # fmt: skip
                plan = TrainingPlan(precision, form, checkpointing, passes, tokens, estimate, usable)
                if estimate.total <= usable and (fastest is None or plan.relative_time < fastest.relative_time):
                    fastest = plan
                plans.append(plan)
    if fastest is not None:
        return fastest
    smallest = min(plans, key=lambda plan: plan.estimate.total)
    needed = smallest.estimate
    if train.gradient_checkpointing == "off":
        remedy = "Leave --train.gradient-checkpointing off out"
    elif train.passes is not None:
        remedy = "Raise --train.passes"
    elif needed.activations > needed.weights:
        remedy = "Lower --train.max-length"
    elif shards > 1:
        remedy = "Use more devices, or a smaller model with --model.name"
    elif smallest.precision == "16bit" and best_device() == "cuda":
        install = "" if has_bitsandbytes() else f"Run `{INSTALL_BITSANDBYTES}`. "
        remedy = f"{install}Give --model.precision 4bit"
    elif best_device() != "cuda" and form.name == "float32":
        remedy = "Take a smaller model with --model.name, or --model.compute-dtype bfloat16, which may be slow here"
    else:
        remedy = "Take a smaller model with --model.name"
    raise UserError(
        f"The training needs {needed.total / GIB:.1f} GiB at least and {usable / GIB:.1f} GiB can be used. {remedy}"
        + (", or raise --train.memory-gb." if limited else ".")
    )


def pass_counts(train: TrainConfig, devices: int) -> list[int]:
    """Return the numbers of forward passes per step and device that are worth trying, ascending."""
    if train.passes is not None:
        return [train.passes]
    most = train.tokens_per_step // 256 if train.batching == "packed" else train.records_per_step
    most = math.ceil(most / devices)
    return sorted({math.ceil(most / share) for share in range(1, most + 1)})
