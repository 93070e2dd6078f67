"""CSV as the programs of this world write it: every line of a file is read, told or blank, and no row swallows others."""

from __future__ import annotations

import csv
import gzip
import io
import itertools
import json
import re
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, seed, settings
from hypothesis import strategies as st

import process_data
from config import PRESETS, PROJECT_DIR, DataConfig
from pipeline.data import delimited, readers
from pipeline.data.dialect import Dialect
from pipeline.data.rows import Suspect, Unreadable
from pipeline.run.errors import UserError

FILES = PROJECT_DIR / "tests" / "faults" / "files"
TEXT = "A sturdy example with enough words to pass the minimum length of the stage."
QUICK = settings(max_examples=500, deadline=None, database=None)


def read(path, title="title", content="content", **how):
    """The records of a file, and the problems of the unreadable by their line."""
    found = readers.recognise(path, (title, content), **how)
    contents = [block.read(title, content) for block in readers.blocks(path, title, content, (), found)]
    records = [(record.title, record.content) for some in contents for record in some.records]
    return records, {item.number: item.problem for some in contents for item in some.unreadable}


def read_bytes(tmp_path, content, name="rows.csv", **how):
    path = tmp_path / name
    path.write_bytes(content)
    return read(path, **how)


def process(tmp_path, path, **data):
    data = replace(DataConfig(), **{"input": path, "min_content_chars": 0, "deduplicate": False, **data})
    return json.loads(process_data.run(replace(PRESETS["demo"], output_dir=tmp_path, data=data)).read_bytes())


def numbered(numbers):
    return [(f"Item {n}", f"{TEXT} Number {n}.") for n in numbers]


WITH_QUOTES = [(f'The "Big" pan {n}', f'{TEXT} He said "yes" to it {n}.') for n in range(6)]
RIGHT = {
    "c4_unclosed.csv": (numbered([1, 2, 3, *range(5, 60)]), {5: "unclosed quote"}),
    "c4b_tsv_quote.tsv": (
        [
            ('"Blue" mug', f"{TEXT} One."),
            ('"12 inch pan', f"{TEXT} Two."),
            *numbered(range(3, 30)),
            ('"Red" mug', f"{TEXT} Last."),
        ],
        {},
    ),
    "c18_two_quotes.csv": (
        [
            (f"Item {n}", f"{TEXT} {n}" if n != 20 else 'He said "yes" and it was enough to be kept as a text')
            for n in range(30)
            if n != 5
        ],
        {7: "unclosed quote"},
    ),
    "k2_backslash.csv": (WITH_QUOTES, {}),
    "c3_sep.csv": ([("Lamp", TEXT), ("Kettle", f"{TEXT} Second.")], {}),
    "c6_pipe.csv": ([("Lamp", TEXT)], {}),
    "c9_cr.csv": (
        [
            ("Lamp", "This, that, and more, with, commas, but semicolons between, the columns, here"),
            ("Pan", "Another, text, with, commas, that is long enough, to be kept, by the stage"),
        ],
        {},
    ),
    "c15_trailing.csv": ([("Lamp", TEXT), ("Pan", f"{TEXT} two")], {}),
}


@pytest.mark.parametrize("name", RIGHT)
def test_files_that_other_people_had(name):
    assert read(FILES / name) == RIGHT[name]


def test_a_file_of_excel_in_brazil(tmp_path, capsys):
    path = FILES / "c1_latin1.csv"
    records = process(tmp_path, path, read_title_from="Título", read_content_from="Descrição")
    assert [record["product"] for record in records] == ["Panela de pressão", "Cafeteira", "Copo"]
    told = "Read as windows-1252, columns separated by ';', header in line 1 (--data.encoding, --data.separator, --data.header-line)."
    assert told in capsys.readouterr().out
    with pytest.raises(UserError, match=r"it has Descrição, Título. Name it with --data.read-title-from."):
        process(tmp_path, path)


