"""The manifest of a stage: what it was given and what it made, by which the next tells whether that still holds."""

from __future__ import annotations

import contextlib
import dataclasses
import platform
import sys
import time
from collections.abc import Iterable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

from pipeline.artifacts import StageNeeded, UserError, file_hash, read_json, require, write_json

REPORTED_PACKAGES = (
    "torch", "transformers", "trl", "peft", "bitsandbytes", "unsloth", "datasets", "accelerate",
    "langchain", "langchain-chroma", "langchain-huggingface", "chromadb", "sentence-transformers", "gguf", "xllamacpp",
)  # fmt: skip


def manifest_path(run_dir: Path, stage: str) -> Path:
    """Return where the manifest of a stage lies."""
    return run_dir / "manifests" / f"{stage}.json"


def withdraw_manifest(run_dir: Path, stage: str) -> None:
    """Remove the manifest of a stage, whose outputs are about to change: until it has another, no reader takes them."""
    manifest_path(run_dir, stage).unlink(missing_ok=True)


def read_manifest(run_dir: Path, stage: str) -> dict[str, Any]:
    """Return the manifest of a stage that has been run; if it is missing, the stage did not finish."""
    path = manifest_path(run_dir, stage)
    if not path.exists():
        raise StageNeeded(f"{stage}.py has not finished in {run_dir}.", stage, run_dir)
    damaged = StageNeeded(f"{path} is damaged or of another version.", stage, run_dir, again=True)
    try:
        manifest = read_json(path)
    except UserError as error:
        raise damaged from error
    parts = ("settings", "inputs", "outputs", "metrics")
    if not isinstance(manifest, dict) or any(not isinstance(manifest.get(part), dict) for part in parts):
        raise damaged
    return manifest


def require_unchanged(run_dir: Path, stage: str, name: str) -> Path:
    """Return the file or folder that a stage wrote under a name, or raise a StageNeeded if it is missing or another."""
    path = require(run_dir / name, stage)
    if read_manifest(run_dir, stage)["outputs"].get(name) != file_hash(path):
        raise StageNeeded(f"{path} is not what {stage}.py left when it last finished.", stage, run_dir, again=True)
    return path


@contextlib.contextmanager
def unchanged(run_dir: Path, stage: str, manifest: dict[str, Any]) -> Iterator[None]:
    """Be the block that reads the outputs of a stage, which may have been of two runs if the stage ran meanwhile.

    Args:
        manifest: that of the stage, read before the block.

    Raises:
        UserError: the stage has run since, or is at work: it has no manifest while it changes its outputs.
    """

    def require_same() -> None:
        path = manifest_path(run_dir, stage)
        if not path.exists() or read_json(path) != manifest:
            raise UserError(
                f"{stage}.py has changed what it made in {run_dir} while it was being read. Run this again when it has ended."
            )

    try:
        yield
    except Exception:  # what is half changed may be read in error
        require_same()
        raise
    require_same()


def require_current(run_dir: Path, stage: str, source: Path) -> dict[str, Any]:
    """Return the manifest of a stage, or raise a UserError if `source` has changed since the stage read it."""
    manifest = read_manifest(run_dir, stage)
    recorded = {Path(name).name: digest for name, digest in manifest["inputs"].items()}
    if recorded.get(source.name) != file_hash(source):
        raise StageNeeded(f"{source} has changed since {stage}.py read it.", stage, run_dir, again=True)
    return manifest


def installed_versions() -> dict[str, str]:
    """Return the versions of the packages whose behaviour shapes the outputs."""
    versions = {"python": platform.python_version()}
    for name in REPORTED_PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    return versions


@contextlib.contextmanager
def stage_manifest(
    run_dir: Path, stage: str, settings: dict[str, object], inputs: list[Path], outputs: Iterable[str] = ()
) -> Iterator[dict[str, Any]]:
    """Yield a dictionary for the metrics of a stage; when the block ends without an error, write the manifest.

    No other run of the stage on the same outputs can go on meanwhile. A run that fails leaves the manifest of the one
    before, whose outputs are still there.

    Args:
        run_dir: OUTPUT_DIR/PRESET.
        stage: name of the script without .py.
        settings: names of sections and their dataclasses; a secret is never in one.
        inputs: what the stage reads.
        outputs: names in run_dir of what it writes for later stages, which tell by the hash whether that has changed.
    """
    with only_one(run_dir, stage):
        started = time.time()
        inputs_hashes = {str(path): file_hash(path) for path in inputs}
        metrics: dict[str, Any] = {}
        yield metrics
        plain = {k: dataclasses.asdict(v) if dataclasses.is_dataclass(v) else v for k, v in settings.items()}
        write_json(
            manifest_path(run_dir, stage),
            {
                "stage": stage,
                "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
                "started": time.strftime("%Y-%m-%dT%H:%M:%S%z", time.localtime(started)),
                "seconds": round(time.time() - started, 3),
                "settings": plain,
                "inputs": inputs_hashes,
                "outputs": {name: file_hash(run_dir / name) for name in outputs},
                "metrics": metrics,
                "platform": platform.platform(),
                "versions": installed_versions(),
            },
        )


@contextlib.contextmanager
def only_one(run_dir: Path, stage: str) -> Iterator[None]:
    """Let no other process run a stage on the same outputs; the lock ends with the process, however that ends."""
    import filelock

    path = manifest_path(run_dir, stage).with_name(f".{stage}.lock")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with filelock.FileLock(path, timeout=0):
            yield
    except filelock.Timeout as error:
        raise UserError(
            f"Another {stage}.py is at work on {run_dir}. Wait for it to end, or give another --output-dir."
        ) from error
