"""Find the checkpoint to go on from, and refuse one of a run with other settings."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from pipeline.run.errors import UserError
from pipeline.run.files import file_hash, read_json, write_json

SETTINGS_FILE, HASHES_FILE = "settings.json", "hashes.json"
START_ANEW = "Run without --train.resume to start anew."


def start(folder: Path, settings: dict[str, Any]) -> None:
    """Empty the folder that the trainer saves in, and note the settings of the run as flat names and values."""
    # Without its settings, what is left of a run is none to go on from.
    (folder / SETTINGS_FILE).unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)
    write_json(folder / SETTINGS_FILE, settings)


def seal(checkpoint: Path) -> None:
    """Note the hashes of a checkpoint's files, once all are written: without them it counts for none."""
    # Of several processes, each saves the state of its random numbers, perhaps only now.
    files = (path for path in checkpoint.iterdir() if not path.name.startswith(("rng_state_", HASHES_FILE)))
    write_json(checkpoint / HASHES_FILE, {path.name: file_hash(path) for path in sorted(files)})


def require_whole(checkpoint: Path) -> None:
    """Raise a UserError if a file of a checkpoint is missing or another: the trainer would go on without some of them."""
    for name, digest in _read(checkpoint / HASHES_FILE).items():
        path = checkpoint / name
        if not path.exists() or file_hash(path) != digest:
            raise UserError(
                f"{path} is missing or damaged. Delete {checkpoint} to resume from the one before, if any. {START_ANEW}"
            )


def find(folder: Path, settings: dict[str, Any]) -> Path:
    """Return the last checkpoint of an interrupted run that had the same settings.

    Raises:
        UserError: there is no complete checkpoint, it is damaged, or its run had other settings.
    """
    complete = [checkpoint for checkpoint in folder.glob("checkpoint-*") if (checkpoint / HASHES_FILE).exists()]
    if not complete:
        raise UserError(f"There is no checkpoint in {folder} to resume from. {START_ANEW}")
    before = _read(folder / SETTINGS_FILE)
    changed = [name for name, value in settings.items() if before.get(name) != _as_json(value)]
    if changed:
        raise UserError(
            f"The interrupted run had other settings or data ({', '.join(changed)}). Give the same ones, or run without "
            "--train.resume to start anew."
        )
    last = max(complete, key=step_of)
    require_whole(last)
    return last


def recorded_setting(folder: Path, name: str) -> Any:
    """Return a setting of the interrupted run; auto if there was none."""
    file = folder / SETTINGS_FILE
    return _read(file).get(name, "auto") if file.exists() else "auto"


def step_of(checkpoint: Path) -> int:
    """Return the optimizer step at which a checkpoint was saved."""
    return int(checkpoint.name.rpartition("-")[2])


def _read(path: Path) -> dict[str, Any]:
    try:
        values = read_json(path)
    except (UserError, FileNotFoundError):
        values = None
    if not isinstance(values, dict):
        raise UserError(f"{path} is missing or damaged. {START_ANEW}")
    return values


def _as_json(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
