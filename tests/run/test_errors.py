"""What must be made again is named with a command that works as it stands."""

from __future__ import annotations

import ast
import re
import shlex
from dataclasses import replace

import pytest

import process_data
from config import PRESETS, PROJECT_DIR
from pipeline.models import adapter, prompts
from pipeline.models.llama_cpp import GgufModel
from pipeline.run import command_line, files
from pipeline.run.errors import StageNeeded, UserError
from pipeline.run.run_folder import (
    ADAPTER,
    COMPARISON,
    FOUNDATION_ANSWERS,
    MERGED_MODEL,
    PROMPT_FORMAT,
    WORDS,
    RunFolder,
)


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    """The folder of a run of which stage 1 is done, and the rest is damaged."""
    folder = tmp_path_factory.mktemp("out puts")
    config = replace(PRESETS["saude-phi3"], output_dir=folder)
    process_data.run(config)
    for name in ("model.gguf", COMPARISON, f"{ADAPTER}/adapter_model.safetensors", f"{MERGED_MODEL}/{PROMPT_FORMAT}"):
        path = config.run_dir / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("{}" if path.name == PROMPT_FORMAT else "{", encoding="utf-8")
    return config.run_dir


@pytest.mark.parametrize(("read", "stage"), [
    (lambda run: prompts.load_prompt_format(run / ADAPTER), "fine_tuning"),
    (lambda run: prompts.load_prompt_format(run / MERGED_MODEL), "merge_and_convert"),
    (lambda run: prompts.load_prompt_format(run), "merge_and_convert"),
    (lambda run: adapter.load_adapter(None, run / ADAPTER), "fine_tuning"),
    (lambda run: GgufModel(run / "model.gguf", None), "merge_and_convert"),
    (lambda run: files.read_json(run / COMPARISON), "compare_models"),
])  # fmt: skip
def test_a_damaged_part_of_a_run_names_the_command_that_makes_it(run_dir, read, stage):
    with pytest.raises(StageNeeded) as raised:
        read(run_dir)
    assert f"Run `{raised.value.command}` again." in str(raised.value)
    python, script, *arguments = shlex.split(raised.value.command)
    assert (python, script) == ("python", f"{stage}.py")
    config, _ = command_line.parse(stage, "", command_line.NoOptions, arguments)
    assert config.run_dir == run_dir and config.prompt == PRESETS["saude-phi3"].prompt


def test_a_damaged_answers_file_names_its_command_once(run_dir):
    from pipeline.evaluation import answers

    (run_dir / FOUNDATION_ANSWERS).write_text("{", encoding="utf-8")
    with pytest.raises(StageNeeded, match=r"^[^`]* Run `python foundation_model\.py [^`]*` again\.$"):
        answers.read(RunFolder(run_dir, "saude-phi3"), FOUNDATION_ANSWERS)


def test_a_damaged_file_of_no_run_has_no_command(tmp_path):
    with pytest.raises(UserError, match=r"config\.json is damaged .* replace it\.$") as raised:
        (tmp_path / "config.json").write_text("{", encoding="utf-8")
        files.read_json(tmp_path / "config.json")
    assert not isinstance(raised.value, StageNeeded)


def test_a_condition_on_metadata_that_were_not_kept_names_the_command_that_keeps_them(run_dir):
    from config import parse_condition
    from pipeline.rag.lexical import LexicalIndex

    run = RunFolder(run_dir, "saude-phi3")
    (run / WORDS).unlink(missing_ok=True)
    with pytest.raises(UserError) as raised:
        LexicalIndex.make(run).select([parse_condition("brand=x")])
    assert f"run `{run.command('process_data')}` with --data.metadata brand" in str(raised.value)


def test_a_model_in_parts_is_started_with_the_command_that_was_typed(monkeypatch):
    import os

    from pipeline.models import distributed

    monkeypatch.setattr(os, "environ", dict(os.environ))
    monkeypatch.setattr(distributed, "best_device", lambda: "cuda")
    monkeypatch.setattr(distributed, "device_count", lambda: 1)
    monkeypatch.setattr("sys.argv", ["fine_tuning.py", "--train.shard-weights", "--model.name", "my model"])
    with pytest.raises(
        UserError, match=r'`accelerate launch fine_tuning\.py --train\.shard-weights --model\.name "my model"`'
    ):
        distributed.prepare(shard_weights=True)
    monkeypatch.setattr("sys.argv", ["fine_tuning.py"])
    with pytest.raises(UserError, match=r"`accelerate launch fine_tuning\.py --train\.shard-weights`"):
        distributed.prepare(shard_weights=False)


def texts_of(path):
    """The texts in a module that are no docstrings, with {} for what is filled in."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    within = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
    documentation = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            yield "".join(part.value if isinstance(part, ast.Constant) else "{}" for part in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in within | documentation:
            yield node.value


SCRIPT_ALONE = re.compile(r"\b[Rr]un (again )?[\w{}]+\.py")


def test_no_message_says_to_run_a_script_without_its_command():
    modules = {*PROJECT_DIR.glob("*.py"), *(PROJECT_DIR / "pipeline").rglob("*.py")}
    assert {text for path in modules for text in texts_of(path) if SCRIPT_ALONE.search(text)} == set()
