"""Find the checkpoint to go on from, and refuse one of a run with other settings."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from pipeline.artifacts import UserError, read_json, write_json

SETTINGS_FILE = "settings.json"


def start(folder: Path, settings: dict[str, Any]) -> None:
    """Empty the folder that the trainer saves in, and note the settings of the run as flat names and values."""
    shutil.rmtree(folder, ignore_errors=True)
    write_json(folder / SETTINGS_FILE, settings)


def find(folder: Path, settings: dict[str, Any]) -> Path:
    """Return the last checkpoint of an interrupted run that had the same settings.

    Raises:
        UserError: there is no complete checkpoint, or its run had other settings.
    """
    # trainer_state.json is written last.
    complete = [
        checkpoint for checkpoint in folder.glob("checkpoint-*") if (checkpoint / "trainer_state.json").exists()
    ]
    if not complete:
        raise UserError(f"There is no checkpoint in {folder} to resume from. Run without --train.resume.")
    before = read_json(folder / SETTINGS_FILE)
    changed = [name for name, value in settings.items() if before.get(name) != _as_json(value)]
    if changed:
        raise UserError(
            f"The interrupted run had other settings or data ({', '.join(changed)}). Give the same ones, or run without "
            "--train.resume to start anew."
        )
    return max(complete, key=step_of)


def recorded(folder: Path, name: str) -> Any:
    """Return a setting of the interrupted run; auto if there was none."""
    file = folder / SETTINGS_FILE
    return read_json(file).get(name, "auto") if file.exists() else "auto"


def step_of(checkpoint: Path) -> int:
    """Return the optimizer step at which a checkpoint was saved."""
    return int(checkpoint.name.rpartition("-")[2])


def _as_json(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
