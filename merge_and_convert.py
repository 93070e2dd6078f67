"""Stage 5: merge the adapter into the base model and convert the result for llama.cpp and Ollama.

Reads the base model and lora_model/. Writes merged_model/ (safetensors, in the number format of the base model), model-TYPE.gguf and Modelfile, after
checking that base + adapter, merged model and GGUF read the same tokens and choose the same next ones.

    python merge_and_convert.py --gguf.type f16
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from config import Config, GenerationConfig
from pipeline.data import records
from pipeline.evaluation import questions
from pipeline.export import gguf, modelfile, parity
from pipeline.models import adapter as adapters
from pipeline.models import bundled, generation, language_model, loading, loading_errors, prompts
from pipeline.models.llama_cpp import GgufModel
from pipeline.models.trained import adapter_folder
from pipeline.run import files, manifests
from pipeline.run.command_line import run_stage
from pipeline.run.run_folder import MERGED_MODEL, MODELFILE, PROMPT_FORMAT, RunFolder


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
    run_folder = RunFolder.of(config)
    data = records.open_processed(run_folder)
    adapter = adapter_folder(run_folder, config.model.name, data.path)
    gguf.converter_script(config.gguf.converter)
    target = config.run_dir / (config.gguf.file_name or f"model-{config.gguf.type}.gguf")
    inputs, outputs = [adapter, data.path], [MERGED_MODEL, target.name, PROMPT_FORMAT]
    with manifests.stage_manifest(config, "merge_and_convert", inputs, outputs) as metrics:
        asked = questions.choose_questions(data, config.questions)[: config.gguf.parity_prompts]
        print("Merging …", flush=True)
        merged = merge(config, adapter, [question.title for question in asked], metrics)
        print(f"Converting to {config.gguf.type} …", flush=True)
        with files.atomic_path(target) as temporary:
            name = gguf.gguf_model_name(config.model.name, merged.tokenizer)
            gguf.convert(merged.folder, temporary, name, config.gguf.type, config.gguf.converter)
            print("Checking that the three forms of the model agree …", flush=True)
            check(config, merged, temporary, metrics)
        merged.prompt_format.save(config.run_dir)
        with files.atomic_write(config.run_dir / MODELFILE) as file:
            file.write(modelfile.modelfile(target.name, merged.prompt_format, config.generation))
        metrics["gguf_file"] = target.name
        print(f"\nIn llama.cpp: llama-cli -m {target}")
        print(f"In Ollama:    ollama create my-model -f {config.run_dir / MODELFILE}")
        return target


def merge(config: Config, adapter: Path, titles: Sequence[str], metrics: dict[str, Any]) -> Merged:
    """Write merged_model/, unless it chooses other tokens than base + adapter; note what it chooses."""
    prompt_format = prompts.load_prompt_format(adapter)
    base, stored = loading.load_for_merging(config.model)
    bytes_each = stored.itemsize + gguf.bytes_per_weight(config.gguf.type)
    files.require_space(config.run_dir, base.model.num_parameters() * bytes_each, "The merged model and its GGUF")
    metrics.update(**base.runs_on, merged_dtype=str(stored).removeprefix("torch."))
    tuned = adapters.load_adapter(base, adapter)
    passages = [answered_passage(tuned, prompt_format, prompt_format.prompt(title), config) for title in titles]
    adapter_choices = [generation.greedy_choices(tuned, p.ids, p.answer_start) for p in passages]
    # Rounded to the format of the files: what is compared is what is saved.
    merged = adapters.merge(tuned, stored)
    language_model.cast_weights(merged.model, merged.compute_format.dtype)
    merged_choices = [generation.greedy_choices(merged, p.ids, p.answer_start) for p in passages]
    parity.check_agreement(
        "base + adapter", adapter_choices, "the merged model", merged_choices, config.gguf.min_agreement
    )
    greedy = greedy_generation(config)
    first = generation.generate(merged, prompt_format, [passages[0].prompt], greedy)[0].text
    folder = config.run_dir / MERGED_MODEL
    # From here on a GGUF of an earlier run belongs to another model.
    manifests.withdraw_manifest(RunFolder.of(config), "merge_and_convert")
    with files.atomic_path(folder) as temporary:
        with loading_errors.quiet_loading():
            language_model.cast_weights(merged.model, stored)
            merged.model.save_pretrained(temporary)
        merged.tokenizer.save_pretrained(temporary)
        gguf.keep_sentencepiece_model(bundled.resolve(config.model.name), temporary)
        gguf.complete_tokenizer_config(temporary, merged.tokenizer, prompt_format)
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

    def token_ids(prompt: str) -> list[int]:
        return prompts.prompt_ids(merged.prompt_format, merged.tokenizer, prompt)

    with closing(GgufModel(gguf_file, merged.prompt_format)) as model:
        parity.check_tokenization([passage.prompt for passage in merged.passages], token_ids, model)
        gguf_choices = [model.greedy_choices(passage.ids, passage.answer_start) for passage in merged.passages]
        first = model.generate([merged.passages[0].prompt], greedy_generation(config))[0].text
    with_adapter = parity.agreement(merged.adapter_choices, merged.merged_choices)
    with_gguf = parity.agreement(merged.merged_choices, gguf_choices)
    same = first == merged.first_answer
    decisions = sum(map(len, gguf_choices))
    metrics.update(
        tokenization="identical",
        parity_decisions=decisions,
        agreement_adapter_merged=round(with_adapter, 4),
        agreement_merged_gguf=round(with_gguf, 4),
        first_answer_identical=same,
    )
    print(f"  tokenization of {len(merged.passages)} prompts             identical")
    print(f"  next tokens, base + adapter and merged    {with_adapter:.1%} of {decisions}")
    print(f"  next tokens, merged and GGUF              {with_gguf:.1%} of {decisions}")
    print(f"  first answer, merged and GGUF             {'identical' if same else 'different'}")
    print(f"    merged: {merged.first_answer}\n    GGUF:   {first}")
    parity.check_agreement(
        "the merged model", merged.merged_choices, "the GGUF", gguf_choices, config.gguf.min_agreement
    )


def greedy_generation(config: Config) -> GenerationConfig:
    """Return the generation settings with the choice of the likeliest token, so that answers can be compared."""
    return replace(config.generation, temperature=0.0)


def main() -> None:
    """Run the stage from the command line."""
    run_stage("merge_and_convert", __doc__, run)


if __name__ == "__main__":
    main()
