"""JSON of any shape is read as its records, in bounded memory; what is none is told."""

from __future__ import annotations

import csv
import gzip
import json
from dataclasses import replace

import pyarrow
import pyarrow.parquet
import pytest

import process_data
from config import PRESETS, PROJECT_DIR, DataConfig
from pipeline.data import json_input, readers
from pipeline.data.blocks import BLOCK_BYTES
from pipeline.data.readers import blocks
from pipeline.run.errors import UserError

FAULTS = PROJECT_DIR / "tests" / "faults" / "files"
SENTENCE = "A sturdy example with enough words to pass the minimum length of the stage."
KEYS = ("title", "content", "price")
ROWS = [
    {"title": f"Café {n}", "content": f'“{n}”, "quoted" \\ [{{ \n' + "é" * (n * 7 % 50), "price": n or None} for n in range(40)
]  # fmt: skip


def read(path, keys=KEYS):
    """The records as tuples, and the problems of the unreadable."""
    title, content, *metadata = keys
    found = [block.read(title, content, tuple(metadata)) for block in blocks(path, title, content, tuple(metadata))]
    records = [
        (record.title, record.content, *(record.metadata if metadata else ()))
        for some in found
        for record in some.records
    ]
    return records, [item.problem for some in found for item in some.unreadable]


def process(folder, source, **data):
    config = replace(PRESETS["demo"], output_dir=folder, data=DataConfig(input=source, **data))
    return json.loads(process_data.run(config).read_text(encoding="utf-8"))


@pytest.mark.parametrize(("name", "titles", "contents"), [
    ("columns.json", [f"Pan {n}" for n in range(5)], [f"{SENTENCE} {n}" for n in range(5)]),
    ("columns_of_lists.json", [f"Pan {n}" for n in range(5)], [f"{SENTENCE} {n}" for n in range(5)]),
    ("by_index.json", ["Lamp", "Pan"], [SENTENCE, f"{SENTENCE} 2"]),
    ("wrapped.json", [f"Pan {n}" for n in range(5)], [f"{SENTENCE}{n}" for n in range(5)]),
    ("content_object.jsonl", [f"Pan {n}" for n in range(5)], [f"{SENTENCE}{n}" for n in range(5)]),
    ("content_parts.jsonl", [f"Pan {n}" for n in range(5)], [f"{SENTENCE}{n}" for n in range(5)]),
    ("nan_array.json", ["Pan", "Lamp"], [SENTENCE, f"{SENTENCE}2"]),
    ("trailing_comma.json", ["Pan", "Lamp"], [SENTENCE, f"{SENTENCE} 2"]),
    ("comma_lines.jsonl", ["Lamp", "Pan"], [SENTENCE, f"{SENTENCE} 2"]),
])  # fmt: skip
def test_files_that_came_from_elsewhere(tmp_path, name, titles, contents):
    records = process(tmp_path, FAULTS / name)
    assert [record["product"] for record in records] == titles
    assert [record["description"] for record in records] == contents


def by_index(key):
    return {str(n): row[key] for n, row in enumerate(ROWS)}


SHAPES = {
    "array": json.dumps(ROWS, indent=1),
    "array with a comma more": json.dumps(ROWS)[:-1] + ",\n]",
    "columns": json.dumps({"uid": by_index("title"), **{key: by_index(key) for key in ROWS[0]}}),
    "columns in another order": json.dumps({key: by_index(key) for key in ("content", "price", "title")}, indent=3),
    "columns as lists": json.dumps({"n": [[1]] * 40, **{key: [row[key] for row in ROWS] for key in ROWS[0]}, "z": [{}]}),
    "index": json.dumps({f"id-{n}": row for n, row in enumerate(ROWS)}),
    "wrapped": json.dumps({"title": "Pans", "n": {"a": [1]}, "data": ROWS, "more": [{"a": 1}], "end": None}),
    "wrapped in two lists": json.dumps({"train": ROWS[:7], "none": [], "test": ROWS[7:]}, ensure_ascii=False),
    "table": json.dumps({"schema": {"fields": [{"name": "title", "type": "string"}]}, "data": ROWS}),
    "split": json.dumps({
        "columns": list(ROWS[0]), "index": list(range(40)), "data": [list(row.values()) for row in ROWS]
    }),
    "over several lines": "\n".join(json.dumps(row, indent=2) for row in ROWS),
    "over several lines, with commas": ",\n".join(json.dumps(row, indent=2, ensure_ascii=False) for row in ROWS) + ",",
    "lines with commas": ",\r\n".join(map(json.dumps, ROWS)),
    "lines with NaN": "\n".join(json.dumps(row | {"n": float("nan"), "text": "NaN"}).replace("null", "-Infinity") for row in ROWS),
    "array with NaN": json.dumps([row | {"n": float("nan")} for row in ROWS]).replace("null", "NaN"),
}  # fmt: skip


