"""What a user can do wrong on the command line is one sentence: usage errors exit 2, the rest exits 1."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from dataclasses import replace

import pytest
from scripts import command

from config import PRESETS, SECTIONS, STAGES, DataConfig
from pipeline.run import command_line
from pipeline.run.errors import UsageError
from pipeline.run.run_folder import RunFolder, shell_line


@pytest.mark.parametrize("stage", SECTIONS)
def test_unknown_preset(stage):
    done = command(f"{stage}.py", "--preset", "amazon-lama3")
    assert done.returncode == 2
    assert "no preset 'amazon-lama3'" in done.stderr and "Did you mean amazon-llama3?" in done.stderr
    assert "Traceback" not in done.stderr


def test_misspelt_option_of_a_stage():
    done = command("process_data.py", "--data.inptu", "x")
    assert done.returncode == 2 and "--data.input" in done.stderr and "Traceback" not in done.stderr


def test_impossible_value_is_a_usage_error():
    done = command("process_data.py", "--data.min-content-chars", "-3")
    assert done.returncode == 2 and "between 0 and" in done.stderr and "Traceback" not in done.stderr


# The page of app.py says it itself.
@pytest.mark.parametrize("stage", [stage for stage in SECTIONS if stage not in ("process_data", "app")])
def test_a_stage_without_its_input_names_the_command_to_run_first(stage, tmp_path):
    extra = ["--query", "x"] if stage == "rag_search_vs" else []
    done = command(f"{stage}.py", "--output-dir", tmp_path, *extra)
    assert done.returncode == 1
    message = done.stderr.strip().splitlines()
    assert len(message) == 1 and "Run `python " in message[0], done.stderr
    assert not any(path.is_file() for path in tmp_path.rglob("*"))


@pytest.mark.parametrize(("name", "content", "sentence"), [
    ("trn.json", b"", "is empty"),
    ("trn.json", b"hello\nworld\n", "not one record could be read"),
    ("trn.json", b"z" * (10 << 20), "longer than 8 MiB"),
    ("trn.json", b'[{"title": 1', "breaks off"),
    ("trn.xlsx", b"PK", "none of the endings"),
])  # fmt: skip
def test_unusable_input_is_one_sentence_and_leaves_nothing(tmp_path, name, content, sentence):
    path = tmp_path / name
    path.write_bytes(content)
    done = command("process_data.py", "--data.input", path, "--output-dir", tmp_path / "out")
    assert done.returncode == 1 and sentence in done.stderr
    last = [line for line in re.split(r"[\r\n]+", done.stderr) if line and not line.startswith("Cleaning:")]
    assert len(last) == 1, done.stderr
    assert not any(p.is_file() and p.suffix != ".lock" for p in (tmp_path / "out").rglob("*"))


def test_the_next_command_repeats_what_the_next_stage_needs(tmp_path):
    path = tmp_path / "qa.jsonl"
    rows = [{"input": f"pergunta {n}", "output": f"resposta {n}"} for n in range(50)]
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    done = command(
        "process_data.py", "--preset", "saude-phi3", "--data.input", path, "--output-dir", tmp_path / "out dir"
    )
    assert done.returncode == 0, done.stderr
    assert f'python foundation_model.py --preset "{tmp_path / "out dir" / "qa" / "recipe.toml"}"\n' in done.stdout


def test_settings_come_from_the_preset_and_the_command_line_changes_them():
    config, _ = command_line.parse(
        "process_data", "", command_line.NoOptions, ["--preset", "saude-phi3", "--data.deduplicate"]
    )
    assert config.data.deduplicate and config.data.read_title_from == "input"
    assert config.model == PRESETS["saude-phi3"].model
    default, _ = command_line.parse("process_data", "", command_line.NoOptions, [])
    assert default.data == DataConfig()


@pytest.mark.parametrize(("arguments", "sentence"), [
    (["--preset", "nope"], "There is no preset 'nope'"),
    (["--from", "10"], "there is no stage '10'"),
    (["--from", "fine_tunin"], "did you mean fine_tuning?"),
    (["--from", "4", "--to", "2"], "comes after"),
    (["--data.inptu", "x"], "did you mean --data.input?"),
    (["--from", "rag_indexing", "--train.max-steps", "3"], "used by none of the stages"),
    (["surprise"], "unexpected argument 'surprise'"),
])  # fmt: skip
def test_run_py_refuses_mistakes_before_it_does_anything(arguments, sentence):
    done = command("run.py", *arguments)
    assert done.returncode == 2 and sentence in done.stderr, done.stderr
    assert "Traceback" not in done.stderr and "Installing" not in done.stdout


def test_run_py_passes_each_setting_to_the_stages_that_use_it():
    import run

    arguments = [
        "--data.input",
        "a b.json",
        "--model.name=x",
        "--data.no-deduplicate",
        "--lora.target-modules",
        "q",
        "k",
    ]
    settings = run.stage_settings(arguments, list(STAGES))
    assert settings == {
        "data": [["--data.input", "a b.json"], ["--data.no-deduplicate"]],
        "model": [["--model.name=x"]],
        "lora": [["--lora.target-modules", "q", "k"]],
    }


def test_the_command_with_which_run_py_goes_on_is_taken_by_it_as_it_stands(tmp_path, monkeypatch, capsys):
    import run

    monkeypatch.setattr(run, "run_to_its_end", lambda command: int("fine_tuning.py" in command[1]))
    given = ["--data.input", "x y.csv", "--questions.examples", "a", "a", "--train.max-steps", "5"]
    recipe = tmp_path / "x y" / "recipe.toml"
    (recipe.parent / "manifests").mkdir(parents=True)
    recipe.write_text('run = "x y"', encoding="utf-8")
    with pytest.raises(SystemExit):
        run.run_stages(
            "demo", RunFolder(recipe.parent, str(recipe)), list(STAGES), run.stage_settings(given, list(STAGES))
        )
    _, script, *arguments = shlex.split(capsys.readouterr().err.strip().splitlines()[-1])
    options, rest = run.parse(arguments)
    settings = run.stage_settings(rest, options.stages)
    assert script == "run.py" and options.stages == list(STAGES)[2:]
    assert settings == {"questions": [["--questions.examples", "a", "a"]], "train": [["--train.max-steps", "5"]]}
    assert run.folder_of(options, settings) == RunFolder(recipe.parent, str(recipe))


@pytest.mark.parametrize("preset", PRESETS)
def test_settings_become_arguments_that_give_the_same_settings(preset):
    default = PRESETS[preset]
    assert command_line.setting_arguments("fine_tuning", default) == []
    assert command_line.setting_arguments("fine_tuning", default, {"lora.r"}) == ["--lora.r", str(default.lora.r)]
    config = replace(
        default,
        prompt=replace(default.prompt, instruction='-Say "it" for $5, `x`, it\'s \\ ok!\nNow', title_label="", context_instruction="Use:"),
        lora=replace(default.lora, target_modules=("q_proj", "k_proj"), dropout=0.25),
        train=replace(default.train, max_steps=None, sample_size=7, shard_weights=True, eval_steps=0.2, learning_rate=1.2345e-5),
        questions=replace(default.questions, examples=(), probe="Who is {title} for?"),
    )  # fmt: skip
    arguments = command_line.setting_arguments("fine_tuning", config)
    parsed, _ = command_line.parse("fine_tuning", "", command_line.NoOptions, ["--preset", preset, *arguments])
    assert parsed == config


@pytest.mark.skipif(sys.platform == "win32", reason="there is no POSIX shell")
def test_a_command_can_be_pasted_into_a_shell():
    parts = [
        "plain",
        "",
        "two words",
        'a "quoted" part',
        "$HOME `x` !y",
        "it's",
        "back\\slash",
        "a\nb",
        "ünï*?;&|<>(){}[]#~",
    ]
    done = subprocess.run(
        ["sh", "-c", "printf '%s\\0' " + shell_line(parts)], capture_output=True, text=True, encoding="utf-8"
    )
    assert done.stdout.split("\0")[:-1] == parts


@pytest.mark.parametrize(("stage", "arguments", "sentence"), [
    ("process_data", ["--data.input", "a.csv", "--data.input=b.csv"], "--data.input names several files. Stage 1 reads one"),
    ("process_data", ["--data.input", "a.csv", "b.csv", "--data.no-deduplicate"], "--data.input names several files."),
    ("process_data", ["--data.metadata", "a", "--data.metadata", "b"], "Give it once, with all its values: --data.metadata A B."),
    ("fine_tuning", ["--lora.target-modules", "a", "--lora.target_modules", "b"], "--lora.target-modules is given twice."),
])  # fmt: skip
def test_what_seems_to_add_up_is_not_given_twice(stage, arguments, sentence):
    with pytest.raises(UsageError, match=re.escape(sentence)):
        command_line.parse(stage, "", command_line.NoOptions, arguments)
    command_line.parse(stage, "", command_line.NoOptions, arguments[:2])
