"""A second run of a stage on the same outputs refuses; one that was killed holds nobody up."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

from config import PROJECT_DIR
from pipeline import artifacts
from pipeline.artifacts import UserError

HOLD = (
    "import pathlib, sys, time; from pipeline import artifacts\n"
    "with artifacts.stage_manifest(pathlib.Path(sys.argv[1]), 'process_data', {}, []):\n"
    "    print('in', flush=True); time.sleep(600)"
)


@pytest.fixture
def holder(tmp_path):
    """A process that is in the middle of stage 1 on tmp_path."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], cwd=PROJECT_DIR, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "in\n"
    yield process
    process.kill()
    process.wait()


def enter(folder, stage):
    with artifacts.stage_manifest(folder, stage, {}, []):
        pass


def test_a_second_run_of_a_stage_refuses(tmp_path, holder):
    with pytest.raises(UserError, match=r"Another process_data\.py is at work on .* Wait for it to end"):
        enter(tmp_path, "process_data")
    enter(tmp_path, "foundation_model")  # another stage
    enter(tmp_path / "other", "process_data")  # other outputs


@pytest.mark.skipif(sys.platform == "win32", reason="kill -9 is of POSIX")
def test_a_killed_run_holds_nobody_up(tmp_path, holder):
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    enter(tmp_path, "process_data")


def test_a_command_says_it_in_one_sentence(tmp_path):
    with artifacts.only_one(tmp_path / "demo", "process_data"):
        command = [sys.executable, "process_data.py", "--output-dir", str(tmp_path)]
        done = subprocess.run(command, cwd=PROJECT_DIR, capture_output=True, text=True, encoding="utf-8")
    assert done.returncode == 1 and "Another process_data.py is at work" in done.stderr.splitlines()[-1]
    assert not (tmp_path / "demo" / "trn_processed.json").exists()