@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_gives_the_same_records_however_little_is_read_at_a_time(tmp_path, monkeypatch, shape):
    text = SHAPES[shape]
    (tmp_path / "x.json").write_text(text, encoding="utf-8-sig", newline="")
    (tmp_path / "x.jsonl.gz").write_bytes(gzip.compress(text.encode()))
    expected = [tuple(row.values()) for row in ROWS]
    for size in (1 << 18, 1000, 50):
        monkeypatch.setattr(json_input, "READ_AT_A_TIME", size)
        for name in ("x.json", "x.jsonl.gz"):
            path = tmp_path / name
            assert read(path) == (expected, [])
            parts = [block.stored_bytes for block in blocks(path, *KEYS[:2])]
            assert sum(parts) == path.stat().st_size and min(parts) >= 0
    assert {"title", "content", "price"} <= set(readers.field_names(tmp_path / "x.json", "title", "content"))


@pytest.mark.parametrize(("text", "records"), [
    ({"title": "a", "content": ["b", "c"]}, [("a", ["b", "c"])]),
    ({"title": {"text": "a"}, "content": {"text": "b"}}, [({"text": "a"}, {"text": "b"})]),
    ({"title": "a", "related": [{"title": "x", "content": "y"}], "content": "b"}, [("a", "b")]),
    ({"title": "a", "parts": {"title": "x", "content": "y"}, "content": "b"}, [("a", "b")]),
])  # fmt: skip
def test_one_record_with_something_in_it_is_one_record(tmp_path, text, records):
    for indent in (None, 2):
        (tmp_path / "x.json").write_text(json.dumps(text, indent=indent), encoding="utf-8")
        assert read(tmp_path / "x.json", KEYS[:2]) == (records, [])


def test_a_list_whose_first_record_lacks_a_field_is_read_with_the_others(tmp_path):
    lists = {"train": [{"title": "a", "content": "b"}], "test": [{"content": "c"}, {"title": "d", "content": "e"}]}
    (tmp_path / "x.json").write_text(json.dumps(lists), encoding="utf-8")
    assert read(tmp_path / "x.json", KEYS[:2]) == ([("a", "b"), (None, "c"), ("d", "e")], [])


@pytest.mark.parametrize("first", [
    '{"title": "a", "content": "b', '{"title": "a",', '{"title":', "{", '{"title": ["a"], "content": ["b"]}',
    '{"data": [{"title": "a", "content": "b"}]}', '{"0": {"title": "a", "content": "b"}}',
])  # fmt: skip
def test_a_damaged_or_odd_first_line_of_json_lines_is_one_line(tmp_path, first):
    line = '{"title": "t", "content": "c"}'
    (tmp_path / "x.jsonl").write_text("\n".join([first, *[line] * 3]), encoding="utf-8")
    records, problems = read(tmp_path / "x.jsonl", KEYS[:2])
    assert records[-3:] == [("t", "c")] * 3 and len(records) + len(problems) == 4


def test_a_first_line_that_is_too_long_is_one_line(tmp_path):
    line = '{"title": "t", "content": "c"}\n'
    (tmp_path / "x.jsonl").write_text('{"data": [' + "1, " * (3 << 20) + "1]}\n" + line * 2, encoding="utf-8")
    assert read(tmp_path / "x.jsonl", KEYS[:2]) == ([("t", "c")] * 2, ["line longer than 8 MiB"])


@pytest.mark.parametrize(("text", "message"), [
    ('{"version": 1,\n"data": [{"title": "a", "content": "b"}, {"title": "c"', "breaks off after record 1"),
    ('{"title": {"0": "a", "1": "b"}, "content": {"0": "a", "2": "b"}}', "title, content have not the same rows after record 1"),
    ('{"title": ["a", "b"], "content": ["a"]}', "title, content have not the same rows after record 1"),
    ('{\n"title": "a",\n"content": "b"\n}\n{\n"title": "a"', "breaks off after record 1"),
    ('[{"title": "a", "content": "b"}] {}', "breaks off after record 1"),
    ('[{"title": "a", "content": "b"},,]', "breaks off after record 1"),
])  # fmt: skip
def test_what_breaks_off_or_does_not_fit_is_one_sentence(tmp_path, text, message):
    (tmp_path / "x.json").write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=message):
        read(tmp_path / "x.json")


