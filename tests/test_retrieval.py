"""The index holds exactly the data, and the context leaves room for the answer."""

from __future__ import annotations

import pytest

import rag_model_retriever
from config import PRESETS, RagConfig
from pipeline import prompts, vector_store
from pipeline.artifacts import UserError

RECORDS = [
    ("Girls Ballet Tutu Neon Pink", "High quality 3 layer ballet tutu. 12 inches in length"),
    ("Girls Ballet Tutu Neon Blue", "Dance tutu for girls ages 2-8 years. Perfect for recitals."),
    ("Cold Chisel", "Forged steel, 7 inches long, for splitting brick and cutting bolts."),
    ("Green Tea", "Fifty sachets of sencha from Shizuoka, fresh and grassy."),
]


@pytest.fixture(scope="module")
def embeddings():
    return vector_store.load_embeddings(RagConfig())


@pytest.fixture
def store(tmp_path, embeddings):
    return vector_store.open_store(tmp_path / "chroma", RagConfig(), embeddings, create=True)


def index(store, records, embeddings, config=None):
    report = vector_store.index(store, vector_store.chunks(records, config or RagConfig(), embeddings))
    return report.added, report.removed, report.unchanged


def test_indexing_again_adds_nothing_and_changes_are_followed(store, embeddings):
    assert index(store, RECORDS, embeddings) == (4, 0, 0)
    assert index(store, RECORDS, embeddings) == (0, 0, 4)
    changed = [
        RECORDS[0],
        ("Cold Chisel", "Now 8 inches long, with a hand guard against slips."),
        RECORDS[3],
        RECORDS[3],
    ]
    assert index(store, changed, embeddings) == (1, 2, 2)
    found = vector_store.search(store, "Cold Chisel", 10)
    assert len(found) == 3 and "8 inches" in found[0].text


def test_the_nearest_comes_first_with_its_cosine_similarity(store, embeddings):
    index(store, RECORDS, embeddings)
    hits = vector_store.search(store, "Girls Ballet Tutu Neon Pink", 3)
    assert [hit.title for hit in hits[:2]] == ["Girls Ballet Tutu Neon Pink", "Girls Ballet Tutu Neon Blue"]
    assert 1 >= hits[0].score > hits[1].score > hits[2].score
    query, document = (
        embeddings.embed_query("Girls Ballet Tutu Neon Pink"),
        embeddings.embed_documents(["\n".join(RECORDS[0])])[0],
    )
    assert hits[0].score == pytest.approx(sum(a * b for a, b in zip(query, document, strict=True)), abs=1e-4)


def test_another_embedding_model_is_refused(tmp_path, store, embeddings):
    with pytest.raises(UserError, match=r"indexed with the embedding model 'bundled/all-MiniLM-L6-v2'"):
        vector_store.open_store(tmp_path / "chroma", RagConfig(embedding_model="other/model"), embeddings)


def test_an_empty_store_names_the_stage(tmp_path, embeddings):
    with pytest.raises(UserError, match=r"rag_indexing\.py"):
        vector_store.open_store(tmp_path / "empty", RagConfig(), embeddings)


def test_a_missing_embedding_model_is_one_sentence():
    with pytest.raises(UserError, match=r"--rag\.embedding-model"):
        vector_store.load_embeddings(RagConfig(embedding_model="./no-such-folder"))


@pytest.mark.parametrize("chunk_tokens", [None, 40])
def test_chunks_fit_the_embedding_model_and_lose_no_word(embeddings, chunk_tokens):
    config = RagConfig(chunk_tokens=chunk_tokens, chunk_overlap_tokens=8)
    text = " ".join(f"Sentence number {n} tells about thing {n * 7}." for n in range(200))
    long_title = "A title of very many words " * 30
    records = [(long_title, text), ("A title", text), ("Short", "one")]
    chunks = list(vector_store.chunks(records, config, embeddings))
    tokenizer = embeddings._client.tokenizer
    lengths = [len(tokenizer(chunk.embedded_text, truncation=False, verbose=False)["input_ids"]) for chunk in chunks]
    assert max(lengths) <= (chunk_tokens or embeddings._client.max_seq_length)
    for title in (long_title, "A title"):
        embedded = " ".join(chunk.embedded_text for chunk in chunks if chunk.title == title)
        assert set(text.split()) <= set(embedded.split())
    assert chunks[-1].text == "one" and len({chunk.id for chunk in chunks}) == len(chunks)


def test_chunks_longer_than_the_model_reads_are_refused(embeddings):
    with pytest.raises(UserError, match="256 tokens"):
        list(vector_store.chunks(RECORDS, RagConfig(chunk_tokens=999), embeddings))


def test_a_long_context_is_trimmed_to_the_budget_best_first(smollm2_tokenizer):
    prompt_format = prompts.make_prompt_format(PRESETS["demo"].prompt, smollm2_tokenizer)
    model = type("Model", (), {"tokenizer": smollm2_tokenizer})
    hits = [vector_store.Hit(f"title {n}", f"text {n} " * 200, 0.9) for n in range(3)]

    def build(budget):
        prompt, used = rag_model_retriever.prompt_with_context(prompt_format, model, "Mog", hits, budget)
        assert len(prompts.prompt_ids(prompt_format, smollm2_tokenizer, prompt)) <= budget
        assert prompt.endswith(prompt_format.after) and "Mog" in prompt
        return used

    assert build(4000) == hits
    cut = build(1000)
    assert (
        cut[0] == hits[0] and cut[1].title == "title 1" and 0 < len(cut[1].text) < len(hits[1].text) and len(cut) == 2
    )
    bare = prompts.prompt_ids(prompt_format, smollm2_tokenizer, prompt_format.prompt("Mog"))
    assert build(len(bare)) == []


def test_the_collection_is_made_for_cosine_and_a_wide_search(store):
    configuration = store._chroma_collection.configuration["hnsw"]
    assert (configuration["space"], configuration["ef_search"]) == ("cosine", vector_store.SEARCH_WIDTH)
