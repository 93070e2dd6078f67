"""What is about something else is told from what is in the data, whatever the embedding model and the language."""

from __future__ import annotations

import json

import numpy as np
import pytest

from config import PROJECT_DIR, RagConfig
from pipeline.rag import calibration, chunking, indexing, retrieval, vector_store
from pipeline.rag.everyday_questions import asking_words, questions_in
from pipeline.rag.levels import Levels
from pipeline.rag.lexical import LexicalIndex
from pipeline.run.run_folder import RunFolder

UNRELATED = (PROJECT_DIR / "benchmarks" / "unrelated_questions.txt").read_text(encoding="utf-8").splitlines()
IN_PORTUGUESE = [
    "Quem venceu a Copa América de 2019?", "Qual ônibus vai do centro até o aeroporto?", "Conte uma piada de papagaio",
    "Como instalo o Linux ao lado do Windows?", "Letra de Garota de Ipanema", "Quanto é 17% de 2.340?",
    "Quantas luas tem Saturno?", "Escreva um poema sobre o mar", "Previsão do tempo em Curitiba amanhã",
    "Quem descobriu a penicilina e em que ano?", "Sinônimo de perspicaz", "Como se diz obrigado em japonês?",
]  # fmt: skip
OWN_IN_PORTUGUESE = [
    "Quem não tem documentos brasileiros pode consultar no posto?", "O que quer dizer equidade no SUS?",
    "De quanto em quanto tempo há conferência de saúde?", "Para que serve a Lei Orgânica da Saúde?",
]  # fmt: skip


@pytest.fixture(scope="module")
def retriever(tmp_path_factory, embeddings):
    """An index of Brazilian health questions."""
    lines = (PROJECT_DIR / "data" / "saude_sample.jsonl").read_text(encoding="utf-8").splitlines()
    records = [(row["input"], row["output"]) for row in map(json.loads, lines) if row["input"] and row["output"]]
    run = RunFolder(tmp_path_factory.mktemp("calibration"))
    store = vector_store.open_store(run, RagConfig(), embeddings, create=True)
    indexing.index(store, records, chunking.chunk_size(RagConfig(), embeddings), RagConfig(), lambda: embeddings)
    lexical = LexicalIndex.make(run)
    lexical.synchronise(store)
    retriever = retrieval.Retriever(store, lexical)
    calibration.calibrate(retriever)
    return retriever


def answered(retriever, questions):
    hits = (retriever.search(question, 3) for question in questions)
    return sum(retrieval.answerable(found, RagConfig()) for found in hits)


def test_questions_about_something_else_are_told_in_the_language_of_the_data(retriever):
    assert retriever.lexical.language == "pt"
    assert answered(retriever, IN_PORTUGUESE) <= 1 and answered(retriever, UNRELATED) <= 2
    assert answered(retriever, OWN_IN_PORTUGUESE) >= len(OWN_IN_PORTUGUESE) - 1


def test_the_levels_are_kept_with_the_index(retriever):
    opened = LexicalIndex.of_run(retriever.lexical._run)
    assert opened.levels == retriever.lexical.levels and 0 < opened.levels.score < 0.5
    # The model was made for English.
    assert opened.levels.slope < 1 and opened.levels.chance > 0.2


def test_a_set_least_score_overrides_the_levels(retriever):
    hits = retriever.search("Quantas luas tem Saturno?", 3)
    assert not retrieval.answerable(hits, RagConfig()) and retrieval.answerable(hits, RagConfig(min_score=0.0))
    named = retrieval.not_found(hits, RagConfig())
    assert named.startswith("This is not in the data.") and hits[0].title in named and hits[-1].title in named


def in_a_cone(vectors):
    """Return vectors whose cosines are all above 0.75, as those of e5 are, and in the same order."""
    return np.hstack([0.5 * vectors, np.full((len(vectors), 1), 0.75**0.5)])


def test_a_model_whose_cosines_are_all_high_means_the_same(embeddings):
    english, portuguese = questions_in("en"), questions_in("pt")
    vectors = [np.array(embeddings.embed_documents(texts)) for [texts] in (english, portuguese)]
    cones = list(map(in_a_cone, vectors))
    for own, cone in zip(vectors, cones, strict=True):
        plain, high = calibration.cosine_levels([own], vectors[0]), calibration.cosine_levels([cone], cones[0])
        assert high.chance > 0.75 > plain.chance
        for cosine in (-0.1, 0.3, 0.7, 1.0):
            assert high.meaning_of(0.75 + 0.25 * cosine) == pytest.approx(plain.meaning_of(cosine), abs=1e-6)
    assert calibration.cosine_levels(vectors[1:], vectors[0]).meaning_of(1) < 0.5 < 1 - 1e-6 < plain_english(vectors)


def plain_english(vectors):
    return calibration.cosine_levels(vectors[:1], vectors[0]).meaning_of(1)


def test_meaning_is_never_below_chance():
    assert Levels(chance=0.4, slope=0.6).meaning_of(0.1) == 0


def test_there_are_100_questions_in_each_language_and_some_of_all_for_any_other():
    for language in ("en", "pt", "zh", "hi"):
        [questions] = questions_in(language)
        assert len(set(questions)) == 100
    assert len(questions_in(None)) == len(questions_in("sw")) == 15
    assert asking_words("en") >= {"how", "what", "my"} and asking_words(None) == asking_words("sw") == set()
    assert not set(UNRELATED) & {question for of_one in questions_in(None) for question in of_one}
