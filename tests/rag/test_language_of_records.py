"""Stage 6 tells which embedding model goes with the language of the records."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace

import pytest
from tiny_models import build_encoder

import process_data
import rag_indexing
from pipeline.run import manifests
from pipeline.run.run_folder import RunFolder

ENGLISH = [
    {"title": f"Wooden train set {number}", "content": f"A railway of {number} pieces for children of three years and older."}
    for number in range(12)
]  # fmt: skip
PORTUGUESE = [
    {"title": f"Trem de madeira {number}", "content": f"Uma ferrovia de {number} peças para crianças a partir de três anos."}
    for number in range(12)
]  # fmt: skip
NUMBERS = [
    {"title": f"{number}-{number}", "content": f"{number * 7} x {number * 9} x 12,99; " * 4} for number in range(12)
]


@pytest.fixture
def index(make_config, tmp_path, capsys):
    """A function that indexes records with an embedding model, and returns what is noted of their language and printed."""

    numbers = itertools.count()

    def made(rows, model):
        path = tmp_path / "records.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        config = make_config()
        config = replace(
            config, data=replace(config.data, input=path), rag=replace(config.rag, embedding_model=str(model))
        )
        config = replace(config, output_dir=tmp_path / f"outputs-{next(numbers)}")  # Chroma keeps a folder open
        process_data.run(config)
        capsys.readouterr()
        rag_indexing.run(config)
        noted = manifests.read_manifest(RunFolder.of(config), "rag_indexing")["metrics"]["language"]
        return noted, [line for line in capsys.readouterr().out.splitlines() if line.startswith("Note: ")]

    return made


def test_an_embedding_model_for_other_languages_is_told_with_those_to_take(index):
    language, [note] = index(PORTUGUESE, "bundled/all-MiniLM-L6-v2")
    assert language == "pt"
    assert "records are in 'pt', and bundled/all-MiniLM-L6-v2 states to be made for en." in note
    assert "--rag.embedding-model intfloat/multilingual-e5-small" in note and "BAAI/bge-m3" in note


def test_nothing_is_told_where_the_model_fits_or_nothing_is_known(index, tmp_path):
    assert index(ENGLISH, "bundled/all-MiniLM-L6-v2") == ("en", [])
    assert index(NUMBERS, "bundled/all-MiniLM-L6-v2") == (None, [])
    silent = tmp_path / "silent"
    silent.mkdir()
    build_encoder(silent)
    assert index(PORTUGUESE, silent) == ("pt", [])
    (silent / "README.md").write_text("---\nlanguage: [multilingual, en]\n---\n")
    assert index(PORTUGUESE, silent) == ("pt", [])
