"""The records that a training reads: drawn, tokenized, counted."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

from config import Config, TrainConfig
from pipeline import artifacts, processes, prompts, records

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase


def build_datasets(
    config: Config,
    data: records.ProcessedData,
    tokenizer: PreTrainedTokenizerBase,
    prompt_format: prompts.PromptFormat,
    metrics: dict[str, Any],
) -> tuple[Dataset, Dataset]:
    """Draw and tokenize training and validation records; write the training records to trn_processed_dataset.json."""
    import msgspec

    train = config.train
    drawn = data.sample("train", train.records_wanted, train.seed)
    validation = data.sample("validation", train.validation_size, train.seed)
    if not drawn:
        raise artifacts.UserError(f"No record of {data.path} is in the training split. Bring more data.")
    if train.batching == "packed" and train.max_steps is not None:
        drawn = enough_records(drawn, train, tokenizer, prompt_format)
    if processes.is_main():
        with records.array_writer(config.run_dir / "trn_processed_dataset.json") as write:
            for title, content in drawn:
                record = {"instruction": prompt_format.instruction, "input": title, "output": content}
                write(msgspec.json.encode(record))

    print("Dataset (trn_processed_dataset.json holds the training records):")
    train_set = tokenize(drawn, "training", tokenizer, prompt_format, train, metrics)
    validation_set = tokenize(validation, "validation", tokenizer, prompt_format, train, metrics)
    if len(train_set) == 0:
        raise artifacts.UserError("Every prompt fills --train.max-length. Raise it.")
    first = drawn[0]
    print(f"  instruction: {prompt_format.instruction}\n  input: {first[0]}\n  output: {first[1][:300]}\n")
    return train_set, validation_set


def enough_records(
    drawn: list[tuple[str, str]],
    train: TrainConfig,
    tokenizer: PreTrainedTokenizerBase,
    prompt_format: prompts.PromptFormat,
) -> list[tuple[str, str]]:
    """Return as many of the records, at random, as the steps of a packed training can hold."""
    drawn = random.Random(train.seed).sample(drawn, len(drawn))
    room = train.max_steps * train.tokens_per_step
    for count, (title, content) in enumerate(drawn):
        if room <= 0:
            return drawn[:count]
        example = prompts.training_example(prompt_format, tokenizer, title, content, train.max_length)
        room -= len(example.input_ids) if example else 0
    return drawn


def tokenize(
    pairs: list[tuple[str, str]], name: str, tokenizer: PreTrainedTokenizerBase, prompt_format: prompts.PromptFormat,
    train: TrainConfig, metrics: dict[str, Any],
) -> Dataset:  # fmt: skip
    """Return the dataset of tokenized (title, content) pairs; print and note what was cut and what was dropped."""
    from datasets import Dataset

    examples = [
        prompts.training_example(prompt_format, tokenizer, title, content, train.max_length, train.loss_on)
        for title, content in pairs
    ]
    kept = [example for example in examples if example is not None]
    cut, dropped = sum(example.cut for example in kept), len(examples) - len(kept)
    tokens = sum(len(example.input_ids) for example in kept)
    print(f"  {name:<11}{len(kept):>8,} records {tokens:>11,} tokens; {cut:,} answers cut at "
          f"{train.max_length} tokens, {dropped:,} dropped because the prompt fills them")  # fmt: skip
    metrics[f"{name}_records"], metrics[f"{name}_tokens"] = len(kept), tokens
    metrics[f"{name}_cut"], metrics[f"{name}_dropped"] = cut, dropped
    columns = {"input_ids": [e.input_ids for e in kept], "labels": [e.labels for e in kept]}
    return Dataset.from_dict(columns)
