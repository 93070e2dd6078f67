"""Check that base + adapter, merged model and GGUF are the same model: same tokens in, same next tokens out."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.models.generation import Reading
from pipeline.models.llama_cpp import GgufModel
from pipeline.run.errors import UserError

if TYPE_CHECKING:
    import torch

F16_MAX = 65_504.0
MIN_AGREEMENT = {"f32": 0.95, "f16": 0.95, "bf16": 0.95, "q8_0": 0.9}
"""By the type of the GGUF, the share of next-token decisions that must agree (docs/gguf.md has the measurements)."""

RANGE = {"f16": F16_MAX, "q8_0": 127 * F16_MAX}
"""By the type of the GGUF, the largest numbers that it multiplies, weights and what they are given; others reach as far as f32."""
WIDER = "Give --gguf.type bf16."


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


def check_range(number_format: str, model: torch.nn.Module, inputs: Mapping[str, float]) -> None:
    """Raise a UserError if a type of GGUF cannot hold a weight of a model, or what a layer is given.

    Args:
        number_format: the type.
        model: the merged model.
        inputs: the largest absolute values that its linear layers were given, by their names.
    """
    most = RANGE.get(number_format)
    if most is None:
        return
    weights = {name: weight.abs().max().item() for name, weight in model.named_parameters()}
    for values, what in ((weights, "{} holds {:,.0f}"), (inputs, "{} is given {:,.0f}")):
        place = max(values, key=values.__getitem__)
        if values[place] > most:
            raise UserError(
                f"Numbers of a GGUF in {number_format} end at {most:,.0f}, and {what.format(place, values[place])}: it would "
                f"answer nonsense. {WIDER}"
            )


def check_numbers(number_format: str, readings: Iterable[Reading]) -> None:
    """Raise a UserError if a GGUF computes no numbers."""
    if any(math.isnan(loss) for reading in readings for loss in reading.losses):
        remedy = WIDER if number_format in RANGE else "Train again with a lower --train.learning-rate."
        raise UserError(f"The GGUF in {number_format} computes what is no number. It was not kept. {remedy}")


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
