"""Find what stages 3 and 5 made, and refuse what is stale: of another base model, other data or another adapter."""

from __future__ import annotations

from pathlib import Path

from config import ModelConfig
from pipeline.models.devices import best_device
from pipeline.models.language_model import Precision
from pipeline.run.errors import UserError
from pipeline.run.manifests import read_manifest, require_current, require_unchanged
from pipeline.run.run_folder import ADAPTER, MERGED_MODEL, PROMPT_FORMAT, RunFolder


def adapter_folder(run: RunFolder, base: str, data: Path) -> Path:
    """Return lora_model/, or raise a UserError if it was changed, or trained on another base model or other data."""
    folder = require_unchanged(run, ADAPTER)
    require_current(run, "fine_tuning", data)
    trained_on = base_model(run)
    if trained_on != base:
        raise UserError(
            f"The adapter in {folder} was trained on {trained_on!r}, not on {base!r}. "
            f"Give --model.name {trained_on}, or run `{run.command('fine_tuning')}` with the other base model."
        )
    return folder


def base_model(run: RunFolder) -> str:
    """Return the name of the base model that the adapter was trained on."""
    return read_manifest(run, "fine_tuning")["settings"]["model"]["name"]


def adapter_digest(run: RunFolder) -> str:
    """Return the hash of the adapter that stage 3 has trained last."""
    return read_manifest(run, "fine_tuning")["outputs"][ADAPTER]


def trained_precision(run: RunFolder, model: ModelConfig) -> Precision:
    """Return the precision that is asked for, or else that in which the base model was trained on."""
    if model.precision != "auto":
        return model.precision
    return recorded_precision(run) if best_device() == "cuda" else "16bit"


def recorded_precision(run: RunFolder) -> Precision:
    """Return the precision that the base model was trained in."""
    trained_in = read_manifest(run, "fine_tuning")["metrics"].get("precision")
    if trained_in is None:
        raise run.stage_needed("The adapter was trained by another version.", "fine_tuning", again=True)
    return trained_in


def merged_folder(run: RunFolder, data: Path) -> Path:
    """Return merged_model/, or raise a UserError if it was changed, or made from another adapter or other data."""
    require_merged_now(run, MERGED_MODEL, data)
    return require_unchanged(run, MERGED_MODEL)


def gguf_path(run: RunFolder, data: Path) -> Path:
    """Return the last GGUF file, or raise a UserError if it was changed, or made from another adapter or other data."""
    name = read_manifest(run, "merge_and_convert")["metrics"]["gguf_file"]
    require_merged_now(run, name, data)
    require_unchanged(run, PROMPT_FORMAT)
    return require_unchanged(run, name)


def require_merged_now(run: RunFolder, name: str, data: Path) -> None:
    """Raise a UserError unless merge_and_convert.py merged the adapter that was trained last, on these records."""
    inputs = read_manifest(run, "merge_and_convert")["inputs"]
    if adapter_digest(run) not in inputs.values():
        trained = f"fine_tuning.py has trained {run / ADAPTER} since"
        problem = f"{run / name} was made from another adapter: {trained}."
        raise run.stage_needed(problem, "merge_and_convert", again=True)
    require_current(run, "fine_tuning", data)
