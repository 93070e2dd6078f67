"""A full disk: one sentence that names the path, and nothing half-written. On a small tmpfs, where one can be mounted."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from config import PROJECT_DIR
from pipeline.run.files import file_hash

MIB = 2**20


@pytest.fixture
def small_disk(tmp_path):
    """A function that makes a file system of so many bytes and returns its folder."""
    mounted = []

    def make(size: int) -> Path:
        folder = tmp_path / f"disk{len(mounted)}"
        folder.mkdir()
        if sys.platform != "linux" or os.geteuid() != 0:
            pytest.skip("only root can mount a tmpfs")
        if subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder]).returncode:
            pytest.skip("a tmpfs cannot be mounted here")
        mounted.append(folder)
        return folder

    yield make
    for folder in mounted:
        subprocess.run(["umount", "--lazy", folder], check=True)  # this process may have files open there


def run_script(script: str, folder: Path, *options: str) -> subprocess.CompletedProcess:
    command = [sys.executable, str(PROJECT_DIR / f"{script}.py"), "--output-dir", str(folder), *options]
    return subprocess.run(command, capture_output=True, text=True, encoding="utf-8", cwd=PROJECT_DIR)


def files(folder: Path) -> set[str]:
    """The files of a run, without the locks."""
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock"}


def assert_one_sentence(done: subprocess.CompletedProcess, path: str) -> None:
    assert done.returncode == 1, done.stdout + done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert path in last and "GiB" in last and "make room or give another --output-dir" in last, done.stderr
    assert "Traceback" not in done.stderr


def test_cleaning(small_disk):
    disk = small_disk(64 * 1024)
    done = run_script("process_data", disk)
    assert_one_sentence(done, f"no space left in {disk / 'demo'}")
    assert files(disk) == set()
    whole = small_disk(8 * MIB)
    assert run_script("process_data", whole).returncode == 0


def test_indexing_asks_for_its_space_first(small_disk):
    disk = small_disk(MIB)
    assert run_script("process_data", disk).returncode == 0
    before = files(disk)
    assert_one_sentence(run_script("rag_indexing", disk), "The index")
    assert files(disk) == before


def test_merging_asks_for_its_space_first(small_disk, make_config, tiny_model):
    import fine_tuning
    import process_data

    config = make_config("llama")
    process_data.run(config)
    fine_tuning.run(config)
    size = sum(path.stat().st_size for path in config.run_dir.rglob("*") if path.is_file())
    disk = small_disk(size + 2 * MIB)
    shutil.copytree(config.run_dir, disk / config.run_dir.name)
    before = files(disk)
    done = run_script("merge_and_convert", disk, "--model.name", str(tiny_model("llama")))
    assert_one_sentence(done, "The merged model and its GGUF")
    assert files(disk) == before


@pytest.mark.parametrize(
    "stage", ["foundation_model", "fine_tuning", "ft_test_trained_model", "rag_model_retriever", "compare_models"]
)
def test_answers_training_and_comparison(small_disk, run, stage):
    disk = small_disk(100 * MIB)
    names = [path.name for path in run.path.iterdir() if path.name not in ("manifests", "checkpoints", "merged_model")]
    there = run.copy(disk, *names)
    fill(disk, leaving=0)
    before = {name: (disk / name).read_bytes() for name in files(disk)}
    sentence = there.stage(stage).sentence
    assert f"There is no space left in {there.path}: 0.0 GiB are free there; make room or give another" in sentence
    assert {name: (disk / name).read_bytes() for name in files(disk)} == before


def test_checkpoints(small_disk, run):
    disk = small_disk(20 * MIB)
    there = run.copy(disk, "trn_processed.json", "lora_model")
    fill(disk, leaving=1 * MIB)
    adapter = file_hash(there.path / "lora_model")
    sentence = there.stage("fine_tuning", "--lora.r", "64").sentence
    assert f"There is no space left in {there.path}: 0.0 GiB are free there; make room or give another" in sentence
    assert not list((there.path / "checkpoints").glob("checkpoint-*/trainer_state.json"))
    assert file_hash(there.path / "lora_model") == adapter
    (disk / "filler").unlink()
    assert there.stage("fine_tuning", "--lora.r", "64").status == 0


def fill(disk: Path, leaving: int) -> None:
    """Write a file that leaves only some bytes free."""
    with (disk / "filler").open("wb") as file:
        file.write(b"\0" * (shutil.disk_usage(disk).free - leaving))
