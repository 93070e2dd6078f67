"""Any input is read as the same records, in blocks of any size; what is damaged is told, never fatal."""

from __future__ import annotations

import csv
import gzip
import json

import pytest

from pipeline.data import readers
from pipeline.data.readers import LineCounter, blocks, input_size
from pipeline.run.errors import UserError

ROWS = [{"title": "Café “A”", "content": "one, two\nthree"}, {"title": "B", "content": 'a "quoted" text'}]


def read(path):
    """The records, and what is unreadable by number."""
    records, unreadable, lines = [], {}, LineCounter(path)
    for block in blocks(path, "title", "content"):
        contents = block.read("title", "content")
        records += [(record.title, record.content) for record in contents.records]
        unreadable |= {lines.before(block.start) + item.number: item for item in contents.unreadable}
    return records, unreadable


def write_rows(path):
    name = path.name.removesuffix(".gz")
    if name.endswith(".parquet"):
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), path)
        return path
    with (
        gzip.open(path, "wt", encoding="utf-8")
        if path.suffix == ".gz"
        else path.open("w", encoding="utf-8", newline="") as file
    ):
        if name.endswith((".csv", ".tsv")):
            writer = csv.DictWriter(file, ["title", "content"], delimiter="\t" if name.endswith(".tsv") else ",")
            writer.writeheader()
            writer.writerows(ROWS)
        elif name == "array.json":
            json.dump(ROWS, file, indent=2)
        else:
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS)
    return path


@pytest.mark.parametrize("name", [
    "lines.json", "lines.jsonl", "array.json", "rows.csv", "rows.tsv", "rows.parquet",
    "lines.jsonl.gz", "array.json.gz", "rows.csv.gz",
])  # fmt: skip
def test_every_form_gives_the_same_records_and_reports_every_byte(tmp_path, name):
    path = write_rows(tmp_path / name)
    records, unreadable = read(path)
    assert records == [tuple(row.values()) for row in ROWS]
    assert not unreadable
    assert sum(block.stored_bytes for block in blocks(path, "title", "content")) == input_size(path)


def test_damaged_lines_are_told_with_their_number(tmp_path):
    path = tmp_path / "trn.json"
    good = json.dumps({"title": "t", "content": "c"}).encode()
    path.write_bytes(
        b"\xef\xbb\xbf" + good + b"\n"  # a byte order mark
        + good[:10] + b"\n"  # cut off
        + b"\n"  # blank
        + b'{"title": "\xff\xfe", "content": "c"}\n'  # invalid UTF-8
        + b'["a", "list"]\n'
        + b'{"title": "\\ud800", "content": "c"}\n'  # half a surrogate pair
        + b'{"title": "a\x00b", "content": "c"}\n'  # NUL
        + good + b"\r\n" + good
    )  # fmt: skip
    records, unreadable = read(path)
    assert len(records) == 3 and list(unreadable) == [2, 4, 5, 6, 7]
    assert all(item.problem and item.raw for item in unreadable.values())


@pytest.mark.parametrize("name", ["trn.json", "trn.json.gz"])
def test_a_line_of_many_megabytes_is_told_and_the_next_is_read(tmp_path, name):
    path = tmp_path / name
    line = b'{"title": "t", "content": "c"}\n'
    with (gzip.open if path.suffix == ".gz" else open)(path, "wb") as file:
        file.write(line * 3 + b"x" * (50 << 20) + b"\n" + line + b"broken\n" + b'"' + b"y" * (9 << 20))
    records, unreadable = read(path)
    assert len(records) == 4 and list(unreadable) == [4, 6, 7]
    assert unreadable[4].problem == unreadable[7].problem == "line longer than 8 MiB" and len(unreadable[4].raw) == 1000
    assert max(len(block.lines or b"") for block in blocks(path, "title", "content")) < 10 << 20
    assert sum(block.stored_bytes for block in blocks(path, "title", "content")) == path.stat().st_size


