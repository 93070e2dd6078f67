"""The manifest of a stage: what it was given and what it made, by which the next tells whether that still holds."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import platform
import sys
import time
from collections.abc import Iterable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

from config import SECTIONS, Config, StageName
from pipeline.run import recipe
from pipeline.run.errors import UserError
from pipeline.run.files import file_hash, read_json, write_json
from pipeline.run.run_folder import RunFolder, maker_of

REPORTED_PACKAGES = (
    "torch", "transformers", "trl", "peft", "bitsandbytes", "unsloth", "datasets", "accelerate",
    "langchain-core", "langchain-chroma", "langchain-huggingface", "chromadb", "sentence-transformers", "gguf", "xllamacpp",
)  # fmt: skip


def withdraw_manifest(run: RunFolder, stage: StageName) -> None:
    """Remove the manifest of a stage, whose outputs are about to change: until it has another, no reader takes them."""
    run.manifest_path(stage).unlink(missing_ok=True)


def read_manifest(run: RunFolder, stage: StageName) -> dict[str, Any]:
    """Return the manifest of a stage that has been run; if it is missing, the stage did not finish."""
    path = run.manifest_path(stage)
    if not path.exists():
        raise run.stage_needed(f"{stage}.py has not finished in {run}.", stage)
    damaged = run.stage_needed(f"{path} is damaged or of another version.", stage, again=True)
    try:
        manifest = read_json(path)
    except UserError as error:
        raise damaged from error
    parts = ("settings", "inputs", "outputs", "metrics")
    if not isinstance(manifest, dict) or any(not isinstance(manifest.get(part), dict) for part in parts):
        raise damaged
    return manifest


def require_unchanged(run: RunFolder, name: str) -> Path:
    """Return the artifact of a name as its stage wrote it, or raise a StageNeeded if it is missing or another."""
    path, stage = run.require(name), maker_of(name)
    if read_manifest(run, stage)["outputs"].get(name) != file_hash(path):
        raise run.stage_needed(f"{path} is not what {stage}.py left when it last finished.", stage, again=True)
    return path


@contextlib.contextmanager
def guard_against_rerun(run: RunFolder, stage: StageName, manifest: dict[str, Any]) -> Iterator[None]:
    """Be the block that reads the outputs of a stage, which may have been of two runs if the stage ran meanwhile.

    Args:
        manifest: that of the stage, read before the block.

    Raises:
        UserError: the stage has run since, or is at work: it has no manifest while it changes its outputs.
    """

    def require_same() -> None:
        path = run.manifest_path(stage)
        if not path.exists() or read_json(path) != manifest:
            raise UserError(
                f"{stage}.py has changed what it made in {run} while it was being read. Run this again when it has ended."
            )

    try:
        yield
    except Exception:  # what is half changed may be read in error
        require_same()
        raise
    require_same()


def require_current(run: RunFolder, stage: StageName, source: Path) -> dict[str, Any]:
    """Return the manifest of a stage, or raise a UserError if `source` has changed since the stage read it."""
    manifest = read_manifest(run, stage)
    recorded = {Path(name).name: digest for name, digest in manifest["inputs"].items()}
    if recorded.get(source.name) != file_hash(source):
        raise run.stage_needed(f"{source} has changed since {stage}.py read it.", stage, again=True)
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
    config: Config, stage: StageName, inputs: list[Path], outputs: Iterable[str] = ()
) -> Iterator[dict[str, Any]]:
    """Yield a dictionary for the metrics of a stage; when the block ends without an error, write the manifest.

    No other run of the stage on the same outputs can go on meanwhile. A run that fails leaves the manifest of the one
    before, whose outputs are still there.

    Args:
        config: the settings, of which the sections that the stage reads are noted, here and in recipe.toml.
        stage: name of the script without .py.
        inputs: what the stage reads.
        outputs: names of what it writes for later stages, which tell by the hash whether that has changed.
    """
    run = RunFolder.of(config)
    with only_one(run, stage):
        started = time.time()
        inputs_hashes = {str(path): file_hash(path) for path in inputs}
        metrics: dict[str, Any] = {}
        yield metrics
        recipe.save(config, stage)
        write_json(
            run.manifest_path(stage),
            {
                "stage": stage,
                "command": _command_line(run, stage),
                "started": time.strftime("%Y-%m-%dT%H:%M:%S%z", time.localtime(started)),
                "seconds": round(time.time() - started, 3),
                "settings": {section: dataclasses.asdict(getattr(config, section)) for section in SECTIONS[stage]},
                "inputs": inputs_hashes,
                "outputs": {name: file_hash(run / name) for name in outputs},
                "metrics": metrics,
                "platform": platform.platform(),
                "versions": installed_versions(),
            },
        )


def _command_line(run: RunFolder, stage: StageName) -> list[str]:
    """Return the command of this process, or, where a program has called run(), the one of the same stage."""
    if Path(sys.argv[0]).stem != stage:
        return run.arguments(stage)
    several = ["accelerate", "launch"] if int(os.environ.get("WORLD_SIZE", "1")) > 1 else []
    return [*several, Path(sys.argv[0]).name, *sys.argv[1:]]


@contextlib.contextmanager
def only_one(run: RunFolder, stage: StageName) -> Iterator[None]:
    """Let no other process run a stage on the same outputs; the lock ends with the process, however that ends."""
    import filelock

    path = run.manifest_path(stage).with_name(f".{stage}.lock")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with filelock.FileLock(path, timeout=0):
            yield
    except filelock.Timeout as error:
        raise UserError(
            f"Another {stage}.py is at work on {run}. Wait for it to end, or give another --output-dir."
        ) from error
