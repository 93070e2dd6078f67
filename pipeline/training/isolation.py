"""Prove, on the very model, that records laid end to end do not see one another.

Recurrence, convolution, ALiBi and attention that transformers does not dispatch know no boundaries between records; nothing
fails where they are laid end to end, and what is learned is wrong.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from pipeline.models.language_model import Backend, LanguageModel
from pipeline.run.errors import UserError
from pipeline.training.attention import own_or_end_to_end_attention
from pipeline.training.batching import Layout, lay_out

Records = list[dict[str, list[int]]]
SHORT = 32  # tokens; enough for a record to see the one before it
# Of a token's logits, centred: how far they are from what they are alone, over their own size. In 16 bits, rounding moves those of
# SmolLM2-135M by up to 0.04, of a Llama-3-8B with random weights by 0.06.
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.3, torch.float16: 0.3}
WINDOWS = ("sliding_window", "attention_chunk_size", "window_size", "attention_window_size")


def layout_of(base: LanguageModel, records: Any) -> tuple[Layout, str]:
    """Return how the records of a training must be laid out, and why, if not end to end.

    Args:
        base: the model, without an adapter.
        records: a datasets.Dataset with the column input_ids.

    Raises:
        UserError: records that lie beside others have other logits than alone, even where they are padded.
    """
    ids = max(records["input_ids"], key=len)
    ids = ids[: _tokens_to_try(base.model.config, len(ids))]
    reason = why_not("end_to_end", base.model, base.backend, ids)
    if reason is None:
        return "end_to_end", ""
    unpaddable = why_not("padded", base.model, base.backend, ids)
    if unpaddable is not None:
        raise UserError(f"{base.name} cannot be trained here: {reason}; {unpaddable}. Take another with --model.name.")
    return "padded", reason


def why_not(layout: Layout, model: Any, backend: Backend, ids: Sequence[int]) -> str | None:
    """Return why records cannot be laid out in this way; None if each has the logits that it has alone.

    That no record sees another is told by gradients, which are exactly 0 then, in any number format.

    Args:
        layout: of the records.
        model: of transformers or Unsloth.
        backend: which of them.
        ids: of a record; it is tried beside a shorter one of its tokens in reverse.
    """
    name, way = type(model).__name__, {"end_to_end": "laid end to end", "padded": "padded"}[layout]
    rows = [list(ids), list(ids)[:2:-1]]
    records = [{"input_ids": row, "labels": row} for row in rows]
    before = model.training
    try:
        with torch.no_grad():
            _logits(model.train(), records, backend, layout)  # dropout in the attention shows in training alone
            model.eval()
            alone = [_logits(model, [record], backend, "padded")[0] for record in records]
        together, embedded = _logits_and_embeddings(model, records, backend, layout)
        second = together[-1, -len(rows[1]) :] if layout == "end_to_end" else together[1]
        (gradient,) = torch.autograd.grad(second.pow(2).sum(), embedded)
    except Exception as error:  # whatever an architecture says to inputs that it does not know
        return f"{name} takes no records that are {way} ({str(error).partition(chr(10))[0]})"
    finally:
        model.train(before)
    if gradient[0, : len(rows[0])].count_nonzero():
        return f"in {name}, records that are {way} see one another"
    lengths = [len(row) for row in rows]
    parts = (
        together[0].split(lengths)
        if layout == "end_to_end"
        else map(torch.Tensor.narrow, together, [0, 0], [0, 0], lengths)
    )
    distance = max(map(_distance, parts, alone))
    if distance <= TOLERANCE[model.dtype]:  # not so for nan
        return None
    return (
        f"in {name}, records that are {way} do not have the logits that each has alone (they differ by {distance:.0%})"
    )


def _distance(logits: torch.Tensor, expected: torch.Tensor) -> float:
    """Return how far the centred logits of a token are from the expected ones at most, over the size of these."""
    logits, expected = (values - values.mean(-1, keepdim=True) for values in (logits, expected))
    return ((logits - expected).norm(dim=-1) / expected.norm(dim=-1)).max().item()


def _logits(model: Any, records: Records, backend: Backend, layout: Layout) -> torch.Tensor:
    """Return the logits of a forward pass, float32, (rows, tokens, vocabulary)."""
    inputs = lay_out(records, backend, layout, pad_id=0)
    del inputs["labels"]
    inputs = {name: value.to(model.device) if torch.is_tensor(value) else value for name, value in inputs.items()}
    with own_or_end_to_end_attention(model, backend, layout):
        return model(**inputs, use_cache=False).logits.float()


def _logits_and_embeddings(
    model: Any, records: Records, backend: Backend, layout: Layout
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the logits of a forward pass, and the embeddings of its tokens, of which gradients can be taken."""
    embedded: list[torch.Tensor] = []

    def keep(_: object, __: object, output: torch.Tensor) -> torch.Tensor:
        embedded.append(output.detach().requires_grad_())
        return embedded[0].clone()  # some models scale it in place

    hook = model.get_input_embeddings().register_forward_hook(keep)
    try:
        return _logits(model, records, backend, layout), embedded[0]
    finally:
        hook.remove()


def _tokens_to_try(config: Any, longest: int) -> int:
    """Return how many tokens show what a model's attention does with a record of at most so many."""
    text = config.get_text_config(decoder=True)
    windows = [window for name in WINDOWS if isinstance(window := getattr(text, name, None), int) and window < longest]
    return max(windows, default=0) + SHORT
