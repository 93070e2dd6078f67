"""The files with what each model answered: written with what the answers were made from, and refused where that is mixed."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from config import GenerationConfig, StageName
from pipeline.models.trained import adapter_digest, base_model
from pipeline.run.errors import UserError
from pipeline.run.files import read_json, write_json
from pipeline.run.manifests import read_manifest
from pipeline.run.run_folder import ADAPTER, PROCESSED, RunFolder, maker_of

BASE, DATA, INDEX = "base model", PROCESSED, "index"
"""What answers are made from, beside ADAPTER."""
OF_IT = {BASE: "base models", DATA: "cleaned records", ADAPTER: "adapters", INDEX: "pieces in the index"}


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
    answer: str
    tokens: int
    ended: bool
    seconds: float
    sources: list[_Source] | None = None
    cited: str | None = None
    support: float | None = None
    reference_loss: float | None = None
    reference_tokens: int | None = None


@dataclass
class _Answers:
    """What an answers file must hold."""

    model: str
    made_from: dict[str, str]
    generation: dict[str, Any]
    answers: list[_Entry]


def made_from(run: RunFolder, base: str, *parts: str) -> dict[str, str]:
    """Return what tells whether answers belong together.

    Args:
        run: the folder of the run.
        base: name of the base model.
        parts: DATA, ADAPTER, INDEX, where the answers depend on them.
    """
    now = current_sources(run)
    return {BASE: base, **{part: now[part] for part in parts}}


def current_sources(run: RunFolder) -> dict[str, str]:
    """Return what answers would be made from now, of what there is."""
    found = {}
    if run.has_run("process_data"):
        found[DATA] = read_manifest(run, "process_data")["outputs"].get(DATA)
    if run.has_run("fine_tuning"):
        found |= {ADAPTER: adapter_digest(run), BASE: base_model(run)}
    if run.has_run("rag_indexing"):
        manifest = read_manifest(run, "rag_indexing")
        rag, tokens = manifest["settings"]["rag"], manifest["metrics"]["chunk_tokens"]
        found[INDEX] = f"{rag['embedding_model']}, {tokens} tokens, {rag['chunk_overlap_tokens']} of them repeated"
    return found


def save(
    path: Path, model: str, source: dict[str, str], generation: GenerationConfig, entries: list[dict[str, Any]]
) -> Path:
    """Write the answers of one model; `source` comes from made_from."""
    settings = dataclasses.asdict(generation)
    return write_json(path, {"model": model, "made_from": source, "generation": settings, "answers": entries})


def read(run: RunFolder, name: str) -> dict[str, Any]:
    """Return what an answers file holds, or raise a StageNeeded that names the stage that makes it."""
    import msgspec

    path = run / name
    try:
        content = read_json(path)
        checked = msgspec.convert(content, _Answers)
    except (UserError, msgspec.ValidationError) as error:
        problem = f"{path} is damaged or of another version ({error})."
        raise run.stage_needed(problem, maker_of(name), again=True) from error
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
        commands = [run.command_again(stages[c]) for c in old] or [run.command(stages[c]) for c in used]
        again = f"Run {' and '.join(f'`{command}`' for command in dict.fromkeys(commands))} again"
        if len(set(used.values())) > 1:
            named = f" (--model.name): {', '.join(dict.fromkeys(used.values()))}" if part == BASE else ""
            raise UserError(f"{' and '.join(used)} come from different {of_it}{named}. {again}, alike.")
        if old and part == ADAPTER:
            raise UserError(f"{' and '.join(old)} come from an adapter that has been trained anew since. {again}.")
        if old and part != BASE:
            warnings.append(f"{' and '.join(old)} come from {of_it} that have changed since. {again}.")
    return warnings
