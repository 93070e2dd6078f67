"""Which records a forward pass gets, and how they are laid out in it: end to end, or each in a row of its own with padding."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate, chain
from typing import Any, Literal, NamedTuple

import torch
from torch.utils.data import Dataset

from pipeline.models.language_model import Backend

IGNORED_LABEL = -100
EVALUATION_TOKENS = 2048  # of a forward pass; longer records are one of their own
Layout = Literal["end_to_end", "padded"]


@dataclass(frozen=True)
class Batching:
    """How the records of an epoch are divided into forward passes.

    The order follows from seed and epoch alone, so that a training that goes on reads what it would have read.
    """

    passes: int
    """Forward passes of an optimizer step, over all devices."""
    seed: int
    records_per_step: int
    """Records of an optimizer step; not used if tokens_per_step is given."""
    tokens_per_step: int | None = None
    """Tokens that an optimizer step is filled with, at most; a longer record is a step of its own."""
    layout: Layout = "end_to_end"
    """Of the records of a forward pass."""

    def epoch(self, lengths: Sequence[int], epoch: int) -> list[list[int]]:
        """Return the positions of the records in each forward pass; each step has as many passes, some perhaps empty.

        Args:
            lengths: tokens of each record.
            epoch: from 0.
        """
        if self.tokens_per_step is not None:
            # Filled once, since the trainer counts on epochs of the same number of steps.
            filled = fill_passes(self._shuffled(len(lengths), 0), lengths, self.tokens_per_step)
            steps = [filled[position] for position in self._shuffled(len(filled), epoch)]
        else:
            order, size = self._shuffled(len(lengths), epoch), self.records_per_step
            steps = [order[start : start + size] for start in range(0, len(order), size)]
        divide = divide_evenly if self.layout == "end_to_end" else divide_by_length
        return [batch for step in steps for batch in divide(step, lengths, self.passes)]

    def _shuffled(self, count: int, epoch: int) -> list[int]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
        return torch.randperm(count, generator=generator).tolist()

    def largest_pass(self, lengths: Sequence[int], epochs: int) -> PassSize:
        """Return the size of the largest forward pass in so many epochs."""
        batches = chain.from_iterable(self.epoch(lengths, epoch) for epoch in range(epochs))
        return max(size_of_pass([lengths[position] for position in batch], self.layout) for batch in batches)


class PassSize(NamedTuple):
    """What a forward pass holds."""

    tokens: int
    """Padding included."""
    pairs: int
    """Of tokens that attend to each other, or could: for each row, its tokens squared."""


def size_of_pass(lengths: Sequence[int], layout: Layout) -> PassSize:
    """Return the size of a forward pass of records with these numbers of tokens."""
    if layout == "end_to_end":
        return PassSize(sum(lengths), sum(length**2 for length in lengths))
    longest = max(lengths, default=0)
    return PassSize(len(lengths) * longest, len(lengths) * longest**2)


def fill_passes(
    order: Iterable[int], lengths: Sequence[int], most_tokens: int, layout: Layout = "end_to_end"
) -> list[list[int]]:
    """Divide records, in their order, into batches of at most so many tokens; a longer record is a batch of its own."""
    batches: list[list[int]] = []
    total = longest = 0
    for position in order:
        length = lengths[position]
        total, longest = total + length, max(longest, length)
        filled = total if layout == "end_to_end" else longest * (len(batches[-1]) + 1 if batches else 1)
        if not batches or filled > most_tokens:
            batches.append([])
            total = longest = length
        batches[-1].append(position)
    return batches


def divide_evenly(positions: Sequence[int], lengths: Sequence[int], parts: int) -> list[list[int]]:
    """Divide records into so many parts with about the same number of tokens; some are empty if there are few records."""
    batches: list[list[int]] = [[] for _ in range(parts)]
    tokens = [0] * len(batches)
    for position in sorted(positions, key=lengths.__getitem__, reverse=True):
        least = tokens.index(min(tokens))
        batches[least].append(position)
        tokens[least] += lengths[position]
    return batches


def divide_by_length(positions: Sequence[int], lengths: Sequence[int], parts: int) -> list[list[int]]:
    """Divide records into so many parts of neighbours in length, with about the same number of tokens; some may be empty."""
    order = sorted(positions, key=lengths.__getitem__, reverse=True)
    total = sum(lengths[position] for position in order)
    batches: list[list[int]] = [[] for _ in range(parts)]
    before = 0
    for position in order:
        batches[min(before * parts // max(total, 1), parts - 1)].append(position)
        before += lengths[position]
    return batches


def lay_out(records: Sequence[dict[str, list[int]]], backend: Backend, layout: Layout, pad_id: int) -> dict[str, Any]:
    """Return the inputs of a forward pass.

    Args:
        records: input_ids and labels of each.
        backend: transformers and Unsloth are told of the boundaries between records in different ways.
        layout: of the records.
        pad_id: of the token that fills the rows of a padded pass; the attention mask hides it.
    """
    return lay_end_to_end(records, backend) if layout == "end_to_end" else pad_to_longest(records, pad_id)


def pad_to_longest(records: Sequence[dict[str, list[int]]], pad_id: int) -> dict[str, torch.Tensor]:
    """Return the inputs of a forward pass: one row for each record, of shape (records, tokens of the longest)."""
    longest = max(len(record["input_ids"]) for record in records)

    def rows(name: str, filler: int) -> torch.Tensor:
        return torch.tensor([record[name] + [filler] * (longest - len(record[name])) for record in records])

    lengths = torch.tensor([len(record["input_ids"]) for record in records])
    mask = (torch.arange(longest) < lengths[:, None]).long()
    return {"input_ids": rows("input_ids", pad_id), "labels": rows("labels", IGNORED_LABEL), "attention_mask": mask}


def lay_end_to_end(records: Sequence[dict[str, list[int]]], backend: Backend) -> dict[str, Any]:
    """Return the inputs of a forward pass: one row of shape (1, tokens), and where its records begin.

    Args:
        records: input_ids and labels of each.
        backend: transformers and Unsloth are told of the boundaries in different ways.
    """
    lengths = [len(record["input_ids"]) for record in records]
    ids, labels, positions = (
        torch.tensor([list(chain.from_iterable(rows))])
        for rows in (
            (record["input_ids"] for record in records),
            # The first token of a record must not be learned as what follows the record before it.
            ([IGNORED_LABEL, *record["labels"][1:]] for record in records),
            map(range, lengths),
        )
    )
    inputs = {"input_ids": ids, "labels": labels, "position_ids": positions}
    if backend == "unsloth":
        return inputs | {"packed_seq_lengths": torch.tensor(lengths, dtype=torch.int32)}
    starts = torch.tensor([0, *accumulate(lengths)], dtype=torch.int32)
    return inputs | {"cu_seq_lens_q": starts, "cu_seq_lens_k": starts, "max_length_q": max(lengths), "max_length_k": max(lengths)}  # fmt: skip


class ForwardPasses(Dataset[dict[str, Any]]):
    """The forward passes of an epoch; an item is the inputs of one."""

    def __init__(
        self,
        records: Any,
        inputs_of: Callable[[Sequence[dict[str, list[int]]]], dict[str, Any]],
        batches_of: Callable[[int], list[list[int]]],
    ) -> None:
        """Make the passes of the first epoch.

        Args:
            records: a datasets.Dataset with the columns input_ids and labels.
            inputs_of: returns the inputs of a pass of these records, as lay_out does.
            batches_of: returns the positions of the records of each pass of an epoch, from 0.
        """
        self._records, self._inputs_of, self._batches_of = records, inputs_of, batches_of
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch; accelerate calls this."""
        self._batches = self._batches_of(epoch)

    def __len__(self) -> int:
        """Return the number of passes."""
        return len(self._batches)

    def __getitem__(self, number: int) -> dict[str, Any]:
        """Return the inputs of a pass; one without records is a record of which nothing is learned."""
        columns = self._records[self._batches[number] or [0]]
        records = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
        if not self._batches[number]:
            records[0]["labels"] = [IGNORED_LABEL] * len(records[0]["labels"])
        return self._inputs_of(records)


def token_counts(records: Any) -> list[int]:
    """Return the tokens of each record of a datasets.Dataset with the column input_ids."""
    return [len(ids) for ids in records["input_ids"]]
