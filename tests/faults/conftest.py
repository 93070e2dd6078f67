"""A run of all stages with a tiny model, made once, and a way to run a stage of it as a user does."""

from __future__ import annotations

import importlib
import os
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from config import STAGES

MODEL = ("--prompt.format", "alpaca")
QUESTIONS = ("--questions.held-out", "2", "--answers.max-new-tokens", "4", "--answers.temperature", "0")
SMALL = {
    "process_data": (),
    "foundation_model": (*MODEL, *QUESTIONS),
    "fine_tuning": (
        *MODEL, "--lora.r", "4", "--train.max-steps", "4", "--train.batch-size", "2", "--train.max-length", "128",
        "--train.gradient-accumulation-steps", "1", "--train.save-steps", "2", "--train.validation-size", "4",
        "--generation.max-new-tokens", "2", "--questions.held-out", "2",
        "--model.compute-dtype", "float32",  # auto is measured, and a busy machine may differ
    ),
    "ft_test_trained_model": QUESTIONS,
    "merge_and_convert": ("--gguf.type", "f32", "--gguf.parity-prompts", "1", "--gguf.min-agreement", "0.3"),
    "rag_indexing": (),
    "rag_search_vs": ("--query", "ballet tutu"),
    "rag_model_retriever": (*MODEL, *QUESTIONS),
    "compare_models": (),
    "search_hyperparameters": MODEL,
}  # fmt: skip
WITH_MODEL = {"foundation_model", "fine_tuning", "ft_test_trained_model", "merge_and_convert", "rag_model_retriever",
              "search_hyperparameters"}  # fmt: skip


@dataclass(frozen=True)
class Ended:
    """How a stage ended."""

    status: int
    printed: str
    errors: str

    @property
    def sentence(self) -> str:
        """The message of an error that is one sentence."""
        assert self.status == 1, self.printed + self.errors
        assert "Traceback" not in self.errors
        *_, last = self.errors.strip().splitlines()
        assert last.partition(".py: ")[1], self.errors
        return last


@dataclass(frozen=True)
class Run:
    """The outputs of all stages, and their commands."""

    folder: Path
    """OUTPUT_DIR."""
    model: Path
    capsys: pytest.CaptureFixture[str] | None = None

    @property
    def path(self) -> Path:
        """OUTPUT_DIR/PRESET."""
        return self.folder / "demo"

    def arguments(self, stage: str, *options: str) -> list[str]:
        """The command line of a stage."""
        model = ["--model.name", str(self.model)] if stage in WITH_MODEL and "--model.name" not in options else []
        return [f"{stage}.py", "--output-dir", str(self.folder), *model, *SMALL[stage], *options]

    def stage(self, stage: str, *options: str) -> Ended:
        """Run a stage in this process."""
        before, status = sys.argv, 0
        sys.argv = self.arguments(stage, *options)
        try:
            importlib.import_module(stage).main()
        except SystemExit as end:
            status = end.code
        finally:
            sys.argv = before
            if "chromadb" in sys.modules:
                _forget_collections()
        return Ended(status, *self.capsys.readouterr()) if self.capsys else Ended(status, "", "")

    def copy(self, folder: Path, *names: str) -> Run:
        """Copy a part of the outputs, and the manifests."""
        for name in (*names, "manifests"):
            source, target = self.path / name, folder / "demo" / name
            target.parent.mkdir(parents=True, exist_ok=True)
            (shutil.copytree if source.is_dir() else shutil.copyfile)(source, target)
        return replace(self, folder=folder)


@pytest.fixture(scope="session")
def made(tmp_path_factory, tiny_model) -> Run:
    """All stages, run once."""
    made = Run(tmp_path_factory.mktemp("outputs"), tiny_model("llama"))
    for stage in STAGES:
        assert made.stage(stage).status == 0, stage
    return made


@pytest.fixture
def run(made, capsys) -> Iterator[Run]:
    """The same, for a test that changes nothing or puts back what it changes."""
    yield replace(made, capsys=capsys)


@pytest.fixture
def copied(run, tmp_path, capsys) -> Run:
    """A copy that a test may change, without the checkpoints."""
    names = [path.name for path in run.path.iterdir() if path.name not in ("manifests", "checkpoints")]
    return run.copy(tmp_path / "copy", *names)


def _forget_collections() -> None:
    """Let go of the collections that this process has open, as the end of a process does."""
    from chromadb.api.shared_system_client import SharedSystemClient

    SharedSystemClient.clear_system_cache()


@pytest.fixture(autouse=True)
def _environment():
    """Stages change the environment of their process."""
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)
