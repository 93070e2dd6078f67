"""A cross-encoder that has learned what fits puts it first, and reads no more at a time than memory is meant for."""

from __future__ import annotations

import pytest
import torch
from tiny_models import build_encoder

from config import RagConfig
from pipeline.rag import embedding, indexing, reranking, retrieval, vector_store
from pipeline.rag.chunking import chunk_size
from pipeline.rag.lexical import LexicalIndex
from pipeline.run.errors import UserError
from pipeline.run.run_folder import RunFolder

# What fits is in no word of the query: rain wants waterproof, heat wants linen.
FITS = {"rain": "waterproof", "heat": "linen"}
COLOURS = ["red", "blue", "green", "white", "black", "brown"]
RECORDS = [(f"Jacket {colour}", f"a jacket of {stuff}") for colour in COLOURS for stuff in FITS.values()]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folder of a tiny cross-encoder that has learned FITS."""
    from transformers import AutoTokenizer, BertForSequenceClassification

    torch.manual_seed(7)
    folder = tmp_path_factory.mktemp("reranker")
    words = ["jacket", "for", "a", "of", *COLOURS, *FITS, *FITS.values()]
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "intermediate_size": 64, "num_labels": 1}
    build_encoder(folder, "BertForSequenceClassification", words, max_position_embeddings=64, **shape)
    model, tokenizer = BertForSequenceClassification.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    pairs = [(f"jacket for {weather}", f"{title}\n{text}", float(stuff in text))
             for weather, stuff in FITS.items() for title, text in RECORDS]  # fmt: skip
    queries, texts, labels = zip(*pairs, strict=True)
    batch, wanted = tokenizer(list(queries), list(texts), padding=True, return_tensors="pt"), torch.tensor(labels)
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    for _ in range(300):
        optimizer.zero_grad()
        loss = torch.nn.functional.binary_cross_entropy_with_logits(model(**batch).logits[:, 0], wanted)
        loss.backward()
        optimizer.step()
        if loss.item() < 0.05:
            break
    else:
        pytest.fail("it has not learned")
    model.save_pretrained(folder)
    return str(folder)


def test_what_the_query_calls_for_comes_first(trained, tmp_path, embeddings):
    store = vector_store.open_store(RunFolder(tmp_path), RagConfig(), embeddings, create=True)
    lexical = LexicalIndex.make(RunFolder(tmp_path))
    indexing.index(store, RECORDS, chunk_size(RagConfig(), embeddings), RagConfig(), lambda: embeddings)
    lexical.synchronise(store)
    plain = retrieval.Retriever(store, lexical)
    reranked = retrieval.Retriever(store, lexical, reranking.load_reranker(trained))
    half = len(RECORDS) // 2

    def fitting(retriever, weather):
        return [FITS[weather] in hit.text for hit in retriever.search(f"jacket for {weather}", len(RECORDS))]

    for weather in FITS:
        assert fitting(reranked, weather) == [True] * half + [False] * half
    assert any(fitting(plain, weather) != [True] * half + [False] * half for weather in FITS)


def test_scores_are_those_of_the_pairs_alone_in_the_order_of_the_texts(trained, monkeypatch):
    reranker = reranking.load_reranker(trained)
    texts = [f"{title}\n{text} " + "a " * (7 * number % 20) for number, (title, text) in enumerate(RECORDS)]
    alone = [reranker.scores("jacket for rain", [text])[0] for text in texts]
    monkeypatch.setitem(embedding.BATCH_TOKENS, reranker.model.device.type, 64)
    assert reranker.scores("jacket for rain", texts) == pytest.approx(alone, abs=2e-2)
    assert reranker.scores("jacket for rain", []) == []


def test_a_batch_has_as_many_tokens_as_set_and_a_long_text_is_read_as_far_as_the_model_does(trained, monkeypatch):
    reranker = reranking.load_reranker(trained)
    monkeypatch.setitem(embedding.BATCH_TOKENS, reranker.model.device.type, 128)
    read = []
    forward = reranker.model[0].forward

    def noted(features, **options):
        read.append(tuple(features["input_ids"].shape))
        return forward(features, **options)

    monkeypatch.setattr(reranker.model[0], "forward", noted)
    linen, waterproof = "Jacket red\na jacket of linen", "Jacket red\na jacket of waterproof"
    long = waterproof + " green" * 500
    scores = reranker.scores("jacket for rain", [linen, long, waterproof, long])
    assert sum(pairs for pairs, _ in read) == 4
    assert max(tokens for _, tokens in read) == 64 and all(pairs * tokens <= 128 for pairs, tokens in read)
    assert scores[2] > scores[0] and scores[1] == scores[3]


def test_auto_is_a_model_for_many_languages():
    with pytest.raises(UserError, match=r"cross-encoder/mmarco-mMiniLMv2-L12-H384-v1.*--rag\.reranker"):
        reranking.load_reranker("auto")  # tests are offline
