"""The folder of a run: what lies in it, which stage makes it, and with which command.

Standard library only, since run.py reads it before anything is installed.
"""

from __future__ import annotations

import contextlib
import fnmatch
import itertools
import json
import os
import re
import shlex
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from config import STAGES, Config, StageName
from pipeline.run.errors import StageNeeded, UserError

RECIPE = "recipe.toml"
MANIFESTS = "manifests"
PROCESSED = "trn_processed.json"
REJECTED = "rejected.jsonl"
FOUNDATION_ANSWERS = "foundation_answers.json"
TRAINED_RECORDS = "trn_processed_dataset.json"
CHECKPOINTS = "checkpoints"
ADAPTER = "lora_model"
TRAINING_LOG = "training_log.jsonl"
LOSS_CURVE = "loss_curve.png"
FINETUNED_ANSWERS = "finetuned_answers.json"
MERGED_MODEL = "merged_model"
GGUF = "*.gguf"
MODELFILE = "Modelfile"
PROMPT_FORMAT = "prompt_format.json"
VECTORS = "chroma"
WORDS = "lexical.sqlite"
RAG_ANSWERS = "rag_answers.json"
RAG_FINETUNED_ANSWERS = "rag_finetuned_answers.json"
COMPARISON = "comparison.json"
COMPARISON_TEXT = "comparison.md"
COMPARISON_PAGE = "comparison.html"
STUDY = "hyperparameter_search"


@dataclass(frozen=True)
class Artifact:
    """A file or folder that a stage makes."""

    maker: StageName
    """The stage that makes it."""
    meaning: str
    """What it is, for a user."""
    is_result: bool = True
    """Whether a user wants it, or the stages alone."""


ARTIFACTS: dict[str, Artifact] = {
    PROCESSED: Artifact("process_data", "the cleaned records"),
    REJECTED: Artifact("process_data", "what could not be read, and why", is_result=False),
    FOUNDATION_ANSWERS: Artifact("foundation_model", "what the base model answers"),
    TRAINED_RECORDS: Artifact("fine_tuning", "the records that were trained on", is_result=False),
    CHECKPOINTS: Artifact("fine_tuning", "where an interrupted training goes on", is_result=False),
    ADAPTER: Artifact("fine_tuning", "the fine-tuned adapter"),
    TRAINING_LOG: Artifact("fine_tuning", "the loss during the training, as numbers", is_result=False),
    LOSS_CURVE: Artifact("fine_tuning", "the loss during the training"),
    FINETUNED_ANSWERS: Artifact("ft_test_trained_model", "what the fine-tuned model answers"),
    MERGED_MODEL: Artifact("merge_and_convert", "the fine-tuned model, safetensors"),
    GGUF: Artifact("merge_and_convert", "the fine-tuned model for llama.cpp and Ollama"),
    MODELFILE: Artifact("merge_and_convert", "for `ollama create`"),
    PROMPT_FORMAT: Artifact("merge_and_convert", "how the GGUF is asked", is_result=False),
    VECTORS: Artifact("rag_indexing", "the vector store"),
    WORDS: Artifact("rag_indexing", "the index of the words", is_result=False),
    RAG_ANSWERS: Artifact("rag_model_retriever", "what the base model answers with retrieval"),
    RAG_FINETUNED_ANSWERS: Artifact("rag_model_retriever", "what the fine-tuned model answers with retrieval"),
    COMPARISON: Artifact("compare_models", "all answers with their figures, for programs", is_result=False),
    COMPARISON_TEXT: Artifact("compare_models", "the figures, as Markdown", is_result=False),
    COMPARISON_PAGE: Artifact("compare_models", "all answers side by side, with metrics"),
    STUDY: Artifact("search_hyperparameters", "the trials of the hyperparameter search"),
    RECIPE: Artifact("process_data", "the settings of this run; --preset reads them"),
}


