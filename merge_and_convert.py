"""Stage 5: merge the adapter into the base model and convert the result for llama.cpp and Ollama.

Reads the base model and lora_model/. Writes merged_model/ (safetensors, in the number format of the base model), model-TYPE.gguf and Modelfile, after
checking that base + adapter, merged model and GGUF read the same tokens and choose the same next ones.

    python merge_and_convert.py --gguf.type f16
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from config import Config, GenerationConfig
from pipeline.data import records
from pipeline.evaluation import questions
from pipeline.evaluation.forms import TRAINED, compare_losses
from pipeline.export import gguf, modelfile, parity
from pipeline.models import adapter as adapters
from pipeline.models import bundled, finite, generation, language_model, loading, loading_errors, prompts, size
from pipeline.models.generation import Reading
from pipeline.models.llama_cpp import CONTEXT_TOKENS, GgufModel
from pipeline.models.trained import adapter_folder, recorded_precision
from pipeline.run import files, manifests
from pipeline.run.command_line import run_stage
from pipeline.run.run_folder import MERGED_MODEL, MODELFILE, PROMPT_FORMAT, RunFolder

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Texts:
    """What all forms of the model read, to be compared."""

    answered: list[parity.Passage]
    """Prompts with the answers that base + adapter gives them, greedily."""
    validation: list[parity.Passage]
    """Validation records."""

    def read(self, reader: Callable[[Sequence[int], int], Reading]) -> Readings:
        """Return what a form of the model makes of them."""
        return Readings(
            [reader(p.ids, p.answer_start) for p in self.answered],
            [reader(p.ids, p.answer_start) for p in self.validation],
        )


@dataclass(frozen=True)
class Readings:
    """What a form of the model makes of the texts."""

    answered: list[Reading]
    validation: list[Reading]


@dataclass(frozen=True)
class Merged:
    """A merged model on disk and what is needed to compare the GGUF with it."""

    folder: Path
    prompt_format: prompts.PromptFormat
    tokenizer: Any
    texts: Texts
    trained: Readings
    merged: Readings
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
        print("Merging …", flush=True)
        merged = merge(config, adapter, data, metrics)
        print(f"Converting to {config.gguf.type} …", flush=True)
        with files.atomic_path(target) as temporary:
            name = gguf.gguf_model_name(config.model.name, merged.tokenizer)
            gguf.convert(merged.folder, temporary, name, config.gguf.type, config.gguf.converter)
            print("Checking that the three forms of the model agree …", flush=True)
            check(config, merged, temporary, metrics)
        merged.prompt_format.save(config.run_dir)
        context_tokens = min(CONTEXT_TOKENS, size.token_limit_of(str(merged.folder)) or CONTEXT_TOKENS)
        with files.atomic_write(config.run_dir / MODELFILE) as file:
            file.write(modelfile.modelfile(target.name, merged.prompt_format, config.generation, context_tokens))
        metrics["gguf_file"] = target.name
        print(f"\nIn llama.cpp: llama-cli -m {target}")
        print(f"In Ollama:    ollama create my-model -f {config.run_dir / MODELFILE}")
        return target


def merge(config: Config, adapter: Path, data: records.ProcessedData, metrics: dict[str, Any]) -> Merged:
    """Write merged_model/, unless it chooses other tokens than base + adapter; note what it makes of the texts."""
    prompt_format = prompts.load_prompt_format(adapter)
    run_folder = RunFolder.of(config)
    precision = recorded_precision(run_folder)
    base, stored = loading.load_for_merging(config.model, precision)
    bytes_each = stored.itemsize + gguf.bytes_per_weight(config.gguf.type)
    files.require_space(config.run_dir, base.model.num_parameters() * bytes_each, "The merged model and its GGUF")
    tuned = adapters.load_adapter(base, adapter)
    texts = choose_texts(config, tuned, prompt_format, data)
    trained = texts.read(functools.partial(generation.read, tuned))
    rounded = precision == "4bit" and not loading.quantized_files(config.model.name)
    if rounded and config.merge.base == "original":
        del base, tuned  # before the others are loaded
        base, stored = loading.load_for_merging(config.model, "16bit")
        tuned = adapters.load_adapter(base, adapter)
    metrics.update(**base.runs_on, trained_in=precision, merged_dtype=str(stored).removeprefix("torch."))
    # Rounded to the format of the files: what is compared is what is saved.
    merged = adapters.merge(tuned, stored)
    language_model.cast_weights(merged.model, merged.compute_format.dtype)
    with finite.largest_inputs(merged.model) as inputs:
        read = texts.read(functools.partial(generation.read, merged))
    parity.check_range(config.gguf.type, merged.model, inputs)
    if base.precision == precision:  # other weights choose other tokens
        least = least_agreement(config, "f16")
        parity.check_agreement("base + adapter", trained.answered, "the merged model", read.answered, least)
    first = generation.generate(merged, prompt_format, [texts.answered[0].prompt], greedy_generation(config))[0].text
    folder = config.run_dir / MERGED_MODEL
    # From here on a GGUF of an earlier run belongs to another model.
    manifests.withdraw_manifest(run_folder, "merge_and_convert")
    with files.atomic_path(folder) as temporary:
        save_merged(config, merged, stored, prompt_format, temporary)
    return Merged(folder, prompt_format, merged.tokenizer, texts, trained, read, first)


def save_merged(
    config: Config,
    merged: language_model.LanguageModel,
    stored: torch.dtype,
    prompt_format: prompts.PromptFormat,
    folder: Path,
) -> None:
    """Write the model, its tokenizer, how it is asked, and how its answers are drawn and end."""
    penalty = config.generation.repetition_penalty
    merged.model.generation_config = generation.plain_settings(
        eos_token_id=generation.stop_ids(merged, prompt_format),
        bos_token_id=merged.tokenizer.bos_token_id,
        pad_token_id=merged.tokenizer.pad_token_id,
        **generation.sampling(config.generation),
        **({"repetition_penalty": penalty} if penalty != 1 else {}),
    )
    with loading_errors.quiet_loading():
        language_model.cast_weights(merged.model, stored)
        merged.model.save_pretrained(folder)
    gguf.save_tokenizer(folder, bundled.resolve(config.model.name), merged.tokenizer, prompt_format)
    prompt_format.save(folder)


def choose_texts(
    config: Config,
    tuned: language_model.LanguageModel,
    prompt_format: prompts.PromptFormat,
    data: records.ProcessedData,
) -> Texts:
    """Return prompts with the model's own answers, up to their end, and validation records, as far as the model reads."""
    answered, limit = [], size.token_limit(tuned.model)
    for question in questions.choose_questions(data, config.questions)[: config.gguf.parity_prompts]:
        prompt = prompt_format.prompt(question.title)
        start = prompts.prompt_ids(prompt_format, tuned.tokenizer, prompt)
        for tokens, setting in (
            (config.gguf.parity_tokens, "--gguf.parity-tokens"),
            (config.generation.max_new_tokens, "--generation.max-new-tokens"),
        ):
            generation.require_room(tuned.name, limit, len(start), tokens, setting)
        ids = generation.greedy_continuation(tuned, prompt_format, start, config.gguf.parity_tokens)
        answered.append(parity.Passage(prompt, ids, len(start)))
    drawn = data.sample("validation", config.merge.validation_size, config.questions.seed)
    asked = [prompt_format.prompt(title) for title, _ in drawn]
    rows = prompts.answered_ids(prompt_format, tuned.tokenizer, asked, [content for _, content in drawn])
    most = config.merge.validation_tokens
    validation = [
        parity.Passage(p, ids[: start + most][:limit], start)
        for p, (start, ids) in zip(asked, rows, strict=True)
        if limit is None or start < limit
    ]
    return Texts(answered, validation)


