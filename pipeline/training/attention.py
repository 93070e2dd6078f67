"""Attention over records that lie end to end in one row, each of which sees itself alone.

Source: the kernel is FlashAttention's for sequences of different lengths (Dao 2023), which PyTorch carries; where it
does not run, PyTorch's scaled_dot_product_attention goes over the records one by one.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention

from pipeline.models.language_model import Backend
from pipeline.training.batching import Layout

END_TO_END = "end_to_end"
# What transformers hands to each attention function and this one may ignore: it follows from the boundaries, or concerns other parts.
_WITHOUT_EFFECT = {
    "cache_position", "cu_seq_lens_k", "max_length_k", "num_items_in_batch", "output_attentions", "output_hidden_states",
    "output_router_logits", "position_ids", "use_cache",
}  # fmt: skip


@contextlib.contextmanager
def own_or_end_to_end_attention(model: Any, backend: Backend, layout: Layout) -> Iterator[None]:
    """Let a model, with or without an adapter, attend as its records are laid out: within each, or as it always does.

    Unsloth's own attention is told of the boundaries with the inputs.
    """
    if backend == "unsloth" or layout == "padded":
        yield
        return
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface.register(END_TO_END, attend)
    AttentionMaskInterface.register(END_TO_END, lambda *_, **__: None)
    before = model.config._attn_implementation
    model.set_attn_implementation(END_TO_END)
    try:
        yield
    finally:
        model.set_attn_implementation(before)


def attend(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    cu_seq_lens_q: torch.Tensor | None = None,
    max_length_q: int | None = None,
    is_causal: bool | None = None,
    **others: Any,
) -> tuple[torch.Tensor, None]:
    """Attend causally within each record. This has the form of transformers' attention functions.

    Args:
        module: the layer.
        query: (1, heads, tokens, head size).
        key: (1, key heads, tokens, head size), with as many heads or fewer.
        value: as key.
        attention_mask: there is none.
        scaling: of the scores; None is 1 / sqrt(head size).
        dropout: of the scores; only 0 is possible.
        sliding_window: tokens that a token sees, itself included; None is all before it.
        cu_seq_lens_q: (records + 1,), where each record begins, and the end.
        max_length_q: tokens of the longest record.
        is_causal: False where tokens see those after them, too.
        others: what else an architecture hands to its attention.

    Returns:
        (1, tokens, heads, head size), and no weights.

    Raises:
        ValueError: the model did not pass on where the records begin, or its attention has what this one does not know.
    """
    if cu_seq_lens_q is None or max_length_q is None:
        raise ValueError(f"{type(module).__name__} does not pass on where records begin")
    unknown = {name for name, value in others.items() if value is not None and value is not False} - _WITHOUT_EFFECT
    if dropout:
        unknown.add("dropout")
    if is_causal is False:
        unknown.add("tokens that see later ones")
    if unknown:
        raise ValueError(f"{type(module).__name__} has {', '.join(sorted(unknown))} in its attention")
    if sliding_window is not None and sliding_window >= max_length_q:
        sliding_window = None
    if _kernel_takes(query):
        from torch.nn.attention.varlen import varlen_attn

        q, k, v = (states.squeeze(0).transpose(0, 1) for states in (query, key, value))
        window = (-1 if sliding_window is None else sliding_window - 1, 0)
        output = varlen_attn(
            q, k, v, cu_seq_lens_q, cu_seq_lens_q, max_length_q, max_length_q, scale=scaling, window_size=window,
            enable_gqa=query.shape[1] != key.shape[1],
        )  # fmt: skip
        assert isinstance(output, torch.Tensor)  # alone, since no return_aux was given
        return output.unsqueeze(0), None
    repeats = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(repeats, 1), value.repeat_interleave(repeats, 1)
    lengths = cu_seq_lens_q.diff().tolist()
    outputs = [
        scaled_dot_product_attention(q, k, v, _window_mask(q, sliding_window), scale=scaling, is_causal=not sliding_window)
        for q, k, v in zip(*(states.split(lengths, dim=2) for states in (query, key, value)), strict=True)
    ]  # fmt: skip
    return torch.cat(outputs, dim=2).transpose(1, 2).contiguous(), None


def _kernel_takes(query: torch.Tensor) -> bool:
    return (
        query.is_cuda
        and query.dtype in (torch.float16, torch.bfloat16)
        and query.shape[-1] <= 256
        and torch.cuda.get_device_capability(query.device) >= (8, 0)
    )


def _window_mask(query: torch.Tensor, sliding_window: int | None) -> torch.Tensor | None:
    if not sliding_window:
        return None
    position = torch.arange(query.shape[2], device=query.device)
    distance = position[:, None] - position
    return (distance >= 0) & (distance < sliding_window)
