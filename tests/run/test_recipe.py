"""Recipes: what a user writes, what a run keeps, and which run the user's own data goes to."""

from __future__ import annotations

import dataclasses
import json
import re
import shlex
import shutil
import typing
from dataclasses import replace
from pathlib import Path

import pytest
from scripts import command

import fine_tuning
import process_data
from config import PRESETS, SECTIONS, Config, TrainConfig
from pipeline.run import recipe
from pipeline.run.command_line import NoOptions, parse
from pipeline.run.errors import UsageError
from pipeline.run.run_folder import RunFolder

RECORDS = [{"title": f"Item number {n}", "content": f"My own item {n} is one of many items of my catalogue."} for n in range(40)]  # fmt: skip


def write(path, text):
    path.write_text(text, encoding="utf-8")
    return str(path)


def own_data(folder):
    return write(folder / "my items.jsonl", "\n".join(map(json.dumps, RECORDS)))


def run_line(line, cwd):
    """Run a command as a message names it, in a shell's reading."""
    program, script, *arguments = shlex.split(line)
    assert program == "python"
    return command(script, *arguments, cwd=cwd)


def test_a_recipe_starts_from_a_preset_and_is_the_name_of_its_run(tmp_path):
    path = write(
        tmp_path / "faq.toml", 'base = "demo"\n[train]\nmax_steps = "None"\nepochs = 2\n[questions]\nexamples = ["a"]\n'
    )
    config = recipe.starting_config(path)
    demo = PRESETS["demo"]
    assert (config.name, config.started_from, config.output_dir) == ("faq", path, demo.output_dir)
    assert config.train == replace(demo.train, max_steps=None, epochs=2.0) and config.questions.examples == ("a",)
    assert replace(config, train=demo.train, questions=demo.questions, name="demo", started_from="demo") == demo
    given, _ = parse(
        "fine_tuning", "", NoOptions, ["--preset", path, "--train.epochs", "3", "--output-dir", str(tmp_path)]
    )
    assert (given.train.epochs, given.run_dir) == (3.0, tmp_path / "faq")
    assert (
        recipe.starting_config(
            write(tmp_path / "bom.toml", "\ufeff[data]\nwrite_title_as = 'None'\n")
        ).data.write_title_as
        == "None"
    )
    assert recipe.starting_config(write(tmp_path / "bare.toml", "")) == Config(
        name="bare", started_from=str(tmp_path / "bare.toml")
    )


@pytest.mark.parametrize(("text", "line", "sentence"), [
    ('base = "demo"\n[train]\nlearning_rat = 1\n', 3, r"train has no setting 'learning_rat'\. Did you mean learning_rate\?"),
    ('base = "demmo"\n', 1, r"there is no preset 'demmo'.* Did you mean demo\?"),
    ('\n[trian]\nepochs = 1\n', 2, r"there is no section 'trian'\. Did you mean train\?"),
    ("train = 3\n", 1, r"train is a section: write \[train\]"),
    ('[train]\n\nmax_steps = "many"\n', 3, r"max_steps"),
    ("[train]\nepochs = 1\nmax_steps = 0\n", 3, r"train\.max_steps must be between 1 and"),
    ('[train]\nscheduler = "liner"\n', 2, r"scheduler.*liner"),
    ("[answers]\ntemperature = -1\n", 2, r"temperature must be between 0 and"),
    ('train.epochs = "x"\n', 1, r"epochs"),
    ("run = 3\n", 1, "run must be the name of a folder"),
    ('run = ""\n', 1, "run must be the name of a folder"),
    ('run = ".."\n', 1, "run must be the name of a folder"),
    ('run = "a\\u0000b"\n', 1, "run must be the name of a folder"),
    ('base = ["demo"]\n', 1, "there is no preset"),
    ('[data]\nwrite_title_as = 3\n', 2, "write_title_as"),
    ('run = "../elsewhere"\n', 1, "run must be the name of a folder"),
])  # fmt: skip
def test_what_is_wrong_in_a_recipe_is_a_usage_error_with_its_line(tmp_path, text, line, sentence):
    path = write(tmp_path / "faq.toml", text)
    with pytest.raises(UsageError, match=rf"faq\.toml, line {line}: .*{sentence}"):
        recipe.starting_config(path)