def test_an_array_on_one_long_line_is_read(tmp_path):
    path = tmp_path / "trn.json"
    rows = [{"title": f"t{i}", "content": "c" * 1000} for i in range(10_000)]
    path.write_text(json.dumps(rows), encoding="utf-8")
    records, _ = read(path)
    assert records == [tuple(row.values()) for row in rows]


@pytest.mark.parametrize("sign", [",", ";", "\t", "|"])
def test_the_header_line_of_a_csv_tells_its_delimiter(tmp_path, sign):
    path = tmp_path / "rows.csv"
    path.write_text(f"title{sign}content\na{sign}b\n", encoding="utf-8")
    assert read(path)[0] == [("a", "b")]


def test_csv_rows_of_another_width_and_of_another_encoding_are_told(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_bytes(b"title,content\na,b\nc\nd,e,f\ng,\xe9\nh,\xc3\xa9\n")
    records, unreadable = read(path)
    width = "another number of columns than the header"
    assert records == [("a", "b"), ("h", "é")]
    assert {n: item.problem for n, item in unreadable.items()} == {3: width, 4: width, 5: "invalid UTF-8"}


@pytest.mark.parametrize(("name", "content", "message"), [
    ("trn.json", b"", "is empty"),
    ("trn.txt", b"x", "none of the endings"),
    ("trn.json", b'[{"title": "a"}, {"ti', "breaks off after record 1"),
    ("trn.json.gz", b"\x1f\x8bnot gzip", "not a complete gzip file"),
    ("trn.json.gz", gzip.compress(b'{"a": 1}\n' * 9999)[:-20], "not a complete gzip file"),
    ("trn.parquet", b"not parquet", "not a readable Parquet file"),
    ("trn.parquet.gz", b"x", "Decompress it first"),
])  # fmt: skip
def test_files_that_cannot_be_read_are_one_sentence(tmp_path, name, content, message):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(UserError, match=message):
        input_size(path)
        read(path)


def test_missing_file_and_folder(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        input_size(tmp_path / "trn.json")
    with pytest.raises(UserError, match="is a folder"):
        input_size(tmp_path)


def test_blocks_of_lines_are_the_file_and_are_numbered_whatever_their_size(tmp_path, monkeypatch):
    path = tmp_path / "trn.jsonl"
    lines = [json.dumps({"title": f"t{n}", "content": "c" * (n * 37 % 200)}) for n in range(500)]
    lines[100] = lines[400] = ""
    lines[250] = "{broken"
    path.write_text("\n".join(lines), encoding="utf-8")
    whole = read(path)
    assert len(whole[0]) == 497 and list(whole[1]) == [251]
    for size in (1, 99, 1000):
        monkeypatch.setattr(readers, "BLOCK_BYTES", size)
        records, unreadable = read(path)
        assert records == whole[0]
        assert {n: item.raw for n, item in unreadable.items()} == {n: item.raw for n, item in whole[1].items()}


@pytest.mark.parametrize("text", [
    '{"title": ' + "[" * 100_000, '{"title": "t", "content": nan}', '{"title": "t", "content": "c"} {}x', "17", "null",
])  # fmt: skip
def test_lines_that_are_json_of_another_kind_are_told(tmp_path, text):
    path = tmp_path / "trn.jsonl"
    path.write_text(text, encoding="utf-8")
    records, unreadable = read(path)
    assert not records and list(unreadable) == [1]


@pytest.mark.parametrize("name", ["lines.json", "array.json", "rows.csv", "rows.parquet"])
def test_the_names_of_the_fields_are_found_in_every_form(tmp_path, name):
    assert readers.field_names(write_rows(tmp_path / name), "title", "content") == ["content", "title"]


def test_the_names_of_the_fields_are_found_whatever_separates_them(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text("Título;Preço, em R$\na;b\n", encoding="utf-8")
    assert readers.field_names(path, "Título", "Preço") == ["Preço, em R$", "Título"]
