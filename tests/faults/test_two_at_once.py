"""A second run of a stage on the same outputs refuses; what reads the outputs of a stage never takes those of two runs."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
from tiny_models import sample_lines

import fine_tuning
import process_data
import rag_indexing
import rag_search_vs
from config import PRESETS, PROJECT_DIR, DataConfig
from pipeline.data import records
from pipeline.models import bundled, trained
from pipeline.rag import retrieval
from pipeline.run import manifests
from pipeline.run.errors import UserError
from pipeline.run.run_folder import RunFolder

HOLD = (
    "import config, dataclasses, pathlib, sys, time; from pipeline.run import manifests\n"
    "demo, folder = config.PRESETS['demo'], pathlib.Path(sys.argv[1])\n"
    "own = dataclasses.replace(demo, output_dir=folder.parent, name=folder.name)\n"
    "with manifests.stage_manifest(own, 'process_data', []):\n"
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
    config = replace(PRESETS["demo"], output_dir=folder.parent, name=folder.name)
    with manifests.stage_manifest(config, stage, []):
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
    with manifests.only_one(RunFolder(tmp_path / "demo"), "process_data"):
        command = [sys.executable, "process_data.py", "--output-dir", str(tmp_path)]
        done = subprocess.run(command, cwd=PROJECT_DIR, capture_output=True, text=True, encoding="utf-8")
    assert done.returncode == 1 and "Another process_data.py is at work" in done.stderr.splitlines()[-1]
    assert not (tmp_path / "demo" / "trn_processed.json").exists()


@pytest.fixture
def config(make_config, tmp_path):
    """Settings with few records, cleaned."""
    raw = tmp_path / "raw.jsonl"
    raw.write_text("\n".join(sample_lines()[:60]), encoding="utf-8")
    config = make_config(data=DataConfig(input=raw, validation_fraction=0.2, test_fraction=0.2))
    process_data.run(config)
    return config


@pytest.fixture
def clean_otherwise(config):
    """A function that runs stage 1 again, with other records under other keys and in other splits."""

    def run() -> None:
        data = replace(config.data, write_title_as="name", test_fraction=0.4, min_content_chars=100)
        process_data.run(replace(config, data=data))

    return run


def before(monkeypatch, owner, name, act):
    """Let something happen once, right before a function is called for the second time."""
    original, calls = getattr(owner, name), []

    def called(*arguments, **named):
        calls.append(name)
        if len(calls) == 2:
            act()
        return original(*arguments, **named)

    monkeypatch.setattr(owner, name, called)


def test_cleaning_while_a_training_reads(config, monkeypatch, clean_otherwise):
    before(monkeypatch, records.ProcessedData, "sample", clean_otherwise)  # training records, then validation records
    with pytest.raises(UserError, match=r"process_data\.py has changed what it made"):
        fine_tuning.run(config)
    assert not (config.run_dir / "checkpoints").exists()


def test_cleaning_while_a_training_trains(config, monkeypatch, clean_otherwise):
    from pipeline.training import session

    original = session.run_trainer

    def run_trainer(*arguments):
        clean_otherwise()
        return original(*arguments)

    monkeypatch.setattr(session, "run_trainer", run_trainer)
    folder = fine_tuning.run(config)  # has read what it needs
    assert (folder / "adapter_model.safetensors").exists()
    with pytest.raises(UserError, match=r"has changed since fine_tuning\.py read it"):
        trained.adapter_folder(RunFolder.of(config), config.model.name, config.run_dir / "trn_processed.json")


@pytest.mark.parametrize("ends", [True, False])
def test_indexing_while_a_search_reads(config, monkeypatch, capsys, ends):
    rag_indexing.run(config)
    title = next(iter(records.open_processed(RunFolder.of(config))))[0]

    def index_again():
        fewer = replace(config, data=replace(config.data, min_content_chars=200))
        process_data.run(fewer)
        if ends:
            rag_indexing.run(fewer)
        else:
            manifests.withdraw_manifest(RunFolder.of(config), "rag_indexing")

    search = retrieval.Retriever.search
    monkeypatch.setattr(retrieval.Retriever, "search", lambda *them: (index_again(), search(*them))[1])
    with pytest.raises(UserError, match=r"rag_indexing\.py has changed what it made .* Run this again"):
        rag_search_vs.run(config, rag_search_vs.SearchOptions(title))
    assert title not in capsys.readouterr().out


def test_two_stages_unpack_a_model_once(tmp_path, monkeypatch):
    """The second would replace the folder under the hands of the first, which reads it by then."""
    unpacked = []

    def unpack(_, folder):
        unpacked.append(folder)
        time.sleep(0.5)
        folder.mkdir()

    monkeypatch.setattr(bundled, "UNPACKED", tmp_path / "models")
    monkeypatch.setattr(bundled, "unpack_smollm2", unpack)
    with ThreadPoolExecutor() as pool:
        folders = set(pool.map(bundled.resolve, ["bundled/SmolLM2-135M-Instruct"] * 2))
    assert len(unpacked) == len(folders) == 1


def test_an_error_of_what_reads_half_changed_outputs_is_explained(tmp_path):
    enter(tmp_path, "rag_indexing")
    manifest = manifests.read_manifest(RunFolder(tmp_path), "rag_indexing")
    with pytest.raises(KeyError), manifests.guard_against_rerun(RunFolder(tmp_path), "rag_indexing", manifest):
        raise KeyError  # of its own
    with (
        pytest.raises(UserError, match="has changed"),
        manifests.guard_against_rerun(RunFolder(tmp_path), "rag_indexing", manifest),
    ):
        manifests.withdraw_manifest(RunFolder(tmp_path), "rag_indexing")
        raise KeyError
    with pytest.raises(KeyboardInterrupt), manifests.guard_against_rerun(RunFolder(tmp_path), "rag_indexing", manifest):
        raise KeyboardInterrupt
