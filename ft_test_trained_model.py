"""Stage 4: what does the fine-tuned model answer?

Reads lora_model/ and the base model. Asks the same titles as stage 2 with the same settings. Writes
finetuned_answers.json. --title asks a title of your own, --interactive asks as you type; --model merged or gguf asks
what stage 5 made instead of the adapter.

    python ft_test_trained_model.py --title "Wooden train set"
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from config import Config, GenerationConfig
from pipeline import answers, generation, language_model, manifests, prompts, questions, records
from pipeline.command_line import prompt_lines, run_stage
from pipeline.generation import Answer
from pipeline.trained_models import adapter_folder, base_model, gguf_path, merged_folder, trained_precision

Advance = Callable[[int], object]


@dataclass(frozen=True)
class TestOptions:
    """Options of this stage alone."""

    model_form: Annotated[Literal["adapter", "merged", "gguf"], tyro.conf.arg(name="model")] = "adapter"
    """Which form of the trained model answers."""
    title: str | None = None
    """Ask this title and write nothing."""
    interactive: bool = False
    """Ask the titles that are typed and write nothing."""


@dataclass(frozen=True)
class TrainedModel:
    """A trained model, whatever runs it."""

    name: str
    runs_on: dict[str, str]
    prompt_format: prompts.PromptFormat
    generate: Callable[[Sequence[str], GenerationConfig, Advance], list[Answer]]
    stream: Callable[[str, GenerationConfig], Iterator[str]]
    reference_loss: Callable[[str, str], dict[str, Any]]


def run(config: Config, options: TestOptions) -> Path | None:
    """Answer with the trained model; return the path of the answers, or None if only the user's titles were asked."""
    data = records.open_processed(config.run_dir)
    if options.title is not None or options.interactive:
        answer_typed(config, options, data)
        return None
    settings = {"model": config.model, "answers": config.answers, "questions": config.questions}
    model = model_path(config, options, data)
    inputs = [data.path, model]
    with manifests.stage_manifest(config.run_dir, "ft_test_trained_model", settings, inputs) as metrics:
        source = answers.made_from(config.run_dir, base_model(config.run_dir), answers.DATA, answers.ADAPTER)
        asked = questions.choose_questions(data, config.questions)
        trained = load(config, options, model)
        metrics.update(model=trained.name, **trained.runs_on)
        texts = [trained.prompt_format.prompt(question.title) for question in asked]
        entries = questions.ask(
            asked,
            lambda advance: trained.generate(texts, config.answers, advance),
            trained.prompt_format,
            lambda position, _: trained.reference_loss(texts[position], asked[position].reference),
        )
        path = config.run_dir / "finetuned_answers.json"
        return answers.save(path, trained.name, source, config.answers, entries)


def model_path(config: Config, options: TestOptions, data: records.ProcessedData) -> Path:
    """Return the file or folder of the chosen form, or say which stage makes it."""
    if options.model_form == "adapter":
        return adapter_folder(config.run_dir, config.model.name, data.path)
    return (merged_folder if options.model_form == "merged" else gguf_path)(config.run_dir, data.path)


def load(config: Config, options: TestOptions, path: Path) -> TrainedModel:
    """Load the chosen form of the trained model, from its model_path, with the prompt format it was trained with."""
    if options.model_form == "gguf":
        from pipeline.llama_cpp import GgufModel

        gguf, prompt_format = GgufModel(path), prompts.load_prompt_format(path.parent)
        return TrainedModel(
            path.name,
            {"backend": "llama.cpp", "device": "cpu"},
            prompt_format,
            lambda texts, settings, advance: gguf.generate(prompt_format, texts, settings, advance),
            lambda text, settings: gguf.stream(prompt_format, text, settings),
            lambda text, reference: {},  # llama.cpp's server tells no likelihood of a given text
        )
    prompt_format = prompts.load_prompt_format(path)
    if options.model_form == "merged":
        loaded = language_model.load_base(replace(config.model, name=str(path)), "16bit")
    else:
        base = language_model.load_base(config.model, trained_precision(config.run_dir, config.model))
        loaded = language_model.load_adapter(base, path)
    return TrainedModel(
        loaded.name,
        loaded.runs_on,
        prompt_format,
        lambda texts, settings, advance: generation.generate(loaded, prompt_format, texts, settings, advance),
        lambda text, settings: generation.stream(loaded, prompt_format, text, settings),
        lambda text, reference: generation.reference_loss(loaded, prompt_format, text, reference),
    )


def answer_typed(config: Config, options: TestOptions, data: records.ProcessedData) -> None:
    """Stream an answer to --title, or to each title that is typed."""
    trained = load(config, options, model_path(config, options, data))
    titles = [options.title] if options.title is not None else prompt_lines(trained.prompt_format.title_label)
    for title in titles:
        text = trained.prompt_format.prompt(data.clean(title))
        if options.title is not None:
            print(f"{trained.prompt_format.title_label}: {title}")
        print(f"{trained.prompt_format.content_label}: ", end="", flush=True)
        for piece in trained.stream(text, config.answers):
            print(piece, end="", flush=True)
        print("\n")


def main() -> None:
    """Run the stage from the command line."""
    run_stage("ft_test_trained_model", __doc__, run, "merge_and_convert", TestOptions)


if __name__ == "__main__":
    main()
