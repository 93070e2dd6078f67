"""Are the numbers of a model finite, and within the range of a number format?"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


def where_not(model: torch.nn.Module, compute: Callable[[], object]) -> tuple[str, bool]:
    """Return where in a model, whose results are not finite, that begins, and whether its files are damaged there.

    Reads all weights, and runs the model again if these are finite.

    Args:
        model: as it was loaded.
        compute: runs it.

    Returns:
        the name of a weight or of a layer; whether the weight holds what rounding to float16 does not explain.
    """
    import torch

    for name, weight in model.named_parameters():
        if not _finite(weight):
            return name, weight.dtype != torch.float16 or bool(weight.isnan().any())
    found: list[str] = []

    def watch(name: str) -> Callable[..., None]:
        def hook(_: torch.nn.Module, __: Any, output: Any) -> None:
            if isinstance(output, torch.Tensor) and not _finite(output):
                found.append(name)

        return hook

    with _hooks([module.register_forward_hook(watch(name)) for name, module in model.named_modules()]):
        compute()
    return next(iter(found), "an unknown layer"), False


@contextlib.contextmanager
def largest_inputs(model: torch.nn.Module) -> Iterator[dict[str, float]]:
    """Yield the largest absolute value that each linear layer has been given since, by the layer's name."""
    import torch

    largest: dict[str, float] = {}

    def watch(name: str) -> Callable[..., None]:
        def hook(_: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
            largest[name] = max(largest.get(name, 0.0), inputs[0].abs().max().item())

        return hook

    linear = [(name, module) for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)]
    with _hooks([module.register_forward_pre_hook(watch(name)) for name, module in linear]):
        yield largest


def _finite(values: torch.Tensor) -> bool:
    # Integers, among them weights of 4 bits, are; float8 has no test of its own.
    return not values.is_floating_point() or values.itemsize < 2 or bool(values.isfinite().all())


@contextlib.contextmanager
def _hooks(handles: list[Any]) -> Iterator[None]:
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