@pytest.mark.parametrize(("rows", "expected", "problems"), [
    # Quotes that are text.
    ('The 12" pan,b', [('The 12" pan', "b")], {}),
    ('"Blue" mug,b', [('"Blue" mug', "b")], {}),
    ('a,"A 12" lamp"', [("a", 'A 12" lamp')], {}),
    ('a,"A 12" lamp, red"', [("a", 'A 12" lamp, red')], {}),
    # Quotes that are well formed.
    ('a,"one\ntwo, three\nfour"\nc,d', [("a", "one\ntwo, three\nfour"), ("c", "d")], {}),
    ('"a\n\nb","c ""d"""', [("a\n\nb", 'c "d"')], {}),
    # Quotes that are opened and not closed, or not where a quote can close.
    ('"a,b\nc,d\ne,f', [("c", "d"), ("e", "f")], {2: "unclosed quote"}),
    ('a,"b\nc,d\ne,f "g"', [("c", "d"), ("e", 'f "g"')], {2: "unclosed quote"}),
    ('a,"b\nc,"d\ne,f', [("e", "f")], {2: "unclosed quote", 3: "unclosed quote"}),
    ('x,"one\ntwo,too\nthree",y\nc,d', [("two", "too"), ('three"', "y"), ("c", "d")], {2: "unclosed quote"}),
    # Of another width, over two lines.
    ('x,"one\ntwo",y\nc,d', [("c", "d")], {2: "another number of columns than the header"}),
    # Backslashes, found at the first row that needs them.
    ('"The \\"Big\\" pan","b"', [('The "Big" pan', "b")], {}),
    ('c,d\n"He said \\"a, b\\"\nand more",b\n"C:\\dir\\",e', [("c", "d"), ('He said "a, b"\nand more', "b"), ("C:\\dir\\", "e")], {}),
    # Separators that no column follows.
    ("a,b,,\nc,d,,x\n,,,", [("a", "b"), ("", "")], {3: "another number of columns than the header"}),
])  # fmt: skip
def test_quotes_and_widths(tmp_path, rows, expected, problems):
    for end in ("\n", "\r\n"):
        content = f"title,content\n{rows}\n".replace("\n", end).encode()
        assert read_bytes(tmp_path, content) == (expected, problems)


@pytest.mark.parametrize(("rows", "expected"), [
    ('"Blue" mug\tb\n"Red"\tc', [('"Blue" mug', "b"), ('"Red"', "c")]),
    ('"Best pan\tb\nc\td\n12"\te', [('"Best pan', "b"), ("c", "d"), ('12"', "e")]),
    ('a\t"one\ntwo"\nc\t"d ""e"" f"', [("a", "one\ntwo"), ("c", 'd "e" f')]),
    ('a\t"b\tc"', [("a", "b\tc")]),
])  # fmt: skip
def test_quotes_between_tabs_are_text_unless_they_are_needed(tmp_path, rows, expected):
    assert read_bytes(tmp_path, f"title\tcontent\n{rows}\n".encode(), "rows.tsv") == (expected, {})


def test_where_every_name_is_quoted_quotes_are_none_of_the_text(tmp_path):
    assert read_bytes(tmp_path, b'"title"\t"content"\n"a"\tb\n', "rows.tsv")[0] == [("a", "b")]


def test_a_record_that_may_have_swallowed_rows_is_kept_and_told(tmp_path, capsys):
    path = tmp_path / "rows.csv"
    path.write_text('title,content\na,"b\nc,d\ne,f\ng"\nh,"i\nj\nk"\nl,"m\nn,o\np"\n', encoding="utf-8")
    records = process(tmp_path, path)
    assert [record["product"] for record in records] == ["a", "h", "l"]
    assert (
        "2 records of several lines hold lines that would be rows by themselves; lines 2 to 5 hold 2."
        in capsys.readouterr().out
    )


def test_what_is_too_short_is_told_with_its_setting(tmp_path, capsys):
    path = tmp_path / "rows.csv"
    path.write_text(f"title,content\na,b\nc,{TEXT}\n", encoding="utf-8")
    process(tmp_path, path, min_content_chars=30)
    assert re.search(r"too short +1  \(--data.min-content-chars 30\)\n", capsys.readouterr().out)


