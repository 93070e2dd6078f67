"""The device that computes: which it is, how much memory it has free, and in which number format it computes fast."""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

from pipeline.run.errors import UserError

if TYPE_CHECKING:
    import torch

Device = Literal["cuda", "mps", "cpu"]
NumberFormat = Literal["float32", "bfloat16", "float16"]
Purpose = Literal["training", "answering", "merging", "embedding"]
Product = Literal["output", "gradient of the weights", "gradient of the inputs"]

SMALL_MODEL = 1_000_000_000  # parameters
# A model converts more in bfloat16 than its products; twofold products made a step on a CPU no faster than float32.
WORTH_IT = 1.5
TIMED_LAYER: dict[Device, tuple[int, int, int]] = {  # tokens, inputs, outputs; large enough to keep the device busy
    "cpu": (128, 576, 1536), "mps": (1024, 2048, 2048), "cuda": (4096, 4096, 4096),
}  # fmt: skip
MOST_REPETITIONS, TIMED_SECONDS = 30, 0.05
ANSWERING_SHARE = 1.25  # memory to answer with, over that of the weights
GIB = 2**30


@dataclass(frozen=True)
class ComputeFormat:
    """The number format that a model computes in, and why."""

    name: NumberFormat
    reason: str

    @property
    def dtype(self) -> torch.dtype:
        """Return PyTorch's name of it."""
        import torch

        return getattr(torch, self.name)

    @property
    def bytes(self) -> int:
        """Return the bytes of a number."""
        return 4 if self.name == "float32" else 2

    def __str__(self) -> str:
        """Return the format and the reason, as a user reads them."""
        return f"{self.name} ({self.reason})"


@dataclass(frozen=True)
class Machine:
    """What decides the number format."""

    device: Device
    seconds: Callable[[NumberFormat, Product], float]
    """Returns how long a matrix product of the layer of TIMED_LAYER takes; infinite where it is impossible."""
    compute_capability: tuple[int, int] | None = None
    """Of an NVIDIA GPU."""
    free_memory: float = math.inf
    """Bytes."""

    def speedup(self, product: Product) -> float:
        """Return how many times as fast as in float32 a matrix product is in bfloat16."""
        return self.seconds("float32", product) / self.seconds("bfloat16", product)

    def seconds_per_operation(self, number_format: NumberFormat, product: Product) -> float:
        """Return the seconds that a floating point operation takes in a matrix product."""
        return self.seconds(number_format, product) / (2 * math.prod(TIMED_LAYER[self.device]))


def compute_format(
    purpose: Purpose,
    asked: NumberFormat | Literal["auto"] = "auto",
    parameters: int | None = None,
    on: Machine | None = None,
) -> ComputeFormat:
    """Return the number format to compute in: the one that is asked for, or the one that the device is fast in.

    Args:
        purpose: what the model is for.
        asked: a number format, or auto.
        parameters: of a model that is to answer and can do so in every format; None for another.
        on: what computes; None is the best device of this machine.
    """
    if asked != "auto":
        return ComputeFormat(asked, "as set")
    if purpose == "merging":
        return ComputeFormat("float32", "so that the sum is rounded once, to the format of the base model's files")
    if purpose == "answering" and parameters is not None and parameters < SMALL_MODEL:
        # Neither the size of a batch nor what runs the model may tip a near tie; llama.cpp computes in 32 bits, too.
        return ComputeFormat("float32", "a model below a billion parameters answers in 32 bits")
    on = on or machine(best_device())
    if on.compute_capability is not None:
        major, minor = on.compute_capability
        if on.compute_capability >= (8, 0):
            return ComputeFormat("bfloat16", f"a GPU of compute capability {major}.{minor} is fast in it")
        return ComputeFormat("float16", f"a GPU of compute capability {major}.{minor} only emulates bfloat16")
    speedup = math.inf
    for product in get_args(Product) if purpose == "training" else ("output",):
        speedup = min(speedup, on.speedup(product))
        if speedup < WORTH_IT:
            break  # the others may take long
    if speedup == 0:
        return ComputeFormat("float32", "this device has no bfloat16")
    reason = f"here, bfloat16 multiplies matrices {speedup:.1f} times as fast as float32"
    if speedup >= WORTH_IT:
        return ComputeFormat("bfloat16", reason)
    needed = ANSWERING_SHARE * (parameters or 0) * 4
    if needed > on.free_memory:
        reason += f", but float32 would need {needed / GIB:.1f} GiB of the {on.free_memory / GIB:.1f} that are free"
        return ComputeFormat("bfloat16", reason)
    return ComputeFormat("float32", reason)


def require_trainable(number_format: str) -> None:
    """Raise a UserError for float16 without CUDA: small gradients vanish in it, unless they are scaled."""
    if number_format == "float16" and best_device() != "cuda":
        raise UserError("A training in float16 needs an NVIDIA GPU with CUDA. Give --model.compute-dtype float32.")


def machine(device: Device) -> Machine:
    """Return what decides the number format on a device of this machine; products are timed when they are asked for."""
    import torch

    capability = torch.cuda.get_device_capability() if device == "cuda" else None
    return Machine(device, functools.partial(product_seconds, device), capability, free_memory(device))


@functools.cache
def product_seconds(device: Device, number_format: NumberFormat, product: Product) -> float:
    """Return the least seconds that a matrix product of a linear layer takes, of many or as many as there is time for.

    Infinite where it is impossible. The least is what the device can do while nothing else wants it.
    """
    import torch

    generator = torch.Generator(device)  # the random numbers of the program stay as they are

    def random(rows: int, columns: int) -> torch.Tensor:
        return torch.randn(rows, columns, device=device, generator=generator).to(getattr(torch, number_format))

    def synchronize() -> None:
        if device != "cpu":
            getattr(torch, device).synchronize()

    tokens, ins, outs = TIMED_LAYER[device]
    try:
        inputs, weights, gradient = random(tokens, ins), random(outs, ins), random(tokens, outs)
    except TypeError:  # Apple's GPU under an old macOS has no bfloat16
        return math.inf
    left, right = products(inputs, weights, gradient)[product]
    least, began = math.inf, time.perf_counter()
    for repetition in range(MOST_REPETITIONS):  # the first prepares
        synchronize()
        started = time.perf_counter()
        left @ right
        synchronize()
        ended = time.perf_counter()
        least = min(least, ended - started)
        if repetition and ended - began > TIMED_SECONDS:
            break
    return least


def products(
    inputs: torch.Tensor, weights: torch.Tensor, gradient: torch.Tensor
) -> dict[Product, tuple[torch.Tensor, torch.Tensor]]:
    """Return the factors of each matrix product of a linear layer.

    Args:
        inputs: (tokens, inputs).
        weights: (outputs, inputs).
        gradient: of the output, (tokens, outputs).
    """
    return {
        "output": (inputs, weights.t()),
        "gradient of the weights": (gradient.t(), inputs),
        "gradient of the inputs": (gradient, weights),
    }


def best_device() -> Device:
    """Return cuda, mps or cpu: the fastest that is there."""
    import torch

    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def free_memory(device: str) -> float:
    """Return the free bytes of the GPU, or of the machine for another device."""
    import torch

    if device == "cuda":
        return torch.cuda.mem_get_info()[0]
    import psutil

    return psutil.virtual_memory().available
