"""Stage 4: what does the fine-tuned model answer?

Reads lora_model/ and the base model. Asks the same titles as stage 2 with the same settings. Writes
finetuned_answers.json. --title asks a title of your own, --interactive asks as you type; --model merged or gguf asks
what stage 5 made instead of the adapter.

    python ft_test_trained_model.py --title "Wooden train set"
"""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from config import Config
from pipeline.data import records
from pipeline.evaluation import answering, answers, general, questions
from pipeline.models.answerer import AnsweringModel, Form, TransformersModel, find_form, open_models
from pipeline.models.trained import base_model
from pipeline.run import manifests
from pipeline.run.command_line import prompt_lines, run_stage
from pipeline.run.run_folder import ADAPTER, FINETUNED_ANSWERS, RunFolder

FORMS: dict[str, Form] = {"adapter": "finetuned", "merged": "merged", "gguf": "gguf"}


@dataclass(frozen=True)
class TestOptions:
    """Options of this stage alone."""

    model_form: Annotated[Literal["adapter", "merged", "gguf"], tyro.conf.arg(name="model")] = "adapter"
    """Which form of the trained model answers."""
    title: str | None = None
    """Ask this title and write nothing."""
    interactive: bool = False
    """Ask the titles that are typed and write nothing."""


def run(config: Config, options: TestOptions) -> Path | None:
    """Answer with the trained model; return the path of the answers, or None if only the user's titles were asked."""
    folder, form = RunFolder.of(config), FORMS[options.model_form]
    data = records.open_processed(folder)
    if options.title is not None or options.interactive:
        with closing(open_models(config, [form], data.path)[form]) as model:
            answer_typed(config, options, data, model)
        return None
    inputs = [data.path, find_form(config, form, data.path)]
    with manifests.stage_manifest(config, "ft_test_trained_model", inputs) as metrics:
        asked = questions.choose_questions(data, config.questions)
        with closing(open_models(config, [form], data.path)[form]) as model:
            metrics.update(model=model.name, **model.runs_on)
            source = answers.made_from(folder, base_model(folder), model, answers.DATA, ADAPTER)
            entries = answering.answer_questions(model, asked, config.answers)
            read = read_general_texts(config, model)
        return answers.save(folder / FINETUNED_ANSWERS, model, model.name, source, config.answers, entries, read)


def read_general_texts(config: Config, model: AnsweringModel) -> list[dict[str, float]] | None:
    """Return what the model and its base make of general texts; None where there is no base model to switch to."""
    if not isinstance(model, TransformersModel) or not model.has_adapter or not config.questions.general:
        return None
    texts = general.load_texts(config.questions.general, config.questions.seed)
    print(f"\nReading {len(texts)} general texts with the adapter and without it", flush=True)
    return general.compare_with_base(model.loaded, model.prompt_format, texts)


def answer_typed(config: Config, options: TestOptions, data: records.ProcessedData, model: AnsweringModel) -> None:
    """Stream an answer to --title, or to each title that is typed."""
    labels = model.prompt_format
    for title in [options.title] if options.title is not None else prompt_lines(labels.title_label):
        if options.title is not None:
            print(f"{labels.title_label}: {title}")
        print(f"{labels.content_label}: ", end="", flush=True)
        for piece in model.stream(model.prompt_format.prompt(data.clean(title)), config.answers):
            print(piece, end="", flush=True)
        print("\n")


def main() -> None:
    """Run the stage from the command line."""
    run_stage("ft_test_trained_model", __doc__, run, TestOptions)


if __name__ == "__main__":
    main()
