"""No code comes in with a model, a record or a setting, and nothing goes out: no shell, no pickle, no call to the network."""

from __future__ import annotations

import ast
import contextlib
import io
import ipaddress
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from config import PRESETS, PROJECT_DIR, STAGES, LoraConfig, ModelConfig, RagConfig
from pipeline.models import adapter, bundled, loading, size
from pipeline.rag import embedding, reranking
from pipeline.run.errors import UserError

MODULES = sorted([*PROJECT_DIR.glob("*.py"), *(PROJECT_DIR / "pipeline").rglob("*.py")])
FORBIDDEN = {
    "eval", "exec", "compile", "__import__", "os.system", "os.popen", "subprocess.getoutput", "subprocess.getstatusoutput",
    "pickle.load", "pickle.loads", "pickle.Unpickler", "marshal.load", "marshal.loads", "shelve.open", "joblib.load",
    "yaml.load", "yaml.unsafe_load", "yaml.full_load", "runpy.run_path", "torch.hub.load",
}  # fmt: skip
# llama.cpp's converter, pinned by its hash, or the user's own with --gguf.converter; stage 5 starts it, too.
RUN_BY = {"gguf": ["runpy.run_path"]}
LOADERS = ("Model", "Tokenizer", "Config", "CausalLM", "Processor")  # ends of the names of transformers' Auto classes


