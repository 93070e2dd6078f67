"""The files with what each model answered: written with what the answers were made from, and refused where that is mixed."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from config import GenerationConfig, StageName
from pipeline.models.answerer import AnsweringModel
from pipeline.models.prompts import load_prompt_format
from pipeline.models.trained import adapter_digest, base_model, recorded_precision
from pipeline.run.errors import UserError
from pipeline.run.files import read_json, write_json
from pipeline.run.manifests import read_manifest
from pipeline.run.run_folder import ADAPTER, PROCESSED, RunFolder, maker_of

BASE, DATA, INDEX, PROMPT, PRECISION = "base model", PROCESSED, "index", "prompt format", "precision"
"""What answers are made from, beside ADAPTER."""
OF_IT = {
    BASE: "base models",
    DATA: "cleaned records",
    ADAPTER: "adapters",
    INDEX: "pieces in the index",
    PROMPT: "prompt formats",
    PRECISION: "precisions",
}
NAMED = {BASE: " (--model.name): ", PRECISION: ": "}
"""What stands before the values, where a reader can do something with them."""
CHOSEN_BY = {
    BASE: ("--model.name",),
    PROMPT: ("--prompt.",),
    PRECISION: ("--model.precision", "--model", "--rag.answer-with"),
}
"""Options by which answers come to differ from the training."""


@dataclass
class _Source:
    title: str
    text: str
    score: float


@dataclass
class _Entry:
    title: str
    split: str
    reference: str
    prompt: str | None
    answer: str
    tokens: int
    ended: bool
    seconds: float
    retrieval_seconds: float | None = None
    sources: list[_Source] | None = None
    cited: str | None = None
    support: float | None = None
    reference_loss: float | None = None
    reference_tokens: int | None = None


@dataclass
class _General:
    tokens: int
    base_loss: float
    tuned_loss: float
    kl: float


@dataclass
class _Answers:
    """What an answers file must hold."""

    model: str
    runs_on: dict[str, str]
    made_from: dict[str, str]
    generation: dict[str, Any]
    answers: list[_Entry]
    general: list[_General] | None = None


def made_from(run: RunFolder, base: str, model: AnsweringModel, *parts: str) -> dict[str, str]:
    """Return what tells whether answers belong together.

    Args:
        run: the folder of the run.
        base: name of the base model.
        model: what answers.
        parts: DATA, ADAPTER, INDEX, where the answers depend on them.
    """
    now = current_sources(run)
    asked = {PROMPT: model.prompt_format.digest, PRECISION: model.runs_on["precision"]}
    return {BASE: base, **asked, **{part: now[part] for part in parts}}


def current_sources(run: RunFolder) -> dict[str, str]:
    """Return what answers would be made from now, of what there is."""
    found = {}
    if run.has_run("process_data"):
        found[DATA] = read_manifest(run, "process_data")["outputs"].get(DATA)
    if run.has_run("fine_tuning"):
        found |= {ADAPTER: adapter_digest(run), BASE: base_model(run)}
        found |= {PRECISION: recorded_precision(run), PROMPT: load_prompt_format(run / ADAPTER).digest}
    if run.has_run("rag_indexing"):
        manifest = read_manifest(run, "rag_indexing")
        rag, tokens = manifest["settings"]["rag"], manifest["metrics"]["chunk_tokens"]
        found[INDEX] = f"{rag['embedding_model']}, {tokens} tokens, {rag['chunk_overlap_tokens']} of them repeated"
        if prefix := manifest["metrics"].get("document_prefix"):  # manifests of old have none
            found[INDEX] += f", behind {prefix!r}"
    return found


def save(
    path: Path,
    model: AnsweringModel,
    name: str,
    source: dict[str, str],
    generation: GenerationConfig,
    entries: list[dict[str, Any]],
    general: list[dict[str, float]] | None = None,
) -> Path:
    """Write the answers of one model; `source` comes from made_from, `general` from compare_with_base."""
    content: dict[str, Any] = {"model": name, "runs_on": model.runs_on, "made_from": source}
    content |= {"generation": dataclasses.asdict(generation), "answers": entries, "general": general}
    return write_json(path, content)


def read(run: RunFolder, name: str) -> dict[str, Any]:
    """Return what an answers file holds, or raise a StageNeeded that names the stage that makes it."""
    import msgspec

    path = run / name
    try:
        content = read_json(path)
        checked = msgspec.convert(content, _Answers)
    except (UserError, msgspec.ValidationError) as error:
        problem = f"{path} is damaged or of another version ({error.__cause__ or error})."
        raise run.stage_needed(problem, maker_of(name), again=True) from error
    if not {PROMPT, PRECISION} <= checked.made_from.keys():
        raise run.stage_needed(f"{path} is of another version.", maker_of(name), again=True)
    if not checked.answers:
        raise run.stage_needed(f"{path} holds no answer.", maker_of(name), again=True)
    return content


def check_made_from(run: RunFolder, files: dict[str, dict[str, Any]], stages: dict[str, StageName]) -> list[str]:
    """Check that answers can be compared, and return warnings about what they are older than.

    Args:
        run: the folder of the run.
        files: for each column, what its answers file holds.
        stages: for each column, the stage that makes it.

    Raises:
        UserError: the columns were made from different things, or from an adapter that is gone.
    """
    now, warnings = current_sources(run), []
    for part, of_it in OF_IT.items():
        used = {column: file["made_from"][part] for column, file in files.items() if part in file["made_from"]}
        old = [column for column, value in used.items() if value != now.get(part, value)]
        # What was made alike before needs its own settings again; what differs needs other ones.
        as_trained = CHOSEN_BY.get(part, ())
        commands = [run.command_again(stages[c], as_trained) for c in old] or [run.command(stages[c]) for c in used]
        again = f"Run {' and '.join(f'`{command}`' for command in dict.fromkeys(commands))} again"
        if len(set(used.values())) > 1:
            named = NAMED[part] + ", ".join(dict.fromkeys(used.values())) if part in NAMED else ""
            raise UserError(f"{' and '.join(used)} come from different {of_it}{named}. {again}, alike.")
        if old and part == ADAPTER:
            raise UserError(f"{' and '.join(old)} come from an adapter that has been trained anew since. {again}.")
        if old and part != BASE:
            since = "other than the training's" if as_trained else "that have changed since"
            warnings.append(f"{' and '.join(old)} come from {of_it} {since}. {again}.")
    formats = {
        column: file["runs_on"]["compute_dtype"] for column, file in files.items() if "compute_dtype" in file["runs_on"]
    }
    if len(set(formats.values())) > 1:
        each = ", ".join(f"{column} in {name}" for column, name in formats.items())
        warnings.append(f"The models computed in different number formats: {each}. Give --model.compute-dtype to all.")
    return warnings
