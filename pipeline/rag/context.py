"""Put the retrieved records into the prompt, as many as fit."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from pipeline.data.words import cut_where_lines_end
from pipeline.models.answerer import AnsweringModel
from pipeline.rag import retrieval


def room_for_context(model: AnsweringModel, max_context_tokens: int, new_tokens: int) -> int:
    """Return how many tokens prompt and retrieved texts may have: as set, or what the model leaves beside an answer."""
    limit = model.token_limit
    return max_context_tokens if limit is None else min(max_context_tokens, limit - new_tokens)


def prompt_with_records(
    model: AnsweringModel, title: str, hits: Sequence[retrieval.Hit], max_tokens: int
) -> tuple[str, list[retrieval.Hit]]:
    """Return the prompt with as much of the hits as fits, the best first, and the hits that are in it.

    The answer's tokens come on top of max_tokens, so a long context never cuts an answer off.
    """
    prompt_format = model.prompt_format
    used: list[retrieval.Hit] = []
    prompt = prompt_format.prompt(title)

    def with_hits(chosen: list[retrieval.Hit]) -> str:
        return prompt_format.prompt(title, "\n".join(prompt_format.source_text(h.title, h.text) for h in chosen))

    def fits(text: str) -> bool:
        return model.count_tokens(text) <= max_tokens

    for hit in hits:
        words = cut_where_lines_end(hit.text)
        # The last text that does not fit whole is cut at a word, by bisection.
        fewest, most = 0, len(words)
        if not fits(with_hits([*used, hit])):
            while fewest < most:
                middle = (fewest + most + 1) // 2
                shorter = dataclasses.replace(hit, text="".join(words[:middle]))
                fewest, most = (middle, most) if fits(with_hits([*used, shorter])) else (fewest, middle - 1)
            if most == 0:
                break
            hit = dataclasses.replace(hit, text="".join(words[:most]))
        used.append(hit)
        prompt = with_hits(used)
        if most < len(words):
            break
    return prompt, used
