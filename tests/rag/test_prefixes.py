"""An embedding model reads the prefixes that it was trained with, before queries and before records."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny_models import build_encoder, sample_lines

import process_data
import rag_indexing
from config import RagConfig
from pipeline.rag import embedding, retrieval
from pipeline.run import command_line, manifests
from pipeline.run.errors import UserError
from pipeline.run.run_folder import RunFolder

QUERY = "ballet tutu for girls"


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    """A tiny embedding model whose name says E5."""
    torch.manual_seed(7)
    folder = tmp_path_factory.mktemp("models") / "tiny-e5-small"
    folder.mkdir()
    build_encoder(folder, more_words=["query", "passage", "find", "found", ":"])
    return folder


@pytest.fixture
def config(make_config, encoder, tmp_path):
    """Settings of a run whose few records are cleaned."""
    (tmp_path / "few.json").write_text("\n".join(sample_lines()[:20]), encoding="utf-8")
    made = make_config()
    made = replace(made, data=replace(made.data, input=tmp_path / "few.json"))
    made = replace(made, rag=replace(made.rag, embedding_model=str(encoder), embedding_precision="float32"))
    process_data.run(made)
    return made


def metrics(config):
    return manifests.read_manifest(RunFolder.of(config), "rag_indexing")["metrics"]


def is_embedded_behind(prefix, config, retriever):
    """Tell whether the index has the vectors of the records behind a prefix."""
    model = embedding.sentence_transformer(retriever.store.langchain.embeddings)
    held = retriever.store.collection.get(include=["documents", "metadatas", "embeddings"])
    texts = [f"{prefix}{title}\n{m['text']}" for title, m in zip(held["documents"], held["metadatas"], strict=True)]
    return np.allclose(model.encode(texts, prompt="", normalize_embeddings=True), held["embeddings"], atol=1e-5)


def with_rag(config, **settings):
    return replace(config, rag=replace(config.rag, **settings))


def test_a_model_of_e5_gets_its_prefixes_and_another_prefix_embeds_anew(config, encoder, monkeypatch, capsys):
    rag_indexing.run(config)
    assert "It reads 'query: ' before a query, and 'passage: ' before a record." in capsys.readouterr().out
    retriever = retrieval.open_retriever(RunFolder.of(config), config.rag)
    assert is_embedded_behind("passage: ", config, retriever) and not is_embedded_behind("", config, retriever)
    model = embedding.sentence_transformer(retriever.store.langchain.embeddings)
    assert np.allclose(
        retriever.store.embed(QUERY), model.encode(f"query: {QUERY}", normalize_embeddings=True), atol=1e-5
    )
    pieces = metrics(config)["added"]
    assert pieces and metrics(config)["document_prefix"] == "passage: "

    other = with_rag(config, document_prefix="found: ", query_prefix="")
    with pytest.raises(UserError, match=r"'passage: ' before each.* read 'found: '.*--rag.document-prefix \"found: \""):
        retrieval.open_retriever(RunFolder.of(config), other.rag)
    rag_indexing.run(other)
    assert (metrics(other)["added"], metrics(other)["removed"], metrics(other)["unchanged"]) == (pieces, pieces, 0)
    retriever = retrieval.open_retriever(RunFolder.of(other), other.rag)
    assert is_embedded_behind("found: ", other, retriever)
    assert np.allclose(retriever.store.embed(QUERY), model.encode(QUERY, normalize_embeddings=True), atol=1e-5)
    # Stages 7 and 8 take over what stage 6 was given.
    inherited = command_line.inherit("rag_search_vs", config).rag
    assert (inherited.query_prefix, inherited.document_prefix) == ("", "found: ")

    monkeypatch.setattr(embedding, "load_embeddings", lambda config: pytest.fail("the model was loaded"))
    rag_indexing.run(other)
    assert metrics(other)["unchanged"] == pieces and metrics(other)["document_prefix"] == "found: "


def test_an_index_of_a_time_before_prefixes_is_made_anew(config, monkeypatch):
    with monkeypatch.context() as before:
        before.setattr(embedding, "FAMILIES", {})
        rag_indexing.run(config)
    path = RunFolder.of(config).manifest_path("rag_indexing")
    manifest = json.loads(path.read_text())
    del manifest["metrics"]["document_prefix"]
    del manifest["settings"]["rag"]["document_prefix"], manifest["settings"]["rag"]["query_prefix"]
    path.write_text(json.dumps(manifest))
    assert command_line.inherit("rag_search_vs", with_rag(config, embedding_model="a")).rag == config.rag
    with pytest.raises(UserError, match=r"embedded with '' before each.* Run `.*rag_indexing\.py"):
        retrieval.open_retriever(RunFolder.of(config), config.rag)
    rag_indexing.run(config)
    assert metrics(config)["unchanged"] == 0
    assert is_embedded_behind("passage: ", config, retrieval.open_retriever(RunFolder.of(config), config.rag))


def test_prompts_that_a_model_states_go_before_its_name_and_settings_before_both(encoder, tmp_path):
    from sentence_transformers import SentenceTransformer

    folder = tmp_path / "stated-e5"
    SentenceTransformer(str(encoder), prompts={"query": "find: ", "passage": "found: "}).save(str(folder))

    def prefixes(**settings):
        return embedding.prefixes(embedding.load_embeddings(RagConfig(embedding_model=str(folder), **settings)))

    assert prefixes() == ("find: ", "found: ")
    assert prefixes(query_prefix="query: ") == ("query: ", "found: ")
    assert prefixes(query_prefix="", document_prefix="") == ("", "")


@pytest.mark.parametrize(("name", "expected"), [
    ("intfloat/multilingual-e5-small", ("query: ", "passage: ")),
    ("intfloat/e5-base-v2", ("query: ", "passage: ")),
    ("./models/e5_fine_tuned/", ("query: ", "passage: ")),
    ("C:\\models\\E5-large", ("query: ", "passage: ")),
    ("intfloat/multilingual-e5-large-instruct", ("", "")),
    ("nomic-ai/nomic-embed-text-v1.5", ("search_query: ", "search_document: ")),
    ("BAAI/bge-m3", ("", "")),
    ("bundled/all-MiniLM-L6-v2", ("", "")),
    ("e5-models/all-mpnet-base-v2", ("", "")),
    ("someone/model-1e5", ("", "")),
])  # fmt: skip
def test_the_name_of_a_model_tells_the_prefixes_of_its_family(name, expected):
    stated = {"query": "", "document": ""}  # what sentence-transformers has where a model states nothing
    assert embedding.chosen_prefixes(stated, RagConfig(embedding_model=name)) == expected
