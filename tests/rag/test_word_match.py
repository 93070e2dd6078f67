"""The score of the words is BM25, as another program computes it, over its bound."""

from __future__ import annotations

import bm25s
import pytest

from config import RagConfig
from pipeline.rag import chunking, indexing, retrieval, vector_store
from pipeline.rag.lexical import TITLE_WEIGHT, LexicalIndex
from pipeline.rag.word_match import LENGTH_NORMALISATION, SATURATION, matcher
from pipeline.run.run_folder import RunFolder

ENGLISH = [
    ("Cold Chisel", "Forged steel, 7 inches long, for splitting bricks and cutting bolts."),
    ("Claw Hammer", "Which is the best hammer for my money? For my part, the one which is on the bench is the best."),
    ("Brick Hammer", "One piece, steel, with a chisel edge for bricklayers. Splits a brick at a blow."),
    ("Green Tea", "Fifty sachets of sencha from Shizuoka, fresh and grassy."),
]
PORTUGUESE = [
    ("Vacinação", "A vacina contra a gripe é dada todos os anos às pessoas idosas e às crianças pequenas."),
    ("Consulta", "O médico da família atende na unidade básica de saúde, sem que se pague por isso."),
    ("Curativos", "Os curativos são trocados pela enfermeira, que observa a ferida e orienta o paciente."),
]


@pytest.fixture
def index(tmp_path, embeddings):
    """Return a function that makes an index of records, or brings it to hold others."""
    run = RunFolder(tmp_path)
    store = vector_store.open_store(run, RagConfig(), embeddings, create=True)
    lexical = LexicalIndex.make(run)

    def fill(records):
        indexing.index(store, records, chunking.chunk_size(RagConfig(), embeddings), RagConfig(), lambda: embeddings)
        lexical.synchronise(store)
        return retrieval.Retriever(store, lexical)

    return fill


def test_the_score_is_that_of_bm25s(index):
    lexical = index(ENGLISH).lexical
    query = lexical.stems("steel hammers that split bricks, and xylophones")
    held = list(lexical.stems_of(lexical.some_ids(10)).values())
    reference = bm25s.BM25(k1=SATURATION, b=LENGTH_NORMALISATION, method="lucene")
    reference.index([TITLE_WEIGHT * title + text for title, text in held], show_progress=False)
    expected = reference.get_scores(query)
    bound = sum(map(lexical.information, query))
    match = matcher({stem: [stem] for stem in query}, query, lexical)
    assert [match(*stems).bm25 for stems in held] == pytest.approx([score / bound for score in expected], rel=1e-5)
    assert max(expected) > 0


@pytest.mark.parametrize(("records", "language", "query", "title"), [
    (ENGLISH, "en", "chisels", "Cold Chisel"), (ENGLISH, "en", "bricklayer", "Brick Hammer"),
    (PORTUGUESE, "pt", "vacinas para idosos", "Vacinação"), (PORTUGUESE, "pt", "vacinacao", "Vacinação"),
    (PORTUGUESE, "pt", "enfermeiro trocar curativo", "Curativos"),
])  # fmt: skip
def test_a_word_is_found_in_another_form(index, records, language, query, title):
    retriever = index(records)
    assert retriever.lexical.language == language
    hit = retriever.search(query, 1)[0]
    assert hit.title == title and hit.match.bm25 > 0.25


def test_words_that_the_data_lacks_do_not_switch_the_others_off(index):
    others = [(f"Brass Hinge {n} mm", f"A hinge with screws, {n} of a series.") for n in range(40)]
    hit, *_ = index([*ENGLISH, *others]).search("which is the best cold chisel for my grandpa Ottokar", 3)
    assert hit.title == "Cold Chisel"


def test_a_typing_error_is_corrected_to_a_word_as_it_is_written(index):
    lexical = index(ENGLISH).lexical
    # The stem of "bolts" is nearer to another word than the word itself is.
    assert lexical.expand_query("chissels") == {"chissel": ["chisel"]}
    assert lexical.expand_query("shizuoak") == {"shizuoak": ["shizuoka"]}
    assert lexical.expand_query("bricks") == {"brick": ["brick"]}


def test_another_language_makes_the_words_anew(index):
    assert index(ENGLISH).lexical.occurrences("brick") == 2
    retriever = index(PORTUGUESE)
    assert retriever.lexical.language == "pt" and len(retriever.lexical) == len(PORTUGUESE)
    assert retriever.lexical.occurrences("brick") == 0 < retriever.lexical.occurrences("curat")
    # Words of records that are gone correct nothing.
    assert retriever.lexical.expand_query("chissels") == {"chissels": ["chissels"]}


def test_a_word_with_which_one_asks_is_no_typing_error(index):
    lexical = index([*ENGLISH[2:], ("Witch Hat", "Felt, with a wheat straw band.")]).lexical
    assert lexical.expand_query("which hat, what band") == {stem: [stem] for stem in ("which", "hat", "what", "band")}
