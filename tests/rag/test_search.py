"""Search by meaning, words and title together; refusals; citations."""

from __future__ import annotations

import contextlib
import sqlite3
from dataclasses import replace

import pytest

import process_data
import rag_indexing
import rag_model_retriever
import rag_search_vs
from config import Condition, RagConfig
from pipeline.data.words import indexed_words, search_words
from pipeline.rag import chunking, citations, indexing, reranking, retrieval, vector_store
from pipeline.rag.lexical import LexicalIndex
from pipeline.rag.stems import stemmer
from pipeline.run import command_line, manifests
from pipeline.run.errors import UserError
from pipeline.run.files import read_json
from pipeline.run.run_folder import RunFolder

RECORDS = [
    ("Girls Ballet Tutu Neon Pink", "High quality 3 layer ballet tutu. 12 inches in length"),
    ("Girls Ballet Tutu Neon Blue", "Dance tutu for girls ages 2-8 years. Perfect for recitals."),
    ("Cold Chisel", "Forged steel, 7 inches long, for splitting brick and cutting bolts."),
    ("Green Tea", "Fifty sachets of sencha from Shizuoka, fresh and grassy."),
    ("Goodnight, Otter", "A bedtime story. The otter counts every fish in the river and falls asleep."),
    ("Crème Brûlée Torch", "Butane burner for kitchens; caramelises sugar in a minute."),
]


def fill(store, lexical, embeddings, records):
    size = chunking.chunk_size(RagConfig(), embeddings)
    indexing.index(store, records, size, RagConfig(), lambda: embeddings)
    lexical.synchronise(store)


@pytest.fixture
def retriever(tmp_path, embeddings):
    store = vector_store.open_store(RunFolder(tmp_path), RagConfig(), embeddings, create=True)
    lexical = LexicalIndex.make(RunFolder(tmp_path))
    fill(store, lexical, embeddings, RECORDS)
    return retrieval.Retriever(store, lexical)


def first(retriever, query):
    return retriever.search(query, 3)[0]


def test_an_exact_title_ranks_first_whatever_its_case_and_punctuation(retriever, embeddings):
    # A record that says the title more often than the one that has it.
    rival = ("Neon Pink", "Girls ballet tutu neon pink. Girls ballet tutu neon pink, neon pink.")
    fill(retriever.store, retriever.lexical, embeddings, [*RECORDS, rival])
    for query in ("Girls Ballet Tutu Neon Pink", "girls ballet: tutu (NEON pink)!"):
        hit = first(retriever, query)
        assert hit.title == "Girls Ballet Tutu Neon Pink" and hit.match.bm25 > 0.5
    assert first(retriever, "neon pink").title == "Neon Pink"


def test_words_with_typos_and_without_diacritics_are_found(retriever):
    assert first(retriever, "Cold Chisle").title == "Cold Chisel"
    assert retriever.lexical.expand_query("sencah tea") == {"sencah": ["sencha"], "tea": ["tea"]}
    assert first(retriever, "creme brulee").title == "Crème Brûlée Torch"
    assert first(retriever, "creme brulee").match.bm25 > 0.5


def test_a_paraphrase_is_found_by_meaning(retriever):
    hit = first(retriever, "goodnight tale for little children about a river animal")
    assert hit.title == "Goodnight, Otter" and hit.match.bm25 < 0.3


def test_the_score_says_how_much_fits(retriever):
    exact, paraphrase = first(retriever, "Green Tea"), first(retriever, "hot Japanese drink")
    assert 0.7 < exact.score <= 1 and exact.match.order == 1
    assert exact.score == pytest.approx((exact.meaning + exact.match.bm25) / 2)
    assert paraphrase.title == "Green Tea" and paraphrase.score == pytest.approx(paraphrase.meaning / 2)
    assert paraphrase.score < 0.3
    nonsense = first(retriever, "quarterly tax return deadline")
    assert nonsense.score < paraphrase.score


def test_words_in_the_order_of_the_query_rank_higher(retriever, embeddings):
    there = ("Notes", "A river. The otter counts every fish and sleeps, then it falls in.")
    fill(retriever.store, retriever.lexical, embeddings, [*RECORDS, there])
    hit, other = retriever.search("every fish in the river and falls", 2)
    assert hit.title == "Goodnight, Otter" and hit.match.order == 1 and other.match.order < 1


def test_any_query_is_only_words(retriever):
    for query in ('tutu" OR title:*', "NEAR(", "'; DROP TABLE pieces; --", "-", "", "AND", "(((", "a" * 5000):
        assert len(retriever.search(query, 2)) == 2
    assert len(retriever.lexical) == len(RECORDS)


