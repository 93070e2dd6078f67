"""Any input is read as the same stream of records; what is damaged is told, never fatal; splits never move."""

from __future__ import annotations

import csv
import gzip
import json
import random
from collections import Counter

import pytest

from pipeline.artifacts import UserError
from pipeline.records import input_size, read_records, record_writer, reservoir_sample, split_of

ROWS = [{"title": "Café “A”", "content": "one, two\nthree"}, {"title": "B", "content": 'a "quoted" text'}]


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
    advanced = []
    found = list(read_records(path, advanced.append))
    assert [record.fields for record in found] == ROWS
    assert all(record.problem is None for record in found)
    assert sum(advanced) == input_size(path)


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
    found = list(read_records(path))
    assert [record.number for record in found if record.fields is not None] == [1, 8, 9]
    assert [record.number for record in found if record.problem] == [2, 4, 5, 6, 7]
    assert all(record.raw for record in found if record.problem)


def test_a_line_of_many_megabytes_is_told_and_the_next_is_read(tmp_path):
    path = tmp_path / "trn.json"
    path.write_bytes(b"x" * (10 << 20) + b'\n{"title": "t", "content": "c"}\n')
    first, second = read_records(path)
    assert first.problem == "line longer than 8 MiB" and len(first.raw) == 1000
    assert second.fields == {"title": "t", "content": "c"}


def test_an_array_on_one_long_line_is_read(tmp_path):
    path = tmp_path / "trn.json"
    rows = [{"title": f"t{i}", "content": "c" * 1000} for i in range(10_000)]
    path.write_text(json.dumps(rows), encoding="utf-8")
    assert [record.fields for record in read_records(path)] == rows


@pytest.mark.parametrize("sign", [",", ";", "\t"])
def test_the_header_line_of_a_csv_tells_its_delimiter(tmp_path, sign):
    path = tmp_path / "rows.csv"
    path.write_text(f"title{sign}content\na{sign}b\n", encoding="utf-8")
    assert [record.fields for record in read_records(path)] == [{"title": "a", "content": "b"}]


def test_csv_rows_of_another_width_and_of_another_encoding_are_told(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_bytes(b"title,content\na,b\nc\nd,e,f\ng,\xe9\nh,i\n")
    problems = [record.problem for record in read_records(path)]
    width = "another number of columns than the header"
    assert problems == [None, width, width, "invalid UTF-8", None]


@pytest.mark.parametrize(("name", "content", "message"), [
    ("trn.json", b"", "is empty"),
    ("trn.txt", b"x", "none of the endings"),
    ("trn.json", b'[{"title": "a"}, {"ti', "breaks off after record 1"),
    ("trn.json.gz", b"not gzip", "not a complete gzip file"),
    ("trn.json.gz", gzip.compress(b'{"a": 1}\n' * 9999)[:-20], "not a complete gzip file"),
    ("trn.parquet", b"not parquet", "not a readable Parquet file"),
    ("trn.parquet.gz", b"x", "Decompress it first"),
])  # fmt: skip
def test_files_that_cannot_be_read_are_one_sentence(tmp_path, name, content, message):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(UserError, match=message):
        input_size(path)
        list(read_records(path))


def test_missing_file_and_folder(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        input_size(tmp_path / "trn.json")
    with pytest.raises(UserError, match="is a folder"):
        input_size(tmp_path)


@pytest.mark.parametrize("count", [0, 1, 3])
def test_written_records_are_one_json_array_with_one_record_a_line(tmp_path, count):
    path = tmp_path / "out.json"
    with record_writer(path) as write:
        for number in range(count):
            write({"n": number})
    assert json.loads(path.read_text(encoding="utf-8")) == [{"n": n} for n in range(count)]
    assert sum(line.startswith("{") for line in path.read_text(encoding="utf-8").splitlines()) == count


def test_splits_depend_on_the_normalised_title_alone():
    assert split_of("Mog's Kittens", 0.3, 0.3) == split_of(" mog&#39;s  KITTENS ", 0.3, 0.3)


def test_splits_have_the_asked_shares_and_growing_one_moves_no_record_between_the_others():
    titles = [f"title {n}" for n in range(20_000)]
    shares = Counter(split_of(title, 0.05, 0.1) for title in titles)
    assert shares["test"] / 20_000 == pytest.approx(0.1, abs=0.01)
    assert shares["validation"] / 20_000 == pytest.approx(0.05, abs=0.01)
    assert all(split_of(t, 0.2, 0.1) == "test" for t in titles if split_of(t, 0.05, 0.1) == "test")


def test_reservoir_sample_is_seeded_fair_and_in_order():
    assert reservoir_sample(range(5), 9, random.Random(1)) == list(range(5))
    assert reservoir_sample(range(99), 0, random.Random(1)) == []
    assert reservoir_sample(range(99), 7, random.Random(1)) == reservoir_sample(range(99), 7, random.Random(1))
    rng = random.Random(5)
    drawn = Counter(item for _ in range(4000) for item in reservoir_sample(range(20), 5, rng))
    assert all(880 < drawn[item] < 1120 for item in range(20)), drawn
    sample = reservoir_sample(range(1000), 50, rng)
    assert sample == sorted(set(sample)) and len(sample) == 50
