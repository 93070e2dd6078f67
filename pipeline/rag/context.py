"""Put the retrieved records into the prompt, as many as fit."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from pipeline.data.words import cut_where_lines_end
from pipeline.models.answerer import AnsweringModel
from pipeline.models.prompts import PromptFormat
from pipeline.rag import retrieval


class PromptReader(Protocol):
    """What a prompt is made for: a model, or its tokenizer alone."""

    @property
    def prompt_format(self) -> PromptFormat:
        """Return how a prompt is worded."""

    def count_tokens(self, prompt: str) -> int:
        """Return the tokens of a prompt, BOS included."""


@dataclass(frozen=True)
class Record:
    """A record that was not searched for, or a piece of it."""

    title: str
    text: str


Given = TypeVar("Given", retrieval.Hit, Record)


def room_for_context(model: AnsweringModel, max_context_tokens: int, new_tokens: int) -> int:
    """Return how many tokens prompt and retrieved texts may have: as set, or what the model leaves beside an answer."""
    limit = model.token_limit
    return max_context_tokens if limit is None else min(max_context_tokens, limit - new_tokens)


def worded(prompt_format: PromptFormat, title: str, given: Sequence[retrieval.Hit | Record]) -> str:
    """Return the prompt with records at hand."""
    return prompt_format.prompt(title, "\n".join(prompt_format.source_text(each.title, each.text) for each in given))


def prompt_with_records(
    model: PromptReader, title: str, hits: Sequence[Given], max_tokens: int
) -> tuple[str, list[Given]]:
    """Return the prompt with as much of the hits as fits, the best first, and the hits that are in it.

    The answer's tokens come on top of max_tokens, so a long context never cuts an answer off.
    """
    prompt_format = model.prompt_format
    used: list[Given] = []
    prompt = prompt_format.prompt(title)

    def fits(more: Given) -> bool:
        return model.count_tokens(worded(prompt_format, title, (*used, more))) <= max_tokens

    for hit in hits:
        words = cut_where_lines_end(hit.text)
        # The last text that does not fit whole is cut at a word, by bisection.
        fewest, most = 0, len(words)
        if not fits(hit):
            while fewest < most:
                middle = (fewest + most + 1) // 2
                shorter = dataclasses.replace(hit, text="".join(words[:middle]))
                fewest, most = (middle, most) if fits(shorter) else (fewest, middle - 1)
            if most == 0:
                break
            hit = dataclasses.replace(hit, text="".join(words[:most]))
        used.append(hit)
        prompt = worded(prompt_format, title, used)
        if most < len(words):
            break
    return prompt, used
