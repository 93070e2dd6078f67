"""Answers that are compared were asked with the same prompt, in the precision of the training, or the command that mends it is named."""

from __future__ import annotations

import re
import shlex
from dataclasses import replace

import pytest

import fine_tuning
from config import PRESETS, ModelConfig
from pipeline.evaluation import answers
from pipeline.models import answerer, prompts
from pipeline.run import command_line, files
from pipeline.run.errors import UserError
from pipeline.run.run_folder import RunFolder

FORMAT = prompts.PromptFormat(
    **{field.name: "" for field in prompts.dataclasses.fields(prompts.PromptFormat) if field.name != "control_tokens"},
    control_tokens=(),
)
STAGES = {"Foundation": "foundation_model", "Fine-tuned": "ft_test_trained_model", "RAG": "rag_model_retriever"}


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A run that was trained in 4 bits with an instruction of its own, on a machine that answers in them."""
    folder = RunFolder(tmp_path / "outputs" / "demo")
    commands = {
        "fine_tuning": ["--prompt.instruction", "TELL ME"],
        "foundation_model": ["--questions.held-out", "9", "--model.precision", "16bit", "--model.name", "m"],
        "ft_test_trained_model": ["--model", "gguf", "--questions.held-out", "9"],
        "rag_model_retriever": ["--rag.answer-with=gguf", "--prompt.instruction", "SAY", "--questions.held-out", "9"],
    }
    for stage, options in commands.items():
        files.write_json(
            folder.manifest_path(stage),
            {
                "command": [f"{stage}.py", *options],
                "settings": {"model": {"name": "m"}, "prompt": {}},
                "inputs": {},
                "outputs": {"lora_model": "abc"},
                "metrics": {"precision": "4bit" if stage == "fine_tuning" else "16bit"},
            },
        )
    FORMAT.save(folder / "lora_model")
    monkeypatch.setattr("pipeline.models.trained.best_device", lambda: "cuda")
    return folder


def file(precision="4bit", prompt=FORMAT.digest, **runs_on):
    made = {answers.BASE: "m", answers.PRECISION: precision, answers.PROMPT: prompt}
    return {"made_from": made, "runs_on": runs_on}


def named_command(error):
    return re.search("`(.*)`", str(error.value))[1]


def test_what_is_alike_is_compared(run):
    assert answers.check_made_from(run, {column: file() for column in STAGES}, STAGES) == []


@pytest.mark.parametrize(
    ("column", "precision", "options"),
    [
        ("Foundation", "16bit", "--questions.held-out 9 --model.name m"),
        ("Fine-tuned", "Q8_0", "--questions.held-out 9"),
        ("RAG", "Q8_0", "--prompt.instruction SAY --questions.held-out 9"),
    ],
)
def test_a_mixture_of_precisions_is_refused_with_the_command_that_mends_it(run, column, precision, options):
    columns = {name: file(precision if name == column else "4bit") for name in STAGES}
    with pytest.raises(UserError, match="different precisions: ") as error:
        answers.check_made_from(run, columns, STAGES)
    assert precision in str(error.value) and "4bit" in str(error.value)
    script, *rest = shlex.split(named_command(error))[1:]
    assert script == f"{STAGES[column]}.py"
    assert rest[:2] == ["--output-dir", str(run.path.parent)] and rest[2:] == shlex.split(options)


def test_different_prompts_are_refused_with_the_command_that_asks_as_the_training(run):
    columns = {"Foundation": file(), "RAG": file(prompt="another")}
    with pytest.raises(UserError, match="different prompt formats") as error:
        answers.check_made_from(run, columns, STAGES)
    command = shlex.split(named_command(error))
    assert command[1] == "rag_model_retriever.py" and command[-2:] == ["--prompt.instruction", "TELL ME"]
    assert "SAY" not in command


def test_answers_that_are_alike_but_not_as_the_training_are_told_of(run):
    [told] = answers.check_made_from(run, {"Foundation": file("16bit"), "RAG": file("16bit")}, STAGES)
    assert told.startswith(
        "Foundation and RAG come from precisions other than the training's. Run `python foundation_model.py"
    )


def test_what_a_gpu_answered_in_4_bits_is_compared_on_any_machine(run, monkeypatch):
    monkeypatch.setattr("pipeline.models.trained.best_device", lambda: "cpu")
    assert answers.check_made_from(run, {column: file() for column in STAGES}, STAGES) == []
    with pytest.raises(UserError, match="different precisions") as error:
        answers.check_made_from(run, {"Foundation": file("16bit"), "RAG": file()}, STAGES)
    assert "foundation_model.py" in named_command(error)


def test_another_base_model_is_replaced_by_that_of_the_training(run):
    path = run.manifest_path("fine_tuning")
    trained = files.read_json(path)
    trained["command"] += ["--model.name", "trained"]
    files.write_json(path, {**trained, "settings": {**trained["settings"], "model": {"name": "trained"}}})
    other = file()
    other["made_from"][answers.BASE] = "trained"
    with pytest.raises(UserError, match="different base models") as error:
        answers.check_made_from(run, {"Foundation": file(), "Fine-tuned": other}, STAGES)
    assert shlex.split(named_command(error))[-2:] == ["--model.name", "trained"]


def test_different_number_formats_are_told_of(run):
    columns = {"Foundation": file(compute_dtype="float32"), "RAG": file(compute_dtype="bfloat16"), "Fine-tuned": file()}
    [told] = answers.check_made_from(run, columns, STAGES)
    assert "Foundation in float32, RAG in bfloat16" in told


def test_after_the_training_the_base_model_answers_in_its_precision_too(run, monkeypatch):
    asked = []

    def load_base(model, precision, max_length):
        asked.append(precision)
        raise KeyboardInterrupt

    monkeypatch.setattr(answerer.loading, "load_base", load_base)
    monkeypatch.setattr(answerer, "precision_to_answer", lambda model: "16bit")
    config = replace(PRESETS["demo"], output_dir=run.path.parent, model=ModelConfig(name="m"))
    for model in (config.model, ModelConfig(name="another")):
        with pytest.raises(KeyboardInterrupt):
            answerer.open_models(replace(config, model=model), ["foundation"], run.path)
    assert asked == ["4bit", "16bit"]


def test_who_searches_and_asks_takes_the_prompt_of_the_training(run):
    manifest = files.read_json(run.manifest_path("fine_tuning"))
    manifest["settings"]["prompt"] = {**vars(PRESETS["demo"].prompt), "instruction": "TELL ME", "title_label": "Thing"}
    manifest["settings"]["prompt"]["context_instruction"] = "Use these:"
    files.write_json(run.manifest_path("fine_tuning"), manifest)
    config = replace(PRESETS["demo"], output_dir=run.path.parent)
    for stage in ("rag_model_retriever", "app"):
        inherited = command_line.inherit(stage, config).prompt
        assert (inherited.instruction, inherited.title_label) == ("TELL ME", "Thing")
        assert inherited.context_instruction == "Use these:"
    assert command_line.inherit("fine_tuning", config).prompt == config.prompt


def test_a_training_in_another_precision_than_the_answers_of_stage_2_says_what_to_run(run, capsys):
    class Plan:
        precision = "4bit"

    fine_tuning.warn_of_answers_in_another_precision(run, Plan())
    printed = capsys.readouterr().out
    assert "answered in 16bit, and this training is in 4bit" in printed and "--model.precision" not in printed
    Plan.precision = "16bit"
    fine_tuning.warn_of_answers_in_another_precision(run, Plan())
    assert capsys.readouterr().out == ""
