"""Ctrl-C ends in one sentence and exit status 130, at any moment, and leaves no process and no temporary file behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from scripts import HEARS_CTRL_C

import process_data
from config import PROJECT_DIR, SECTIONS

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals are of POSIX")

# Sends Ctrl-C to its own process when it first imports a module.
AT_IMPORT = """
import os, signal, sys
wanted = sys.argv.pop(1)
def interrupt(event, arguments):
    global wanted
    if event == "import" and arguments[0] == wanted:
        wanted = None
        os.kill(os.getpid(), signal.SIGINT)
sys.addaudithook(interrupt)
script = sys.argv.pop(1)
sys.argv[0] = script
import runpy
runpy.run_path(script, run_name="__main__")
"""


def assert_one_sentence(status: int, errors: str, script: str) -> None:
    assert status == 130, errors
    last = errors.strip().splitlines()[-1]
    assert last.startswith(f"{script}.py: interrupted; ") and last.endswith("."), errors
    assert "Traceback" not in errors and "KeyboardInterrupt" not in errors, errors


def interrupted_at_import(module: str, script: str, *options: str) -> None:
    command = [sys.executable, "-c", AT_IMPORT, module, f"{script}.py", *options]
    done = subprocess.run(command, cwd=PROJECT_DIR, capture_output=True, text=True, encoding="utf-8", **HEARS_CTRL_C)
    assert_one_sentence(done.returncode, done.stderr, script)


@pytest.mark.parametrize("script", SECTIONS)
def test_while_a_stage_imports(script, tmp_path):
    interrupted_at_import("pipeline.run.files", script, "--output-dir", str(tmp_path))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("module", ["tyro", "torch", "torch.nn", "transformers"])
def test_while_a_library_is_imported(module, make_config):
    config = make_config()
    process_data.run(config)
    options = ["--output-dir", str(config.output_dir), "--model.name", config.model.name]
    interrupted_at_import(module, "foundation_model", *options)


def test_while_a_finished_stage_ends(tmp_path):
    """Its work is done: nothing is said of an interruption, and the exit status is that of the work."""
    code = (
        "import atexit, os, signal, sys, time, process_data\n"
        "sys.argv[0] = 'process_data.py'\n"
        "atexit.register(lambda: (os.kill(os.getpid(), signal.SIGINT), time.sleep(0.2)))\n"
        "process_data.main()"
    )
    command = [sys.executable, "-c", code, "--output-dir", str(tmp_path)]
    done = subprocess.run(command, cwd=PROJECT_DIR, capture_output=True, text=True, encoding="utf-8", **HEARS_CTRL_C)
    assert done.returncode == 0 and "Written:" in done.stdout, done.stderr
    assert "KeyboardInterrupt" not in done.stderr and "interrupted" not in done.stderr


@pytest.fixture(scope="module")
def large_input(tmp_path_factory):
    """Records that two processes clean for some seconds."""
    path = tmp_path_factory.mktemp("large") / "raw.jsonl"
    content = "A sentence about a thing that is sold, with <b>markup</b> &amp; more. " * 20
    with path.open("w", encoding="utf-8") as file:
        for number in range(60_000):
            file.write(json.dumps({"title": f"Thing {number}", "content": content}) + "\n")
    return path


def interrupt_group(command: list[str], ready, delay: float) -> tuple[int, str]:
    """Start a command, send Ctrl-C to it and all that it started when it is ready; return exit status and errors.

    Args:
        command: program and arguments.
        ready: is given the process; tells whether the time has come.
        delay: seconds from then on.
    """
    process = subprocess.Popen(
        command,
        cwd=PROJECT_DIR,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        **HEARS_CTRL_C,
    )
    while not ready(process):
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.002)
    time.sleep(delay)
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    _, alive = psutil.wait_procs(processes_of(process.pid), timeout=5)  # what tracks resources ends a moment later
    assert not alive
    return process.returncode, errors


def processes_of(group: int) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        try:
            if os.getpgid(process.pid) == group and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except (ProcessLookupError, psutil.NoSuchProcess):
            continue
    return found


# After the first worker is started, that is while they import, and while they work.
@pytest.mark.parametrize("delay", [0.0, 0.03, 0.1, 0.2, 0.8])
def test_while_processes_clean(delay, tmp_path, large_input):
    def has_workers(process):
        return len(psutil.Process(process.pid).children()) > 1  # one tracks resources

    command = [sys.executable, "process_data.py", "--output-dir", str(tmp_path), "--data.input", str(large_input)]
    status, errors = interrupt_group([*command, "--data.processes", "2"], has_workers, delay)
    assert_one_sentence(status, errors, "process_data")
    assert [path.suffix for path in tmp_path.rglob("*") if path.is_file()] == [".lock"]


def test_run_py_waits_for_its_stage(tmp_path):
    """The stage may take a while to leave its files in order; run.py then says how to go on."""
    (tmp_path / "stage.py").write_text(
        "import pathlib, signal, sys, time\n"
        "folder = pathlib.Path(__file__).parent\n"
        "try:\n    (folder / 'started').touch()\n    time.sleep(60)\n"
        "except KeyboardInterrupt:\n    time.sleep(1)\n    (folder / 'in_order').touch()\n    sys.exit(130)\n",
        encoding="utf-8",
    )
    code = (
        "import pathlib, run, sys\n"
        "run.PYTHON, run.PROJECT_DIR = pathlib.Path(sys.executable), pathlib.Path(sys.argv[1])\n"
        "run.STAGES = {'stage': ()}\n"
        "options, _ = run.parse(['--from', 'stage', '--output-dir', sys.argv[1]])\n"
        "sys.argv = ['run.py', '--install']\n"
        "run.parse = lambda _: (options, [])\n"
        "run.install = lambda _: None\n"
        "run.main()"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    status, errors = interrupt_group(command, lambda _: Path(tmp_path / "started").exists(), 0.1)
    assert (tmp_path / "in_order").exists()
    assert status == 130 and "stage.py was interrupted. Go on with" in errors and "Traceback" not in errors
