"""A question that refers to the one before it is searched together with that; one that stands alone is left alone."""

from __future__ import annotations

import pytest

from config import RagConfig
from pipeline.rag import chunking, indexing, retrieval, vector_store
from pipeline.rag.follow_up import standalone_query
from pipeline.rag.lexical import LexicalIndex
from pipeline.run.run_folder import RunFolder

TUTU = "girls ballet tutu neon pink"


@pytest.mark.parametrize("question", [
    "and in blue?", "in blue?", "What about blue?", "how about the blue one?", "Does it come in blue?", "Do you have them in blue?",
    "a blue one", "And blue?", "Or in blue",
])  # fmt: skip
def test_what_a_question_leaves_out_is_added_and_what_it_says_weighs_more(question):
    assert standalone_query(question, [TUTU]) == f"{TUTU} blue blue"


@pytest.mark.parametrize(("question", "before", "expected"), [
    ("how long is it?", "Which wooden trains have rails?", "wooden trains rails long long"),
    ("and in blue?", "long sleeve dance leotard", "long sleeve dance leotard blue blue"),
    ("why?", "Does it hurt the knee to dance?", "hurt knee dance"),
    ("Qual é a cor dele?", "Existe tutu de balé infantil?", "existe tutu balé infantil cor cor"),
    ("e em azul?", "sapatilha de balé rosa", "sapatilha balé rosa azul azul"),
    ("Tem em azul?", "sapatilha de balé rosa", "sapatilha balé rosa azul azul"),
    ("Quanto custa?", "sapatilha de balé rosa", "sapatilha balé rosa custa custa"),
    ("E o tratamento?", "Quais são os sintomas da dengue?", "sintomas dengue tratamento tratamento"),
    ("¿Y en azul?", "zapatillas de ballet rosa", "zapatillas ballet rosa azul azul"),
    ("¿Cuánto cuestan?", "zapatillas de ballet rosa", "zapatillas ballet rosa cuestan cuestan"),
    ("¿Hay para niños?", "zapatillas de ballet rosa", "zapatillas ballet rosa niños niños"),
    ("for the neon tutu", TUTU, "girls ballet pink neon tutu neon tutu"),  # said again, and each once
])  # fmt: skip
def test_follow_ups_in_english_portuguese_and_spanish(question, before, expected):
    assert standalone_query(question, [before]) == expected


@pytest.mark.parametrize("question", [
    "Cold chisel", "chisel", "blue ballet shoes for girls", "What is a chisel?", "The book that has a red cover",
    "Is there a tutu with a long hem, and is it pink?", "One Hundred Years of Solitude", "Plus size dress",
    "And what is the difference between a cold chisel and a wood chisel?", "Made in Brazil coffee beans",
    "O que é dengue?", "Quais são os sintomas da dengue?", "Onde está o posto de saúde?", "trem de madeira",
    "¿Qué es el dengue?", "¿Dónde está el libro?", "Más libros de dragones", "tren de madera con vías",
    "裙子有多长？", "Wie lang ist der Rock?", "", "?", "4711",
])  # fmt: skip
def test_a_question_that_stands_alone_comes_back_unchanged(question):
    assert standalone_query(question, [TUTU, "and in blue?"]) == question


def test_without_a_question_before_it_every_question_comes_back_unchanged():
    assert standalone_query("and in blue?", []) == "and in blue?"
    assert standalone_query("and in blue?", ["", "?"]) == "and in blue?"


def test_of_several_turns_the_later_weigh_more_and_those_of_another_matter_are_forgotten():
    chain = [TUTU, "and in blue?", "and for babies?", "in size 3?"]
    assert standalone_query(chain[2], chain[:2]) == f"{TUTU} blue blue {'babies ' * 4}".strip()
    assert standalone_query(chain[3], chain[:3]) == f"{TUTU} blue babies babies {'size 3 ' * 4}".strip()
    assert standalone_query("cold chisel", chain) == "cold chisel"
    assert standalone_query("and in blue?", ["cold chisel", TUTU]) == f"{TUTU} blue blue"
    assert standalone_query("how long is it?", [TUTU, "cold chisel for brick"]) == "cold chisel brick long long"
    again = standalone_query("and in pink?", [TUTU, "and in blue?"])
    assert again.split().count("pink") > again.split().count("blue")


@pytest.fixture(scope="module")
def retriever(tmp_path_factory, embeddings):
    run = RunFolder(tmp_path_factory.mktemp("run"))
    store = vector_store.open_store(run, RagConfig(), embeddings, create=True)
    lexical = LexicalIndex.make(run)
    records = [
        *((f"Girls Ballet Tutu Neon {colour}", "A tutu of three layers.") for colour in ("Pink", "Blue", "Green")),
        *((f"Baby Ballet Tutu {colour}", "A tutu for the smallest.") for colour in ("Pink", "Blue", "Green")),
        *((f"Sapatilha de balé {colour}", "De couro macio, para meninas.") for colour in ("rosa", "azul", "preta")),
        *((f"Lunch Box {colour}", "Of steel, for school.") for colour in ("Pink", "Blue", "Green")),
        ("Coffee Grinder in Blue", "Of steel."), ("Cold Chisel", "For brick."), ("Garden Hose", "Of rubber, 20 m."),
        ("And in Blue", "A novel about the sea."),
    ]  # fmt: skip
    size = chunking.chunk_size(RagConfig(), embeddings)
    indexing.index(store, records, size, RagConfig(), lambda: embeddings)
    lexical.synchronise(store)
    return retrieval.Retriever(store, lexical)


@pytest.mark.parametrize(("question", "history", "title"), [
    ("what about blue?", [TUTU], "Girls Ballet Tutu Neon Blue"),
    ("in green?", [TUTU, "what about blue?"], "Girls Ballet Tutu Neon Green"),
    ("and for a baby?", ["ballet tutu pink", "what about blue?"], "Baby Ballet Tutu Blue"),
    ("e em azul?", ["sapatilha de balé rosa"], "Sapatilha de balé azul"),
    ("coffee grinder", [TUTU], "Coffee Grinder in Blue"),
    ("And in blue", [TUTU], "And in Blue"),  # which is a title
])  # fmt: skip
def test_a_conversation_finds_what_is_meant(retriever, question, history, title):
    assert retriever.search(question, 1, history=history)[0].title == title


def test_a_question_that_stands_alone_finds_the_same_whatever_was_asked_before(retriever):
    for question in ("coffee grinder", "Girls Ballet Tutu Neon Pink", "lunch box of steel", "And in Blue"):
        assert retriever.search(question, 5, history=[TUTU, "and in blue?"]) == retriever.search(question, 5)
