"""Find what stages 3 and 5 made, and refuse what is stale: of another base model, other data or another adapter."""

from __future__ import annotations

from pathlib import Path

from config import ModelConfig
from pipeline import prompts
from pipeline.artifacts import StageNeeded, UserError, command
from pipeline.devices import best_device
from pipeline.language_model import Precision
from pipeline.manifests import read_manifest, require_current, require_unchanged


def adapter_folder(run_dir: Path, base: str, data: Path) -> Path:
    """Return lora_model/, or raise a UserError if it was changed, or trained on another base model or other data."""
    folder = require_unchanged(run_dir, "fine_tuning", "lora_model")
    require_current(run_dir, "fine_tuning", data)
    trained_on = base_model(run_dir)
    if trained_on != base:
        raise UserError(
            f"The adapter in {run_dir / 'lora_model'} was trained on {trained_on!r}, not on {base!r}. "
            f"Give --model.name {trained_on}, or run `{command('fine_tuning', run_dir)}` with the other base model."
        )
    return folder


def base_model(run_dir: Path) -> str:
    """Return the name of the base model that the adapter was trained on."""
    return read_manifest(run_dir, "fine_tuning")["settings"]["model"]["name"]


def adapter_digest(run_dir: Path) -> str:
    """Return the hash of the adapter that stage 3 has trained last."""
    return read_manifest(run_dir, "fine_tuning")["outputs"]["lora_model"]


def trained_precision(run_dir: Path, model: ModelConfig) -> Precision:
    """Return the precision that is asked for, or else that in which the base model was trained on."""
    if model.precision != "auto":
        return model.precision
    trained_in = read_manifest(run_dir, "fine_tuning")["metrics"].get("precision")
    if trained_in is None:
        raise StageNeeded("The adapter was trained by another version.", "fine_tuning", run_dir, again=True)
    return trained_in if best_device() == "cuda" else "16bit"


def merged_folder(run_dir: Path, data: Path) -> Path:
    """Return merged_model/, or raise a UserError if it was changed, or made from another adapter or other data."""
    require_merged_now(run_dir, "merged_model", data)
    return require_unchanged(run_dir, "merge_and_convert", "merged_model")


def gguf_path(run_dir: Path, data: Path) -> Path:
    """Return the last GGUF file, or raise a UserError if it was changed, or made from another adapter or other data."""
    name = read_manifest(run_dir, "merge_and_convert")["metrics"]["gguf_file"]
    require_merged_now(run_dir, name, data)
    require_unchanged(run_dir, "merge_and_convert", prompts.FILE_NAME)
    return require_unchanged(run_dir, "merge_and_convert", name)


def require_merged_now(run_dir: Path, name: str, data: Path) -> None:
    """Raise a UserError unless merge_and_convert.py merged the adapter that was trained last, on these records."""
    inputs = read_manifest(run_dir, "merge_and_convert")["inputs"]
    if adapter_digest(run_dir) not in inputs.values():
        trained = f"fine_tuning.py has trained {run_dir / 'lora_model'} since"
        problem = f"{run_dir / name} was made from another adapter: {trained}."
        raise StageNeeded(problem, "merge_and_convert", run_dir, again=True)
    require_current(run_dir, "fine_tuning", data)
