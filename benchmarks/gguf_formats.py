"""How much does the number format of a GGUF change the answers?

Converts the merged model of a finished run to each format and compares it, greedily, with the merged model in 32 bits:
next-token decisions, the divergence of the next token's distribution, whole answers that are identical, and the size of the file.

    python benchmarks/gguf_formats.py --run-dir outputs/demo
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import tyro

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from config import GenerationConfig, ModelConfig, QuestionsConfig
from pipeline.data import records
from pipeline.evaluation import questions
from pipeline.export import gguf, parity
from pipeline.models import generation, loading, prompts
from pipeline.models.llama_cpp import GgufModel
from pipeline.run.command_line import quiet_libraries
from pipeline.run.run_folder import RunFolder

if TYPE_CHECKING:
    import torch

    from pipeline.models.language_model import LanguageModel

FORMATS = ("f32", "bf16", "f16", "q8_0")
TOLD = 500  # likeliest next tokens that llama.cpp tells


@dataclass(frozen=True)
class Options:
    """What is compared."""

    run_dir: Path = Path("outputs/demo")
    """Outputs of a run that has been through merge_and_convert.py."""
    titles: int = 8
    """Held-out titles that are answered."""
    tokens: int = 64
    """Tokens of each answer, at most, and decisions compared in each."""


def main(options: Options) -> None:
    """Print the table."""
    quiet_libraries()
    merged_folder = options.run_dir / "merged_model"
    data = records.open_processed(RunFolder(options.run_dir))
    asked = questions.choose_questions(data, QuestionsConfig(held_out=options.titles))
    merged = loading.load_base(ModelConfig(name=str(merged_folder)), "16bit")
    prompt_format = prompts.load_prompt_format(merged_folder)
    greedy = GenerationConfig(max_new_tokens=options.tokens, temperature=0.0, batch_size=1)
    texts = [prompt_format.prompt(question.title) for question in asked]
    reference = generation.generate(merged, prompt_format, texts, greedy)
    starts = [prompts.prompt_ids(prompt_format, merged.tokenizer, text) for text in texts]
    written = [generation.greedy_continuation(merged, prompt_format, start, options.tokens) for start in starts]
    passages = list(zip(written, map(len, starts), strict=True))
    read = [generation.read(merged, ids, start) for ids, start in passages]
    distributions = [next_tokens(merged, ids, start) for ids, start in passages]
    decisions = sum(len(reading.choices) for reading in read)
    print(f"{len(texts)} answers, {decisions} tokens, against {merged_folder} in {merged.model.dtype}")
    print(f"{'format':<8}{'MB':>6}{'next tokens':>14}{'KL, nats per token':>20}{'identical answers':>20}")
    with tempfile.TemporaryDirectory() as folder:
        for number_format in FORMATS:
            file = Path(folder) / f"{number_format}.gguf"
            name = gguf.gguf_model_name(str(merged_folder), merged.tokenizer)
            gguf.convert(merged_folder, file, name, number_format, converter=None)
            with closing(GgufModel(file, prompt_format)) as served:
                answers = served.generate(texts, greedy)
                share = parity.agreement(read, [served.read(ids, start) for ids, start in passages])
                lost = sum(
                    divergence(row, served.likeliest(ids[: start + place], TOLD))
                    for (ids, start), rows in zip(passages, distributions, strict=True)
                    for place, row in enumerate(rows)
                )
            same = sum(one.text == other.text for one, other in zip(answers, reference, strict=True))
            print(
                f"{number_format:<8}{file.stat().st_size / 1e6:>6.0f}{share:>14.1%}{lost / decisions:>20.5f}"
                f"{f'{same} of {len(texts)}':>20}"
            )


def next_tokens(merged: LanguageModel, ids: Sequence[int], start: int) -> torch.Tensor:
    """Return the log-likelihoods of the next token at each position of ids[start:]: (positions, vocabulary)."""
    import torch

    with torch.inference_mode():
        logits = merged.model(torch.tensor([list(ids)])).logits[0, start - 1 : len(ids) - 1]
    return logits.double().log_softmax(-1)


def divergence(row: torch.Tensor, likeliest: dict[int, float]) -> float:
    """Return the KL divergence from a distribution to one of which the likeliest tokens are known, all others as one token."""
    import math

    tokens = list(likeliest)
    ours = [row[token].item() for token in tokens]
    total = sum(math.exp(p) * (p - likeliest[token]) for p, token in zip(ours, tokens, strict=True))
    rest = 1 - sum(map(math.exp, ours))
    other = 1 - sum(map(math.exp, likeliest.values()))
    return total + (rest * math.log(rest / other) if rest > 1e-9 and other > 1e-9 else 0.0)


if __name__ == "__main__":
    main(tyro.cli(Options))
