"""The records that a training reads: drawn, tokenized, counted."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

from config import Config, TrainConfig
from pipeline.data import records
from pipeline.models import distributed, prompts
from pipeline.run import errors
from pipeline.run.run_folder import TRAINED_RECORDS

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

Pairs = list[tuple[str, str]]
Tokenize = Callable[[Pairs], "list[prompts.TrainingExample | None]"]
Word = Callable[[Pairs], "list[prompts.TrainingPrompt]"]
AT_A_TIME = 1000  # records that are tokenized together
OF_RECORDS = ("with_records", "without_right_record")
"""Settings of `train` that settings_of_records returns, if they are of any effect."""
MORE_THAN_EXPECTED = 1.5  # records drawn for a number of tokens, over what the first of them let expect


def build_datasets(
    config: Config,
    data: records.ProcessedData,
    tokenizer: PreTrainedTokenizerBase,
    prompt_format: prompts.PromptFormat,
    metrics: dict[str, Any],
    word: Word | None = None,
) -> tuple[Dataset, Dataset]:
    """Draw and tokenize training and validation records; write the training records to trn_processed_dataset.json.

    Of the data, however large, only what the training can use is ever in memory.

    Args:
        config: of the run.
        data: the cleaned records.
        tokenizer: of the base model.
        prompt_format: by which it is asked.
        metrics: take the figures of both.
        word: makes the prompts of training records that carry others; None makes plain ones. Those of validation are always
            plain, so that losses can be compared.
    """
    import msgspec

    train = config.train

    def tokenize(pairs: Pairs) -> list[prompts.TrainingExample | None]:
        return prompts.training_examples(prompt_format, tokenizer, pairs, train.max_length, train.loss_on)

    def tokenize_worded(pairs: Pairs) -> list[prompts.TrainingExample | None]:
        if word is None:
            return tokenize(pairs)
        return prompts.tokenized(prompt_format, tokenizer, word(pairs), train.max_length, train.loss_on)

    drawn, examples = draw_records(data, train, tokenize_worded)
    validation = data.sample("validation", train.validation_size, train.seed)
    if not drawn:
        raise errors.UserError(f"No record of {data.path} is in the training split. Bring more data.")
    if distributed.is_main():
        with records.array_writer(config.run_dir / TRAINED_RECORDS) as write:
            for title, content in drawn:
                record = {"instruction": prompt_format.instruction, "input": title, "output": content}
                write(msgspec.json.encode(record))

    print("Dataset (trn_processed_dataset.json holds the training records):")
    train_set = make_dataset(examples, "training", train, metrics)
    if word is not None:
        note_records_at_hand(examples, config, metrics)
    validation_set = make_dataset(tokenize(validation), "validation", train, metrics)
    if len(train_set) == 0:
        raise errors.UserError("Every prompt fills --train.max-length. Raise it.")
    first = drawn[0]
    print(f"  instruction: {prompt_format.instruction}\n  input: {first[0]}\n  output: {first[1][:300]}\n")
    return train_set, validation_set


def draw_records(
    data: records.ProcessedData, train: TrainConfig, tokenize: Tokenize
) -> tuple[Pairs, list[prompts.TrainingExample | None]]:
    """Return training records drawn at random, and what they are tokenized to: as many as the training can use."""
    wanted, tokens_wanted = train.records_wanted, train.tokens_wanted
    if tokens_wanted is None:
        drawn = data.sample("train", wanted, train.seed)
        return drawn, take_until(tokenize_in_parts(drawn, tokenize), None)
    expected = MORE_THAN_EXPECTED * tokens_wanted / mean_tokens(itertools.islice(data, AT_A_TIME), tokenize)
    while True:
        size = min(int(expected) + 1, wanted or int(expected) + 1)
        drawn = data.sample("train", size, train.seed)
        random.Random(train.seed).shuffle(drawn)  # since perhaps only the first of them are used
        examples = take_until(tokenize_in_parts(drawn, tokenize), tokens_wanted)
        found = sum(len(example.input_ids) for example in examples if example is not None)
        if found >= tokens_wanted or len(drawn) < size or size == wanted:
            return drawn[: len(examples)], examples
        expected *= max(2.0, MORE_THAN_EXPECTED * tokens_wanted / max(found, 1))


def mean_tokens(pairs: Iterable[tuple[str, str]], tokenize: Tokenize) -> float:
    """Return the mean tokens of records, of which those that are dropped have none; at least 1."""
    examples = tokenize(list(pairs))
    total = sum(len(example.input_ids) for example in examples if example is not None)
    return max(total / max(len(examples), 1), 1.0)


def tokenize_in_parts(pairs: Pairs, tokenize: Tokenize) -> Iterator[prompts.TrainingExample | None]:
    """Yield what records are tokenized to, some at a time."""
    for start in range(0, len(pairs), AT_A_TIME):
        yield from tokenize(pairs[start : start + AT_A_TIME])


def take_until(
    examples: Iterable[prompts.TrainingExample | None], most_tokens: int | None
) -> list[prompts.TrainingExample | None]:
    """Return examples until they have so many tokens, or all; None among them has no tokens."""
    if most_tokens is None:
        return list(examples)
    taken: list[prompts.TrainingExample | None] = []
    for example in examples:
        taken.append(example)
        most_tokens -= len(example.input_ids) if example is not None else 0
        if most_tokens <= 0:
            break
    return taken


def make_dataset(
    examples: list[prompts.TrainingExample | None], name: str, train: TrainConfig, metrics: dict[str, Any]
) -> Dataset:
    """Return the dataset of tokenized records; print and note what was cut and what was dropped."""
    from datasets import Dataset

    kept = [example for example in examples if example is not None]
    cut, dropped = sum(example.cut for example in kept), len(examples) - len(kept)
    tokens = sum(len(example.input_ids) for example in kept)
    print(f"  {name:<11}{len(kept):>8,} records {tokens:>11,} tokens; {cut:,} answers cut at "
          f"{train.max_length} tokens, {dropped:,} dropped because the prompt fills them")  # fmt: skip
    metrics[f"{name}_records"], metrics[f"{name}_tokens"] = len(kept), tokens
    metrics[f"{name}_cut"], metrics[f"{name}_dropped"] = cut, dropped
    columns = {"input_ids": [e.input_ids for e in kept], "labels": [e.labels for e in kept]}
    return Dataset.from_dict(columns)


def note_records_at_hand(
    examples: Iterable[prompts.TrainingExample | None], config: Config, metrics: dict[str, Any]
) -> None:
    """Print and note how many training prompts carry records, and how many of these carry not all that were wanted."""
    asked = [(example.at_hand, len(example.input_ids)) for example in examples if example and example.at_hand]
    carrying = [(at_hand, tokens) for at_hand, tokens in asked if at_hand.records]
    counts = {
        "prompts": len(carrying),
        "tokens": sum(tokens for _, tokens in carrying),
        "distractors_alone": sum(not at_hand.right for at_hand, _ in carrying),
        "fewer": sum(at_hand.fewer for at_hand, _ in carrying),
        "cut": sum(at_hand.cut for at_hand, _ in carrying),
        "none_fitted": len(asked) - len(carrying),
    }
    metrics["with_records"] = counts
    print(f"  of these   {counts['prompts']:>8,} carry records {counts['tokens']:>8,} tokens; {counts['distractors_alone']:,} "
          f"distractors alone, {counts['fewer']:,} fewer than --rag.k {config.rag.k} ({counts['cut']:,} of them one that is cut); "
          f"{counts['none_fitted']:,} were to carry records\n             and have room for none (--train.max-length "
          f"{config.train.max_length}, --rag.max-context-tokens {config.rag.max_context_tokens})")  # fmt: skip


def settings_of_records(config: Config) -> dict[str, Any]:
    """Return the settings on which it depends what prompts with records carry, as flat names and values; none without such."""
    train, rag = config.train, config.rag
    if not train.with_records:
        return {}
    return {
        "train.with_records": train.with_records,
        "train.without_right_record": train.without_right_record,
        "rag.k": rag.k,
        "rag.max_context_tokens": rag.max_context_tokens,
        "rag.not_found": rag.not_found,
    }