@pytest.mark.parametrize(("name", "text", "sentence"), [
    ("faq.toml", "[train\n", r"faq\.toml is not TOML: .*line 1"),
    ("demo.toml", "", "has the name of a preset"),
    ("none.toml", None, r"none\.toml cannot be read"),
    ("demmo", None, r"There is no preset 'demmo'; .*Did you mean demo\?"),
])  # fmt: skip
def test_what_is_no_recipe_exits_with_2(tmp_path, name, text, sentence):
    if text is not None:
        write(tmp_path / name, text)
    for script in ("process_data", "run"):
        done = command(f"{script}.py", "--preset", name, cwd=tmp_path)
        assert done.returncode == 2 and re.search(sentence, done.stderr) and "Traceback" not in done.stderr, done.stderr
        assert len(done.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize("preset", PRESETS)
def test_a_run_keeps_all_of_its_settings(tmp_path, preset):
    config = replace(
        PRESETS[preset], output_dir=tmp_path, name='a "run" \\ é',
        prompt=replace(PRESETS[preset].prompt, instruction='Say "it"\n\\ now\x7f', title_label="商品"),
    )  # fmt: skip
    (config.run_dir / "manifests").mkdir(parents=True)
    for stage in SECTIONS:
        recipe.save(config, stage)
    path = config.run_dir / "recipe.toml"
    assert recipe.starting_config(str(path)) == replace(config, started_from=str(path))


def test_every_setting_that_may_be_unset_is_unset_by_default():
    # A recipe of a run leaves out what is None.
    for section in (
        name for name in typing.get_type_hints(Config) if name not in ("name", *Config.ABOUT_THE_RUN, "ABOUT_THE_RUN")
    ):
        default = getattr(Config(name="x"), section)
        hints = typing.get_type_hints(type(default))
        for setting in dataclasses.fields(default):
            if type(None) in typing.get_args(hints[setting.name]):
                assert getattr(default, setting.name) is None, f"{section}.{setting.name}"


def test_a_stage_keeps_the_settings_of_the_others(tmp_path):
    config = replace(PRESETS["demo"], output_dir=tmp_path)
    (config.run_dir / "manifests").mkdir(parents=True)
    path = str(config.run_dir / "recipe.toml")
    recipe.save(replace(config, data=replace(config.data, min_content_chars=7)), "process_data")
    recipe.save(replace(config, train=TrainConfig(epochs=5, resume=True)), "fine_tuning")
    kept = recipe.starting_config(path)
    assert (kept.data.min_content_chars, kept.train.epochs, kept.gguf) == (7, 5.0, config.gguf)
    assert not kept.train.resume  # of that one time
    recipe.save(config, "process_data")  # begins anew
    assert recipe.starting_config(path) == replace(config, started_from=path)


def test_a_run_that_was_copied_is_another_run_and_a_recipe_alone_is_no_preset(tmp_path, monkeypatch):
    config = replace(PRESETS["demo"], output_dir=tmp_path)
    (config.run_dir / "manifests").mkdir(parents=True)
    recipe.save(config, "process_data")
    copy = tmp_path / "copy"
    shutil.copytree(config.run_dir, copy)
    found = recipe.starting_config(str(copy / "recipe.toml"))
    assert found.run_dir == copy
    monkeypatch.chdir(copy)
    assert recipe.starting_config("recipe.toml").run_dir == copy
    shutil.copyfile(copy / "recipe.toml", tmp_path / "recipe.toml")
    with pytest.raises(UsageError, match="has the name of a preset"):
        recipe.starting_config(str(tmp_path / "recipe.toml"))
    elsewhere = RunFolder(Path("outputs/demo"), "x/demo/recipe.toml")
    assert elsewhere.command("run") == "python run.py --preset x/demo/recipe.toml --output-dir outputs"


@pytest.mark.parametrize(("name", "run"), [
    ("..csv", "own"), ("...csv", "own"), ("Demo.csv", "Demo-data"), ("a.b.csv", "a.b"), ("x.csv.gz", "x"), (".csv", ".csv"),
])  # fmt: skip
def test_the_name_of_the_data_is_the_name_of_a_folder(name, run):
    assert recipe.named_after(PRESETS["demo"], Path(name)).name == run


@pytest.mark.slow
def test_the_recipe_of_a_run_repeats_it_byte_for_byte(tmp_path, make_config):
    config = make_config(train=TrainConfig(max_steps=2, batch_size=2, gradient_accumulation_steps=1, validation_size=2))
    config = replace(config, model=replace(config.model, compute_dtype="float32"))
    process_data.run(config)
    fine_tuning.run(config)
    again = replace(recipe.starting_config(str(config.run_dir / "recipe.toml")), output_dir=tmp_path / "again")
    process_data.run(again)
    fine_tuning.run(again)
    for name in (
        "trn_processed.json",
        "trn_processed_dataset.json",
        "lora_model/adapter_model.safetensors",
        "recipe.toml",
    ):
        first, second = ((made.run_dir / name).read_bytes() for made in (config, again))
        if name == "recipe.toml":  # its first line names its own path
            first, second = (text.split(b"\n", 1)[1] for text in (first, second))
        assert first == second, name


def test_own_data_never_lands_in_the_run_of_the_demo_and_no_message_sends_the_demo_there(tmp_path):
    demo = command("process_data.py", cwd=tmp_path)
    assert demo.returncode == 0, demo.stderr
    sample = (tmp_path / "outputs" / "demo" / "trn_processed.json").read_bytes()
    done = command("process_data.py", "--data.input", own_data(tmp_path), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "outputs" / "demo" / "trn_processed.json").read_bytes() == sample
    processed = tmp_path / "outputs" / "my items" / "trn_processed.json"
    mine = processed.read_bytes()
    following = re.search(r"Next: +(python .*)", done.stdout)[1]
    assert following == 'python foundation_model.py --preset "outputs/my items/recipe.toml"'
    processed.write_bytes(mine[: len(mine) // 2])
    refused = run_line(following, tmp_path)
    mended = re.search(r"Run `(.*)` again", refused.stderr)[1]
    assert run_line(mended, tmp_path).returncode == 0
    assert processed.read_bytes() == mine and b"My own item" in mine


def test_other_data_of_the_same_name_does_not_replace_a_run(tmp_path):
    first, second = tmp_path / "a", tmp_path / "b"
    for folder in (first, second):
        folder.mkdir()
        own_data(folder)
    arguments = ["--output-dir", tmp_path / "out", "--data.input"]
    assert command("process_data.py", *arguments, first / "my items.jsonl", cwd=tmp_path).returncode == 0
    refused = command("process_data.py", *arguments, second / "my items.jsonl", cwd=tmp_path)
    assert refused.returncode == 1 and "holds a run over" in refused.stderr and "Traceback" not in refused.stderr
    assert (
        command("process_data.py", *arguments, first / "my items.jsonl", cwd=tmp_path).returncode == 0
    )  # the same again


def test_data_with_the_name_of_a_preset_gets_another(tmp_path):
    named = recipe.claim_name_of(tmp_path / "demo.csv.gz", replace(PRESETS["demo"], output_dir=tmp_path))
    assert named.name == "demo-data"


@pytest.mark.slow
def test_later_stages_take_model_and_index_from_the_run(tmp_path, tiny_model):
    options = ["--output-dir", tmp_path / "out"]
    model = ["--model.name", tiny_model("llama"), "--prompt.format", "alpaca"]
    few = [
        "--train.max-steps",
        "1",
        "--train.validation-size",
        "1",
        "--questions.held-out",
        "1",
        "--generation.max-new-tokens",
        "1",
    ]
    assert command("process_data.py", *options, cwd=tmp_path).returncode == 0
    trained = command("fine_tuning.py", *options, *model, *few, cwd=tmp_path)
    assert trained.returncode == 0, trained.stderr
    following = re.search(r"Next: +(python .*)", trained.stdout)[1]
    assert "--model.name" not in following
    answered = run_line(f"{following} --title Tea --answers.max-new-tokens 1", tmp_path)
    assert answered.returncode == 0 and "Tea" in answered.stdout, answered.stderr
    other = run_line(f"{following} --title Tea --model.name {tiny_model('phi3')}", tmp_path)
    assert other.returncode == 1 and "was trained on" in other.stderr
    indexed = command("rag_indexing.py", *options, "--rag.collection", "mine", cwd=tmp_path)
    assert indexed.returncode == 0, indexed.stderr
    found = command("rag_search_vs.py", *options, "--query", "ballet", cwd=tmp_path)
    assert found.returncode == 0 and "collection='mine'" in found.stdout, found.stderr


def test_a_command_is_repeated_with_its_settings_in_the_folder_as_it_lies_now(tmp_path):
    folder = RunFolder(tmp_path / "moved" / "demo")
    path = folder.manifest_path("fine_tuning")
    path.parent.mkdir(parents=True)

    def repeated(command):
        path.write_text(json.dumps({"command": command}), encoding="utf-8")
        return folder.command_again("fine_tuning")

    here = f"--output-dir {tmp_path / 'moved'}"
    options = ["--train.resume", "--preset", "demo", "--output-dir=/old", "--train.epochs", "2"]
    assert repeated(["fine_tuning.py", *options]) == f"python fine_tuning.py {here} --train.epochs 2"
    assert repeated(["accelerate", "launch", "fine_tuning.py"]) == f"accelerate launch fine_tuning.py {here}"
    for damaged in ([], ["other.py"], {}, 3, None, ["fine_tuning.py", 3]):
        assert repeated(damaged) == f"python fine_tuning.py {here}"


def test_a_damaged_recipe_of_a_run_is_written_anew(tmp_path):
    config = replace(PRESETS["demo"], output_dir=tmp_path)
    (config.run_dir / "manifests").mkdir(parents=True)
    (config.run_dir / "recipe.toml").write_text("[[[", encoding="utf-8")
    recipe.save(config, "fine_tuning")
    assert recipe.starting_config(str(config.run_dir / "recipe.toml")).data == config.data
