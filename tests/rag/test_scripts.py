"""Records in Hindi, Thai and Chinese, from their input to a search: what is asked for comes first, and for its words."""

from __future__ import annotations

import json
import sqlite3

import pytest
import xxhash
from tiny_models import tiny_config

import process_data
import rag_indexing
import rag_search_vs
from config import PROJECT_DIR, DataConfig
from pipeline.data.cleaning import normalise_title
from pipeline.data.words import indexed_words
from pipeline.rag import lexical, metadata_index, retrieval
from pipeline.run.errors import UserError
from pipeline.run.run_folder import WORDS, RunFolder

FILES = PROJECT_DIR / "tests" / "faults" / "files"
RECORDS = {
    name: [json.loads(line) for line in (FILES / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]
    for name in ("hindi", "thai", "chinese")
}
TITLES = [record["title"] for records in RECORDS.values() for record in records]


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """Settings of a run that has indexed the records."""
    folder = tmp_path_factory.mktemp("scripts")
    rows = [json.dumps(record) for records in RECORDS.values() for record in records]
    (folder / "records.jsonl").write_text("\n".join(rows))
    config = tiny_config("none", folder, data=DataConfig(input=folder / "records.jsonl", min_content_chars=1))
    process_data.run(config)
    rag_indexing.run(config)
    return config


@pytest.fixture(scope="module")
def retriever(config):
    return retrieval.open_retriever(RunFolder.of(config), config.rag)


@pytest.mark.parametrize("title", TITLES)
def test_a_title_finds_its_record_and_no_other_has_all_its_words(title, retriever):
    first, *others = retriever.search(title, len(TITLES))
    assert first.title == title and first.match.bm25 > 0.5
    # มา is a part of words of the record มี: words of Thai are found by a dictionary alone.
    assert {hit.title for hit in others if hit.match.bm25 > 0.5} <= {"มี"}


@pytest.mark.parametrize(("query", "title"), [
    ("दिन क्यों लंबा होता है", "दिन"), ("खेल में चोट", "मार"), ("ครอบครองสิ่งของ", "มี"), ("กาแฟแบบไทย", "กาแฟเย็น"),
    ("可以折叠", "折叠电动自行车"), ("保温", "不锈钢保温杯"), ("细口咖啡壶", "手冲咖啡壶"), ("壶", "手冲咖啡壶"), ("徒步旅行", "登山背包"),
])  # fmt: skip
def test_some_words_find_the_record_that_says_them(query, title, retriever):
    hit = retriever.search(query, 1)[0]
    assert hit.title == title and hit.match.bm25 > 0.3


def test_what_is_printed_names_the_title_that_was_asked_for(config, capsys):
    rag_search_vs.run(config, rag_search_vs.SearchOptions("दिन"))
    printed = capsys.readouterr().out
    assert printed.startswith(f"1. {config.prompt.title_label}: दिन\n") and printed.count("words 0.00") > 1


def test_an_index_of_other_words_is_refused_and_made_anew(config, capsys):
    path = RunFolder.of(config) / WORDS
    database = sqlite3.connect(path)
    database.execute("PRAGMA user_version = 0")
    database.execute("UPDATE pieces SET title_key = 'as before'")
    database.commit()
    database.close()
    asked = rag_search_vs.SearchOptions("दिन")
    with pytest.raises(UserError, match=r"another version of this program.*rag_indexing\.py"):
        rag_search_vs.run(config, asked)
    rag_indexing.run(config)
    assert f"unchanged {len(TITLES)} chunks" in capsys.readouterr().out
    rag_search_vs.run(config, asked)
    assert capsys.readouterr().out.startswith(f"1. {config.prompt.title_label}: दिन\n")


def test_another_division_into_words_has_another_version():
    texts = [*TITLES, "Velcro™ m² 12V_DC Größe Чёрный ΛΌΓΟΣ 한국어 がぎ nº ﬁne שָׁלוֹם ＡＢＣ كِتَابٌ 充电器", "don't 9-3/4"]
    kept = [lexical.SCHEMA, metadata_index.SCHEMA, *map(indexed_words, texts), *map(normalise_title, texts)]
    made = lexical.VERSION, xxhash.xxh3_64_hexdigest(repr(kept).encode())
    assert made == (2, "d2a6096b09261d09"), "raise lexical.VERSION, and write the new pair here"
