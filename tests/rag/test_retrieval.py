"""The index holds exactly the data, and the context leaves room for the answer."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import os
import random
import socket
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from config import PRESETS, RagConfig
from pipeline.models import prompts
from pipeline.models.answerer import TransformersModel
from pipeline.rag import chunking, context, embedding, indexing, retrieval, vector_store
from pipeline.rag.embedding import token_batches
from pipeline.run.errors import UserError
from pipeline.run.run_folder import RunFolder

RECORDS = [
    ("Girls Ballet Tutu Neon Pink", "High quality 3 layer ballet tutu. 12 inches in length"),
    ("Girls Ballet Tutu Neon Blue", "Dance tutu for girls ages 2-8 years. Perfect for recitals."),
    ("Cold Chisel", "Forged steel, 7 inches long, for splitting brick and cutting bolts."),
    ("Green Tea", "Fifty sachets of sencha from Shizuoka, fresh and grassy."),
]


@pytest.fixture
def store(tmp_path, embeddings):
    return vector_store.open_store(RunFolder(tmp_path), RagConfig(), embeddings, create=True)


def index(store, records, embeddings, config=None):
    config = config or RagConfig()
    size = chunking.chunk_size(config, embeddings)
    report = indexing.index(store, records, size, config, lambda: embeddings)
    return report.added, report.removed, report.unchanged


def nearest(store, query, k):
    return store.nearest(store.embed(query), k)


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
    found = nearest(store, "Cold Chisel", 10)
    assert len(found) == 3 and "8 inches" in found[0].text


def test_more_pieces_than_chroma_takes_at_a_time_are_removed(store, embeddings):
    vanished = [f"{n:032x}-0-1" for n in range(store.most_added + 2)]
    for ids in (vanished[:-2], vanished[-2:]):
        store.collection.add(ids, embeddings=np.ones((len(ids), 384), np.float32))
    assert index(store, RECORDS, embeddings) == (4, len(vanished), 0)


def test_the_nearest_comes_first_with_its_cosine_similarity(store, embeddings):
    index(store, RECORDS, embeddings)
    hits = nearest(store, "Girls Ballet Tutu Neon Pink", 3)
    assert [hit.title for hit in hits[:2]] == ["Girls Ballet Tutu Neon Pink", "Girls Ballet Tutu Neon Blue"]
    assert 1 >= hits[0].similarity > hits[1].similarity > hits[2].similarity
    query, document = (
        embeddings.embed_query("Girls Ballet Tutu Neon Pink"),
        embeddings.embed_documents(["\n".join(RECORDS[0])])[0],
    )
    # bfloat16, where it is fast, has three digits.
    assert hits[0].similarity == pytest.approx(sum(a * b for a, b in zip(query, document, strict=True)), abs=5e-3)


def test_another_embedding_model_is_refused(tmp_path, store, embeddings):
    with pytest.raises(UserError, match=r"indexed with the embedding model 'bundled/all-MiniLM-L6-v2'"):
        vector_store.open_store(RunFolder(tmp_path), RagConfig(embedding_model="other/model"), embeddings)


def test_an_empty_store_names_the_stage(tmp_path, embeddings):
    with pytest.raises(UserError, match=r"rag_indexing\.py"):
        vector_store.open_store(RunFolder(tmp_path / "empty"), RagConfig(), embeddings)


def test_a_missing_embedding_model_is_one_sentence():
    with pytest.raises(UserError, match=r"--rag\.embedding-model"):
        embedding.load_embeddings(RagConfig(embedding_model="./no-such-folder"))


@pytest.mark.parametrize("chunk_tokens", [None, 40])
def test_chunks_fit_the_embedding_model_and_lose_no_word(embeddings, chunk_tokens):
    config = RagConfig(chunk_tokens=chunk_tokens, chunk_overlap_tokens=8)
    text = " ".join(f"Sentence number {n} tells about thing {n * 7}." for n in range(200))
    long_title = "A title of very many words " * 30
    records = [(long_title, text), ("A title", text), ("Short", "one")]
    size = chunking.chunk_size(config, embeddings)
    chunks = [chunk for of_record in chunking.chunk_records(records, size, embeddings) for chunk in of_record]
    tokenizer = embeddings._client.tokenizer
    lengths = [len(tokenizer(chunk.embedded_text, truncation=False, verbose=False)["input_ids"]) for chunk in chunks]
    assert lengths == [len(chunk.tokens) for chunk in chunks]
    assert max(lengths) <= (chunk_tokens or embeddings._client.max_seq_length)
    for title in (long_title, "A title"):
        embedded = " ".join(chunk.embedded_text for chunk in chunks if chunk.title == title)
        assert set(text.split()) <= set(embedded.split())
    assert chunks[-1].text == "one" and len({chunk.id for chunk in chunks}) == len(chunks)


@pytest.mark.parametrize(
    ("sentence", "end"),
    [("这款电动自行车可以折叠，电池可拆卸。适合城市通勤和短途出行使用。", "。"), ("यह लेख बताता है। ", "।")],
)
def test_chunks_end_with_a_sentence_of_any_script(embeddings, sentence, end):
    [pieces] = chunking.chunk_records([("t", sentence * 100)], chunking.ChunkSize(64, 0), embeddings)
    assert len(pieces) > 1 and all(piece.text.rstrip().endswith(end) for piece in pieces)


def test_chunks_longer_than_the_model_reads_are_refused(embeddings):
    with pytest.raises(UserError, match="256 tokens"):
        chunking.chunk_size(RagConfig(chunk_tokens=999), embeddings)
    unlimited = SimpleNamespace(_client=SimpleNamespace(max_seq_length=None, prompts={"query": "", "document": ""}))
    with pytest.raises(UserError, match="does not say how many tokens it reads"):
        chunking.chunk_size(RagConfig(), unlimited)
    assert chunking.chunk_size(RagConfig(chunk_tokens=999), unlimited).tokens == 999


@pytest.mark.parametrize("told", [None, "The records below say what is known. " * 20])
def test_a_long_context_is_trimmed_to_the_budget_best_first(smollm2_tokenizer, told):
    settings = dataclasses.replace(PRESETS["demo"].prompt, context_instruction=told)
    prompt_format = prompts.make_prompt_format(settings, smollm2_tokenizer)
    model = TransformersModel(SimpleNamespace(tokenizer=smollm2_tokenizer), prompt_format)
    hits = [retrieval.Hit(str(n), f"title {n}", f"text {n} " * 200, 0.9, retrieval.Match(1.0, 1.0)) for n in range(3)]

    def build(budget):
        prompt, used = context.prompt_with_records(model, "Mog", hits, budget)
        assert len(prompts.prompt_ids(prompt_format, smollm2_tokenizer, prompt)) <= budget
        assert prompt.endswith(prompt_format.after) and "Mog" in prompt
        assert ("The records below" in prompt) == bool(told and used)
        return used

    assert build(4000) == hits
    cut = build(1000)
    assert (
        cut[0] == hits[0] and cut[1].title == "title 1" and 0 < len(cut[1].text) < len(hits[1].text) and len(cut) == 2
    )
    bare = prompts.prompt_ids(prompt_format, smollm2_tokenizer, prompt_format.prompt("Mog"))
    assert build(len(bare)) == []
    hits = [retrieval.Hit("0", "กาแฟ", "ใช้กาแฟคั่วเข้ม" * 200, 0.9, retrieval.Match(1.0, 1.0))]
    [cut] = build(1000)
    assert hits[0].text.startswith(cut.text) and 400 < len(cut.text) < len(hits[0].text)


def test_the_collection_is_made_for_cosine_and_a_wide_search(store):
    configuration = store.collection.configuration["hnsw"]
    assert (configuration["space"], configuration["ef_search"]) == ("cosine", vector_store.SEARCH_WIDTH)


@pytest.mark.parametrize("budget", [1, 64, 4096])
def test_batches_are_of_similar_length_and_within_the_budget(budget):
    rng = random.Random(1)
    counts = [rng.randrange(1, 60) for _ in range(300)]
    batches = list(token_batches(counts, budget))
    assert sorted(position for batch in batches for position in batch) == list(range(300))
    assert all(len(batch) == 1 or len(batch) * max(counts[p] for p in batch) <= budget for batch in batches)
    longest = [counts[batch[0]] for batch in batches]
    assert longest == sorted(longest, reverse=True)


@pytest.mark.parametrize(("precision", "tolerance"), [("float32", 1e-5), ("bfloat16", 2e-2)])
def test_vectors_are_those_of_sentence_transformers(precision, tolerance):
    config = RagConfig(embedding_precision=precision, embedding_batch_tokens=64)
    loaded = embedding.load_embeddings(config)
    reference = embedding.load_embeddings(RagConfig(embedding_precision="float32"))
    texts = [f"{title}\n{content}" for title, content in RECORDS]
    vectors = np.zeros((len(texts), 384))
    with embedding.document_encoder(loaded, config) as encode:
        for positions, batch in encode(texts, embedding.tokenize(loaded, texts)):
            assert batch.dtype == np.float32
            vectors[positions] = batch
    assert np.abs(vectors - reference._client.encode(texts, normalize_embeddings=True)).max() < tolerance
    where = {"backend": "torch", "device": "cpu", "precision": precision, "precision_reason": "as set"}
    assert embedding.runs_on(loaded, config) == where


@pytest.mark.slow
def test_a_pool_of_processes_encodes_the_same(embeddings):
    model = embeddings._client
    texts = ["one", "two words", "and three words"]
    pool = model.start_multi_process_pool(["cpu", "cpu"])
    try:
        together = model.encode(texts, pool=pool, batch_size=2, prompt="", show_progress_bar=False)
    finally:
        model.stop_multi_process_pool(pool)
    assert np.abs(together.astype("float32") - model.encode(texts).astype("float32")).max() < 2e-2


def test_openvino_without_its_packages_is_one_sentence():
    if importlib.util.find_spec("optimum"):
        pytest.skip("optimum is installed")
    with pytest.raises(UserError, match=r"--rag\.embedding-backend openvino .* optimum-intel"):
        embedding.load_embeddings(RagConfig(embedding_backend="openvino"))


MANY = [(f"Title {n}", f"{RECORDS[n % 4][1]} Number {n}. " * (40 if n % 7 == 0 else 1)) for n in range(60)]


def contents(store):
    found = store.collection.get(include=["documents", "metadatas"])
    return dict(
        zip(found["ids"], zip(found["documents"], [m["text"] for m in found["metadatas"]], strict=True), strict=True)
    )


def test_an_interrupted_indexing_goes_on_where_it_stopped(tmp_path, embeddings, monkeypatch):
    undisturbed = vector_store.open_store(RunFolder(tmp_path / "run-one"), RagConfig(), create=True)
    index(undisturbed, MANY, embeddings)
    store = vector_store.open_store(RunFolder(tmp_path / "run-two"), RagConfig(), create=True)
    monkeypatch.setattr(indexing, "SECONDS_BETWEEN_ADDS", 0.0)  # each batch is stored at once
    config = RagConfig(embedding_batch_tokens=512)
    size = chunking.chunk_size(config, embeddings)
    stored = []

    def stop_later(count):
        stored.append(store.collection.count())
        if len(stored) % 6 == 0:
            raise KeyboardInterrupt

    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            indexing.index(store, MANY, size, config, lambda: embeddings, stop_later)
    assert 0 < store.collection.count() < undisturbed.collection.count()
    pieces = Counter(piece_id.partition("-")[0] for piece_id in store.collection.get(include=[])["ids"])
    whole = {i.partition("-")[0]: int(i.rpartition("-")[2]) for i in store.collection.get(include=[])["ids"]}
    assert any(pieces[record] < whole[record] for record in pieces), "a record was stored in part"
    added, removed, unchanged = index(store, MANY, embeddings)
    assert contents(store) == contents(undisturbed)
    assert removed == 0 and unchanged > 0 and added < len(contents(store))
    assert index(store, MANY, embeddings) == (0, 0, len(contents(store)))


def test_records_that_repeat_are_indexed_once_and_all_are_counted(store, embeddings):
    advanced = []
    size = chunking.chunk_size(RagConfig(), embeddings)
    report = indexing.index(store, RECORDS * 3, size, RagConfig(), lambda: embeddings, advanced.append)
    assert (report.added, report.unchanged) == (4, 0) and sum(advanced) == 12


def test_an_unchanged_index_needs_no_embedding_model(store, embeddings):
    index(store, RECORDS, embeddings)

    def load():
        raise AssertionError("the model was loaded")

    size = chunking.chunk_size(RagConfig(), embeddings)
    report = indexing.index(store, RECORDS[:3], size, RagConfig(), load)
    assert (report.added, report.removed, report.unchanged) == (0, 1, 3)


def test_another_chunk_size_replaces_all_chunks(store, embeddings):
    index(store, MANY, embeddings)
    before = set(contents(store))
    index(store, MANY, embeddings, RagConfig(chunk_tokens=64))
    after = set(contents(store))
    assert not before & after and len(after) > len(before)


@pytest.fixture
def server(tmp_path):
    """The address of a real Chroma server."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    chroma = Path(sys.executable).with_name("chroma.exe" if os.name == "nt" else "chroma")
    command = [str(chroma), "run", "--path", str(tmp_path / "server"), "--port", str(port), "--host", "127.0.0.1"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            time.sleep(0.1)
        yield f"127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(30)


def test_a_chroma_server_holds_the_same_index(tmp_path, server, embeddings, monkeypatch):
    config = RagConfig(chroma_host=server)
    local = vector_store.open_store(RunFolder(tmp_path / "local" / "demo"), RagConfig(), create=True)
    folder = RunFolder(tmp_path / "remote" / "demo")
    with pytest.raises(UserError, match=r"holds no index 'demo' yet"):
        vector_store.open_store(folder, config, embeddings)
    remote = vector_store.open_store(folder, config, embeddings, create=True)
    assert index(local, MANY, embeddings) == index(remote, MANY, embeddings, config)
    assert contents(local) == contents(remote) and not folder.path.exists()
    ids, vector = next(local.ids())[:9], remote.embed("Title 12")
    for most in (0, 9):
        monkeypatch.setattr(vector_store, "MOST_COMPARED", most)
        found, others = (store.nearest(vector, 3, ids) for store in (local, remote))
        # Pieces of the same words are equally near, in either order.
        assert [piece.similarity for piece in found] == pytest.approx([piece.similarity for piece in others], abs=1e-6)
        assert all(len({piece.id for piece in pieces} & set(ids)) == 3 for pieces in (found, others))
    assert index(remote, MANY[1:], embeddings, config)[0] == 0 and len(contents(remote)) < len(contents(local))
    assert nearest(remote, "Title 12", 2)[0].title == "Title 12"
    with pytest.raises(UserError, match=r"holds the records of .*remote"):
        vector_store.open_store(RunFolder(tmp_path / "other" / "demo"), config, embeddings)
    another = RagConfig(chroma_host=server, collection="mine")
    assert vector_store.open_store(RunFolder(tmp_path / "other" / "demo"), another, create=True).collection.count() == 0


def test_a_server_that_does_not_answer_is_one_sentence(tmp_path):
    with pytest.raises(UserError, match=r"No Chroma server answers at 127\.0\.0\.1:1\..*chroma run"):
        vector_store.open_store(RunFolder(tmp_path / "demo"), RagConfig(chroma_host="127.0.0.1:1"), create=True)