def test_the_words_follow_the_vectors(tmp_path, retriever, embeddings):
    changed = [*RECORDS[1:], ("Cold Chisel", "Now 8 inches long.")]
    fill(retriever.store, retriever.lexical, embeddings, changed)
    assert len(retriever.lexical) == retriever.store.collection.count() == len(changed)
    assert retriever.lexical.occurrences("pink") == 0 and retriever.lexical.occurrences("now") == 1
    made_anew = tmp_path / "again"
    made_anew.mkdir()
    # A file that was lost, or that an interruption left with as many pieces, is made good from the collection.
    again = LexicalIndex.make(RunFolder(made_anew))
    again.synchronise(retriever.store)
    assert len(again) == len(changed) and again.search(["chisel"], 5) != []
    again._db.execute("UPDATE pieces SET id = 'of another collection' WHERE number = 1")
    again._db.commit()
    assert retrieval.Retriever(retriever.store, again).search("dance tutu", 2)
    again.synchronise(retriever.store)
    assert sorted(i for (i,) in again._db.execute("SELECT id FROM pieces")) == sorted(next(retriever.store.ids()))


def test_common_words_are_left_out_before_rare_ones(retriever, monkeypatch):
    monkeypatch.setattr("pipeline.rag.lexical.MOST_ROWS", 1)
    found = retriever.lexical.search(["girls", "tutu", "sencha"], 10)
    assert [title for _, title, *_ in retriever.store.pieces(found)] == ["Green Tea"]


ODD = "Velcro™ strap don't 9-3/4\" ½ m² 12V_DC Größe ÅNGSTRÖM Чёрный Чай 한국어 がぎ nº 1ª ΛΌΓΟΣ ﬁne हिन्दी שָׁלוֹם ＡＢＣ"


def test_every_word_of_any_script_is_in_the_index(retriever, embeddings):
    fill(retriever.store, retriever.lexical, embeddings, [*RECORDS, ("Odd", ODD)])
    held = {term for (term,) in retriever.lexical._db.execute("SELECT term FROM vocabulary")}
    words = {word for title, text in [*RECORDS, ("Odd", ODD)] for word in indexed_words(f"{title} {text}")}
    assert held == set(stemmer("en")(list(words)))
    assert first(retriever, "velcro strap").title == "Odd" and first(retriever, "чёрный чай").match.bm25 > 0.5


def test_a_reranker_decides_but_not_over_an_exact_title(retriever):
    class Reversed:
        def scores(self, query, texts):
            return list(range(len(texts)))

    plain = [hit.title for hit in retriever.search("tutu for dance", len(RECORDS))]
    turned = replace(retriever, reranker=Reversed())
    assert [hit.title for hit in turned.search("tutu for dance", len(RECORDS))] == plain[::-1]
    assert first(turned, "Green Tea").title == "Green Tea"


def test_a_reranker_never_loses_an_exact_title(retriever, embeddings):
    poems = [("Poems", "Rain on a roof."), *((f"Poems by Author {n}", "Poems, poems, poems.") for n in range(30))]
    fill(retriever.store, retriever.lexical, embeddings, poems)

    class Indifferent:
        def scores(self, query, texts):
            return [0.0] * len(texts)

    assert first(replace(retriever, reranker=Indifferent()), "Poems").title == "Poems"


def test_a_piece_that_fits_is_enough_to_answer_whatever_the_reranker_puts_first(retriever):
    hits = retriever.search("Green Tea", 3)[::-1]
    assert hits[0].score < 0.5 < hits[-1].score
    assert retrieval.answerable(hits, RagConfig(min_score=0.5)) and not retrieval.answerable(
        hits[:2], RagConfig(min_score=0.5)
    )
    assert not retrieval.answerable([], RagConfig(min_score=0.0))


def test_an_index_that_cannot_be_read_names_the_stage(tmp_path):
    (tmp_path / "lexical.sqlite").write_bytes(b"not a database" * 100)
    with pytest.raises(UserError, match=r"cannot be read .*rag_indexing\.py"):
        LexicalIndex.of_run(RunFolder(tmp_path))


def test_an_index_that_another_program_holds_says_whom_to_wait_for(tmp_path, monkeypatch):
    connect = sqlite3.connect
    monkeypatch.setattr(sqlite3, "connect", lambda *where, **how: connect(*where, timeout=0.01, **how))
    run = RunFolder(tmp_path)
    made, opened = LexicalIndex.make(run), LexicalIndex.of_run(run)
    with contextlib.closing(connect(tmp_path / "lexical.sqlite")) as other:
        other.execute("BEGIN EXCLUSIVE")
        for attempt in (
            lambda: LexicalIndex.of_run(run), lambda: LexicalIndex.make(run), lambda: len(made),
            lambda: opened.with_title("Tea", 1), lambda: opened.select([Condition("brand", "=", "Sansha")]),
        ):  # fmt: skip
            with pytest.raises(
                UserError, match=r"lexical\.sqlite is held by another program.* Wait until that has ended"
            ):
                attempt()
        other.rollback()
    assert opened.with_title("Tea", 1) == []


