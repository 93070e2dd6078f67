"""Stage 5: merge the adapter into the base model and convert the result for llama.cpp and Ollama.

Reads the base model and lora_model/. Writes merged_model/ (safetensors, 16 bits), model-TYPE.gguf and Modelfile, after
checking that base + adapter, merged model and GGUF read the same tokens and choose the same next ones.

    python merge_and_convert.py --gguf.type f16
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from config import Config, GenerationConfig
from pipeline import (
    artifacts,
    bundled_models,
    generation,
    gguf_conversion,
    language_model,
    parity,
    prompts,
    questions,
    records,
)
from pipeline.command_line import run_stage
from pipeline.llama_cpp import GgufModel
from pipeline.trained_models import check_base


@dataclass(frozen=True)
class Merged:
    """A merged model on disk and what is needed to compare the GGUF with it."""

    folder: Path
    prompt_format: prompts.PromptFormat
    tokenizer: Any
    passages: list[parity.Passage]
    adapter_choices: list[list[int]]
    merged_choices: list[list[int]]
    first_answer: str


def run(config: Config) -> Path:
    """Merge, convert, check, and return the path of the GGUF."""
    adapter = artifacts.require(config.run_dir / "lora_model", "fine_tuning", config.preset)
    data = records.open_processed(config.run_dir, config.preset)
    check_base(config.run_dir, config.model.name)
    gguf_conversion.converter_script(config.gguf.converter)
    settings = {"model": config.model, "gguf": config.gguf, "generation": config.generation}
    with artifacts.stage_manifest(config.run_dir, "merge_and_convert", settings, [adapter, data.path]) as metrics:
        asked = questions.choose_questions(data, config.questions)[: config.gguf.parity_prompts]
        print("Merging …", flush=True)
        merged = merge(config, adapter, [question.title for question in asked])
        print(f"Converting to {config.gguf.type} …", flush=True)
        target = config.run_dir / (config.gguf.file_name or f"model-{config.gguf.type}.gguf")
        with artifacts.atomic_path(target) as temporary:
            name = gguf_conversion.gguf_model_name(config.model.name, merged.tokenizer)
            gguf_conversion.convert(merged.folder, temporary, name, config.gguf.type, config.gguf.converter)
            print("Checking that the three forms of the model agree …", flush=True)
            check(config, merged, temporary, metrics)
        merged.prompt_format.save(config.run_dir)
        with artifacts.atomic_write(config.run_dir / "Modelfile") as file:
            file.write(gguf_conversion.modelfile(target.name, merged.prompt_format, config.generation))
        metrics["gguf_file"] = target.name
        print(f"\nIn llama.cpp: llama-cli -m {target}")
        print(f"In Ollama:    ollama create my-model -f {config.run_dir / 'Modelfile'}")
        return target


def merge(config: Config, adapter: Path, titles: Sequence[str]) -> Merged:
    """Write merged_model/ and note what base + adapter and the merged model choose after the same texts."""
    prompt_format = prompts.load_prompt_format(adapter)
    tuned = language_model.load_adapter(language_model.load_in_16_bits(config.model), adapter)
    passages = [answered_passage(tuned, prompt_format, prompt_format.prompt(title), config) for title in titles]
    adapter_choices = [generation.greedy_choices(tuned, p.ids, p.answer_start) for p in passages]
    merged = language_model.merge(tuned)
    merged_choices = [generation.greedy_choices(merged, p.ids, p.answer_start) for p in passages]
    greedy = greedy_generation(config)
    first = generation.generate(merged, prompt_format, [passages[0].prompt], greedy)[0].text
    folder = config.run_dir / "merged_model"
    with artifacts.atomic_path(folder) as temporary:
        with language_model.quiet_loading():
            merged.model.save_pretrained(temporary)
        merged.tokenizer.save_pretrained(temporary)
        gguf_conversion.keep_sentencepiece_model(bundled_models.resolve(config.model.name), temporary)
        gguf_conversion.complete_tokenizer_config(temporary, merged.tokenizer, prompt_format)
        prompt_format.save(temporary)
    return Merged(folder, prompt_format, merged.tokenizer, passages, adapter_choices, merged_choices, first)


def answered_passage(
    tuned: language_model.LanguageModel, prompt_format: prompts.PromptFormat, prompt: str, config: Config
) -> parity.Passage:
    """Return a prompt with the answer that the model gives it, greedily."""
    start = prompts.prompt_ids(prompt_format, tuned.tokenizer, prompt)
    ids = generation.greedy_continuation(tuned, start, config.gguf.parity_tokens)
    return parity.Passage(prompt, ids, len(start))


def check(config: Config, merged: Merged, gguf_file: Path, metrics: dict[str, Any]) -> None:
    """Load the GGUF in llama.cpp, compare it with the merged model, and print how far they agree."""
    gguf = GgufModel(gguf_file)

    def token_ids(prompt: str) -> list[int]:
        return prompts.prompt_ids(merged.prompt_format, merged.tokenizer, prompt)

    parity.check_tokenization([passage.prompt for passage in merged.passages], token_ids, gguf)
    measured = parity.measure(merged.passages, merged.adapter_choices, merged.merged_choices, gguf)
    first = gguf.generate(merged.prompt_format, [merged.passages[0].prompt], greedy_generation(config))[0].text
    metrics.update(parity.as_metrics(measured), first_answer_identical=first == merged.first_answer)
    print(f"  tokenization of {measured.passages} prompts             identical")
    print(f"  next tokens, base + adapter and merged    {measured.adapter_merged:.1%} of {measured.decisions}")
    print(f"  next tokens, merged and GGUF              {measured.merged_gguf:.1%} of {measured.decisions}")
    print(f"  first answer, merged and GGUF             {'identical' if first == merged.first_answer else 'different'}")
    print(f"    merged: {merged.first_answer}\n    GGUF:   {first}")
    parity.check_agreement(measured, config.gguf.min_agreement)


def greedy_generation(config: Config) -> GenerationConfig:
    """Return the generation settings with the choice of the likeliest token, so that answers can be compared."""
    return replace(config.generation, temperature=0.0)


def main() -> None:
    """Run the stage from the command line."""
    run_stage("merge_and_convert", __doc__, run, "python rag_indexing.py")


if __name__ == "__main__":
    main()