@dataclass(frozen=True)
class RunFolder:
    """The folder in which the stages of a run read and write."""

    path: Path
    """OUTPUT_DIR/RUN."""
    started_from: str = "demo"
    """What --preset names: a preset, or the path of a recipe."""

    @classmethod
    def of(cls, config: Config) -> RunFolder:
        """Return the folder of a run with these settings."""
        return cls(config.run_dir, config.started_from)

    def __truediv__(self, name: str) -> Path:
        """Return the path of something in the folder."""
        return self.path / name

    def __str__(self) -> str:
        """Return the path."""
        return str(self.path)

    def manifest_path(self, stage: StageName) -> Path:
        """Return where the manifest of a stage lies."""
        return self.path / MANIFESTS / f"{stage}.json"

    def has_run(self, stage: StageName) -> bool:
        """Tell whether a stage has finished here."""
        return self.manifest_path(stage).exists()

    def command(self, script: str) -> str:
        """Return the command that runs a script on this folder."""
        return shell_line(["python", *self.arguments(script)])

    def arguments(self, script: str) -> list[str]:
        """Return the script's file and the options with which it reads and writes this folder."""
        parts = [f"{script}.py"]
        if self.started_from != "demo":
            parts += _option("--preset", self.started_from)
        start, is_default = Path(self.started_from), self.path.parent == Path("outputs")
        if start != self.path / RECIPE and (start.name == RECIPE or not is_default):
            parts += _option("--output-dir", str(self.path.parent))
        return parts

    def command_again(self, stage: StageName, alike: tuple[str, ...] = (), like: StageName = "fine_tuning") -> str:
        """Return the command with which a stage last finished here, or else the one that runs it.

        Its settings are the recorded ones; the folder is this one, since it may have been copied or moved.

        Args:
            stage: name of the script without .py.
            alike: options that are taken from the command of another stage instead; `--prompt.` is all of the section.
            like: that stage.
        """
        launcher, options = self._recorded(stage)
        if alike:
            _, others = self._recorded(like)
            kept = [option for option in options if not _is_one_of(option[0], alike)]
            options = kept + [option for option in others if _is_one_of(option[0], alike)]
        return shell_line([*launcher, *self.arguments(stage), *itertools.chain(*options)])

    def _recorded(self, stage: StageName) -> tuple[list[str], list[list[str]]]:
        """Return what a stage last finished with here: what launched it, and its options with their values."""
        try:
            command = json.loads(self.manifest_path(stage).read_text(encoding="utf-8"))["command"]
            place = command.index(f"{stage}.py")
            return command[:place] or ["python"], _options(command[place + 1 :])
        except (OSError, ValueError, LookupError, TypeError, AttributeError):  # never finished, or damaged
            return ["python"], []

    def stage_needed(self, problem: str, stage: StageName, again: bool = False) -> StageNeeded:
        """Return the error that names the command which mends a problem."""
        command = self.command_again(stage) if again else self.command(stage)
        return StageNeeded(problem, stage, command, again)

    def require(self, name: str) -> Path:
        """Return the path of an artifact, or raise a StageNeeded if it does not exist."""
        path, maker = self.path / name, maker_of(name)
        if not path.exists():
            raise self.stage_needed(f"{path} does not exist yet: {maker}.py makes it.", maker)
        return path


def _option(name: str, value: str) -> list[str]:
    return [f"{name}={value}"] if value.startswith("-") else [name, value]


def _options(parts: list[str]) -> list[list[str]]:
    """Return the options of a stage with their values, without those that name its run or resume a training."""
    options: list[list[str]] = []
    for part in parts:
        if part.startswith("--"):
            options.append([part])
        else:
            options[-1].append(part)
    left_out = ("--preset", "--output-dir", "--train.resume")
    return [option for option in options if option[0].partition("=")[0].replace("_", "-") not in left_out]


def _is_one_of(option: str, names: tuple[str, ...]) -> bool:
    name = option.partition("=")[0].replace("_", "-")
    return name in names or (name.partition(".")[0] + ".") in names


def next_stage(stage: StageName) -> StageName | None:
    """Return the script to run after a stage: the one after it, the page after the last; None after what is no stage."""
    order: list[StageName] = [*STAGES, "app"]
    return order[order.index(stage) + 1] if stage in STAGES else None


def maker_of(name: str) -> StageName:
    """Return the stage that makes an artifact with this name."""
    return next(artifact.maker for pattern, artifact in ARTIFACTS.items() if fnmatch.fnmatchcase(name, pattern))


def remake(path: Path, problem: str) -> UserError:
    """Return the error for a file that is missing or damaged: in the folder of a run, it names the command that makes it."""
    run = next(
        (parent for parent in path.parents if (parent / RECIPE).exists() and (parent / MANIFESTS).is_dir()), None
    )
    if run is not None:
        name = path.relative_to(run).parts[0]
        with contextlib.suppress(StopIteration):  # nothing that a stage makes
            return RunFolder(run, str(run / RECIPE)).stage_needed(problem, maker_of(name), again=True)
    return UserError(f"{problem} Make it again, or replace it.")


def shell_line(parts: Iterable[str]) -> str:
    """Return a command line that can be pasted into a shell.

    Double quotes, where they do, are read by every shell of every system; within them, shells read some characters.
    """
    return " ".join(map(_quoted, parts))


def _quoted(part: str) -> str:
    if re.search(r'["$`!]', part) or (os.name != "nt" and "\\" in part):
        return subprocess.list2cmdline([part]) if os.name == "nt" else shlex.quote(part)
    return part if re.fullmatch(r"[\w.,:=/\\+-]+", part) else f'"{part}"'
