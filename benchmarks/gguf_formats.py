"""How much does the number format of a GGUF change the answers?

Converts the merged model of a finished run to each format and compares it, greedily, with the merged model in 32 bits:
next-token decisions, whole answers that are identical, and the size of the file.

    python benchmarks/gguf_formats.py --run-dir outputs/demo
"""

from __future__ import annotations

import sys
import tempfile
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

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

FORMATS = ("f32", "bf16", "f16", "q8_0")


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
    data = records.open_processed(RunFolder.of(options))
    asked = questions.choose_questions(data, QuestionsConfig(held_out=options.titles))
    merged = loading.load_base(ModelConfig(name=str(merged_folder)), "16bit")
    prompt_format = prompts.load_prompt_format(merged_folder)
    greedy = GenerationConfig(max_new_tokens=options.tokens, temperature=0.0, batch_size=1)
    texts = [prompt_format.prompt(question.title) for question in asked]
    reference = generation.generate(merged, prompt_format, texts, greedy)
    starts = [prompts.prompt_ids(prompt_format, merged.tokenizer, text) for text in texts]
    passages = [generation.greedy_continuation(merged, start, options.tokens) for start in starts]
    pairs = list(zip(passages, map(len, starts), strict=True))
    choices = [generation.greedy_choices(merged, ids, start) for ids, start in pairs]
    print(f"{len(texts)} answers of up to {options.tokens} tokens, against {merged_folder} in {merged.model.dtype}")
    print(f"{'format':<8}{'MB':>6}{'next tokens':>14}{'identical answers':>20}")
    with tempfile.TemporaryDirectory() as folder:
        for number_format in FORMATS:
            file = Path(folder) / f"{number_format}.gguf"
            name = gguf.gguf_model_name(str(merged_folder), merged.tokenizer)
            gguf.convert(merged_folder, file, name, number_format, converter=None)
            with closing(GgufModel(file, prompt_format)) as served:
                answers = served.generate(texts, greedy)
                share = parity.agreement(choices, [served.greedy_choices(ids, start) for ids, start in pairs])
            same = sum(one.text == other.text for one, other in zip(answers, reference, strict=True))
            print(f"{number_format:<8}{file.stat().st_size / 1e6:>6.0f}{share:>14.1%}{f'{same} of {len(texts)}':>20}")


if __name__ == "__main__":
    main(tyro.cli(Options))
