"""Fields beside title and content: what stage 1 keeps, and searching only the records that meet conditions on them."""

from __future__ import annotations

import csv
import json
import operator
import random
from dataclasses import replace
from decimal import Decimal

import pyarrow
import pyarrow.parquet
import pytest
from scripts import command

import process_data
import rag_indexing
import rag_model_retriever
import rag_search_vs
from config import PRESETS, PROJECT_DIR, Condition, DataConfig, RagConfig, parse_condition
from pipeline.data import metadata, readers
from pipeline.data.records import open_processed
from pipeline.rag import chunking, indexing, metadata_index, retrieval, vector_store
from pipeline.rag.lexical import LexicalIndex
from pipeline.run import files, manifests
from pipeline.run.errors import UserError
from pipeline.run.run_folder import RunFolder

RECORDS = [
    ("Girls Ballet Tutu", "Layered neon pink tutu, twelve inches long, for recitals and parties.",
     {"brand": "Sansha", "price": 18.5, "category": ["Dance", "Girls"]}),
    ("Ballet Slippers", "Leather slippers with a split sole, made for girls who dance.",
     {"brand": "Sansha", "price": "$32.00", "category": ["Dance", "Shoes"]}),
    ("Practice Skirt", "A plain tutu of tulle for ballet class, in neon pink or blue.",
     {"brand": "Tulle & Co", "price": 12, "category": "Dance"}),
    ("Cold Chisel", "Forged steel, seven inches long, for splitting brick and cutting bolts.",
     {"brand": "Halder", "price": "R$ 1.299,90", "category": "Tools"}),
    ("Green Tea", "Fifty sachets of sencha from Shizuoka, fresh and grassy, in a tin.", {}),
]  # fmt: skip


def write_raw(path, records=RECORDS):
    rows = [{"title": title, "content": content, **fields} for title, content, fields in records]
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return path


def process(folder, source, *names, **data):
    config = replace(PRESETS["demo"], output_dir=folder, data=DataConfig(input=source, metadata=names, **data))
    path = process_data.run(config)
    return json.loads(path.read_text(encoding="utf-8")), manifests.read_manifest(RunFolder.of(config), "process_data")


def conditions(*texts):
    return tuple(map(parse_condition, texts))


# Stage 1.


@pytest.mark.parametrize(("value", "kept"), [
    ("Black &amp; <b>Decker</b>\x07 \n", "Black & Decker"),
    ("x" * 500, "x" * metadata.LONGEST_TEXT),
    (19, 19), (19.5, 19.5), (False, False), (Decimal("12.90"), 12.9), (10**30, 1e30),
    (["Shoes", " Girls ", "Shoes", None, {"a": 1}, 7, ""], ["Shoes", "Girls", "7"]),
    ([["Clothing", "Girls"], ["Dance"]], ["Clothing", "Girls", "Dance"]),
    ("['it's long', 'x']", ["it's long", "x"]),
    (list(range(99)), [str(n) for n in range(metadata.MOST_ITEMS)]),
    (None, None), ("", None), (" \x00", None), ([], None), ({"a": "b"}, None), ([{}], None), (float("nan"), None),
    (10**400, None), (Decimal("sNaN"), None),
])  # fmt: skip
def test_what_is_kept_of_a_value(value, kept):
    found = metadata.clean_value(value)
    assert found == kept and type(found) is type(kept)


@pytest.mark.parametrize(("text", "read_as"), [
    ("20", 20), ("-3.50", -3.5), ("$12.99", 12.99), ("US$ 1,299.99", 1299.99), ("R$ 1.299,90", 1299.9), ("0,5", 0.5),
    ("€20", 20), ("1.5", 1.5), ("007", "007"), ("9780306406157123", "9780306406157123"), ("12 inches", "12 inches"),
    ("R$ 1.299", 1299), ("12,99 €", 12.99), ("12.99 USD", 12.99), ("1 299,00 €", 1299), ("49 kr", 49), ("49,- Kč", 49),
    ("CHF 1'299.50", 1299.5), ("₹ 1,29,999", 129999), ("-12,99 €", -12.99), ("$-5", -5), ("$0.599", 0.599), ("¥1,299", 1299),
    ("1\u202f299,00\xa0€", 1299), ("1.234.567,89 €", 1234567.89), ("US$12.9999", 12.9999), ("1.299", 1.299), ("1,299", 1299),
    ("1.299.00 €", "1.299.00 €"), ("1 299", "1 299"), ("from 12,99 €", "from 12,99 €"), ("$10 - $20", "$10 - $20"),
    ("€007", "€007"), ("5 LED", "5 LED"), ("12.99 GB", "12.99 GB"),
    ("1,2,3", "1,2,3"), ("nan", "nan"), ("1e5", "1e5"), ("AT&amp;T", "AT&T"),
])  # fmt: skip
def test_texts_that_read_as_numbers_are_compared_as_numbers(text, read_as):
    assert metadata.comparable_value(text) == read_as and type(metadata.comparable_value(text)) is not int


