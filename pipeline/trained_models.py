"""Find what stages 3 and 5 made, and refuse it where it belongs to another base model."""

from __future__ import annotations

from pathlib import Path

from config import ModelConfig
from pipeline.artifacts import UserError, command, read_manifest, require, require_current
from pipeline.language_model import Precision, best_device


def adapter_folder(run_dir: Path, base: str, data: Path) -> Path:
    """Return lora_model/, or raise a UserError if it was trained on another base model or on other data."""
    folder = require(run_dir / "lora_model", "fine_tuning")
    trained_on = require_current(run_dir, "fine_tuning", data)["settings"]["model"]["name"]
    if trained_on != base:
        raise UserError(
            f"The adapter in {run_dir / 'lora_model'} was trained on {trained_on!r}, not on {base!r}. "
            f"Give --model.name {trained_on}, or run `{command('fine_tuning', run_dir)}` with the other base model."
        )
    return folder


def trained_precision(run_dir: Path, model: ModelConfig) -> Precision:
    """Return the precision that is asked for, or else that in which the base model was trained on."""
    if model.precision != "auto":
        return model.precision
    trained_in = read_manifest(run_dir, "fine_tuning")["metrics"].get("precision")
    if trained_in is None:
        raise UserError(f"The adapter was trained by another version. Run `{command('fine_tuning', run_dir)}` again.")
    return trained_in if best_device() == "cuda" else "16bit"


def merged_folder(run_dir: Path) -> Path:
    """Return merged_model/ of a merge_and_convert.py that has finished."""
    read_manifest(run_dir, "merge_and_convert")
    return require(run_dir / "merged_model", "merge_and_convert")


def gguf_path(run_dir: Path) -> Path:
    """Return the GGUF file of the last merge_and_convert.py that has finished."""
    name = read_manifest(run_dir, "merge_and_convert")["metrics"]["gguf_file"]
    return require(run_dir / name, "merge_and_convert")
