"""Hostile records: whatever they hold, they are read, told or refused, in bounded time and memory, and stay text."""

from __future__ import annotations

import gzip
import json
import random
import subprocess
import sys

import hostile
import pytest
from hypothesis import given, seed, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from config import PROJECT_DIR, DataConfig
from pipeline.data import readers
from pipeline.data.block_cleaning import clean_block
from pipeline.data.blocks import BLOCK_BYTES
from pipeline.data.cleaning import clean, list_items
from pipeline.data.rows import MAX_LINE_BYTES
from pipeline.rag import chunking
from pipeline.run.errors import UserError

MIB = 1 << 20
GOOD = b'{"title":"t","content":"c"}'
SOME_SECONDS = settings(max_examples=400, deadline=None, database=None)

inputs = st.builds(
    lambda form, parts: bytes([form]) + b"".join(parts),
    st.integers(0, 255),
    st.lists(
        st.one_of(
            st.binary(max_size=8),
            st.text(max_size=8).map(lambda text: text.encode("utf-8", "surrogatepass")),
            st.sampled_from([
                GOOD, b"\n", b"[", b"]", b"{", b"}", b",", b'"', b"\\ud800", b'"title":', b'"content":', b'"data":', b"NaN", b"1e999",
                b"9" * 5000, b"\xef\xbb\xbf", b"\xff\xfe", b"\0", b"title,content\n", b"['a', ", b", 'b']", b"{[]: 1}", b"['a', {[]: 1}, 'b']",
                b"<!--", b"-->", b"<script>", b"</script>", b"`", b"```\n", b"&#55296;", b"&amp;", b"\xcc\x81" * 40, b"[" * 200, b"]" * 200,
            ]),
        ),
        max_size=12,
    ),
)  # fmt: skip

records = st.builds(
    lambda case, parts: bytes([case]) + "".join(parts).encode(),
    st.sampled_from(range(8)),
    st.lists(
        st.one_of(st.sampled_from([chr(code) for code in range(32)]), st.sampled_from("<|>/s[] "), st.text(max_size=6))
    ),
)


@pytest.fixture(scope="module")
def check_reading(tmp_path_factory):
    return hostile.reads(tmp_path_factory.mktemp("hostile"))


@pytest.fixture(scope="module")
def check_rendering(smollm2_tokenizer, tiny_model):
    return hostile.renders(hostile.tokenizers(smollm2_tokenizer, AutoTokenizer.from_pretrained(tiny_model("phi3"))))


@seed(3407)
@SOME_SECONDS
@given(data=inputs)
def test_any_file_is_read_told_or_refused(check_reading, data):
    check_reading(data)


@seed(3407)
@SOME_SECONDS
@given(data=inputs)
def test_any_text_is_cleaned(data):
    hostile.cleans(data)


@seed(3407)
@SOME_SECONDS
@given(data=records)
def test_no_record_writes_a_control_token(check_rendering, data):
    check_rendering(data)


def test_a_control_token_that_overlaps_itself_is_written_apart(smollm2_tokenizer):
    from dataclasses import replace

    from config import PromptConfig
    from pipeline.models.prompts import make_prompt_format

    prompt_format = replace(make_prompt_format(PromptConfig(), smollm2_tokenizer), control_tokens=("<><", "aa"))
    assert prompt_format.neutralise("<><>< aaaa") == "< >< >< a a a a"


def read(path, content):
    """The records of a file, and the problems of the unreadable."""
    path.write_bytes(content)
    found = [block.read("title", "content") for block in readers.blocks(path, "title", "content")]
    return [record for some in found for record in some.records], [item for some in found for item in some.unreadable]


