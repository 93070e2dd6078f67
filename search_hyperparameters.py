"""Search the learning rate, the rank of the adapter and the epochs with the lowest validation loss, with Optuna.

Reads trn_processed.json. Writes hyperparameter_search/: study.db with all trials, result.json, trials.png, and what
fine_tuning.py made in the best trial. Every trial is a run of fine_tuning.py, and ends early where it is worse than half
of those before it. After an interruption, run it again: it goes on.

    python search_hyperparameters.py --study.trials 20
"""

from __future__ import annotations

import dataclasses
import os
import shutil
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from config import PROJECT_DIR, SECTIONS, Config
from pipeline.data import records
from pipeline.run import errors, files, manifests, run_folder
from pipeline.run.command_line import run_stage, setting_arguments
from pipeline.run.run_folder import ADAPTER, STUDY, TRAINING_LOG, RunFolder
from pipeline.training import dataset
from pipeline.tuning import report, space, trial_process, trials
from pipeline.tuning.trials import EVALUATIONS

if TYPE_CHECKING:
    from optuna import Study, Trial

STAGE = "search_hyperparameters"
FAILURES_IN_A_ROW = 3  # that end the search: the settings of a trial are not what is wrong
# Settings of `train` that change nothing of what is learned, or that a trial has of its own.
NOT_SHARED = (
    "resume", "allow_worse", "memory_gb", "gradient_checkpointing", "passes", "eval_steps", "save_steps", "logging_steps",
)  # fmt: skip


def run(config: Config) -> Path:
    """Search, print all trials and the best settings, and return the path of result.json."""
    run_folder = RunFolder.of(config)
    data = records.open_processed(run_folder)
    check(config, data)
    folder = run_folder / STUDY
    with manifests.stage_manifest(config, STAGE, [data.path]) as metrics:
        folder.mkdir(exist_ok=True)
        study = trials.open_study(folder / "study.db", shared_settings(config, data))
        search(config, study, folder)
        result = summarise(config, study, folder)
        metrics.update({name: result[name] for name in ("best", "start", "command")}, trials=len(result["trials"]))
        with files.atomic_path(folder / "trials.png") as picture:
            report.draw_trials(result, picture, f"{config.model.name}, {config.name}")
        report.print_result(result)
        return files.write_json(folder / "result.json", result)


def check(config: Config, data: records.ProcessedData) -> None:
    """Raise a UserError for settings with which no search can be done."""
    train = config.train
    if train.shard_weights or "LOCAL_RANK" in os.environ:
        raise errors.UserError(
            "Each trial trains on one device, in a process of its own. Start the search with python, without accelerate "
            "launch and --train.shard-weights."
        )
    if train.resume:
        raise errors.UserError("An interrupted search goes on by itself. Leave --train.resume out.")
    if not train.validation_size or not any(data.split_of(title) == "validation" for title, _ in data):
        raise errors.UserError(
            "There is no validation record to measure a loss on. Set --train.validation-size above 0, or run "
            f"`{data.run.command_again('process_data')}` with a larger --data.validation-fraction."
        )
    space.check_start(config)


def shared_settings(config: Config, data: records.ProcessedData) -> dict[str, Any]:
    """Return what all trials of a search have in common, as flat names and values."""
    sections = {name: dataclasses.asdict(getattr(config, name)) for name in SECTIONS[STAGE]}
    del sections["rag"]
    for name in (*NOT_SHARED, *dataset.OF_RECORDS):
        del sections["train"][name]
    for name in ("trials", "hours"):
        del sections["study"][name]
    flat = {f"{section}.{name}": value for section, values in sections.items() for name, value in values.items()}
    return {**flat, **dataset.settings_of_records(config), "data": data.digest}


def search(config: Config, study: Study, folder: Path) -> None:
    """Run trials until there are as many as wanted, or the time is over.

    Raises:
        UserError: the first training failed, or several in a row.
    """
    if config.train.max_steps:
        print(
            f"Each trial has the {config.train.max_steps} steps of --train.max-steps; `--train.max-steps None` searches "
            "over epochs too.\n"
        )
    trial_process.kill_left(folder)
    start, ranges = space.starting_values(config), space.distributions(config)
    trials.repeat_interrupted(study)
    keep_best_alone(study, folder)
    began, failures = time.monotonic(), 0
    while (done := len(trials.finished_trials(study))) < config.study.trials:
        if config.study.hours and time.monotonic() - began > 3600 * config.study.hours:
            print(f"The {config.study.hours:g} hours of --study.hours are over; run it again to go on.")
            break
        trial = trials.next_trial(study, ranges, start, config.train.seed)
        settings = report.settings_text(space.settings_of(config, trial.params))
        print(f"[{done + 1}/{config.study.trials}] Trial {trial.number}: {settings}", flush=True)
        try:
            loss = train(config, trial, folder / folder_name(trial.number))
            trials.record_loss(study, trial, loss)
            failures = 0
        except trial_process.TrainingFailed as error:
            if not trials.ended_trials(study):
                raise
            trials.record_failure(study, trial, str(error))
            print(f"  failed: {error}", flush=True)
            failures += 1
            if failures == FAILURES_IN_A_ROW:
                raise errors.UserError(f"{failures} trials in a row failed. The last: {error}") from None
        keep_best_alone(study, folder)


