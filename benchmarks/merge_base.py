"""Into which weights should an adapter be merged that was trained in 4 bits?

Takes runs that were trained with --model.precision 4bit on a model whose files have 16 bits. Measures the loss on validation
records of base + adapter, as it was trained, and of the adapter merged into the weights rounded to 4 bits and into those of the files.

    python benchmarks/merge_base.py outputs/demo outputs/saude_sample
"""

from __future__ import annotations

import functools
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from config import ModelConfig
from pipeline.data import records
from pipeline.evaluation.forms import TRAINED, compare_losses
from pipeline.models import adapter, generation, language_model, loading, prompts
from pipeline.models.trained import base_model
from pipeline.run.command_line import quiet_libraries
from pipeline.run.run_folder import ADAPTER, RunFolder


@dataclass(frozen=True)
class Options:
    """What is measured."""

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Folders of runs that have been through fine_tuning.py."""
    model: str | None = None
    """The base model, where the runs were trained on a copy of it that was rounded to 4 bits before (as on a CPU); None is theirs."""
    records: int = 200
    """Validation records."""
    tokens: int = 128
    """Tokens of each answer, at most."""


def main(options: Options) -> None:
    """Print the losses of each run."""
    quiet_libraries()
    for folder in options.runs:
        run = RunFolder(folder)
        drawn = records.open_processed(run).sample("validation", options.records, seed=1)
        prompt_format = prompts.load_prompt_format(run / ADAPTER)
        model = ModelConfig(name=options.model or base_model(run))
        readings = {}
        for name, precision, merge in (
            (TRAINED, "4bit", False),
            ("trained", "4bit", True),
            ("original", "16bit", True),
        ):
            base, stored = loading.load_for_merging(model, precision)
            tuned = adapter.load_adapter(base, run / ADAPTER)
            if merge:
                tuned = adapter.merge(tuned, stored)
                language_model.cast_weights(tuned.model, tuned.compute_format.dtype)
            asked = [prompt_format.prompt(title) for title, _ in drawn]
            rows = prompts.answered_ids(prompt_format, tuned.tokenizer, asked, [content for _, content in drawn])
            read = functools.partial(generation.read, tuned)
            readings[name] = [read(ids[: start + options.tokens], start) for start, ids in rows]
        print(f"\n{folder}, {len(drawn)} validation records, nats per token")
        for line in compare_losses(readings)[0]:
            print(f"  {line}")


if __name__ == "__main__":
    main(tyro.cli(Options))