def test_a_rejected_record_of_several_lines_says_how_many(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text('title,content\nx,"one\ntwo",y\na,b\n', encoding="utf-8")
    process(tmp_path, path)
    [noted] = (tmp_path / "demo" / "rejected.jsonl").read_text(encoding="utf-8").splitlines()
    width = "another number of columns than the header"
    assert json.loads(noted) == {"line": 2, "problem": width, "raw": 'x,"one\ntwo",y', "lines": 2}


def strict(line, separator):
    """The columns of a line that is a row by itself, by the rules of RFC 4180."""
    if separator == "\t":
        return [] if '"' in line else line.split(separator)
    try:
        return next(csv.reader([line], delimiter=separator, strict=True))
    except csv.Error:
        return []


pieces = st.lists(
    st.sampled_from([
        b"a", b"b", b",", b"\t", b'"', b'""', b"\n", b"\r\n", b"\n\n", b"\r", b'\\"', b"\\", b"c,d\n", b"c\td\n", b'e,"f\n', b'g",h\n', b'"i"\tj\n',
        b'k\t"l\n', b'm"\tn\n', "é".encode(), b"\xe9", b"\0", b",,", b'","', b'"\t"',
    ]),
    max_size=30,
)  # fmt: skip


@seed(3407)
@QUICK
@given(pieces=pieces, separator=st.sampled_from(",\t"), backslash=st.booleans())
def test_every_line_of_a_file_is_accounted_for(pieces, separator, backslash):
    raw = b"title" + separator.encode() + b"content\n" + b"".join(pieces)
    text = io.TextIOWrapper(io.BytesIO(raw), "utf-8", "surrogateescape").read()
    lines = [*text.split("\n"), None]
    items = list(delimited.rows(io.BytesIO(raw), Dialect(separator, 1, backslash), "utf-8"))
    place = 1
    for item, following in itertools.zip_longest(items, items[1:]):
        if isinstance(item, Suspect):
            continue
        while lines[place] == "":
            place += 1
        length = item.lines if isinstance(item, Unreadable) else 1 + sum(value.count("\n") for value in item.values())
        inner = [len(strict(line, separator)) == 2 for line in lines[place + 1 : place + length - 1]]
        if isinstance(item, Unreadable):
            assert item.number == place + 1 and item.problem
            assert not any(inner) or item.problem == "invalid UTF-8" or backslash
        elif not backslash:
            assert not any(inner) or following == Suspect(place + 1, length, sum(inner))
            assert any(inner) or not isinstance(following, Suspect)
            assert not any(inner) or separator == ","
        place += length
    assert not any(lines[place:])


texts = st.text(st.sampled_from('ab ",;|\\\n'), max_size=8)


@seed(3407)
@QUICK
@given(
    rows=st.lists(st.tuples(texts, texts), max_size=6),
    separator=st.sampled_from(",;|\t"),
    quoting=st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]),
    end=st.sampled_from(["\n", "\r\n"]),
)
def test_what_a_writer_of_csv_has_written_is_read_as_it_was(rows, separator, quoting, end):
    written = io.StringIO()
    writer = csv.writer(written, delimiter=separator, quoting=quoting, lineterminator=end)
    writer.writerows([("title", "content"), *rows])
    file = io.BytesIO(written.getvalue().encode())
    found = [row for row in delimited.rows(file, Dialect(separator), "utf-8") if not isinstance(row, Suspect)]
    assert found == [{"title": title, "content": content} for title, content in rows]


def test_blocks_of_characters_may_end_anywhere(tmp_path, monkeypatch):
    path = tmp_path / "rows.csv"
    path.write_bytes(b'title,content\r\na,"b\r\nc"\r\n\r\nd,\xc3\xa9\r\n"e,f\r\ng,h')
    whole = read(path)
    assert whole == ([("a", "b\nc"), ("d", "é"), ("g", "h")], {6: "unclosed quote"})
    for size in range(1, 12):
        monkeypatch.setattr(delimited, "_READ_AT_A_TIME", size)
        assert read(path) == whole


def test_quotes_that_are_never_closed_are_read_in_linear_time(tmp_path):
    # Each line opens a quote that the next one closes, to open another: what is read in vain must not add up.
    rows = b'a","b\n' * 40_000
    records, problems = read_bytes(tmp_path, b"title,content\n" + rows)
    assert len(records) + len(problems) >= 39_990


ACCENTS = "title,content\nPanela de pressão,Feita de alumínio com válvula de segurança\nCafé,Não é chá\n"
RECORDS = [("Panela de pressão", "Feita de alumínio com válvula de segurança"), ("Café", "Não é chá")]