def check(config: Config, merged: Merged, gguf_file: Path, metrics: dict[str, Any]) -> None:
    """Load the GGUF in llama.cpp, compare it with the merged model, and print how far they agree."""

    def token_ids(prompt: str) -> list[int]:
        return prompts.prompt_ids(merged.prompt_format, merged.tokenizer, prompt)

    answered = merged.texts.answered
    with closing(GgufModel(gguf_file, merged.prompt_format)) as model:
        parity.check_tokenization([passage.prompt for passage in answered], token_ids, model)
        converted = merged.texts.read(model.read)
        parity.check_numbers(config.gguf.type, [*converted.answered, *converted.validation])
        first = model.generate([answered[0].prompt], greedy_generation(config))[0].text
    with_adapter = parity.agreement(merged.trained.answered, merged.merged.answered)
    with_gguf = parity.agreement(merged.merged.answered, converted.answered)
    same = first == merged.first_answer
    decisions = sum(len(reading.choices) for reading in converted.answered)
    losses = {TRAINED: merged.trained.validation, "merged model": merged.merged.validation}
    lines, noted = compare_losses({**losses, f"GGUF in {config.gguf.type}": converted.validation})
    metrics.update(
        tokenization="identical",
        parity_decisions=decisions,
        agreement_adapter_merged=round(with_adapter, 4),
        agreement_merged_gguf=round(with_gguf, 4),
        first_answer_identical=same,
        validation_loss=noted,
    )
    print(f"  tokenization of {len(answered)} prompts             identical")
    print(f"  next tokens, base + adapter and merged    {with_adapter:.1%} of {decisions}")
    print(f"  next tokens, merged and GGUF              {with_gguf:.1%} of {decisions}")
    print(f"  first answer, merged and GGUF             {'identical' if same else 'different'}")
    print(f"    merged: {merged.first_answer}\n    GGUF:   {first}")
    print(f"  loss on {len(converted.validation)} validation records, in nats per token")
    for line in lines:
        print(f"    {line}")
    least = least_agreement(config, config.gguf.type)
    parity.check_agreement("the merged model", merged.merged.answered, "the GGUF", converted.answered, least)


def least_agreement(config: Config, number_format: str) -> float:
    """Return the share of next-token decisions that must agree: as set, or as measuring has shown for a number format."""
    return parity.MIN_AGREEMENT[number_format] if config.gguf.min_agreement is None else config.gguf.min_agreement


def greedy_generation(config: Config) -> GenerationConfig:
    """Return the generation settings with the choice of the likeliest token, so that answers can be compared."""
    return replace(config.generation, temperature=0.0)


def main() -> None:
    """Run the stage from the command line."""
    run_stage("merge_and_convert", __doc__, run)


if __name__ == "__main__":
    main()