def test_stage_1_keeps_the_fields_and_later_stages_do_not_see_them(tmp_path):
    source = write_raw(tmp_path / "trn.jsonl")
    records, manifest = process(tmp_path, source, "brand", "price")
    assert records[0] == {
        "product": RECORDS[0][0], "description": RECORDS[0][1], "brand": "Sansha", "price": 18.5
    }  # fmt: skip
    assert set(records[4]) == {"product", "description"}
    assert manifest["metrics"]["metadata"] == {"brand": 4, "price": 4}
    assert manifest["metrics"]["numbers"] == {"brand": 0, "price": 4}
    data = open_processed(RunFolder(tmp_path / "demo"))
    assert list(data) == [(title, content) for title, content, _ in RECORDS]
    assert next(data.with_metadata()) == (*RECORDS[0][:2], {"brand": "Sansha", "price": 18.5})


def test_values_that_do_not_read_as_numbers_beside_some_that_do_are_counted(tmp_path, capsys):
    values = [1, "2", "R$ 3", ["4", "five"], "call us", "about 12", True, "call us"]
    records = [(f"Title {n}", "c" * 50, {"price": value, "brand": "b"}) for n, value in enumerate(values)]
    _, manifest = process(tmp_path, write_raw(tmp_path / "trn.jsonl", [*records, records[4]]), "price", "brand")
    assert manifest["metrics"]["metadata"] == {"price": 8, "brand": 8}
    assert manifest["metrics"]["numbers"] == {"price": 4, "brand": 0}
    printed = capsys.readouterr().out
    assert "price: 4 of 8 do not read as a number, such as 'call us'; a condition such as price<20" in printed
    assert "brand:" not in printed


def test_without_the_option_nothing_changes(tmp_path):
    source = tmp_path / "trn.jsonl"
    source.write_text(
        '{"title": "Tutu &amp; Tights", "content": "Dance tutu for girls,\\nages 2-8 years. Perfect for recitals.", '
        '"brand": "Sansha", "price": 18.5}\n'
        '{"brand": "Zest", "content": ["Butane burner for kitchens;", "caramelises sugar in a minute."], '
        '"title": "Crème Brûlée Torch", "uid": 7}\n',
        encoding="utf-8",
    )
    process(tmp_path, source)
    # Bytes and hash of the version before there was metadata.
    assert (tmp_path / "demo" / "trn_processed.json").read_bytes() == (
        '[\n{"product":"Tutu & Tights","description":"Dance tutu for girls, ages 2-8 years. Perfect for recitals."},\n'
        '{"product":"Crème Brûlée Torch","description":"Butane burner for kitchens; caramelises sugar in a minute."}\n]\n'
    ).encode()
    size = chunking.ChunkSize(256, 20)
    assert chunking.record_id("Green Tea", "Fifty sachets.", size) == "96027b83842d4cc74735fd5af442bdb7"
    assert chunking.record_id("Green Tea", "Fifty sachets.", size, {}) == "96027b83842d4cc74735fd5af442bdb7"


def dump(path, records=4000):
    rng = random.Random(2)
    with path.open("w", encoding="utf-8") as file:
        for number in range(records):
            row = {
                "title": f"Title {rng.randrange(records)}",
                "content": f"caf&eacute; {'the same ' * rng.randrange(9)}",
            }
            if number % 3:
                row["brand"] = rng.choice(["Black &amp; Decker", "", "Nestlé", 1847])
            if number % 5:
                row["price"] = rng.choice([1, 2.5, "$3", None])
            if number % 7 == 0:
                row["category"] = [rng.choice("abc"), [rng.choice("abc")]]
            file.write("{broken\n" if number % 97 == 0 else json.dumps(row) + "\n")
    return path