def name_of(node: ast.expr) -> str:
    """`a.b.c` of an expression of names."""
    if isinstance(node, ast.Attribute):
        return f"{name_of(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def dangers(source: str) -> list[str]:
    """What in a source could run code that is not the project's."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom):
            found += [f"import of {n}" for alias in node.names if (n := f"{node.module}.{alias.name}") in FORBIDDEN]
        if not isinstance(node, ast.Call):
            continue
        name, given = name_of(node.func), {keyword.arg: keyword.value for keyword in node.keywords}
        if name in FORBIDDEN:
            found.append(name)
        for setting in ("shell", "trust_remote_code", "allow_pickle"):
            if setting in given and not (isinstance(given[setting], ast.Constant) and given[setting].value is False):
                found.append(f"{setting} in {name}")
        only = given.get("weights_only")
        if name == "torch.load" and not (isinstance(only, ast.Constant) and only.value is True):
            found.append("torch.load without weights_only")
        owner, _, method = name.rpartition(".")
        auto = owner.rpartition(".")[2].startswith("Auto") and owner.endswith(LOADERS)
        if auto and method in ("from_pretrained", "from_config") and "trust_remote_code" not in given:
            found.append(f"{name} that would ask whether to run code")
        models = auto and owner.endswith(("Model", "CausalLM")) and method == "from_pretrained"
        if models and not {"use_safetensors", "gguf_file"} & set(given):
            found.append(f"{name} that would read a pickle")
    return found


@pytest.mark.skipif(not (PROJECT_DIR / ".git").exists(), reason="this is no checkout")
def test_every_module_of_the_project_is_scanned():
    tracked = subprocess.run(["git", "ls-files", "*.py"], cwd=PROJECT_DIR, capture_output=True, text=True, check=True)
    names = {name for name in tracked.stdout.split() if name.count("/") == 0 or name.startswith("pipeline/")}
    assert names and names <= {path.relative_to(PROJECT_DIR).as_posix() for path in MODULES}


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.stem)
def test_no_module_can_run_foreign_code(path):
    assert dangers(path.read_text(encoding="utf-8")) == RUN_BY.get(path.stem, [])


@pytest.mark.parametrize("source", [
    "subprocess.run('ls', shell=True)", "subprocess.run('ls', shell=shell)", "os.system('ls')", "eval('1')",
    "pickle.loads(x)", "from pickle import loads", "yaml.load(x)", "torch.load(x)", "torch.load(x, weights_only=False)",
    "numpy.load(x, allow_pickle=True)", "AutoTokenizer.from_pretrained(x)", "AutoConfig.from_pretrained(x, trust_remote_code=yes)",
    "transformers.AutoModel.from_pretrained(x, trust_remote_code=False)", "AutoModelForCausalLM.from_config(x)",
])  # fmt: skip
def test_such_code_would_be_noticed(source):
    assert dangers(source)


@pytest.fixture
def proof(tmp_path, monkeypatch):
    """The file that code in a model would create. Whoever is asked whether to run it says yes."""
    path = tmp_path / "code_was_run"
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n" * 9))
    yield path
    assert not path.exists()


def add_code(folder: Path, proof: Path, model_type: str) -> None:
    """Put code into the folder of a model, for its configuration, its weights and its tokenizer."""
    (folder / "planted.py").write_text(f"import pathlib\npathlib.Path({str(proof)!r}).touch()\nclass Planted: pass\n")
    (folder / "__init__.py").write_text("from . import planted\n")
    config = json.loads((folder / "config.json").read_text())
    classes = ("AutoConfig", "AutoModel", "AutoModelForCausalLM", "AutoModelForSequenceClassification")
    config |= {"model_type": model_type, "auto_map": dict.fromkeys(classes, "planted.Planted")}
    (folder / "config.json").write_text(json.dumps(config))
    path = folder / "tokenizer_config.json"
    tokenizer = json.loads(path.read_text()) | {"auto_map": {"AutoTokenizer": ["planted.Planted", "planted.Planted"]}}
    if model_type == "planted":
        tokenizer["tokenizer_class"] = "Planted"
    path.write_text(json.dumps(tokenizer))


@pytest.fixture(params=["llama", "planted"])
def model_with_code(request, tiny_model, tmp_path, proof):
    """A model of a known architecture that brings code, and one that cannot be loaded without."""
    folder = tmp_path / "model"
    shutil.copytree(tiny_model("llama"), folder)
    add_code(folder, proof, request.param)
    if request.param == "planted":
        with contextlib.suppress(Exception):
            transformers.AutoConfig.from_pretrained(folder, trust_remote_code=True)
        assert proof.exists()  # it would run
        proof.unlink()
    return folder


@pytest.fixture
def known(request):
    """Whether transformers has the architecture of model_with_code."""
    return request.node.callspec.params["model_with_code"] == "llama"


def loads(load) -> bool:
    """Whether a model can be loaded; where it cannot, that is one sentence."""
    try:
        load()
    except UserError as error:
        assert "could not be loaded" in str(error) or "comes with code of its own, which is never run" in str(error)
        return False
    return True


def test_code_of_a_base_model_is_not_run(model_with_code, known, proof):
    config = ModelConfig(name=str(model_with_code))
    assert loads(lambda: size.model_size(config, LoraConfig())) == known
    assert loads(lambda: loading.load_base(config, "16bit")) == known
    assert loads(lambda: loading.load_for_merging(config, "16bit")) == known


def test_code_of_a_tokenizer_is_not_run(model_with_code, tiny_model, known, proof):
    shutil.copyfile(tiny_model("llama") / "config.json", model_with_code / "config.json")
    config = ModelConfig(name=str(model_with_code))
    assert loads(lambda: loading.load_base(config, "16bit")) == known


def test_an_adapter_brings_neither_code_nor_another_base(made, model_with_code, tmp_path, proof):
    folder = tmp_path / "adapter"
    shutil.copytree(made.path / "lora_model", folder)
    path = folder / "adapter_config.json"
    planted = {
        "base_model_name_or_path": str(model_with_code),
        "auto_mapping": {"base_model_class": "Planted", "parent_library": "planted"},
    }
    path.write_text(json.dumps(json.loads(path.read_text()) | planted))
    shutil.copyfile(model_with_code / "planted.py", folder / "planted.py")
    base = loading.load_base(ModelConfig(name=str(made.model)), "16bit")
    tuned = adapter.load_adapter(base, folder)
    assert tuned.model.get_base_model().config.name_or_path == str(made.model)


@pytest.fixture
def embedder_with_code(tmp_path, proof):
    """An embedding model whose configuration and modules name code of its own."""
    folder = tmp_path / "embedder"
    shutil.copytree(bundled.resolve("bundled/all-MiniLM-L6-v2"), folder)
    return folder


@pytest.mark.parametrize("model_type", ["bert", "planted"])
def test_code_of_an_embedding_model_and_of_a_reranker_is_not_run(embedder_with_code, model_type, proof):
    add_code(embedder_with_code, proof, model_type)
    name = str(embedder_with_code)
    assert loads(lambda: embedding.load_embeddings(RagConfig(embedding_model=name))) == (model_type == "bert")
    # A reranker has a head.
    weights = embedder_with_code / "model.safetensors"
    head = {"classifier.weight": torch.zeros(1, 384), "classifier.bias": torch.zeros(1)}
    save_file({f"bert.{key}": weight for key, weight in load_file(weights).items()} | head, weights)
    (embedder_with_code / "modules.json").unlink()
    settings = json.loads((embedder_with_code / "config.json").read_text())
    (embedder_with_code / "config.json").write_text(json.dumps(settings | {"id2label": {"0": "relevance"}}))
    assert loads(lambda: reranking.load_reranker(name)) == (model_type == "bert")


def test_code_of_a_module_of_an_embedding_model_is_not_run(embedder_with_code, proof):
    add_code(embedder_with_code, proof, "bert")
    modules = embedder_with_code / "modules.json"
    described = json.loads(modules.read_text())
    described[-1]["type"] = "planted.Planted"
    modules.write_text(json.dumps(described))
    assert not loads(lambda: embedding.load_embeddings(RagConfig(embedding_model=str(embedder_with_code))))


HOSTILE = ("../../x", "/etc/x", "..\\..\\x", "a/../../b", "\0nul", "con", "~/x", "$(touch x)", "`touch x`", "; touch x")


def test_records_never_name_files(tmp_path, capsys):
    import process_data
    import rag_indexing
    import rag_search_vs

    source, outputs = tmp_path / "in" / "rows.jsonl", tmp_path / "a" / "b" / "outputs"
    source.parent.mkdir()
    content = "A text that is long enough to be kept by the cleaning of this project."
    rows = [{"title": text, "content": f"{content} {text}", "a/../../field": f"../{text}"} for text in HOSTILE]
    source.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    demo = PRESETS["demo"]
    data = replace(demo.data, input=source, metadata=("a/../../field",))
    config = replace(demo, output_dir=outputs, data=data)
    before = {path for path in tmp_path.rglob("*") if not path.is_relative_to(outputs)}
    process_data.run(config)
    rag_indexing.run(config)
    for title in HOSTILE:
        rag_search_vs.run(config, rag_search_vs.SearchOptions(query=title))
        where = replace(config, rag=replace(config.rag, where=(f"a/../../field=../{title}",)))
        rag_search_vs.run(where, rag_search_vs.SearchOptions(query=title))
    made = {path for path in tmp_path.rglob("*") if not path.is_relative_to(outputs)}
    assert made - before == {outputs.parent, outputs.parent.parent}
    names = {path.name for path in (outputs / "demo").iterdir()}
    assert names == {"trn_processed.json", "rejected.jsonl", "manifests", "chroma", "lexical.sqlite", "recipe.toml"}


@pytest.mark.parametrize(
    ("stage", "options", "status"),
    [
        ("process_data", ["--preset", "../x"], 2),
        ("process_data", ["--preset", "a/b"], 2),
        ("merge_and_convert", ["--gguf.file-name", "../x.gguf"], 2),
        ("rag_indexing", ["--rag.collection", "../x"], 2),
    ],
)
def test_names_that_are_paths_are_refused(run, stage, options, status):
    before = {path for path in run.folder.parent.rglob("*") if "chroma" not in path.parts}
    ended = run.stage(stage, *options)
    assert ended.status == status and "Traceback" not in ended.errors and options[1] in ended.errors
    assert {path for path in run.folder.parent.rglob("*") if "chroma" not in path.parts} - before == set()


def test_llama_cpp_listens_on_this_machine_alone(made):
    from pipeline.models.llama_cpp import GgufModel

    gguf = GgufModel(made.path / "model-f32.gguf", prompt_format=None)
    try:
        assert gguf.tokenize("a")
        listening = [c for c in psutil.Process().net_connections("inet") if c.status == psutil.CONN_LISTEN]
        assert listening and all(ipaddress.ip_address(c.laddr.ip).is_loopback for c in listening)
    finally:
        gguf.close()


GUARD = """
import ipaddress, os, sys