def train(config: Config, trial: Trial, folder: Path) -> float | None:
    """Train as fine_tuning.py does and return the validation loss at the end; None if the trial was pruned.

    Raises:
        TrainingFailed: fine_tuning.py ended with an error.
    """
    own = space.with_values(config, trial.params)
    own = dataclasses.replace(
        own,
        output_dir=folder.absolute(),
        # Nothing but the loss is of interest: no checkpoint on the way, hardly any answer, and a bad loss is a loss.
        train=dataclasses.replace(own.train, eval_steps=1 / EVALUATIONS, save_steps=10**9, allow_worse=True),
        generation=dataclasses.replace(own.generation, max_new_tokens=1),
        questions=dataclasses.replace(own.questions, probe=None),
    )
    trial_process.link_records(RunFolder.of(config), RunFolder.of(own))
    command = [sys.executable, str(PROJECT_DIR / "fine_tuning.py"), "--preset", own.started_from]
    command += ["--output-dir", str(own.output_dir), *setting_arguments("fine_tuning", own)]
    output, loss = folder / "output.txt", None
    print("  validation loss", end="", flush=True)
    with trial_process.running(command, output) as process:
        for line in trial_process.evaluations(process, own.run_dir / TRAINING_LOG):
            loss = line["validation_loss"]
            print(f" {loss:.4f}", end="", flush=True)
            if trials.should_stop(trial, share_of(line, own), loss, space.lengths(config)):
                print(", pruned", flush=True)
                return None
        print(flush=True)
        trial_process.require_success(process, output)
    if loss is None:
        raise errors.UserError("Every validation prompt fills --train.max-length. Raise it.")
    return loss


def share_of(line: dict[str, Any], own: Config) -> float:
    """Return the share of the training, from 0 to 1, that was over at a line of its log."""
    done, whole = (line["step"], own.train.max_steps) if own.train.max_steps else (line["epoch"], own.train.epochs)
    return min(done / whole, 1.0)


def keep_best_alone(study: Study, folder: Path) -> None:
    """Remove what other trials than the best made, but not what they printed."""
    best = trials.best_trial(study)
    for path in folder.glob("trial_*/*"):
        if path.is_dir() and (best is None or path.parent.name != folder_name(best.number)):
            shutil.rmtree(path)


def folder_name(number: int) -> str:
    """Return the name of the folder of a trial."""
    return f"trial_{number:03}"


def summarise(config: Config, study: Study, folder: Path) -> dict[str, Any]:
    """Return what result.json holds.

    Returns:
        best, start: the best trial and the one with the settings that the search was started with; trials: all that ended,
        with their settings, the validation loss at the end and those on the way; validation_loss_before: that of the
        base model; adapter: folder of what the best one made; command: trains with the best settings.
    """
    best = trials.best_trial(study)
    if best is None:
        raise errors.UserError(
            "No trial ended with a loss that is a number. Lower --train.learning-rate and --study.learning-rate-high."
        )
    rows = []
    for trial in trials.ended_trials(study):
        row = {
            "trial": trial.number,
            **space.settings_of(config, trial.params),
            **trials.outcome(trial),
        }
        rows.append(row)
    start = space.settings_of(config, space.starting_values(config))
    tuned = space.with_values(config, best.params)
    named = {"train.learning_rate", "lora.r", "lora.alpha", *(["train.epochs"] if space.lengths(config) else [])}
    options = run_folder.shell_line(setting_arguments("fine_tuning", tuned, named))
    return {
        "best": next(row for row in rows if row["trial"] == best.number),
        "start": next(row for row in rows if start.items() <= row.items()),
        "validation_loss_before": best.user_attrs[trials.BEFORE],
        "command": f"{RunFolder.of(config).command('fine_tuning')} {options}",
        "adapter": str(folder / folder_name(best.number) / config.name / ADAPTER),
        "trials": rows,
    }


def main() -> None:
    """Run the search from the command line."""
    run_stage(STAGE, __doc__, run)


if __name__ == "__main__":
    main()
