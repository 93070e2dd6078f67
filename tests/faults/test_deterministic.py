"""The same seed gives the same bytes, whatever the hash seed, the locale, the working folder and the number of processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from config import PROJECT_DIR
from pipeline.run import files, manifests
from pipeline.run.run_folder import RunFolder

# An ASCII locale that Python is kept from replacing by UTF-8.
ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
ENVIRONMENTS = {
    "hash seed": {"PYTHONHASHSEED": "1"},
    "ASCII": {**ASCII, "PYTHONHASHSEED": "2"},
    "UTF-8": {"LC_ALL": "C.UTF-8", "PYTHONHASHSEED": "3"},
    "Brazil": {"LC_ALL": "pt_BR.UTF-8", "LANG": "pt_BR.UTF-8", "LC_NUMERIC": "pt_BR.UTF-8", "TZ": "America/Sao_Paulo"},
}


def run(script: str, outputs: Path, *options: str, environment: dict[str, str], folder: Path = PROJECT_DIR) -> None:
    command = [sys.executable, str(PROJECT_DIR / f"{script}.py"), "--output-dir", str(outputs), *options]
    plain = {name: value for name, value in os.environ.items() if not name.startswith(("LC_", "LANG", "PYTHON"))}
    done = subprocess.run(command, cwd=folder, env=plain | environment, capture_output=True)
    assert done.returncode == 0, done.stderr.decode("utf-8", "replace")


def contents(folder: Path) -> dict[str, bytes]:
    """The bytes of each file of ours, but for manifests and logs, which hold times."""
    kept = [folder / name for name in ("trn_processed.json", "rejected.jsonl", "trn_processed_dataset.json")]
    kept += (folder / "lora_model").rglob("*")
    return {str(path.relative_to(folder)): path.read_bytes() for path in kept if path.is_file()}


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    """Records of several blocks, with duplicates that lie far apart, damaged lines, and a name that is not ASCII."""
    path = tmp_path_factory.mktemp("dados") / "çãé 商品.jsonl"
    lines = []
    for number in range(16_000):
        title = f"Coração de mãe № {number % 15_000} — 商品"
        lines.append(json.dumps({"title": title, "content": f"<p>Descrição número {number % 15_000}.</p> " * 12}))
        if number % 4_000 == 0:
            lines.append("{damaged: “é”")
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def test_cleaning(raw, tmp_path):
    expected = None
    for number, (name, environment) in enumerate(ENVIRONMENTS.items(), 1):
        folder = tmp_path / f"saída {number}"
        folder.mkdir()
        options = ["--data.input", str(raw), "--data.processes", str(number)]
        run("process_data", folder / "out", *options, environment=environment, folder=folder)
        found = contents(folder / "out" / raw.stem)
        assert len(found["trn_processed.json"]) > 5 << 20 and found["rejected.jsonl"].count(b"\n") == 4
        manifest = manifests.read_manifest(RunFolder(folder / "out" / raw.stem), "process_data")
        assert all(Path(path).samefile(raw) for path in manifest["inputs"]), name
        assert expected in (None, found), name
        expected = found


def test_training(tmp_path, tiny_model):
    options = [
        "--model.name", str(tiny_model("llama")), "--prompt.format", "alpaca", "--train.max-steps", "4",
        "--train.validation-size", "4", "--train.max-length", "64", "--train.sample-size", "40", "--lora.dropout", "0.1",
        "--generation.max-new-tokens", "2", "--model.compute-dtype", "float32",  # auto is measured, and a busy machine may differ
    ]  # fmt: skip
    found = []
    for number, name in enumerate(("hash seed", "ASCII")):
        folder = tmp_path / f"folder {number}"
        folder.mkdir()
        for script, own in (("process_data", ["--data.processes", str(number + 1)]), ("fine_tuning", options)):
            run(script, folder, *own, environment=ENVIRONMENTS[name], folder=folder)
        found.append(contents(folder / "demo"))
    assert {"trn_processed_dataset.json", "lora_model/adapter_model.safetensors"} <= found[0].keys()
    assert [name for name in found[0] if found[0][name] != found[1].get(name)] == []


def test_comparing(tmp_path):
    """The page, with its charts, the intervals, and the permutations."""
    found = []
    for name in ("hash seed", "ASCII"):
        run_dir = tmp_path / name.split()[0] / "demo"
        run("process_data", run_dir.parent, environment={})
        made = {"base model": "m", "prompt format": "p", "precision": "16bit"}
        for number, file in enumerate(("foundation_answers.json", "rag_answers.json")):
            answers = [
                {"title": f"Title {n}", "split": "test", "reference": "a wooden train set", "prompt": "p",
                 "answer": "a train " * ((7 * n) % 11) + "of wood " * (n * number), "tokens": 2 * n, "ended": True,
                 "seconds": 1.0, "reference_loss": float((5 * n + number) % 13), "reference_tokens": 1 + n}
                for n in range(24)
            ]  # fmt: skip
            files.write_json(
                run_dir / file,
                {"model": "tiny", "runs_on": {}, "made_from": made, "generation": {}, "answers": answers},
            )
        # On a busy machine, the timing that chooses the number format may choose another.
        same = ("--rag.embedding-precision", "float32")
        run("compare_models", run_dir.parent, *same, environment=ENVIRONMENTS[name])
        found.append({path.name: path.read_bytes() for path in run_dir.glob("comparison.*")})
    assert len(found[0]) == 3
    comparison = json.loads(found[0]["comparison.json"])
    assert comparison["figures"]["rouge_l"]["RAG"]["low"] is not None
    assert 0 < next(f for f in comparison["findings"] if f["metric"] == "perplexity")["difference"]["p"] < 1
    assert [name for name in found[0] if found[0][name] != found[1].get(name)] == []
