"""What a run left: read whole, without times, so that two runs can be compared."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import sqlite3
from pathlib import Path
from typing import Any

TIMES = {"seconds", "started", "samples_per_second", "tokens_per_second", "peak_memory_gib", "command", "hours"}
# Of a run that goes on: what it had left to do, and names that are drawn or counted: of a folder of Chroma, of a trial.
SESSION = {
    "graph_bytes",
    "trial",
    "best trial",
    "resume",
    "mean_training_loss",
    "added",
    "unchanged",
    "backend",
    "device",
    "precision",
}
CLOSE = 1e-3  # of numbers that a resumed training, or a batch of other texts, may round otherwise
# Folders of other programs, which say themselves what in them is complete.
FOREIGN = ("chroma", "checkpoints", "hyperparameter_search")


def result(run_dir: Path) -> dict[str, Any]:
    """Return the content of every file of a run by its name; that of the index piece by piece."""
    found: dict[str, Any] = {}
    for path in files(run_dir):
        name = path.relative_to(run_dir)
        if path.suffix in (".json", ".jsonl"):
            lines = path.read_text(encoding="utf-8").splitlines() if path.suffix == ".jsonl" else [path.read_text()]
            found[str(name)] = [without_times(json.loads(line)) for line in lines]
        elif path.suffix == ".sqlite":
            with contextlib.closing(sqlite3.connect(path)) as database:
                found[str(name)] = database.execute("SELECT id, title, text FROM pieces ORDER BY id").fetchall()
        else:
            found[str(name)] = hashlib.sha256(path.read_bytes()).hexdigest()
    if (run_dir / "chroma").exists():
        found["chroma"] = pieces(run_dir)
    searched = run_dir / "hyperparameter_search" / "result.json"
    if searched.exists():
        found["search"] = without_times(json.loads(searched.read_text(encoding="utf-8")))
    return found


def files(run_dir: Path) -> list[Path]:
    """Return the files that have a final name."""
    paths = (path for path in run_dir.rglob("*") if path.is_file())
    names = ((path, path.relative_to(run_dir).parts) for path in paths)
    return sorted(p for p, parts in names if parts[0] not in FOREIGN and not any(x.startswith(".") for x in parts))


def without_times(value: Any) -> Any:
    """Return JSON without what two runs of the same never have in common."""
    if isinstance(value, dict):
        return {key: without_times(item) for key, item in value.items() if key not in TIMES | SESSION}
    return [without_times(item) for item in value] if isinstance(value, list) else value


def pieces(run_dir: Path) -> dict[str, Any]:
    """Return the pieces in Chroma with their vectors, each of which a search for it must find.

    Raises:
        AssertionError: the vectors are not those that are searched.
    """
    import chromadb
    import numpy
    from chromadb.api.shared_system_client import SharedSystemClient

    SharedSystemClient.clear_system_cache()  # the folder may be another one of this name
    (collection,) = chromadb.PersistentClient(str(run_dir / "chroma")).list_collections()
    found = collection.get(include=["documents", "metadatas", "embeddings"])
    vectors = numpy.array(found["embeddings"])
    nearest = collection.query(vectors, n_results=1, include=["distances"])["distances"]
    lost = sum(distances[0] > CLOSE for distances in nearest)
    assert lost <= len(vectors) // 100, f"{lost} of {len(vectors)} vectors are not found"  # the search is approximate
    SharedSystemClient.clear_system_cache()
    texts = zip(found["documents"], found["metadatas"], vectors.tolist(), strict=True)
    return dict(sorted(zip(found["ids"], map(list, texts), strict=True)))


def differences(expected: dict[str, Any], found: dict[str, Any]) -> list[str]:
    """Return what of a run is otherwise than expected, in words."""
    words = []
    for name in sorted(expected.keys() | found.keys()):
        if name not in expected or name not in found:
            words.append(f"{name} is {'new' if name in found else 'lost'}")
        elif not equal(expected[name], found[name]):
            words.append(f"{name} is different: {first_difference(expected[name], found[name])}")
    return words


def first_difference(one: Any, other: Any) -> str:
    """Return where two values differ, and the values there, in words."""
    if isinstance(one, dict) and isinstance(other, dict) and one.keys() == other.keys():
        key = next(key for key in one if not equal(one[key], other[key]))
        return f"{key} {first_difference(one[key], other[key])}"
    if isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)) and len(one) == len(other):
        place = next(n for n, pair in enumerate(zip(one, other, strict=True)) if not equal(*pair))
        return f"[{place}] {first_difference(one[place], other[place])}"
    return f"{str(one)[:100]}, {str(other)[:100]}"


def equal(one: Any, other: Any) -> bool:
    """Tell whether two values are the same, numbers to CLOSE."""
    if isinstance(one, float) and isinstance(other, (int, float)):
        return math.isclose(one, other, rel_tol=CLOSE, abs_tol=CLOSE)
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(equal(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)):
        return len(one) == len(other) and all(map(equal, one, other))
    return one == other


def incomplete(run_dir: Path, complete: dict[str, Any]) -> list[str]:
    """Return the files and folders under a final name that are not complete.

    Args:
        run_dir: outputs of a run that was killed.
        complete: what a finished run left; its folders have the same files.
    """
    wrong = []
    for path in files(run_dir):
        try:
            check_whole(path)
        except (ValueError, EOFError, AssertionError, sqlite3.Error) as error:
            wrong.append(f"{path.relative_to(run_dir)} ({error})")
    for folder in ("lora_model", "merged_model"):
        names = {str(path.relative_to(run_dir)) for path in (run_dir / folder).rglob("*")}
        if names and names != {name for name in complete if Path(name).parts[0] == folder}:
            wrong.append(folder)
    return wrong


def check_whole(path: Path) -> None:
    """Raise an error if a file of ours was cut off."""
    content = path.read_bytes()
    if path.suffix == ".json":
        json.loads(content)
    elif path.suffix == ".jsonl":
        lines = content.splitlines()
        for line in lines[:-1] if path.name == "training_log.jsonl" else lines:  # it grows as the training goes on
            json.loads(line)
    elif path.suffix == ".safetensors":
        header = int.from_bytes(content[:8], "little")
        tensors = json.loads(content[8 : 8 + header])
        last = max(t["data_offsets"][1] for name, t in tensors.items() if name != "__metadata__")
        assert len(content) == 8 + header + last
    elif path.suffix == ".gguf":
        from gguf import GGUFReader

        tensor = GGUFReader(path).tensors[-1]
        assert len(content) >= tensor.data_offset + tensor.n_bytes
    elif path.suffix == ".sqlite":
        with contextlib.closing(sqlite3.connect(path)) as database:
            assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    elif path.suffix == ".png":
        assert content.endswith(b"IEND\xaeB`\x82")
    elif path.suffix == ".html":
        assert content.rstrip().endswith(b"</html>")
    else:
        assert content, "empty"