def test_several_processes_and_small_blocks_write_the_same_as_one_process(tmp_path, monkeypatch):
    source, names = dump(tmp_path / "trn.jsonl"), ("price", "brand", "category")
    records, one = process(tmp_path / "one", source, *names, processes=1)
    monkeypatch.setattr(readers, "BLOCK_BYTES", 20_000)
    _, two = process(tmp_path / "two", source, *names, processes=2)
    paths = [tmp_path / folder / "demo" / "trn_processed.json" for folder in ("one", "two")]
    assert paths[0].read_bytes() == paths[1].read_bytes()
    assert one["metrics"] == two["metrics"] and one["metrics"]["rejected"]["duplicate"] > 50
    assert one["metrics"]["metadata"] == {name: sum(name in record for record in records) for name in names}
    # The same records are kept as without the option: two with the same text are one, whatever their fields.
    plain, _ = process(tmp_path / "plain", source)
    assert [{key: record[key] for key in ("product", "description")} for record in records] == plain


def test_every_form_of_a_file_keeps_the_same(tmp_path):
    rows = [
        {"title": f"Title {n}", "content": "c" * 50, "brand": f"Brand {n % 3}", "price": f"{n}.50"} for n in range(40)
    ]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    (tmp_path / "array.json").write_text(json.dumps(rows), encoding="utf-8")
    with (tmp_path / "rows.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "rows.parquet")
    expected, _ = process(tmp_path, tmp_path / "rows.jsonl", "brand", "price")
    assert expected[4] == {"product": "Title 4", "description": "c" * 50, "brand": "Brand 1", "price": "4.50"}
    for name in ("array.json", "rows.csv", "rows.parquet"):
        assert process(tmp_path, tmp_path / name, "brand", "price", processes=2)[0] == expected, name


def test_a_field_that_no_record_has_is_one_sentence(tmp_path):
    source = write_raw(tmp_path / "trn.jsonl")
    with pytest.raises(
        UserError, match=r"a field 'brnd' \(--data\.metadata\); the fields are brand, category, content"
    ):
        process(tmp_path, source, "brand", "brnd")
    assert not (tmp_path / "demo" / "trn_processed.json").exists()


@pytest.mark.parametrize("names", [
    ["product"], ["description"], ["title"], ["content"], ["text"], ["#x"], ["$x"], ["chroma:x"], [""], ["a=b"], ["a", "a"],
])  # fmt: skip
def test_names_that_clash_are_refused(names):
    with pytest.raises(ValueError, match=r"data\.metadata must be"):
        DataConfig(metadata=tuple(names))
    assert DataConfig(metadata=("brand", "also bought", "preço", "texts")).metadata


@pytest.mark.parametrize(
    "where",
    [
        "brand",
        "=x",
        "brand=",
        "price==5",
        "price<cheap",
        "price>nan",
        "price<1,299",
        "price<1.2,5",
        "price=<5",
        "<5",
        "",
    ],
)
def test_malformed_conditions_are_refused(where):
    with pytest.raises(ValueError, match=r"rag\.where must be"):
        RagConfig(where=("brand=Sansha", where))


def test_conditions_are_read_as_they_are_typed():
    typed = conditions("brand = Black & Decker", "price<=19.90", "model!=X-1>2", "also bought>-3")
    assert [(c.field, c.operator, c.value) for c in typed] == [
        ("brand", "=", "Black & Decker"), ("price", "<=", "19.90"), ("model", "!=", "X-1>2"), ("also bought", ">", "-3"),
    ]  # fmt: skip


def test_conditions_that_are_made_are_checked_too():
    with pytest.raises(ValueError, match=r"rag\.where must be conditions with a number after <, not 'price<cheap'"):
        Condition("price", "<", "cheap")


def test_usage_errors_on_the_command_line(tmp_path):
    for arguments in (
        ["process_data.py", "--data.metadata", "brand", "text"],
        ["rag_search_vs.py", "--rag.where", "brand=x", "price<cheap", "--query", "x"],
    ):
        done = command(*arguments, "--output-dir", tmp_path)
        assert done.returncode == 2 and "must be" in done.stderr and "Traceback" not in done.stderr


# The index and the search in it.


def fill(store, lexical, embeddings, records):
    size = chunking.chunk_size(RagConfig(), embeddings)
    report = indexing.index(store, records, size, RagConfig(), lambda: embeddings)
    lexical.synchronise(store)
    return report.added, report.removed, report.unchanged


@pytest.fixture
def empty(tmp_path, embeddings):
    store = vector_store.open_store(RunFolder(tmp_path), RagConfig(), embeddings, create=True)
    return retrieval.Retriever(store, LexicalIndex.make(RunFolder(tmp_path)))


@pytest.fixture
def retriever(empty, embeddings):
    fill(empty.store, empty.lexical, embeddings, RECORDS)
    return empty


@pytest.mark.parametrize(("where", "titles"), [
    (["brand=Sansha"], {"Girls Ballet Tutu", "Ballet Slippers"}),
    (["brand=Tulle &amp; Co"], {"Practice Skirt"}),
    (["brand!=Sansha"], {"Practice Skirt", "Cold Chisel"}),
    (["category=Dance"], {"Girls Ballet Tutu", "Ballet Slippers", "Practice Skirt"}),
    (["category!=Shoes"], {"Girls Ballet Tutu", "Practice Skirt", "Cold Chisel"}),
    (["price<18.5"], {"Practice Skirt"}), (["price<18,5"], {"Practice Skirt"}), (["price<=18,50"], {"Girls Ballet Tutu", "Practice Skirt"}),
    (["price>1.299,85"], {"Cold Chisel"}), (["price=1.299,90"], {"Cold Chisel"}),
    (["price<=18.50"], {"Girls Ballet Tutu", "Practice Skirt"}),
    (["price>32"], {"Cold Chisel"}),
    (["price>=32", "price<1e3"], {"Ballet Slippers"}),
    (["price=12"], {"Practice Skirt"}),
    (["price=1299.9"], {"Cold Chisel"}),
    (["category=Dance", "brand=Sansha", "price<20"], {"Girls Ballet Tutu"}),
    (["brand=Sansha", "brand=Halder"], set()),
    (["brand<5"], set()),
    (["brand>5"], set()),
])  # fmt: skip
def test_only_records_that_meet_all_conditions_are_found(retriever, where, titles):
    # More than all are wanted, of a query that fits those outside best.
    for query in ("Green Tea", "neon pink ballet tutu", "something to hit bricks with"):
        hits = retriever.search(query, 10, conditions(*where))
        assert {hit.title for hit in hits} == titles and len(hits) == len(titles)


def test_metadata_comes_with_each_hit(retriever):
    assert {hit.title: hit.metadata for hit in retriever.search("ballet", 10)} == {
        title: fields for title, _, fields in RECORDS
    }
    assert retriever.search("ballet", 1, conditions("price<13"))[0].metadata == RECORDS[2][2]


def test_meaning_words_and_titles_each_honour_the_conditions(retriever):
    among = retriever.lexical.select(conditions("brand=Tulle & Co"))
    own = list(among.values())
    vector = retriever.store.embed("Girls Ballet Tutu")
    assert [piece.title for piece in retriever.store.nearest(vector, 10, own)] == ["Practice Skirt"]
    assert retriever.lexical.search(["tutu", "girls", "sencha"], 10, among) == own
    assert retriever.lexical.with_title("Girls Ballet Tutu", 10, among) == []
    assert retriever.lexical.with_title("practice skirt", 10, among) == own


def test_an_exact_title_outside_of_the_conditions_does_not_come_first(retriever):
    assert retriever.search("Girls Ballet Tutu", 3)[0].title == "Girls Ballet Tutu"
    hits = retriever.search("Girls Ballet Tutu", 3, conditions("price<18"))
    assert [hit.title for hit in hits] == ["Practice Skirt"]


def test_titles_outside_of_the_conditions_take_no_place_of_those_inside(empty, embeddings, monkeypatch):
    monkeypatch.setattr(retrieval, "CANDIDATES", 2)
    rivals = [("Poems", f"Poems about poems, and poems, number {n}.", {"brand": "other"}) for n in range(20)]
    fill(empty.store, empty.lexical, embeddings, [*rivals, ("Poems", "Rain on a tin roof.", {"brand": "mine"})])
    assert [hit.text for hit in empty.search("Poems", 2, conditions("brand=mine"))] == ["Rain on a tin roof."]


def test_a_misspelled_word_is_read_as_a_word_of_the_records_that_meet_the_conditions(empty, embeddings):
    records = [
        ("Chisel", "Steel for splitting brick.", {"price": 5}),
        ("Chiselle", "A perfume of cedar and rain.", {"price": 50}),
    ]
    fill(empty.store, empty.lexical, embeddings, records)
    assert empty.lexical.expand_query("chisle")["chisl"][0] == "chisel"
    among = empty.lexical.select(conditions("price>20"))
    assert empty.lexical.expand_query("chiseel chisel", among) == {"chiseel": ["chisell"], "chisel": ["chisel"]}
    assert empty.search("chiseel", 1, conditions("price>20"))[0].match.bm25 > 0.5


def test_conditions_select_what_they_say(empty, embeddings):
    rng = random.Random(4)
    values = [1, 2, 2.0, 2.5, -1, "2", "$2.5", "a", "b", True, ["a", "b"], ["b", "3"], None]
    records = [(f"Title {n}", f"Text {n}", {"x": rng.choice(values), "y": rng.choice(values)}) for n in range(60)]
    records = [(t, c, {k: v for k, v in fields.items() if v is not None}) for t, c, fields in records]
    fill(empty.store, empty.lexical, embeddings, records)
    compare = {"<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge}

    def meets(fields, condition):
        if condition.field not in fields:
            return False
        held, wanted = metadata.comparable_values(fields[condition.field]), metadata.comparable_value(condition.value)
        if condition.operator in ("=", "!="):
            return (wanted in held) == (condition.operator == "=")
        return any(isinstance(v, float) and compare[condition.operator](v, wanted) for v in held)

    for text in [f"x{o}{v}" for o in ("=", "!=") for v in ("2", "a", "true", "none")] + [f"x{o}2" for o in compare]:
        for more in ([], ["y!=a"], ["y>1", "y<3"]):
            where = conditions(text, *more)
            expected = {title for title, _, fields in records if all(meets(fields, c) for c in where)}
            ids = list(empty.lexical.select(where).values())
            assert {title for _, title, *_ in empty.store.pieces(ids)} == expected if ids else not expected, where


@pytest.mark.parametrize(("compared", "of_request"), [(1000, 1000), (3, 1000), (3, 7)])
def test_the_nearest_of_some_are_the_same_however_they_are_searched(
    empty, embeddings, monkeypatch, compared, of_request
):
    texts = [f"{a} {b}" for a in ("red", "blue", "old", "steel", "paper") for b in ("boat", "hammer", "tea", "shirt")]
    fill(empty.store, empty.lexical, embeddings, [(t, t, {"n": n}) for n, t in enumerate(texts)])
    monkeypatch.setattr(vector_store, "MOST_COMPARED", compared)
    monkeypatch.setattr(vector_store, "IDS_OF_REQUEST", of_request)
    ids = list(empty.lexical.select(conditions("n>=4")).values())
    vector = empty.store.embed("a crimson ship")
    everything = [piece for piece in empty.store.nearest(vector, 20) if piece.id in ids]
    found = empty.store.nearest(vector, 5, ids)
    assert [piece.title for piece in found] == [piece.title for piece in everything[:5]]
    assert [piece.similarity for piece in found] == pytest.approx([p.similarity for p in everything[:5]], abs=1e-5)


def test_changed_metadata_replaces_a_record_and_nothing_else(retriever, embeddings):
    assert retriever.search("tutu", 9, conditions("price=99")) == []
    changed = [(*RECORDS[0][:2], RECORDS[0][2] | {"price": 99}), *RECORDS[1:]]
    assert fill(retriever.store, retriever.lexical, embeddings, changed) == (1, 1, 4)
    assert [hit.title for hit in retriever.search("tutu", 9, conditions("price=99"))] == ["Girls Ballet Tutu"]
    assert retriever.search("tutu", 9, conditions("price=18.5")) == []
    reordered = [(title, content, dict(reversed(fields.items()))) for title, content, fields in changed]
    assert fill(retriever.store, retriever.lexical, embeddings, reordered) == (0, 0, 5)
    bare = [(title, content) for title, content, _ in changed]
    assert fill(retriever.store, retriever.lexical, embeddings, bare) == (4, 4, 1)
    assert retriever.fields() == {}


def test_a_long_record_has_its_metadata_in_each_piece(empty, embeddings):
    text = " ".join(f"Sentence number {n} tells about thing {n * 7}." for n in range(200))
    fill(empty.store, empty.lexical, embeddings, [("Long", text, {"brand": "a"}), ("Short", "one", {"brand": "b"})])
    hits = empty.search("thing", 50, conditions("brand=a"))
    assert len(hits) == len(empty.lexical) - 1 > 3 and {hit.title for hit in hits} == {"Long"}


def test_the_fields_and_their_texts_are_listed(retriever, monkeypatch):
    fields = {
        "brand": ["Halder", "Sansha", "Tulle & Co"],
        "category": ["Dance", "Girls", "Shoes", "Tools"],
        "price": [],
    }
    assert retriever.fields() == fields
    monkeypatch.setattr(metadata_index, "MOST_LISTED", 2)
    assert retriever.fields()["brand"] == ["Halder", "Sansha"]


def test_a_field_that_the_index_does_not_have_is_one_sentence(retriever):
    with pytest.raises(UserError, match=r"no field 'brnd' \(--rag\.where\); there are brand, category, price\.$"):
        retriever.search("x", 3, conditions("brand=Sansha", "brnd=x"))


def test_an_index_that_was_made_before_there_was_metadata_is_searched_as_before(tmp_path, empty, embeddings):
    fill(empty.store, empty.lexical, embeddings, [record[:2] for record in RECORDS])
    empty.lexical._db.executescript("DROP TRIGGER metadata_removed; DROP TABLE metadata;")
    old = replace(empty, lexical=LexicalIndex.of_run(RunFolder(tmp_path)))
    assert old.search("Green Tea", 1)[0].title == "Green Tea" and old.fields() == {}
    with pytest.raises(
        UserError, match=r"no field 'brand' .*run `python process_data\.py .*` with --data\.metadata brand"
    ):
        old.search("Green Tea", 1, conditions("brand=x"))
    assert fill(empty.store, LexicalIndex.make(RunFolder(tmp_path)), embeddings, RECORDS) == (4, 4, 1)
    assert replace(empty, lexical=LexicalIndex.of_run(RunFolder(tmp_path))).search("tea", 9, conditions("brand=Halder"))


def test_prices_are_found_however_their_currency_is_written(tmp_path, empty, embeddings):
    source = PROJECT_DIR / "tests" / "faults" / "files" / "prices.jsonl"
    rows = map(json.loads, source.read_text(encoding="utf-8").splitlines())
    fill(empty.store, empty.lexical, embeddings, [(r["title"], r["content"], {"price": r["price"]}) for r in rows])

    def found(*where):
        return {hit.title for hit in empty.search("item", 9, conditions(*where))}

    assert found("price<20") == found("price=12,99") == {"Item 1", "Item 4"}
    assert found("price>20,5", "price<1e3") == {"Item 3"}
    assert found("price>=1299") == {"Item 0", "Item 2"}


# The stages.


def test_stages_6_to_8_search_only_what_meets_the_conditions(tmp_path, make_config, capsys, monkeypatch):
    source = write_raw(tmp_path / "trn.jsonl")
    config = make_config(data=DataConfig(input=source, metadata=("brand", "price", "category")))
    process_data.run(config)
    rag_indexing.run(config)
    narrow = replace(config, rag=replace(config.rag, where=("brand=Sansha", "price<20"), min_score=0.0))
    capsys.readouterr()
    rag_search_vs.run(narrow, rag_search_vs.SearchOptions(query="Green Tea"))
    printed = capsys.readouterr().out
    assert "1. Product: Girls Ballet Tutu" in printed and "2. " not in printed
    assert "   brand: Sansha | category: Dance, Girls | price: 18.5\n" in printed
    answers = files.read_json(rag_model_retriever.run(narrow, rag_model_retriever.RetrieverOptions()))["answers"]
    assert all([source["title"] for source in answer["sources"]] == ["Girls Ballet Tutu"] for answer in answers)
    assert answers[0]["sources"][0]["metadata"] == RECORDS[0][2]
    assert list(answers[0]["sources"][0]["metadata"]) == ["brand", "category", "price"]

    nothing = replace(config, rag=replace(config.rag, where=("brand=Sansha", "price<2")))
    capsys.readouterr()
    rag_search_vs.run(nothing, rag_search_vs.SearchOptions(query="Green Tea"))
    assert capsys.readouterr().out == "No record meets brand=Sansha and price<2 (--rag.where).\n"
    monkeypatch.setattr(rag_model_retriever, "open_models", lambda *_: pytest.fail("a model was loaded"))
    with pytest.raises(UserError, match=r"^No record meets brand=Sansha and price<2 \(--rag\.where\)\.$"):
        rag_model_retriever.run(nothing, rag_model_retriever.RetrieverOptions())
