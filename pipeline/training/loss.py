"""The loss of next-token prediction, a chunk of tokens at a time, so that all logits never exist at once.

The gradient of a chunk is computed with its loss, so that the logits, the largest product of a small model, are computed
once. It is for processors; see pipeline/trainer.py.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.nn.functional import cross_entropy

from pipeline.training.batching import IGNORED_LABEL


def chunked_cross_entropy(
    hidden_states: torch.Tensor,
    lm_head_weight: torch.Tensor,
    chunk_size: int,
    labels: torch.Tensor | None = None,
    shift_labels: torch.Tensor | None = None,
    num_items_in_batch: torch.Tensor | int | None = None,
    logit_scale: float = 1.0,
    final_logit_softcapping: float | None = None,
    lm_head_bias: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the loss of a forward pass. This has the form of TRL's function of the same purpose, which it replaces.

    Args:
        hidden_states: (1, tokens, hidden), what the last block returns.
        lm_head_weight: (vocabulary, hidden); it is frozen.
        chunk_size: tokens whose logits exist at a time.
        labels: (1, tokens), not shifted; IGNORED_LABEL is not learned.
        shift_labels: is not used.
        num_items_in_batch: divides the sum of the losses; None takes the mean.
        logit_scale: multiplies the logits.
        final_logit_softcapping: the logits stay below this.
        lm_head_bias: (vocabulary,), or None.

    Returns:
        the loss, two zeros where TRL counts what nothing here shows, and the number of labels.

    Raises:
        ValueError: the weights are to be trained, for which no gradient is computed, or there are no labels.
    """
    if labels is None:
        raise ValueError("This loss shifts the labels itself, and none came.")
    if lm_head_weight.requires_grad:
        raise ValueError("The output layer is trained, and this loss has no gradient for it.")

    def logits_of(hidden: torch.Tensor) -> torch.Tensor:
        logits = (hidden @ lm_head_weight.to(hidden.dtype).t()).float()
        if lm_head_bias is not None:
            logits = logits + lm_head_bias.float()
        logits = logits * logit_scale if logit_scale != 1.0 else logits
        if final_logit_softcapping is not None:
            logits = final_logit_softcapping * torch.tanh(logits / final_logit_softcapping)
        return logits

    expected = labels[..., 1:].reshape(-1)
    learned = expected != IGNORED_LABEL
    hidden = hidden_states[..., :-1, :].reshape(-1, hidden_states.shape[-1])[learned]
    loss = _ChunkedLoss.apply(hidden, expected[learned], logits_of, chunk_size)
    count = learned.sum()
    loss = loss / (count.clamp(min=1) if num_items_in_batch is None else num_items_in_batch)
    nothing = torch.zeros((), device=loss.device)
    return loss, nothing, nothing, count


class _ChunkedLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        labels: torch.Tensor,
        logits_of: Callable[[torch.Tensor], torch.Tensor],
        size: int,
    ) -> torch.Tensor:
        """Return the sum of the losses, float32."""
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        gradient = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        for start in range(0, len(hidden), size):
            chunk = slice(start, start + size)
            with torch.set_grad_enabled(gradient is not None):
                part = hidden[chunk].detach().requires_grad_(gradient is not None)
                loss = cross_entropy(logits_of(part), labels[chunk], reduction="sum")
            if gradient is not None:
                (gradient[chunk],) = torch.autograd.grad(loss, part)
            total += loss.detach()
        ctx.save_for_backward(gradient)
        return total

    @staticmethod
    def backward(ctx: Any, gradient_of_loss: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Return the gradient of the hidden states."""
        (gradient,) = ctx.saved_tensors
        return gradient * gradient_of_loss, None, None, None
