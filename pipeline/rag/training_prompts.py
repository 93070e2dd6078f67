"""Word training prompts with records at hand, as stage 8 words its own (RAFT, Zhang et al. 2024).

What a prompt carries follows from the seed and the record alone, so that a training that goes on reads what it would have read.
"""

from __future__ import annotations

import random
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from config import RagConfig, TrainConfig
from pipeline.models.prompts import AtHand, PromptFormat, TrainingPrompt, answered_ids, prompt_ids
from pipeline.rag.citations import sentences
from pipeline.rag.context import Record, prompt_with_records, worded
from pipeline.run.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

WITH_RIGHT_RECORD = 0.8  # share of the prompts with records that carry the right one: P of Zhang et al. (2024)


def answer_without_right_record(train: TrainConfig, rag: RagConfig) -> str | None:
    """Return what is learned where a prompt carries distractors alone; None if that is the answer all the same.

    Raises:
        UserError: rag.not_found would be learned, and has no sentence without titles, which change with every question.
    """
    if train.without_right_record == "answer":
        return None
    kept = " ".join(sentence for sentence in sentences(rag.not_found) if "{titles}" not in sentence)
    if not kept:
        raise UserError(
            "With --train.without-right-record not_found, the sentences of --rag.not-found without {titles} are learned, and "
            "there is none. Put {titles} into a sentence of its own."
        )
    return kept


@dataclass(frozen=True)
class TrainingPrompts:
    """Words the prompts of a training, of which a share carries records."""

    near: Callable[[str, str, int], Sequence[Record]]
    """Returns the distractors of a record, as Distractors.near does."""
    prompt_format: PromptFormat
    tokenizer: PreTrainedTokenizerBase
    train: TrainConfig
    rag: RagConfig
    without_right: str | None = None
    """What answer_without_right_record returns."""

    def count_tokens(self, prompt: str) -> int:
        """Return the tokens of a prompt, BOS included."""
        return len(prompt_ids(self.prompt_format, self.tokenizer, prompt))

    def __call__(self, records: Sequence[tuple[str, str]]) -> list[TrainingPrompt]:
        """Return the prompts of (title, content) records with the answers that are learned for them."""
        return [self._prompt(title, content) for title, content in records]

    def _prompt(self, title: str, content: str) -> TrainingPrompt:
        drawn = random.Random(f"{self.train.seed}\0{title}\0{content}".encode("utf-8", "replace"))
        if drawn.random() >= self.train.with_records:
            return TrainingPrompt(self.prompt_format.prompt(title), content)
        right, k = drawn.random() < WITH_RIGHT_RECORD, self.rag.k
        own = [Record(title, content)] if right else []
        records = [*own, *self.near(title, content, k - len(own))]
        order = drawn.sample(range(len(records)), len(records))
        answer = content if right or self.without_right is None else self.without_right
        text, at_hand = self._fitted(title, records, order, self._room(title, answer), right)
        return TrainingPrompt(text, answer if at_hand.records else content, at_hand)

    def _room(self, title: str, answer: str) -> int:
        """Return how many tokens a prompt may have: as many as in stage 8, and no more than leave the answer whole."""
        plain = self.prompt_format.prompt(title)
        [(start, ids)] = answered_ids(self.prompt_format, self.tokenizer, [plain], [answer])
        return min(self.rag.max_context_tokens, self.train.max_length - len(ids[start:]))

    def _fitted(
        self, title: str, records: Sequence[Record], order: Sequence[int], room: int, right: bool
    ) -> tuple[str, AtHand]:
        """Return the prompt with as many of the records, the first of them, as fit whole; where none does, with one that is cut."""

        def with_first(count: int) -> str:
            return worded(self.prompt_format, title, [records[position] for position in order if position < count])

        def is_too_long(count: int) -> bool:
            return self.count_tokens(with_first(count)) > room

        most = len(records)
        fitting = bisect_left(range(1, most), True, key=is_too_long) if is_too_long(most) else most
        if fitting:
            return with_first(fitting), AtHand(fitting, right, fitting < most)
        text, used = prompt_with_records(self, title, records[:1], room)
        return text, AtHand(len(used), right and bool(used), len(used) < most, bool(used))
