"""Find what stages 3 and 5 made, and refuse it where it belongs to another base model."""

from __future__ import annotations

from pathlib import Path

from pipeline.artifacts import UserError, read_manifest, require


def check_base(run_dir: Path, base: str) -> None:
    """Raise a UserError if the adapter was trained on another base model than the one asked for now."""
    trained_on = read_manifest(run_dir, "fine_tuning")["settings"]["model"]["name"]
    if trained_on != base:
        raise UserError(
            f"The adapter in {run_dir / 'lora_model'} was trained on {trained_on!r}, not on {base!r}. "
            f"Give --model.name {trained_on}, or run fine_tuning.py with the other base model."
        )


def gguf_path(run_dir: Path, preset: str) -> Path:
    """Return the GGUF file of the last merge_and_convert.py."""
    require(run_dir / "manifests" / "merge_and_convert.json", "merge_and_convert", preset)
    name = read_manifest(run_dir, "merge_and_convert")["metrics"]["gguf_file"]
    return require(run_dir / name, "merge_and_convert", preset)
