"""Check that base + adapter, merged model and GGUF are the same model: same tokens in, same next tokens out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pipeline.models.generation import Reading
from pipeline.models.llama_cpp import GgufModel
from pipeline.run.errors import UserError

MIN_AGREEMENT = {"f32": 0.95, "f16": 0.95, "bf16": 0.95, "q8_0": 0.9}
"""By the type of the GGUF, the share of next-token decisions that must agree (docs/gguf.md has the measurements)."""


@dataclass(frozen=True)
class Passage:
    """A prompt with an answer, as ids."""

    prompt: str
    ids: list[int]
    answer_start: int


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


def agreement(first: Sequence[Reading], second: Sequence[Reading]) -> float:
    """Return the share of next-token decisions that two forms of the model have in common."""
    pairs = [pair for a, b in zip(first, second, strict=True) for pair in zip(a.choices, b.choices, strict=True)]
    return sum(a == b for a, b in pairs) / len(pairs)


def check_agreement(
    first_name: str, first: Sequence[Reading], second_name: str, second: Sequence[Reading], minimum: float
) -> None:
    """Raise a UserError that names the two forms of the model, if they agree less than the minimum."""
    share = agreement(first, second)
    if share < minimum:
        raise UserError(
            f"{second_name[0].upper()}{second_name[1:]} differs from {first_name}: they agree on {share:.1%} of the next "
            f"tokens, and {minimum:.0%} is the least allowed (--gguf.min-agreement). It was not kept. Try --gguf.type f16 "
            "or a newer converter (--gguf.converter)."
        )
