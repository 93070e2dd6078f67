"""The set-up that fine_tuning.py replaces, to measure against: Unsloth in 4 bits, batch 2 x 4, padded, checkpointing.

The other benchmarks run it in a process of its own, since Unsloth changes transformers for the whole of a process.
"""

from __future__ import annotations

import json
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import tyro

from config import LoraConfig

RECORDS_PER_STEP = 8


@dataclass(frozen=True)
class NotebookTraining:
    """Train as the notebooks do."""

    model: tyro.conf.Positional[Path]
    records: tyro.conf.Positional[Path]
    """JSON: texts to train on, and validation records with input_ids and labels."""
    log: tyro.conf.Positional[Path]
    """JSON Lines to write: step, seconds without evaluations, tokens, and perhaps validation_loss; peak in GiB at last."""
    lora: LoraConfig
    max_length: int
    steps: int
    learning_rate: float = 2e-4
    evaluate_every: int | None = None
    """Steps between two measurements of the validation loss, before the first step too."""


def run(work: NotebookTraining) -> None:
    """Train, and write the log."""
    from unsloth import FastLanguageModel  # isort: skip  It changes the others.
    import torch
    from datasets import Dataset
    from transformers import TrainerCallback
    from trl import SFTConfig, SFTTrainer

    model, tokenizer = FastLanguageModel.from_pretrained(
        str(work.model), max_seq_length=work.max_length, load_in_4bit=True
    )
    model = FastLanguageModel.get_peft_model(
        model, r=work.lora.r, lora_alpha=work.lora.alpha, lora_dropout=0, bias="none",
        target_modules=list(work.lora.target_modules), use_gradient_checkpointing="unsloth", random_state=3407,
    )  # fmt: skip
    data = json.loads(work.records.read_text(encoding="utf-8"))

    class Log(TrainerCallback):
        def __init__(self) -> None:
            self.lines: list[dict[str, Any]] = []
            self.started = 0.0

        def note(self, step: int, tokens: int) -> None:
            torch.cuda.synchronize()
            before = time.perf_counter()
            line = {"step": step, "seconds": before - self.started, "tokens": int(tokens)}
            if work.evaluate_every is not None and step % work.evaluate_every == 0:
                line["validation_loss"] = validation_loss(model, data["validation"])
                self.started += time.perf_counter() - before
            self.lines.append(line)

        def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            self.started = time.perf_counter()
            self.note(0, 0)

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            self.note(state.global_step, state.num_input_tokens_seen)

    log = Log()
    trainer = SFTTrainer(
        model=model, processing_class=tokenizer, train_dataset=Dataset.from_dict({"text": data["texts"]}),
        callbacks=[log],
        args=SFTConfig(
            output_dir=str(work.log.parent / "notebook"), dataset_text_field="text", packing=False,
            max_length=work.max_length, per_device_train_batch_size=2, gradient_accumulation_steps=4,
            max_steps=work.steps, learning_rate=work.learning_rate, lr_scheduler_type="linear", optim="adamw_8bit",
            weight_decay=0.01, max_grad_norm=0.3, seed=3407, bf16=True, logging_steps=1, save_strategy="no",
            report_to="none", include_num_input_tokens_seen="non_padding",
        ),
    )  # fmt: skip
    trainer.train()
    log.lines[-1]["peak"] = torch.cuda.max_memory_allocated() / 2**30
    work.log.write_text("".join(json.dumps(line) + "\n" for line in log.lines), encoding="utf-8")


def validation_loss(model: Any, records: list[dict[str, list[int]]]) -> float:
    """Return the mean loss of all tokens with a label."""
    import torch

    from pipeline.training.batching import EVALUATION_TOKENS, IGNORED_LABEL, fill_passes, lay_end_to_end

    total, tokens = 0.0, 0
    model.eval()
    for batch in fill_passes(range(len(records)), [len(record["labels"]) for record in records], EVALUATION_TOKENS):
        inputs = {name: value.cuda() for name, value in lay_end_to_end([records[i] for i in batch], "unsloth").items()}
        with torch.no_grad(), torch.autocast("cuda", torch.bfloat16):
            total += model(**inputs, num_items_in_batch=1)["loss"].item()
        tokens += int(inputs["labels"][:, 1:].ne(IGNORED_LABEL).sum())
    model.train()
    return total / tokens


if __name__ == "__main__":
    os.environ.update(HF_HUB_OFFLINE="1", UNSLOTH_DISABLE_STATISTICS="1")
    run(tyro.cli(NotebookTraining, description=__doc__))
