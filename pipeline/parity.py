"""Check that base + adapter, merged model and GGUF are the same model: same tokens in, same next tokens out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.artifacts import UserError
from pipeline.llama_cpp import GgufModel


@dataclass(frozen=True)
class Passage:
    """A prompt with the answer that base + adapter gives it, as ids."""

    prompt: str
    ids: list[int]
    answer_start: int


@dataclass(frozen=True)
class Parity:
    """How far the three forms of the model agree."""

    passages: int
    decisions: int
    adapter_merged: float
    """Share of next-token decisions that base + adapter and the merged model share."""
    merged_gguf: float
    """Share of next-token decisions that the merged model and the GGUF share."""


def check_tokenization(prompts: Sequence[str], token_ids: Callable[[str], list[int]], gguf: GgufModel) -> None:
    """Raise a UserError at the first prompt that llama.cpp tokenizes otherwise than the tokenizer of the training."""
    for prompt in prompts:
        ours, theirs = token_ids(prompt), gguf.tokenize(prompt)
        if ours != theirs:
            place = next((i for i, pair in enumerate(zip(ours, theirs, strict=False)) if pair[0] != pair[1]), None)
            where = f"token {place}" if place is not None else "their number"
            raise UserError(
                f"llama.cpp tokenizes a prompt otherwise than the model was trained with: they differ in {where} "
                f"({len(ours)} and {len(theirs)} tokens) of {prompt[:60]!r}. The GGUF would answer nonsense and was not "
                "kept. Try a newer converter (--gguf.converter)."
            )


def measure(
    passages: Sequence[Passage], adapter: Sequence[Sequence[int]], merged: Sequence[Sequence[int]], gguf: GgufModel
) -> Parity:
    """Compare the next-token decisions at every position of the answers.

    Args:
        passages: what is read.
        adapter: for each passage, the decisions of base + adapter.
        merged: for each passage, the decisions of the merged model.
        gguf: the converted model, which is asked here.
    """
    converted = [gguf.greedy_choices(passage.ids, passage.answer_start) for passage in passages]
    decisions = sum(map(len, merged))
    return Parity(
        len(passages), decisions, _shared(adapter, merged) / decisions, _shared(merged, converted) / decisions
    )


def check_agreement(parity: Parity, minimum: float) -> None:
    """Raise a UserError that says which of the three differs, if they agree less than the minimum."""
    if parity.adapter_merged < minimum:
        raise UserError(
            f"The merged model differs from base + adapter: they agree on {parity.adapter_merged:.1%} of "
            f"{parity.decisions} next tokens, and {minimum:.0%} is the least allowed (--gguf.min-agreement). "
            "Nothing was kept."
        )
    if parity.merged_gguf < minimum:
        raise UserError(
            f"The GGUF differs from the merged model: they agree on {parity.merged_gguf:.1%} of {parity.decisions} next "
            f"tokens, and {minimum:.0%} is the least allowed (--gguf.min-agreement). The GGUF was not kept; try "
            "--gguf.type f16 or a newer converter (--gguf.converter)."
        )


def as_metrics(parity: Parity) -> dict[str, Any]:
    """Return the figures for the manifest."""
    return {
        "parity_prompts": parity.passages,
        "parity_decisions": parity.decisions,
        "agreement_adapter_merged": round(parity.adapter_merged, 4),
        "agreement_merged_gguf": round(parity.merged_gguf, 4),
        "tokenization": "identical",
    }


def _shared(first: Sequence[Sequence[int]], second: Sequence[Sequence[int]]) -> int:
    return sum(a == b for left, right in zip(first, second, strict=True) for a, b in zip(left, right, strict=True))