def test_a_cross_encoder_is_loaded_and_a_missing_one_is_one_sentence(tmp_path, retriever):
    from transformers import BertConfig, BertForSequenceClassification, BertTokenizerFast

    words = sorted({word for title, text in RECORDS for word in search_words(f"{title} {text}")})
    (tmp_path / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words]))
    BertTokenizerFast(str(tmp_path / "vocab.txt")).save_pretrained(tmp_path / "reranker")
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    BertForSequenceClassification(BertConfig(vocab_size=len(words) + 5, num_labels=1, **shape)).save_pretrained(
        tmp_path / "reranker"
    )
    ranked = replace(retriever, reranker=reranking.load_reranker(str(tmp_path / "reranker")))
    assert first(ranked, "Green Tea").title == "Green Tea" and len(ranked.search("tutu", 4)) == 4
    with pytest.raises(UserError, match=r"--rag\.reranker"):
        reranking.load_reranker("./no-such-folder")


def test_what_is_not_in_the_data_is_said_without_asking_a_model(make_config):
    config = make_config()
    process_data.run(config)
    rag_indexing.run(config)
    demanding = replace(config, rag=replace(config.rag, min_score=0.6, not_found="Isso não está nos dados."))
    answers = read_json(rag_model_retriever.run(demanding, rag_model_retriever.RetrieverOptions()))["answers"]
    refused = [answer for answer in answers if answer["answer"] == "Isso não está nos dados."]
    assert refused and all(answer["sources"] == [] and answer["tokens"] == 0 for answer in refused)
    assert {answer["title"] for answer in refused} >= {"Nothing of this name"} and len(refused) < len(answers)
    answered = next(answer for answer in answers if answer not in refused)
    assert answered["sources"][0]["score"] >= 0.6 and 0 <= answered["support"] <= 1


def test_sentences_cite_the_record_that_holds_them(retriever):
    hits = [first(retriever, title) for title in ("Cold Chisel", "Green Tea")]
    answer = "Forged steel for splitting brick [2].\n\nFifty sachets of sencha! [7] It comes from the moon [1]. Tea"
    assert citations.cite(answer, hits, retriever.lexical) == (
        "Forged steel for splitting brick. [1]\n\nFifty sachets of sencha! [2] It comes from the moon. Tea"
    )
    assert citations.support("Fifty sachets of sencha", hits, retriever.lexical) == 1
    assert citations.support("purple elephants", hits, retriever.lexical) == 0
    assert 0 < citations.support("Fifty elephants", hits, retriever.lexical) < 1
    hits = [retrieval.Hit("0", "t", "可以折叠。适合通勤。दिन लंबा होता है", 0.9, retrieval.Match(1.0, 1.0))]
    assert (
        citations.cite("可以折叠。充电很快！适合通勤", hits, retriever.lexical)
        == "可以折叠。 [1]充电很快！适合通勤 [1]"
    )
    assert citations.cite("दिन लंबा होता। रात काली नहीं", hits, retriever.lexical) == "दिन लंबा होता। [1] रात काली नहीं"
    assert citations.cite("", [], retriever.lexical) == "" and citations.support("", [], retriever.lexical) == 0


@pytest.mark.parametrize("stage", ["foundation_model", "fine_tuning"])
def test_what_is_found_is_named_as_the_run_names_it(stage, tmp_path, retriever, capsys):
    given = ["--prompt.title-label", "Pergunta", "--prompt.content-label", "Resposta"]
    folder = ["--output-dir", str(tmp_path)]
    trained, _ = command_line.parse(stage, "", command_line.NoOptions, [*folder, *given])
    with manifests.stage_manifest(trained, stage, []):
        pass
    for options, labels in ((folder, ("Pergunta", "Resposta")), ([*folder, given[0], "Q"], ("Q", "Resposta"))):
        config, _ = command_line.parse("rag_search_vs", "", rag_search_vs.SearchOptions, options)
        rag_search_vs.print_hits(retriever.search("green tea", 1), config)
        printed = capsys.readouterr().out
        assert f"1. {labels[0]}: Green Tea\n" in printed and f"\n   {labels[1]}: Fifty sachets" in printed
