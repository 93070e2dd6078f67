"""Killed at any of its changes of files, a program leaves nothing half-written under a final name, and a rerun is as good as new.

kill_and_rerun.py does the same to every stage at random moments.
"""

from __future__ import annotations

import itertools
import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from outputs import files, incomplete, result

import process_data
from config import PRESETS, PROJECT_DIR, DataConfig
from pipeline.data import records
from pipeline.run.errors import UserError
from pipeline.run.files import atomic_path, write_json
from pipeline.run.run_folder import RunFolder
from pipeline.training import checkpoints
from pipeline.training import log as training_log

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="kill -9 is of POSIX")

# Kills its own process right after the change of a file, or the opening of one to write, with this number.
KILLER = """
import os, signal, sys
left, folder = int(sys.argv[1]), sys.argv[2]
def count(event, arguments):
    global left
    writes = event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR) and str(arguments[0]).startswith(folder)
    if writes or event in ("os.mkdir", "os.remove", "os.rename", "os.rmdir"):
        left -= 1
        if left == 0:
            sys.setprofile(kill)
def kill(frame, event, function):
    if event == "c_return" and function is not sys.setprofile:
        os.kill(os.getpid(), signal.SIGKILL)
sys.addaudithook(count)
from pathlib import Path
folder = str(Path(folder))
"""


def killed(folder: Path, prepare: Callable[[], object], code: str) -> Iterator[int]:
    """Run code on a folder, killed after its first change of a file, its second, and so on; yield after each kill."""
    for number in itertools.count(1):
        prepare()
        command = [sys.executable, "-B", "-c", KILLER + code, str(number), str(folder)]
        done = subprocess.run(command, cwd=PROJECT_DIR, capture_output=True, text=True, encoding="utf-8")
        if done.returncode == 0:
            assert number > 1, "nothing was changed"
            return
        assert done.returncode == -signal.SIGKILL, done.stderr
        yield number


def temporary_files(folder: Path) -> list[Path]:
    return list(folder.rglob("*.tmp"))


def test_cleaning(tmp_path):
    """Other settings than before: other keys, other splits, other records."""
    old = replace(PRESETS["demo"], output_dir=tmp_path / "old")
    data = DataConfig(write_title_as="name", test_fraction=0.3, min_content_chars=200)
    new = replace(old, output_dir=tmp_path / "new", data=data)
    read = {}
    for config in (old, new):
        process_data.run(config)
        processed = records.open_processed(RunFolder.of(config))
        read[processed.title_key] = (processed.test_fraction, list(processed))
    outputs = replace(new, output_dir=tmp_path / "outputs")
    run_dir = outputs.run_dir
    code = (
        "sys.argv = ['process_data.py', '--output-dir', folder, '--data.write-title-as', 'name', '--data.test-fraction', "
        "'0.3', '--data.min-content-chars', '200']\nimport process_data; process_data.main()"
    )

    def prepare():
        shutil.rmtree(outputs.output_dir, ignore_errors=True)
        shutil.copytree(old.output_dir, outputs.output_dir)

    unfinished = 0
    for _ in killed(outputs.output_dir, prepare, code):
        assert incomplete(run_dir, {}) == []
        try:
            processed = records.open_processed(RunFolder(run_dir))
            assert read[processed.title_key] == (processed.test_fraction, list(processed))
        except UserError as error:
            assert "has not finished" in str(error)
            unfinished += 1
        process_data.run(outputs)
        assert result(run_dir).keys() == result(new.run_dir).keys()
        assert (run_dir / "trn_processed.json").read_bytes() == (new.run_dir / "trn_processed.json").read_bytes()
        assert temporary_files(run_dir) == []
    assert unfinished


def test_a_folder(tmp_path):
    """As merged_model/ and lora_model/ are."""
    folder = tmp_path / "model"

    def make(content: str, path: Path) -> None:
        path.mkdir()
        for name in ("config.json", "weights", "tokenizer.json"):
            (path / name).write_text(content, encoding="utf-8")

    def prepare():
        shutil.rmtree(tmp_path)
        tmp_path.mkdir()
        make("old", folder)

    code = (
        "from pipeline.run import files\nwith files.atomic_path(Path(folder) / 'model') as temporary:\n"
        "    temporary.mkdir()\n"
        "    for name in ('config.json', 'weights', 'tokenizer.json'): (temporary / name).write_text('new')"
    )
    for _ in killed(tmp_path, prepare, code):
        with pytest.raises(KeyboardInterrupt), atomic_path(folder):  # the next run ends early, too
            raise KeyboardInterrupt
        left = [path.read_text(encoding="utf-8") for path in folder.iterdir()]
        assert left in (["old"] * 3, ["new"] * 3)
        with atomic_path(folder) as temporary:
            make("newer", temporary)
        assert [path.read_text(encoding="utf-8") for path in folder.iterdir()] == ["newer"] * 3
        assert temporary_files(tmp_path) == []


def test_a_training_that_starts_anew(tmp_path):
    """Nobody goes on from what is left of the checkpoints of the run before, unless nothing of them is lost."""

    def prepare():
        shutil.rmtree(tmp_path, ignore_errors=True)
        for step in (2, 4):
            checkpoint = tmp_path / f"checkpoint-{step}"
            checkpoint.mkdir(parents=True)
            for name in ("adapter_model.safetensors", "optimizer.pt", "trainer_state.json"):
                (checkpoint / name).write_text("{}", encoding="utf-8")
        write_json(tmp_path / checkpoints.SETTINGS_FILE, {"train.seed": 1})

    code = "from pipeline.training import checkpoints; checkpoints.start(Path(folder), {'train.seed': 2})"
    refused = 0
    for _ in killed(tmp_path, prepare, code):
        try:
            assert len(files(checkpoints.find(tmp_path, {"train.seed": 1}))) == 3
        except UserError as error:
            assert "There is no checkpoint" in str(error)
            refused += 1
    assert refused


def test_a_checkpoint_that_was_being_written_is_passed_over(tmp_path):
    write_json(tmp_path / checkpoints.SETTINGS_FILE, {})
    for step, state in ((2, "{}"), (4, ""), (6, '{"epoch": 1.')):
        checkpoint = tmp_path / f"checkpoint-{step}"
        checkpoint.mkdir()
        (checkpoint / "trainer_state.json").write_text(state, encoding="utf-8")
        if step == 2:
            checkpoints.seal(checkpoint)
    assert checkpoints.find(tmp_path, {}).name == "checkpoint-2"


def test_the_log_of_a_training_that_goes_on(tmp_path):
    """It keeps the lines up to the checkpoint, however often the training is killed while it starts."""
    log = tmp_path / "training_log.jsonl"
    lines = [{"step": step, "loss": 1.0} for step in range(6)]

    def prepare():
        shutil.rmtree(tmp_path)
        tmp_path.mkdir()
        log.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")

    code = "from pipeline.training import log; log.start_log(Path(folder) / 'training_log.jsonl', 3)"
    for _ in killed(tmp_path, prepare, code):
        assert training_log.read_log(log) in (lines, lines[:4])
        training_log.start_log(log, 3)
        assert training_log.read_log(log) == lines[:4]
        assert temporary_files(tmp_path) == []