def test_rows_of_a_table_that_are_none_are_told(tmp_path):
    text = {"columns": ["title", "content"], "data": [["a", "b"], ["c"], 7, ["d", "\ud800"]]}
    (tmp_path / "x.json").write_text(json.dumps(text), encoding="utf-8")
    problems = ["list instead of an object", "int instead of an object", "invalid UTF-8"]
    assert read(tmp_path / "x.json", KEYS[:2]) == ([("a", "b")], problems)


@pytest.mark.parametrize(("text", "message"), [
    ({"info": {"name": "x"}, "items": [{"name": "a", "text": {"body": "b"}}]}, "'title'; it has name, text, text.body"),
    ({"7": {"name": "a", "text": "b"}}, "'title'; it has name, text"),
    ({"columns": ["name", "text"], "data": [["a", "b"]]}, "'title'; it has name, text"),
    ({"name": ["a"], "text": ["b"]}, "'title'; it has name, text"),
])  # fmt: skip
def test_the_fields_of_any_shape_are_named(tmp_path, text, message):
    (tmp_path / "x.json").write_text(json.dumps(text), encoding="utf-8")
    with pytest.raises(UserError, match=message):
        process(tmp_path, tmp_path / "x.json")


def test_any_number_of_records_over_several_lines_is_read(tmp_path):
    (tmp_path / "x.jsonl").write_text("\n".join(json.dumps(row, indent=2) for row in ROWS * 200), encoding="utf-8")
    assert (tmp_path / "x.jsonl").stat().st_size > 2 * BLOCK_BYTES
    assert read(tmp_path / "x.jsonl") == ([tuple(row.values()) for row in ROWS] * 200, [])


NESTED = [
    {"head": {"title": f"Title {n}"}, "body": [{"text": "a" * 30}, {"text": "b" * 30, "n": n}], "a.b": n}
    for n in range(3)
]
FIELDS = ("head.title", "body.text", "a.b")


def test_a_name_with_dots_is_a_field_within_another_in_every_format(tmp_path):
    expected = [(f"Title {n}", ["a" * 30, "b" * 30], n) for n in range(3)]
    (tmp_path / "x.jsonl").write_text("\n".join(map(json.dumps, NESTED)), encoding="utf-8")
    (tmp_path / "x.json").write_text(json.dumps(NESTED), encoding="utf-8")
    (tmp_path / "wrapped.json").write_text(json.dumps({"data": NESTED}), encoding="utf-8")
    columns = {key: [row[key] for row in NESTED] for key in NESTED[0]}
    (tmp_path / "columns.json").write_text(json.dumps(columns), encoding="utf-8")
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(NESTED), tmp_path / "x.parquet")
    for name in ("x.jsonl", "x.json", "wrapped.json", "x.parquet", "columns.json"):
        assert read(tmp_path / name, FIELDS) == (expected, []), name
    with (tmp_path / "x.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([FIELDS, ("Title", "c", 1)])
    assert read(tmp_path / "x.csv", FIELDS) == ([("Title", "c", "1")], [])
    records = process(
        tmp_path, tmp_path / "x.jsonl", read_title_from=FIELDS[0], read_content_from=FIELDS[1], metadata=("a.b",)
    )
    assert records[2] == {"product": "Title 2", "description": "a" * 30 + " " + "b" * 30, "a.b": 2}


def test_a_content_that_is_an_object_names_what_is_in_it(tmp_path):
    (tmp_path / "x.jsonl").write_text('{"title": "t", "content": {"body": "b", "meta": {"n": 1}}}', encoding="utf-8")
    with pytest.raises(
        UserError, match=r"'content' is no text, .*content\.body.* --data\.read-content-from content\.body\."
    ):
        process(tmp_path, tmp_path / "x.jsonl")
    with pytest.raises(UserError, match=r"no record has a field 'content\.text'; it has content, content\.body, "):
        process(tmp_path, tmp_path / "x.jsonl", read_content_from="content.text")


def test_a_table_by_columns_in_utf_16_is_read(tmp_path):
    columns = {
        "title": {str(n): f"Título {n} 🙂" for n in range(3000)},
        "content": {str(n): "é" * 90 for n in range(3000)},
    }
    (tmp_path / "x.json").write_text(json.dumps(columns, ensure_ascii=False), encoding="utf-16")
    found = [record for block in blocks(tmp_path / "x.json", "title", "content") for record in block.parsed]
    assert [record.title for record in found] == list(columns["title"].values())
    assert {record.content for record in found} == {"é" * 90}
