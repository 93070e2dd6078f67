"""The files with what each model answered: written with what the answers were made from, and refused where that is mixed."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from config import GenerationConfig
from pipeline.artifacts import StageNeeded, UserError, command, read_json, write_json
from pipeline.manifests import manifest_path, read_manifest
from pipeline.trained_models import adapter_digest, base_model

BASE, DATA, ADAPTER, INDEX = "base model", "trn_processed.json", "lora_model", "index"
"""What answers are made from."""
OF_IT = {BASE: "base models", DATA: "cleaned records", ADAPTER: "adapters", INDEX: "pieces in the index"}


def made_from(run_dir: Path, base: str, *parts: str) -> dict[str, str]:
    """Return what tells whether answers belong together.

    Args:
        run_dir: OUTPUT_DIR/PRESET.
        base: name of the base model.
        parts: DATA, ADAPTER, INDEX, where the answers depend on them.
    """
    now = present(run_dir)
    return {BASE: base, **{part: now[part] for part in parts}}


def present(run_dir: Path) -> dict[str, str]:
    """Return what answers would be made from now, of what there is."""
    found = {}
    if manifest_path(run_dir, "process_data").exists():
        found[DATA] = read_manifest(run_dir, "process_data")["outputs"].get(DATA)
    if manifest_path(run_dir, "fine_tuning").exists():
        found |= {ADAPTER: adapter_digest(run_dir), BASE: base_model(run_dir)}
    if manifest_path(run_dir, "rag_indexing").exists():
        manifest = read_manifest(run_dir, "rag_indexing")
        rag, tokens = manifest["settings"]["rag"], manifest["metrics"]["chunk_tokens"]
        found[INDEX] = f"{rag['embedding_model']}, {tokens} tokens, {rag['chunk_overlap_tokens']} of them repeated"
    return found


def save(
    path: Path, model: str, source: dict[str, str], generation: GenerationConfig, entries: list[dict[str, Any]]
) -> Path:
    """Write the answers of one model; `source` comes from made_from."""
    settings = dataclasses.asdict(generation)
    return write_json(path, {"model": model, "made_from": source, "generation": settings, "answers": entries})


def read(path: Path, stage: str) -> dict[str, Any]:
    """Return what an answers file holds, or raise a UserError that names the stage that makes it."""
    import msgspec

    texts = [(name, str) for name in ("title", "split", "reference", "answer")]
    source = msgspec.defstruct("Source", [("title", str), ("text", str), ("score", float)])
    optional = [("sources", list[source] | None, None), ("cited", str | None, None), ("support", float | None, None)]
    optional += [("reference_loss", float | None, None), ("reference_tokens", int | None, None)]
    entry = msgspec.defstruct("Entry", [*texts, ("tokens", int), ("ended", bool), ("seconds", float), *optional])
    fields = [("model", str), ("made_from", dict[str, str]), ("generation", dict[str, Any]), ("answers", list[entry])]
    try:
        content = read_json(path)
        checked = msgspec.convert(content, msgspec.defstruct("Answers", fields))
    except (UserError, msgspec.ValidationError) as error:
        problem = f"{path} is damaged or of another version ({error})."
        raise StageNeeded(problem, stage, path.parent, again=True) from error
    if not checked.answers:
        raise StageNeeded(f"{path} holds no answer.", stage, path.parent, again=True)
    return content


def check_made_from(run_dir: Path, files: dict[str, dict[str, Any]], stages: dict[str, str]) -> list[str]:
    """Check that answers can be compared, and return warnings about what they are older than.

    Args:
        run_dir: OUTPUT_DIR/PRESET.
        files: for each column, what its answers file holds.
        stages: for each column, the stage that makes it.

    Raises:
        UserError: the columns were made from different things, or from an adapter that is gone.
    """
    now, warnings = present(run_dir), []
    for part, of_it in OF_IT.items():
        used = {column: file["made_from"][part] for column, file in files.items() if part in file["made_from"]}
        old = [column for column, value in used.items() if value != now.get(part, value)]
        again = f"Run {_commands(run_dir, stages, old or used)} again"
        if len(set(used.values())) > 1:
            named = f" (--model.name): {', '.join(dict.fromkeys(used.values()))}" if part == BASE else ""
            raise UserError(f"{' and '.join(used)} come from different {of_it}{named}. {again}, alike.")
        if old and part == ADAPTER:
            raise UserError(f"{' and '.join(old)} come from an adapter that has been trained anew since. {again}.")
        if old and part != BASE:
            warnings.append(f"{' and '.join(old)} come from {of_it} that have changed since. {again}.")
    return warnings


def _commands(run_dir: Path, stages: dict[str, str], columns: Iterable[str]) -> str:
    return " and ".join(dict.fromkeys(f"`{command(stages[column], run_dir)}`" for column in columns))
