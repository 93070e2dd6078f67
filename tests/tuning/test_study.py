"""The search of hyperparameters: real trainings, interruptions, pruning, and what is refused."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from dataclasses import replace
from types import SimpleNamespace

import psutil
import pytest
from scripts import HEARS_CTRL_C
from tiny_models import tiny_config

import ft_test_trained_model
import process_data
import search_hyperparameters
from config import PRESETS, PROJECT_DIR, LoraConfig, StudyConfig
from pipeline.run import command_line, files, manifests
from pipeline.run.errors import UserError
from pipeline.run.run_folder import RunFolder
from pipeline.training.log import validation_losses
from pipeline.tuning import report, space, trial_process, trials

STAGE = "search_hyperparameters"


def make_config(model, folder, study, **train):
    demo = PRESETS["demo"]
    config = tiny_config(model, folder, prompt=replace(demo.prompt, format="alpaca"), study=study)
    config = replace(config, questions=demo.questions, train=replace(config.train, **train))
    process_data.run(config)
    return config


def trials_of(config):
    folder = config.run_dir / "hyperparameter_search"
    settings = search_hyperparameters.shared_settings(config, process_data_of(config))
    return trials.open_study(folder / "study.db", settings).get_trials()


def process_data_of(config):
    from pipeline.data.records import open_processed

    return open_processed(RunFolder.of(config))


def start_and_wait_for(config, trial):
    """Start the search in a process of its own; return it when a trial is training."""
    arguments = ["--output-dir", str(config.output_dir), *command_line.setting_arguments(STAGE, config)]
    process = subprocess.Popen(
        [sys.executable, str(PROJECT_DIR / f"{STAGE}.py"), *arguments], start_new_session=True, **HEARS_CTRL_C,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, encoding="utf-8",
    )  # fmt: skip
    log = config.run_dir / "hyperparameter_search" / trial / "demo" / "training_log.jsonl"
    deadline = time.monotonic() + 300
    while not validation_losses(log):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return process


@pytest.fixture(scope="module")
def searched(tiny_model, tmp_path_factory):
    """A search of which two trials were interrupted, and one is pruned: its learning rate is too low to learn anything."""
    study = StudyConfig(trials=2, learning_rate_low=1e-9, learning_rate_high=2e-2, ranks=(2, 4))
    folder = tmp_path_factory.mktemp("search") / "out put"
    config = make_config(tiny_model("llama"), folder, study, max_steps=60, eval_steps=None)

    process = start_and_wait_for(config, "trial_000")
    if sys.platform == "win32":
        process.kill()
    else:
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    _, errors = process.communicate(timeout=60)
    if sys.platform != "win32":
        assert process.returncode == 130
        assert errors.strip() == f"{STAGE}.py: interrupted; run it again to go on."

    process = start_and_wait_for(config, "trial_001")
    (training,) = psutil.Process(process.pid).children()
    process.kill()
    process.wait()
    assert training.is_running()
    training.suspend()  # so that it does not end by itself

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trials, "COMPARED", 1)
        patch.setattr(trial_process, "POLL_SECONDS", 0.05)
        result = files.read_json(search_hyperparameters.run(config))
    assert not training.is_running()
    return config, result


def test_interrupted_trials_are_run_again(searched):
    config, result = searched
    trials = trials_of(config)
    assert [trial.state.name for trial in trials] == ["FAIL", "FAIL", "COMPLETE", "PRUNED"]
    assert trials[0].params == trials[1].params == trials[2].params == {"learning_rate": 2e-2, "r": 4}
    assert [row["trial"] for row in result["trials"]] == [2, 3]
    assert result["start"] == result["best"] == result["trials"][0]


def test_a_trial_is_a_run_of_fine_tuning(searched):
    config, result = searched
    folder = config.run_dir / "hyperparameter_search" / "trial_002"
    losses = validation_losses(folder / "demo" / "training_log.jsonl")
    assert list(losses) == [0, 12, 24, 36, 48, 60]
    assert losses[0] == result["validation_loss_before"] and losses[60] == result["best"]["validation_loss"]
    assert list(result["best"]["validation_losses"].values()) == list(losses.values())[1:]
    assert losses[60] < losses[0]
    manifest = manifests.read_manifest(RunFolder(folder / "demo"), "fine_tuning")
    assert manifest["settings"]["lora"]["alpha"] == 8 and manifest["settings"]["train"]["learning_rate"] == 2e-2
    kept = replace(config, output_dir=folder)
    assert ft_test_trained_model.run(kept, ft_test_trained_model.TestOptions(title="Tea")) is None


def test_a_trial_that_learns_nothing_is_stopped_while_it_trains(searched):
    config, result = searched
    row = result["trials"][1]
    assert row["state"] == "pruned" and row["validation_loss"] is None and list(row["validation_losses"]) == ["0.2"]
    output = (config.run_dir / "hyperparameter_search" / "trial_003" / "output.txt").read_text(encoding="utf-8")
    assert "step 12: validation loss" in output and "step 60" not in output


def test_only_the_best_trial_keeps_its_files(searched):
    config, result = searched
    folder = config.run_dir / "hyperparameter_search"
    assert {path.relative_to(folder).as_posix() for path in folder.glob("trial_*/*")} == {
        "trial_000/output.txt", "trial_001/output.txt", "trial_002/output.txt", "trial_002/demo", "trial_003/output.txt",
    }  # fmt: skip
    assert result["adapter"] == str(folder / "trial_002" / "demo" / "lora_model")
    assert (folder / "trial_002" / "demo" / "lora_model" / "adapter_model.safetensors").exists()
    from PIL import Image

    with Image.open(folder / "trials.png") as picture:
        assert picture.size == (1320, 540)


def test_the_command_trains_with_the_best_settings(searched):
    config, result = searched
    python, script, *arguments = shlex.split(result["command"])
    assert (python, script) == ("python", "fine_tuning.py")
    for option, value in (("--train.learning-rate", "0.02"), ("--lora.r", "4"), ("--lora.alpha", "8")):
        assert arguments[arguments.index(option) + 1] == value
    parsed, _ = command_line.parse("fine_tuning", "", command_line.NoOptions, arguments)
    best = space.with_values(config, {"learning_rate": 2e-2, "r": 4})
    assert (parsed.run_dir, parsed.model, parsed.prompt) == (best.run_dir, best.model, best.prompt)
    assert (parsed.train, parsed.lora) == (best.train, best.lora)


@pytest.mark.skipif(sys.platform == "win32", reason="symbolic links need rights there")
@pytest.mark.parametrize("searched_in", ["link", "place"])
def test_a_training_that_was_left_running_is_found_behind_a_symbolic_link(tmp_path, searched_in):
    (tmp_path / "place").mkdir()
    (tmp_path / "link").symlink_to("place")
    script = tmp_path / "fine_tuning.py"
    script.write_text("import time\ntime.sleep(60)", encoding="utf-8")
    ours, other = (
        subprocess.Popen([sys.executable, str(script), "--output-dir", str(tmp_path / folder / "trial_000")])
        for folder in ("link", "elsewhere")
    )
    try:
        trial_process.kill_left(tmp_path / searched_in)
        assert ours.poll() is not None and other.poll() is None
    finally:
        for process in (ours, other):
            process.kill()
            process.wait()


def no_training(*_):
    raise AssertionError("nothing is left to do")


def test_a_search_that_is_done_prints_its_result(searched, monkeypatch, capsys):
    config, result = searched
    monkeypatch.setattr(search_hyperparameters, "train", no_training)
    fewer = replace(config, study=replace(config.study, trials=1))
    assert files.read_json(search_hyperparameters.run(fewer)) == result
    printed = capsys.readouterr().out
    assert result["command"] in printed and "no trial was better" in printed and "pruned at 20%" in printed
    assert manifests.read_manifest(RunFolder.of(config), STAGE)["metrics"]["trials"] == 2


@pytest.mark.parametrize(("change", "named"), [
    (lambda c: replace(c, study=replace(c.study, ranks=(2, 4, 8))), r"\(study\.ranks\)"),
    (lambda c: replace(c, train=replace(c.train, batch_size=1, memory_gb=7.0)), r"\(train\.batch_size\)"),
    (lambda c: replace(c, lora=LoraConfig(r=4, alpha=4)), r"\(lora\.alpha\)"),
])  # fmt: skip
def test_a_search_with_other_settings_is_refused(searched, monkeypatch, change, named):
    config, _ = searched
    monkeypatch.setattr(search_hyperparameters, "train", no_training)
    with pytest.raises(UserError, match=f"made with other settings or data {named}.*delete that folder"):
        search_hyperparameters.run(change(config))


@pytest.fixture
def config(tiny_model, tmp_path):
    """Settings of a search over 20 records; nothing was searched."""
    study = StudyConfig(trials=1, ranks=(2, 4), epochs=(1.0, 2.0), learning_rate_high=2e-2)
    return make_config(tiny_model("llama"), tmp_path, study, max_steps=None, epochs=1.0, sample_size=17)


def test_epochs_are_searched_where_there_are_no_steps(config):
    result = files.read_json(search_hyperparameters.run(config))
    assert result["best"]["epochs"] == 1.0 and "--train.epochs 1.0" in result["command"]
    assert "--train.max-steps None" in result["command"]
    # 9 steps, measured after 2, 4, 6, 8 and 9 of them
    assert list(result["best"]["validation_losses"]) == ["0.2", "0.4", "0.6", "0.8", "1.0"]
    log = config.run_dir / "hyperparameter_search" / "trial_000" / "demo" / "training_log.jsonl"
    assert list(validation_losses(log)) == [0, 2, 4, 6, 8, 9]


def test_a_training_that_fails_at_once_ends_the_search_with_its_sentence(config):
    (config.run_dir / "hyperparameter_search").mkdir()
    missing = replace(config, model=replace(config.model, name="./typo"))
    with pytest.raises(UserError, match=r"fine_tuning\.py: .*typo.*output\.txt"):
        search_hyperparameters.run(missing)
    states = [trial.state.name for trial in trials_of(missing)]
    assert states == ["RUNNING"]  # to be run again


class Trainings:
    """Stands for the trainings of a search: the loss depends on the values alone."""

    def __init__(self, fails=lambda values: False):
        self.fails, self.values, self.kept = fails, [], []

    def __call__(self, config, trial, folder):
        self.kept.append(len(list(folder.parent.glob("trial_*/demo"))))
        self.values.append(dict(trial.params))
        (folder / "demo").mkdir(parents=True)
        trial.set_user_attr(trials.BEFORE, 5.0)
        if self.fails(trial.params):
            raise trial_process.TrainingFailed("no memory")
        loss = abs(trial.params["learning_rate"] - 3e-3) + trial.params["r"]
        trial.report(loss, 5)
        return loss


def test_a_search_interrupted_at_any_trial_tries_what_it_would_have_tried(config, monkeypatch, tmp_path):
    trainings = Trainings()
    monkeypatch.setattr(search_hyperparameters, "train", trainings)
    config = replace(config, study=replace(config.study, trials=14))
    undisturbed = files.read_json(search_hyperparameters.run(config))
    assert len({str(values) for values in trainings.values}) == 14
    assert max(trainings.kept) == 1
    (config.run_dir / "hyperparameter_search").rename(tmp_path / "undisturbed")

    again = Trainings()

    def interrupted(*arguments):
        if len(again.values) % 3 == 1 and not again.values.append({}):
            raise KeyboardInterrupt
        return again(*arguments)

    monkeypatch.setattr(search_hyperparameters, "train", interrupted)
    interruptions = 0
    while True:
        try:
            result = files.read_json(search_hyperparameters.run(config))
            break
        except KeyboardInterrupt:
            interruptions += 1
    assert interruptions >= 4
    assert [values for values in again.values if values] == trainings.values
    assert result["command"] == undisturbed["command"]
    best = result["best"]
    assert f"--lora.r {best['r']} --lora.alpha {best['alpha']}" in result["command"]
    assert f"--train.learning-rate {best['learning_rate']}" in result["command"]
    assert result["best"]["validation_loss"] < result["start"]["validation_loss"]


def test_the_command_names_what_was_searched_even_where_the_preset_has_it(config, monkeypatch):
    monkeypatch.setattr(search_hyperparameters, "train", Trainings())
    preset = PRESETS["demo"]
    config = replace(config, lora=preset.lora, study=replace(config.study, ranks=(preset.lora.r,)))
    config = replace(config, train=replace(config.train, learning_rate=preset.train.learning_rate))
    command = files.read_json(search_hyperparameters.run(config))["command"]
    assert "--train.learning-rate 0.0005" in command and "--train.epochs 1.0" in command
    assert "--lora.r 16 --lora.alpha 32" in command


def test_a_search_killed_before_its_first_trial_begins_with_the_settings_given(config, monkeypatch):
    trainings = Trainings()
    monkeypatch.setattr(search_hyperparameters, "train", trainings)
    folder = config.run_dir / "hyperparameter_search"
    folder.mkdir()
    settings = search_hyperparameters.shared_settings(config, process_data_of(config))
    trials.open_study(folder / "study.db", settings).enqueue_trial({"learning_rate": 1e-3})
    search_hyperparameters.run(config)
    assert trainings.values == [{"learning_rate": 2e-2, "r": 4, "epochs": 1.0}]


def test_trials_that_fail_are_told_and_do_not_count(config, monkeypatch, capsys):
    trainings = Trainings(fails=lambda values: values["r"] == 2)
    monkeypatch.setattr(search_hyperparameters, "train", trainings)
    config = replace(config, study=replace(config.study, trials=6))
    result = files.read_json(search_hyperparameters.run(config))
    failed = [row for row in result["trials"] if row["state"] == "fail"]
    assert failed and {row["error"] for row in failed} == {"no memory"} and {row["r"] for row in failed} == {2}
    assert len(result["trials"]) - len(failed) == 6
    assert "failed: no memory" in capsys.readouterr().out
    seen = len(trainings.values)
    search_hyperparameters.run(config)
    assert len(trainings.values) == seen  # what failed is not tried again


def test_failures_in_a_row_end_the_search(config, monkeypatch):
    trainings = Trainings(fails=lambda values: values["learning_rate"] != config.train.learning_rate)
    monkeypatch.setattr(search_hyperparameters, "train", trainings)
    with pytest.raises(UserError, match=r"3 trials in a row failed\. The last: no memory"):
        search_hyperparameters.run(replace(config, study=replace(config.study, trials=9)))
    assert len(trainings.values) == 4 and len({str(values) for values in trainings.values}) == 4


def test_the_time_limit_ends_a_search_that_can_go_on(config, monkeypatch, capsys):
    seconds, trainings = [0.0], Trainings()

    def train(*arguments):
        seconds[0] += 5000  # a trial is begun after the first, but not after the second
        return trainings(*arguments)

    monkeypatch.setattr(search_hyperparameters, "train", train)
    monkeypatch.setattr(search_hyperparameters, "time", SimpleNamespace(monotonic=lambda: seconds[0]))
    limited = replace(config, study=replace(config.study, trials=3, hours=2.0))
    for done in (2, 3):
        result = files.read_json(search_hyperparameters.run(limited))
        assert len(result["trials"]) == done
        assert ("The 2 hours of --study.hours are over" in capsys.readouterr().out) == (done < 3)


def test_other_data_are_noticed(config, monkeypatch):
    monkeypatch.setattr(search_hyperparameters, "train", Trainings())
    search_hyperparameters.run(config)
    process_data.run(replace(config, data=replace(config.data, min_content_chars=80)))
    with pytest.raises(UserError, match=r"made with other settings or data \(data\)"):
        search_hyperparameters.run(config)


def test_a_damaged_study_is_one_sentence(config):
    folder = config.run_dir / "hyperparameter_search"
    folder.mkdir()
    (folder / "study.db").write_bytes(b"nonsense" * 1000)
    with pytest.raises(UserError, match=r"study\.db cannot be read .*Delete .*hyperparameter_search to start anew"):
        search_hyperparameters.run(config)


@pytest.mark.parametrize(("change", "sentence"), [
    (lambda c: replace(c, train=replace(c.train, learning_rate=1.0)), r"--train\.learning-rate 1\.0 \(--study"),
    (lambda c: replace(c, lora=LoraConfig(r=3, alpha=6)), r"--lora\.r 3 \(--study\.ranks\)"),
    (lambda c: replace(c, train=replace(c.train, epochs=7.0)), r"--train\.epochs 7\.0 \(--study\.epochs\)"),
    (lambda c: replace(c, lora=LoraConfig(r=4, alpha=2), study=replace(c.study, ranks=(3, 4))), "Rank 3 of --study.ranks"),
    (lambda c: replace(c, train=replace(c.train, validation_size=0)), "no validation record"),
    (lambda c: replace(c, train=replace(c.train, resume=True)), r"Leave --train\.resume out"),
    (lambda c: replace(c, train=replace(c.train, shard_weights=True)), "on one device"),
])  # fmt: skip
def test_impossible_searches_are_refused_before_anything_is_made(config, change, sentence):
    config = replace(config, study=replace(config.study, learning_rate_high=0.5))
    with pytest.raises(UserError, match=sentence):
        search_hyperparameters.run(change(config))
    assert not (config.run_dir / "hyperparameter_search").exists()


def test_data_without_a_validation_split_are_refused(config):
    process_data.run(replace(config, data=replace(config.data, validation_fraction=0.0)))
    with pytest.raises(UserError, match="no validation record"):
        search_hyperparameters.run(config)


def test_the_values_of_a_trial_become_settings(config):
    tuned = space.with_values(config, {"learning_rate": 1e-3, "r": 2, "epochs": 2.0})
    assert (tuned.lora.r, tuned.lora.alpha) == (2, 4)  # alpha / r is that of 4 and 8
    assert (tuned.train.learning_rate, tuned.train.epochs) == (1e-3, 2.0)
    assert replace(tuned, lora=config.lora, train=config.train) == config


def test_steps_go_before_epochs(config):
    steps = replace(config, train=replace(config.train, max_steps=9, epochs=7.0))
    assert set(space.distributions(config)) == {"learning_rate", "r", "epochs"}
    assert set(space.distributions(steps)) == set(space.starting_values(steps)) == {"learning_rate", "r"}
    assert search_hyperparameters.share_of({"step": 3, "epoch": 0.1}, steps) == 3 / 9
    assert search_hyperparameters.share_of({"step": 3, "epoch": 0.75}, config) == 0.75


def test_a_trial_is_compared_with_trainings_of_its_own_length(tmp_path):
    import optuna

    (tmp_path / "100% {of} it").mkdir()
    study = trials.open_study(tmp_path / "100% {of} it" / "study.db", {})
    assert list(tmp_path.glob("*/study.db")) == [tmp_path / "100% {of} it" / "study.db"]
    lengths = (1.0, 2.0)
    ranges = {"epochs": optuna.distributions.CategoricalDistribution(lengths)}

    def begin(epochs):
        study.enqueue_trial({"epochs": epochs})
        return study.ask(ranges)

    def stops(trial, share, loss):
        return trials.should_stop(trial, share, loss, lengths)

    for loss in (1.0, 2.0, 3.0, 4.0):
        trial = begin(1.0)
        assert not stops(trial, 0.0, 99.0)  # of the base model
        assert not stops(trial, 0.21, loss) and not stops(trial, 1.0, loss)
        trials.record_loss(study, trial, loss)
    assert not stops(begin(2.0), 0.2, 50.0)
    assert not stops(begin(1.0), 0.2, 2.4)
    assert not stops(begin(1.0), 1.0, 2.6)  # it is over
    assert stops(begin(2.0), 0.4, float("nan")) and stops(begin(2.0), 1.0, float("inf"))
    worse = begin(1.0)
    assert not stops(worse, 0.0, 99.0) and stops(worse, 0.2, 2.6)
    trials.record_loss(study, worse, None)
    outcome = trials.outcome(trials.ended_trials(study)[-1])
    assert outcome.pop("seconds") >= 0
    assert outcome == {"state": "pruned", "validation_loss": None, "validation_losses": {0.2: 2.6}, "error": None}


def test_the_gain_is_told():
    best, start = {"validation_loss": 1.0}, {"validation_loss": 2.0}
    assert "best 1.0000: lower by 1.0000 (perplexity 2.72 instead of 7.39)" in report.gain(best, start)
    assert "did not stay a number" in report.gain(best, {"validation_loss": None})


def test_trainings_left_behind_are_killed_and_nothing_else(tmp_path):
    script = tmp_path / "fine_tuning.py"
    script.write_text("import time; time.sleep(100)", encoding="utf-8")
    other = tmp_path / "other.py"
    other.write_bytes(script.read_bytes())
    folder = tmp_path / "search"
    arguments = ((script, folder / "trial_000"), (script, tmp_path / "elsewhere"), (other, folder / "trial_000"))
    left, elsewhere, reader = (subprocess.Popen([sys.executable, *map(str, a)]) for a in arguments)
    try:
        trial_process.kill_left(folder)
        left.wait(timeout=10)
        assert elsewhere.poll() is None and reader.poll() is None
    finally:
        for process in (left, elsewhere, reader):
            process.kill()
            process.wait()


@pytest.mark.parametrize(("code", "sentence"), [
    ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "killed by signal 9"),
    ("import sys; print('Loading:  10%\\rLoading: 100%'); sys.exit('fine_tuning.py: Too much.')", r"fine_tuning\.py: Too much\. \("),
])  # fmt: skip
def test_why_a_training_failed_is_told(tmp_path, code, sentence):
    if "SIGKILL" in code and sys.platform == "win32":
        pytest.skip("there are no signals")
    with trial_process.running([sys.executable, "-c", code], tmp_path / "output.txt") as process:
        assert list(trial_process.evaluations(process, tmp_path / "none.jsonl")) == []
        with pytest.raises(trial_process.TrainingFailed, match=sentence):
            trial_process.require_success(process, tmp_path / "output.txt")


def test_records_are_linked_or_copied(config, monkeypatch, tmp_path):
    from pathlib import Path

    source, target = config.run_dir / "trn_processed.json", tmp_path / "trial" / "demo"
    trial_process.link_records(RunFolder.of(config), RunFolder(target))
    assert (target / "trn_processed.json").samefile(source)

    def no_links(*_):
        raise OSError("not supported")

    monkeypatch.setattr(Path, "hardlink_to", no_links)
    trial_process.link_records(RunFolder.of(config), RunFolder(target))
    assert not (target / "trn_processed.json").samefile(source)
    assert (target / "trn_processed.json").read_bytes() == source.read_bytes()
    manifest = json.loads((target / "manifests" / "process_data.json").read_text(encoding="utf-8"))
    assert manifest["stage"] == "process_data"