@pytest.mark.parametrize(("encoding", "mark"), [
    ("utf-8", b""), ("utf-8-sig", b""), ("windows-1252", b""), ("latin-1", b""), ("mac_roman", b""), ("utf-16", b""),
    ("utf-16-le", b""), ("utf-16-be", b""), ("utf-16-be", b"\xfe\xff"), ("utf-32", b""),
])  # fmt: skip
def test_encodings_are_recognised(tmp_path, encoding, mark):
    content = mark + ACCENTS.encode(encoding)
    assert read_bytes(tmp_path, content) == (RECORDS, {})
    assert read_bytes(tmp_path, gzip.compress(content), "rows.csv.gz") == (RECORDS, {})


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-32"])
@pytest.mark.parametrize("name", ["x.json", "x.jsonl"])
def test_json_of_another_unicode_is_read(tmp_path, name, encoding):
    rows = [dict(zip(("title", "content"), record, strict=True)) for record in RECORDS]
    text = json.dumps(rows) if name == "x.json" else "\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    assert read_bytes(tmp_path, text.encode(encoding), name) == (RECORDS, {})


@pytest.mark.parametrize(("text", "encoding"), [
    ("title,content\nКастрюля,Большая алюминиевая кастрюля с крышкой\n", "windows-1251"),
    ("title,content\n鍋,大きなアルミ鍋、ふた付き、ガスコンロや電気コンロで使えます\n", "cp932"),
    ("title,content\n锅,大号铝锅带盖适用于燃气灶和电磁炉，颜色红色或黄色\n", "gb18030"),
    ("title,content\nGarnek,Duży aluminiowy garnek z pokrywką, żółty\n".replace(", ż", " ż"), "windows-1250"),
    ("title,content\nLamp,A “nice” lamp – it’s € 5\n", "windows-1252"),
])  # fmt: skip
def test_encodings_of_other_scripts_are_recognised(tmp_path, text, encoding):
    rows = [tuple(line.split(",")) for line in text.splitlines()[1:]]
    assert read_bytes(tmp_path, text.encode(encoding)) == (rows, {})


def test_an_encoding_may_be_told(tmp_path):
    text = "title,content\nRůže,Žlutá\n"
    assert read_bytes(tmp_path, text.encode("cp1250"), encoding="cp1250")[0] == [("Růže", "Žlutá")]
    lines = json.dumps({"title": "Café", "content": "Não"}, ensure_ascii=False).encode("cp1252") + b"\n{broken\n"
    path = tmp_path / "lines.jsonl"
    path.write_bytes(lines)
    assert [record["product"] for record in process(tmp_path, path, encoding="windows-1252")] == ["Café"]
    [noted] = (tmp_path / "demo" / "rejected.jsonl").read_text(encoding="utf-8").splitlines()
    assert json.loads(noted)["line"] == 2


def test_few_damaged_bytes_are_no_other_encoding(tmp_path):
    rows = "title,content\n" + "Café,Não\n" * 3
    records, problems = read_bytes(tmp_path, rows.encode() + b"caf\xe9,x\n")
    assert records == [("Café", "Não")] * 3 and problems == {5: "invalid UTF-8"}


def test_bytes_that_an_encoding_does_not_know_are_told(tmp_path):
    records, problems = read_bytes(tmp_path, b"title,content\na,\x81\nb,\xe9\n", encoding="cp1252")
    assert records == [("b", "é")] and problems == {2: "invalid cp1252"}
    records, problems = read_bytes(tmp_path, "title,content\na,b\nc,d".encode("utf-16")[:-1])
    assert records == [("a", "b")] and problems == {3: "invalid UTF-16"}


@pytest.mark.parametrize(("content", "line"), [
    ("Relatório de produtos\nGerado em 2024\n\ntitle;content\na;b, c\n", 4),
    ("Relatório, de, produtos\ntitle;content\na;b, c\n", 2),
    ('"sep=;"\nTITLE ;Content\na;b, c\n', 2),
    ("title;content;\na;b, c\n", 1),
])  # fmt: skip
def test_the_header_is_the_line_with_the_names(tmp_path, content, line):
    path = tmp_path / "rows.csv"
    path.write_text(content, encoding="utf-8")
    found = readers.recognise(path, ("title", "content"))
    assert found.dialect == Dialect(";", line)
    [row] = delimited.rows(io.BytesIO(content.encode()), found.dialect, "utf-8")
    assert list(row.values()) == ["a", "b, c"]


