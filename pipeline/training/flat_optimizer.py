"""Let an optimizer update all weights at once, as one vector.

bitsandbytes launches a kernel for each weight matrix, of which an adapter has hundreds; a GPU takes less time for such a
matrix than Python takes for the launch. The state of its 8-bit optimizers has a scale for each 256 values, which are the
same 256 values in the vector wherever the size of each matrix is a multiple of 256.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch


def flat_optimizer(
    weights: Sequence[torch.nn.Parameter], make: Callable[[list[torch.nn.Parameter]], torch.optim.Optimizer]
) -> torch.optim.Optimizer:
    """Return an optimizer of weights, which from now on are parts of one vector.

    Args:
        weights: of one type, on one device. Their gradients stay their own; they are copied into the vector's for a step.
        make: returns the optimizer of a list of parameters.
    """
    vector = torch.nn.Parameter(torch.cat([weight.detach().flatten() for weight in weights]))
    sizes = [weight.numel() for weight in weights]
    for weight, part in zip(weights, vector.detach().split(sizes), strict=True):
        weight.data = part.view_as(weight)
    optimizer = make([vector])

    def gather(*_: Any) -> None:
        vector.grad = torch.cat([_gradient(weight).flatten() for weight in weights])

    def release(*_: Any) -> None:
        vector.grad = None

    optimizer.register_step_pre_hook(gather)
    optimizer.register_step_post_hook(release)
    return optimizer


def _gradient(weight: torch.nn.Parameter) -> torch.Tensor:
    # A weight that no record has used, as those of the layers for images, has none.
    return torch.zeros_like(weight) if weight.grad is None else weight.grad
