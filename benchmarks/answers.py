"""Answers in batches against answers one by one: the same model, the same prompts, the same greedy answers.

Asks a model the titles of the test split, first one at a time, then in batches, and prints answers/s, the ratio, and how
many answers are the same to the letter.

    python benchmarks/answers.py --preset demo --batch-sizes 8 32
"""

from __future__ import annotations

import dataclasses
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import tyro

from config import PRESETS, GenerationConfig, QuestionsConfig


@dataclass(frozen=True)
class Benchmark:
    """What to measure."""

    preset: str = "demo"
    """Whose trn_processed.json and model are used; run process_data.py first."""
    output_dir: Path = Path("outputs")
    model: str | None = None
    """Another model of the same kind."""
    backend: Literal["auto", "unsloth", "transformers"] = "auto"
    precision: Literal["auto", "4bit", "16bit"] = "auto"
    batch_sizes: tuple[int, ...] = (32, 64)
    one_by_one: int = 16
    """Prompts that are answered one at a time."""
    prompts: int = 128
    """Prompts that are answered in batches."""
    max_new_tokens: int = 64


def run(work: Benchmark) -> None:
    """Print the table."""
    from pipeline.data import records
    from pipeline.evaluation import questions
    from pipeline.models import generation, loading, precision, prompts
    from pipeline.run.run_folder import RunFolder

    preset = PRESETS[work.preset]
    model = dataclasses.replace(
        preset.model, name=work.model or preset.model.name, backend=work.backend, precision=work.precision
    )
    base = loading.load_base(model, precision.precision_to_answer(model))
    data = records.open_processed(RunFolder(work.output_dir / work.preset))
    asked = questions.choose_questions(data, QuestionsConfig(held_out=work.prompts))
    made = prompts.make_prompt_format(preset.prompt, base.tokenizer)
    texts = [made.prompt(question.title) for question in asked]

    def answer(texts: list[str], batch_size: int) -> tuple[list[str], float]:
        settings = GenerationConfig(work.max_new_tokens, temperature=0.0, batch_size=batch_size)
        generation.generate(base, made, texts[:batch_size], settings)  # what is prepared once
        started = time.perf_counter()
        answers = generation.generate(base, made, texts, settings)
        return [a.text for a in answers], len(answers) / (time.perf_counter() - started)

    print(f"{base.name}, {base.backend}, {base.device}, {base.model.dtype}, {work.max_new_tokens} new tokens at most")
    alone, before = answer(texts[: work.one_by_one], 1)
    print(f"{'one by one':<16}{before:>8.2f} answers/s")
    for size in work.batch_sizes:
        together, now = answer(texts, size)
        same = sum(one == other for one, other in zip(alone, together, strict=False))
        name = f"batches of {size}"
        print(f"{name:<16}{now:>8.2f} answers/s, {now / before:.1f} times; {same} of {len(alone)} the same", flush=True)


if __name__ == "__main__":
    run(tyro.cli(Benchmark, description=__doc__))
