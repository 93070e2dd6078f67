"""Credentials never reach what is printed, written or logged: those of the environment, and those in a setting."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest
from scripts import command
from servers import serving

from config import STAGES, DataConfig, JudgeConfig, ModelConfig, RagConfig
from pipeline.run.errors import UsageError
from pipeline.run.recipe import read_recipe

SECRETS = {
    "HF_TOKEN": "hf_planted1234567890",
    "OPENAI_API_KEY": "sk-planted1234567890",
    "CHROMA_CLIENT_AUTH_CREDENTIALS": "chroma-planted1234567890",
}
PLANTED = "planted0987654321"


@pytest.fixture
def planted(monkeypatch):
    """Plants SECRETS, and what makes Chroma send its own."""
    for name, secret in SECRETS.items():
        monkeypatch.setenv(name, secret)
    monkeypatch.setenv("CHROMA_CLIENT_AUTH_PROVIDER", "chromadb.auth.token_authn.TokenAuthClientProvider")


def test_no_file_and_no_line_holds_a_secret_of_the_environment(copied, planted, monkeypatch):
    done = [copied.stage(stage) for stage in STAGES]
    assert [ended.status for ended in done] == [0] * len(STAGES)
    # A server that is shown each secret, and refuses: messages and tracebacks are printed too.
    outputs = ["--output-dir", copied.folder]
    with serving(lambda request: (401, {"error": "unauthorized", "message": "not you"})) as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        monkeypatch.setenv("HF_HUB_OFFLINE", "0")
        refused = [
            command("foundation_model.py", *outputs, "--model.name", "someone/private"),
            command("rag_indexing.py", *outputs, "--rag.chroma-host", server.url.removeprefix("http://")),
            command("compare_models.py", *outputs, "--judge.url", f"{server.url}/v1", "--judge.model", "m"),
        ]
    assert [ended.returncode for ended in refused] == [1] * 3
    assert {f"Bearer {secret}" for secret in SECRETS.values()} <= {sent["authorization"] for sent in server.requests}
    printed = "".join(
        [ended.printed + ended.errors for ended in done] + [ended.stdout + ended.stderr for ended in refused]
    )
    written = [path.read_bytes() for path in copied.folder.rglob("*") if path.is_file()]
    assert len(written) > 30
    for secret in SECRETS.values():
        assert secret not in printed
        assert not any(secret.encode() in content for content in written)


# What a shell or a user may write for a place, with a credential in it.
PLACES = [
    ("compare_models", "--judge.url", f"http://user:{PLANTED}@127.0.0.1:9/v1"),
    ("compare_models", "--judge.url", f"HTTPS://{PLANTED}@host/v1"),
    ("compare_models", "--judge.url", f"http://127.0.0.1:9/v1?api_key={PLANTED}"),
    ("compare_models", "--judge.url", f"http://127.0.0.1:9/v1#{PLANTED}"),
    ("compare_models", "--judge.url", f"http://user:{PLANTED}"),
    ("compare_models", "--judge.url", f"user:{PLANTED}@host/v1"),
    ("rag_indexing", "--rag.chroma-host", f"user:{PLANTED}@host:8000"),
    ("rag_indexing", "--rag.chroma-host", f"{PLANTED}@host"),
    ("rag_indexing", "--rag.chroma-host", f"http://user:{PLANTED}@host:8000"),
    ("rag_indexing", "--rag.embedding-model", f"https://user:{PLANTED}@hub/someone/model"),
    ("rag_search_vs", "--rag.reranker", f"https://hub/someone/model?token={PLANTED}"),
    ("process_data", "--data.input", f"https://user:{PLANTED}@host/data.json"),
    ("process_data", "--data.input", f"s3://key:{PLANTED}@bucket/data.json"),
    ("process_data", "--data.input", f"https://host/data.json?token={PLANTED}"),
    ("foundation_model", "--model.name", f"https://user:{PLANTED}@hub/someone/model"),
    ("merge_and_convert", "--gguf.converter", f"https://user:{PLANTED}@host/llama.cpp"),
    ("process_data", "--preset", f"https://user:{PLANTED}@host/recipe.toml"),
    ("process_data", "--output-dir", f"s3://key:{PLANTED}@bucket/outputs"),
]


@pytest.mark.parametrize(("stage", "option", "value"), PLACES)
def test_a_place_that_may_hold_a_credential_is_refused_and_not_repeated(
    stage, option, value, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    needed = ["--judge.model", "m"] if stage == "compare_models" else []
    for script, arguments in ((stage, [f"{option}={value}"]), ("run", [option, value]), ("run", [f"{option}={value}"])):
        monkeypatch.setattr("sys.argv", [f"{script}.py", *arguments, *needed])
        with pytest.raises(SystemExit) as ended:
            importlib.import_module(script).main()
        said = "".join(capsys.readouterr())
        assert ended.value.code == 2 and PLANTED not in said, said
        assert option.removeprefix("--").replace("-", "_") in said.replace("-", "_")
    assert not any(tmp_path.iterdir())


def test_a_recipe_with_a_credential_is_refused_by_its_line(tmp_path):
    recipe = tmp_path / "mine.toml"
    recipe.write_text(f'[judge]\nmodel = "m"\nurl = "http://user:{PLANTED}@host/v1"\n', encoding="utf-8")
    with pytest.raises(UsageError, match=r"mine\.toml, line 3: judge\.url must be .* OPENAI_API_KEY") as error:
        read_recipe(str(recipe)).config()
    assert PLANTED not in str(error.value)


@pytest.mark.parametrize("make", [
    lambda: JudgeConfig("http://127.0.0.1:11434/v1", "m"),
    lambda: JudgeConfig("https://api.example.com", "m"),
    lambda: JudgeConfig("http://[::1]:8000/v1/", "m"),
    lambda: RagConfig(chroma_host="localhost"),
    lambda: RagConfig(chroma_host="10.0.0.1:8000", embedding_model="someone/model", reranker="C:/models/cross@2"),
    lambda: DataConfig(input=Path("C:\\data\\a@b.json")),
    lambda: ModelConfig(name="models/a: one?"),
])  # fmt: skip
def test_places_without_a_credential_are_taken(make):
    make()