def test_separator_and_header_may_be_told(tmp_path):
    content = b"title,content\ntitle^content\na,b^c\n"
    assert read_bytes(tmp_path, content, separator="^", header_line=2) == ([("a,b", "c")], {})


@pytest.mark.parametrize(("setting", "value"), [
    ("encoding", "utf-9"), ("encoding", "base64"), ("separator", ""), ("separator", ";;"), ("separator", '"'), ("header_line", 0),
])  # fmt: skip
def test_settings_that_cannot_be_are_refused(setting, value):
    with pytest.raises(ValueError, match=f"data.{setting} must be"):
        DataConfig(**{setting: value})


@pytest.mark.parametrize("name", ["rows.csv", "lines.jsonl"])
def test_a_name_that_differs_in_case_is_suggested(tmp_path, name):
    path = tmp_path / name
    path.write_text(
        "TITLE,content\na,b\n" if name == "rows.csv" else '{"TITLE": "a", "content": "b"}\n', encoding="utf-8"
    )
    with pytest.raises(UserError, match=r"no record has a field 'title'; .*Name it with --data.read-title-from TITLE"):
        process(tmp_path, path)


def test_white_space_around_a_name_is_none_of_it(tmp_path):
    assert read_bytes(tmp_path, b" title ,content \na,b\n")[0] == [("a", "b")]


def workbook(names):
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as archive:
        for name in names:
            archive.writestr(name, "x")
    return made.getvalue()


@pytest.mark.parametrize(("name", "content", "sentence"), [
    ("x.xlsx", workbook(["[Content_Types].xml", "xl/workbook.xml"]), "is an Excel file: open it .* as CSV UTF-8"),
    ("x.csv", workbook(["[Content_Types].xml", "xl/workbook.xml"]), "is an Excel file: open it .* as CSV UTF-8"),
    ("x.xls", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + b"\0" * 99, "is an Excel file: open it .* as CSV UTF-8"),
    ("x.ods", workbook(["content.xml"]), "is an OpenDocument file: open it"),
    ("x.csv", workbook(["rows.csv"]), "is a ZIP archive, .*unpack it"),
    ("x.csv", (FILES / "j11c_xlsx.csv").read_bytes(), "is a ZIP archive, as workbooks are: .* as CSV UTF-8"),
    ("x.jsonl", b"BZh91AY", r"is compressed with bzip2. Decompress it first \(bunzip2\)"),
])  # fmt: skip
def test_files_of_other_programs_are_known_by_their_first_bytes(tmp_path, name, content, sentence):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(UserError, match=sentence):
        readers.input_size(path)


def test_gzip_and_parquet_are_known_by_their_first_bytes(tmp_path):
    assert read(FILES / "j11_isgz.jsonl")[0] == [("Pan", TEXT)]
    assert read_bytes(tmp_path, b"title,content\na,b\n", "not-compressed.csv.gz")[0] == [("a", "b")]
    import pyarrow
    import pyarrow.parquet

    path = tmp_path / "x.csv"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([{"title": "a", "content": "b"}]), path)
    assert read(path)[0] == [("a", "b")]


@pytest.mark.parametrize(("name", "sentence"), [
    ("-", "^Standard input cannot be read twice, .* write it to a file first"),
    ("data/*.csv", "does not exist. Stage 1 reads one file: join"),
    ("databricks/databricks-dolly-15k", "load_dataset.'databricks/databricks-dolly-15k', .*--data.input databricks-dolly-15k.jsonl"),
    ("data/nothing.csv", "does not exist. Name your file with --data.input"),
    ("~/nothing.csv", r"^[^~]*nothing.csv does not exist"),
    ("~no_such_user/nothing.csv", "^~no_such_user/nothing.csv does not exist"),
])  # fmt: skip
def test_what_is_no_file_is_told_with_what_can_be_done(name, sentence):
    with pytest.raises(UserError, match=sentence):
        readers.input_size(DataConfig(input=Path(name)).input)


def test_an_address_is_told_to_be_downloaded():
    with pytest.raises(ValueError, match="download what is there"):
        DataConfig(input=Path("https://example.org/x.csv"))