def peak_of_reading(path) -> tuple[int, str]:
    """Read and clean a file in a process of its own; return its peak memory in MiB and what it says."""
    code = (
        "import re, resource, sys; from pathlib import Path; from config import DataConfig\n"
        "from pipeline.data import readers; from pipeline.run.errors import UserError; from pipeline.data.block_cleaning import clean_block\n"
        "resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))\n"
        "try:\n"
        "    for block in readers.blocks(Path(sys.argv[1]), 'title', 'content'):\n"
        "        for item in clean_block(block, DataConfig())[0].unreadable: print(item.problem)\n"
        "except UserError as error: print(error)\n"
        "print(int(re.search(r'VmHWM:\\s+(\\d+)', Path('/proc/self/status').read_text())[1]) >> 10)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)], cwd=PROJECT_DIR, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr[-500:]
    said, _, peak = done.stdout.strip().rpartition("\n")
    return int(peak), said


BOMBS = {
    "x.jsonl.gz": (b"", b"\0", b"", "line longer than 8 MiB"),
    "x.csv.gz": (b"title,content\n", b"\0", b"\n", "row longer than 8 MiB"),
    "rows.csv.gz": (b'title,content\n"', b"x" * 200 + b"\n", b"", "row longer than 8 MiB"),
    "quotes.csv.gz": (b'title,content\n"', b"x" * 200 + b'\n","', b"", "unclosed quote"),
    "x.json.gz": (b'[{"title":"t","content":"', b"a", b'"}]', "longer than 8 MiB"),
    "deep.json.gz": (b"[", b"[", b"", "nested too deeply"),
    "wrapped.json.gz": (b'{"data":[' + GOOD, b',{"title":"t","content":"' + b"a" * (7 * MIB) + b'"}', b"]}", ""),
    "columns.json.gz": (
        b'{"title":["t"],"content":["c"',
        b',"' + b"a" * MIB + b'"',
        b"]}",
        "not the same rows after record 1",
    ),
    "pretty.jsonl.gz": (b'{\n"title":"t"}', b',{\n"title":"t","content":"' + b"a" * (7 * MIB) + b'"}', b"", ""),
    "records.json.gz": (b"[" + GOOD, b',{"title":"t","content":"' + b"a" * (7 * MIB) + b'"}', b"]", ""),
}


@pytest.mark.skipif(sys.platform != "linux", reason="the peak of memory is read from /proc")
@pytest.mark.parametrize("name", BOMBS)
def test_a_gzip_bomb_takes_no_memory(tmp_path, name):
    begin, repeated, end, sentence = BOMBS[name]
    path = tmp_path / name
    with gzip.open(path, "wb", compresslevel=1) as file:
        file.write(begin)
        size = 0
        while size < 64 * MIB:
            some = repeated * (MIB // len(repeated) + 1)
            file.write(some)
            size += len(some)
        file.write(end)
    peak, said = peak_of_reading(path)
    assert sentence in said and peak < 130, (peak, said[:300])


@pytest.mark.skipif(sys.platform != "linux", reason="the peak of memory is read from /proc")
def test_a_long_value_that_repeats_in_parquet_takes_no_memory_for_each(tmp_path):
    import pyarrow
    import pyarrow.parquet

    path = tmp_path / "x.parquet"
    long = pyarrow.array(["x" * MIB] * 300).dictionary_encode()
    pyarrow.parquet.write_table(pyarrow.table({"title": long, "content": long}), path)
    del long
    assert path.stat().st_size < MIB
    assert peak_of_reading(path)[0] < 600


@pytest.mark.parametrize("text", [
    "<!--" * MIB, "<script>" * MIB, "<script " * MIB, "<style><script><!--" * MIB, "a" + "\u0301\u0323" * MIB, "\u0915" + "\u094d\u093c" * MIB,
    "['a'" + ",'a'" * MIB + "]", "['a', " + "-" * MIB + "1, 'b']", "<p a='" * MIB, "&" * MIB, "<a " + " " * MIB,
    "`a " * MIB, "``a " * MIB + "`` ", "```` ``` " * MIB,
], ids=lambda text: text[:12])  # fmt: skip
def test_a_text_of_megabytes_is_cleaned_to_its_end(text, tmp_path):
    # A time that grows with the square of the length is hours here: the processor's time is limited so that CI need not wait.
    path = tmp_path / "text"
    path.write_text(text, encoding="utf-8")
    code = (
        "import sys; from pathlib import Path\n"
        "from pipeline.data.cleaning import clean, normalise_title; from pipeline.data.words import search_words\n"
        "if sys.platform != 'win32':\n"
        "    import resource; resource.setrlimit(resource.RLIMIT_CPU, (600, 600))\n"
        "search_words(normalise_title(clean(Path(sys.argv[1]).read_text(encoding='utf-8'))))"
    )
    assert subprocess.run([sys.executable, "-c", code, str(path)], cwd=PROJECT_DIR).returncode == 0


def test_marks_of_a_letter_are_kept():
    assert clean("e\u0301" * 1000) == "\u00e9" * 1000
    many = "e" + "\u0323\u0307" * 2000
    assert clean(many).replace("\u034f", "").count("\u0307") == 2000 and clean(clean(many)) == clean(many)


def test_a_list_that_python_cannot_build_is_text():
    assert list_items("['a', {[]: 1}, 'b']") == ["a', {[]: 1}, 'b"]
    long = "['" + "a" * MIB + "', 'b']"
    assert list_items(long) == ["a" * MIB, "b"]


@pytest.mark.parametrize(("content", "records", "problems"), [
    (b'[{"title":"\\ud800","content":"c"},' + GOOD + b"]", 1, ["invalid UTF-8"]),
    (b'[{"title":"\xff","content":"c"},' + GOOD + b"]", 1, ["invalid UTF-8"]),
    (b'[{"title":' + b"[" * 500 + b"]" * 500 + b"}," + GOOD + b"]", 1, ["nested too deeply"]),
    (b"[1.5e3," + GOOD + b',"x",[],null]', 1, [f"{kind} instead of an object" for kind in ("float", "str", "list", "NoneType")]),
    (b'[{"title":"t","content":"c","title":"u"}]', 1, []),
    (b"[ ]", 0, []),
    (b'[{"title":"\\ud83d\\ude00","content":"' + "é".encode() * (MIB // 2) + b'"}]', 1, []),
])  # fmt: skip
def test_records_of_an_array(tmp_path, content, records, problems):
    found, unreadable = read(tmp_path / "x.json", content)
    assert len(found) == records and [item.problem for item in unreadable] == problems


@pytest.mark.parametrize(("content", "sentence"), [
    (b"[" * 100_000, "nested too deeply"), (b"[" + GOOD + GOOD + b"]", "missing"),
    (b"[" + GOOD + b"] x", "more text follows"), (b"[" + GOOD + b",,]", "breaks off after record 1"),
    (b"[" + b"9" * 5000 + b"]", "4300 digits"), (b'["' + b"a" * (MAX_LINE_BYTES + 9) + b'"]', "longer than 8 MiB"),
    ("[{title".encode("utf-16"), "breaks off after record 0"), ("title,content\na,b\n".encode("utf-16-be"), None),
])  # fmt: skip
def test_an_array_that_cannot_be_read_to_its_end_is_one_sentence(tmp_path, content, sentence):
    path = tmp_path / "x.json"
    path.write_bytes(content)
    if sentence is None:  # without a byte order mark, no line is a record
        assert not read(path, content)[0]
        return
    with pytest.raises(UserError, match=sentence):
        read(path, content)


def test_a_csv_row_without_end_does_not_hide_the_others(tmp_path):
    found, unreadable = read(tmp_path / "x.csv", b"title,content\na,b\n" + b"x" * (9 * MIB) + b"\nc,d\n")
    assert [record.title for record in found] == ["a", "c"]
    assert [(item.number, item.problem) for item in unreadable] == [(3, "row longer than 8 MiB")]


def test_nested_records_can_be_handed_to_another_process(tmp_path):
    import pickle

    for depth in (90, 500):
        content = b'[{"title":"t","content":' + b"[" * depth + b"]" * depth + b"}]"
        path = tmp_path / "x.json"
        path.write_bytes(content)
        for block in readers.blocks(path, "title", "content"):
            clean_block(pickle.loads(pickle.dumps(block)), DataConfig())


@pytest.mark.skipif(sys.platform != "linux", reason="there is no limit of memory for a process")
def test_records_that_gzip_makes_small_do_not_reserve_memory_for_a_file_full_of_them(tmp_path):
    path = tmp_path / "x.jsonl.gz"
    small = json.dumps({"title": "t", "content": "c" * 50}).encode() + b"\n"
    large = random.Random(3407).randbytes(90 * MIB)
    blanks = b"\n" * (2 * BLOCK_BYTES)  # so that the buffer of the file is read before
    path.write_bytes(gzip.compress(blanks + small * 20_000) + gzip.compress(large, 0))
    code = (
        "import resource, process_data; resource.setrlimit(resource.RLIMIT_AS, (3 << 29, 3 << 29)); process_data.main()"
    )
    options = ["--data.input", str(path), "--output-dir", str(tmp_path), "--data.processes", "1"]
    done = subprocess.run(
        [sys.executable, "-c", code, *options], cwd=PROJECT_DIR, capture_output=True, text=True, encoding="utf-8"
    )
    assert done.returncode == 0, done.stderr[-500:]


@pytest.mark.skipif(sys.platform != "linux", reason="the peak of memory is read from /proc")
def test_a_list_of_millions_takes_no_memory_for_a_syntax_tree(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text(json.dumps({"title": "t", "content": "['a'" + ",'a'" * (3 * MIB // 2) + "]"}), encoding="utf-8")
    assert peak_of_reading(path)[0] < 400


@pytest.mark.parametrize("title", ["\u6f22\u5b57" * 3000, "a" * 9000, "word " * 3000, ""])
def test_a_title_longer_than_a_piece_leaves_room_for_the_content(embeddings, title):
    content = "Some content. " * 100
    for tokens in (16, 256):
        [pieces] = chunking.chunk_records([(title, content)], chunking.ChunkSize(tokens, 0), embeddings)
        assert max(len(piece.tokens) for piece in pieces) <= tokens
        assert "".join("".join(piece.text for piece in pieces).split()) == "".join(content.split())