def outside(host):
    try:
        return not ipaddress.ip_address(str(host)).is_loopback
    except ValueError:
        return host not in (None, "", "localhost", b"localhost")


def refuse(event, arguments):
    host = None
    if event in ("socket.connect", "socket.sendto") and isinstance(arguments[1], tuple):
        host = arguments[1][0]
    elif event in ("socket.getaddrinfo", "socket.gethostbyname"):
        host = arguments[0]
    elif event == "socket.bind" and isinstance(arguments[1], tuple):
        host = arguments[1][0] or "0.0.0.0"
    if host is not None and outside(host):
        with open(os.environ["CALLS"], "a") as file:
            file.write(f"{event} {host} by {' '.join(sys.argv)}\\n")
        raise OSError(f"{event} {host} is refused")


sys.addaudithook(refuse)
"""
ALL_STAGES = """
import importlib, json, sys
for arguments in json.loads(sys.argv[1]):
    sys.argv = arguments
    try:
        importlib.import_module(arguments[0].removesuffix(".py")).main()
    except SystemExit as end:
        if end.code:
            raise
"""


@pytest.fixture
def guarded(tmp_path):
    """A function that runs Python where each call to the network is refused and noted; returns (process, notes)."""
    (tmp_path / "guard").mkdir()
    (tmp_path / "guard" / "sitecustomize.py").write_text(GUARD)
    calls = tmp_path / "calls"
    kept = {name: value for name, value in os.environ.items() if "OFFLINE" not in name and "TELEMETRY" not in name}
    environment = {**kept, "PYTHONPATH": str(tmp_path / "guard"), "CALLS": str(calls)}

    def run(*arguments: str) -> tuple[subprocess.CompletedProcess, str]:
        command = [sys.executable, *arguments]
        done = subprocess.run(
            command, cwd=PROJECT_DIR, env=environment, capture_output=True, text=True, encoding="utf-8"
        )
        return done, calls.read_text() if calls.exists() else ""

    return run


def test_the_guard_notices_calls(guarded):
    for call in (
        "socket.create_connection(('192.0.2.1', 80))",
        "urllib.request.urlopen('http://example.org')",
        "socket.socket().bind(('', 0))",
    ):
        done, notes = guarded("-c", f"import socket, urllib.request; {call}")
        assert done.returncode and "is refused" in done.stderr and notes


def test_no_stage_calls_the_outside(guarded, made, tmp_path):
    outputs = replace(made, folder=tmp_path / "outputs")
    commands = [outputs.arguments(stage) for stage in STAGES]
    done, notes = guarded("-c", ALL_STAGES, json.dumps(commands))
    assert done.returncode == 0, done.stderr
    assert (outputs.path / "comparison.html").exists()
    assert notes == ""
