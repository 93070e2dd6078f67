"""Find the checkpoint to go on from, and refuse one of a run with other settings."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from pipeline.artifacts import UserError, read_json, write_json


def prepare(folder: Path, settings: dict[str, Any], resume: bool) -> Path | None:
    """Return the checkpoint to go on from; without `resume`, empty the folder and return None.

    Args:
        folder: where the trainer saves.
        settings: what the run that goes on must have in common with the interrupted one, as flat names and values.
        resume: whether to go on.

    Raises:
        UserError: there is no complete checkpoint, or its run had other settings.
    """
    file = folder / "settings.json"
    if not resume:
        shutil.rmtree(folder, ignore_errors=True)
        write_json(file, settings)
        return None
    # trainer_state.json is written last.
    complete = [
        checkpoint for checkpoint in folder.glob("checkpoint-*") if (checkpoint / "trainer_state.json").exists()
    ]
    if not complete:
        raise UserError(f"There is no checkpoint in {folder} to resume from. Run without --train.resume.")
    before = read_json(file)
    changed = [name for name, value in settings.items() if before.get(name) != _as_json(value)]
    if changed:
        raise UserError(
            f"The interrupted run had other settings or data ({', '.join(changed)}). Give the same ones, or run without "
            "--train.resume to start anew."
        )
    return max(complete, key=step_of)


def step_of(checkpoint: Path) -> int:
    """Return the optimizer step at which a checkpoint was saved."""
    return int(checkpoint.name.rpartition("-")[2])


def _as_json(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
