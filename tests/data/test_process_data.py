"""Stage 1: what comes in is written or rejected for a reason, and the data is described."""

from __future__ import annotations

import csv
import gzip
import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace

import psutil
import pyarrow
import pyarrow.parquet
import pytest

import process_data
from config import PRESETS, PROJECT_DIR
from pipeline.data import readers
from pipeline.run import manifests
from pipeline.run.errors import UserError
from pipeline.run.run_folder import RunFolder

SHARED = PROJECT_DIR.parent / "shared" / "data"
needs_real_data = pytest.mark.skipif(not SHARED.exists(), reason="the real records are not on this machine")


def process(tmp_path, preset="demo", **data):
    config = replace(PRESETS[preset], output_dir=tmp_path, data=replace(PRESETS[preset].data, **data))
    path = process_data.run(config)
    return json.loads(path.read_text(encoding="utf-8")), manifests.read_manifest(RunFolder.of(config), "process_data")[
        "metrics"
    ]


def balance(metrics):
    return metrics["records_written"] + sum(metrics["rejected"].values())


def test_the_demo_sample(tmp_path):
    records, metrics = process(tmp_path)
    assert metrics["records_read"] == balance(metrics) >= 400
    noise = set(process_data.REASONS) - {"not a text"}
    assert all(metrics["rejected"][reason] > 0 for reason in noise), "the sample holds every kind of noise"
    assert all(set(record) == {"product", "description"} for record in records)
    assert len({(r["product"], r["description"]) for r in records}) == len(records)
    assert not any(mark in record["description"] for record in records for mark in ("<br", "<p>", "&#", "&amp;", "['"))
    words = [len(record["description"].split()) for record in records]
    assert min(words) < 12 and max(words) > 150


def test_unreadable_lines_are_kept_with_their_number(tmp_path):
    process(tmp_path)
    lines = (tmp_path / "demo" / "rejected.jsonl").read_text(encoding="utf-8").splitlines()
    assert [set(json.loads(line)) for line in lines] == [{"line", "problem", "raw"}]


def test_duplicates_go_or_stay(tmp_path):
    path = tmp_path / "trn.jsonl"
    rows = [
        {"title": "A", "content": "x" * 50},
        {"title": "A", "content": "x" * 50},
        {"title": "A", "content": "y" * 50},
    ]
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    assert process(tmp_path, input=path)[1]["rejected"]["duplicate"] == 1
    assert process(tmp_path, input=path, deduplicate=False)[1]["records_written"] == 3


def test_saude_sample_is_portuguese_and_distinct(tmp_path):
    records, metrics = process(tmp_path, "saude-phi3")
    assert metrics["records_written"] == metrics["distinct_pairs"] == metrics["records_read"] >= 60
    assert set(records[0]) == {"pergunta", "resposta"}


def test_memorisation_is_warned_of(tmp_path, capsys):
    path = tmp_path / "qa.jsonl"
    rows = [{"input": f"pergunta {n % 4}", "output": f"resposta {n % 2}"} for n in range(40)]
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    process(tmp_path, "saude-phi3", input=path)
    printed = capsys.readouterr().out
    assert "40 records hold only 4 distinct pairs" in printed and "by heart" in printed
    assert "--data.deduplicate leaves 4" in printed


@pytest.mark.parametrize(("content", "message"), [
    ("not json\nat all\n", "not one record could be read; record 1: not JSON"),
    ('{"name": "a", "text": "b"}\n', "no record has a field 'title'; it has name, text. Name it with --data.read-title-from"),
    ('{"title": "a", "content": "b"}\n', r"all 1 records were rejected \(1 too short: --data.min-content-chars 40\)"),
    ("\n\n", "holds no record"),
])  # fmt: skip
def test_input_of_which_nothing_can_be_used(tmp_path, content, message):
    path = tmp_path / "trn.json"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(UserError, match=message):
        process(tmp_path, input=path)
    assert not (tmp_path / "demo" / "trn_processed.json").exists()
    assert not (tmp_path / "demo" / "rejected.jsonl").exists()


@needs_real_data
def test_real_catalogue(tmp_path):
    _, metrics = process(tmp_path, input=SHARED / "catalogue_products.jsonl")
    assert metrics["records_read"] == 13_690 == balance(metrics)


@needs_real_data
@pytest.mark.parametrize(("deduplicate", "written"), [(False, 2000), (True, 32)])
def test_real_health_questions(tmp_path, capsys, deduplicate, written):
    path = SHARED / "aps_saude" / "perguntas_respostas_APS_2000.jsonl"
    _, metrics = process(tmp_path, "saude-phi3", input=path, deduplicate=deduplicate)
    assert metrics["records_written"] == written
    assert (metrics["distinct_pairs"], metrics["distinct_titles"], metrics["distinct_contents"]) == (32, 32, 10)
    assert "2,000 records hold only 32 distinct pairs" in capsys.readouterr().out


@needs_real_data
def test_real_head_of_the_dump_with_both_cleanings(tmp_path):
    source = SHARED / "amazon_head_raw.jsonl"
    legacy = {r["product"]: r["description"] for r in process(tmp_path, input=source, cleaning="legacy")[0]}
    assert legacy["Girls Ballet Tutu Neon Blue"] == (
        "Dance tutu for girls ages 28 years Perfect for dance practice recitals and performances costumes or just for fun"
    )
    cleaned = {r["product"]: r["description"] for r in process(tmp_path, input=source)[0]}
    assert "ages 2-8 years" in cleaned["Girls Ballet Tutu Neon Blue"]
    assert "Kerr’s" in cleaned["Mog's Kittens"]


def test_every_record_of_a_title_is_in_one_split(tmp_path):
    path = tmp_path / "qa.jsonl"
    rows = [{"input": f"Pergunta {n % 30}?", "output": f"resposta {n}"} for n in range(300)]
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    process(tmp_path, "saude-phi3", input=path)
    from pipeline.data.records import open_processed

    data = open_processed(RunFolder(tmp_path / "saude-phi3"))
    drawn = {split: Counter(t for t, _ in data.sample(split, None, 1)) for split in ("train", "validation", "test")}
    assert sum(sum(titles.values()) for titles in drawn.values()) == 300
    assert not set(drawn["train"]) & (set(drawn["validation"]) | set(drawn["test"]))


NOISE = ("plain", "caf&eacute; &amp; more", "<p>one</p>", "two  blanks", "a\nb", "naïve", "")


def dump(path, records):
    rng = random.Random(1)
    with path.open("wb") as file:
        for number in range(records):
            if number % 97 == 0:
                file.write(b"{broken\n")
            if number % 40:
                title = f"Title {rng.randrange(records)}"
                content = " ".join(rng.choice(NOISE) for _ in range(rng.randrange(30)))
            else:
                title, content = f"Repeated {number % 400}", "the same " * 9
            row = {"title": title, "content": [content] if number % 50 == 0 else content, "extra": number}
            file.write(json.dumps(row).encode() + b"\n" * (1 + (number % 31 == 0)))
    return path


def outputs(folder):
    return [(folder / "demo" / name).read_bytes() for name in ("trn_processed.json", "rejected.jsonl")]


@pytest.mark.parametrize("cleaning", ["default", "light", "verbatim", "legacy"])
def test_several_processes_and_small_blocks_write_the_same_as_one_process(tmp_path, monkeypatch, cleaning):
    source = dump(tmp_path / "trn.jsonl", 6000)
    _, one = process(tmp_path / "one", input=source, cleaning=cleaning, processes=1)
    monkeypatch.setattr(readers, "BLOCK_BYTES", 20_000)
    _, two = process(tmp_path / "two", input=source, cleaning=cleaning, processes=2)
    assert one == two and one["records_read"] == balance(one) == 6000 + 62
    assert one["rejected"]["duplicate"] > 50 and one["rejected"]["unreadable"] == 62
    assert outputs(tmp_path / "one") == outputs(tmp_path / "two")


def test_every_form_of_a_file_gives_the_same_result(tmp_path):
    source = dump(tmp_path / "trn.jsonl", 2000)
    rows = [json.loads(line) for line in source.read_text(encoding="utf-8").splitlines() if line.startswith('{"')]
    rows = [{"title": row["title"], "content": "".join(row["content"])} for row in rows]
    (tmp_path / "array.json").write_text(json.dumps(rows), encoding="utf-8")
    with (tmp_path / "rows.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, ["title", "content"])
        writer.writeheader()
        writer.writerows(rows)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "rows.parquet")
    (tmp_path / "trn.jsonl.gz").write_bytes(gzip.compress(source.read_bytes()))
    expected, _ = process(tmp_path, input=source)
    for name in ("array.json", "rows.csv", "rows.parquet", "trn.jsonl.gz"):
        assert process(tmp_path, input=tmp_path / name, processes=2)[0] == expected, name


def test_a_process_that_fails_or_is_killed_leaves_one_sentence_and_nothing_else(tmp_path, monkeypatch):
    source = dump(tmp_path / "trn.jsonl", 6000)
    monkeypatch.setattr(readers, "BLOCK_BYTES", 20_000)
    add = process_data.Census.add

    def kill_a_process(census, block):
        for child in multiprocessing.active_children():
            os.kill(child.pid, signal.SIGKILL)
        return add(census, block)

    monkeypatch.setattr(process_data.Census, "add", kill_a_process)
    with pytest.raises(UserError, match="was killed"):
        process(tmp_path, input=source, processes=2)
    assert [path.name for path in (tmp_path / "demo").rglob("*") if path.is_file()] == [".process_data.lock"]
    assert not multiprocessing.active_children()


def test_processes_end_when_the_program_is_killed(tmp_path):
    source = dump(tmp_path / "trn.jsonl", 60_000)
    command = [sys.executable, "process_data.py", "--data.input", str(source), "--data.processes", "2"]
    program = subprocess.Popen(
        [*command, "--output-dir", str(tmp_path)], cwd=PROJECT_DIR, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    children = []
    while len(children) < 2 and program.poll() is None:
        children = [c for c in psutil.Process(program.pid).children() if "spawn_main" in " ".join(c.cmdline())]
        time.sleep(0.01)
    assert len(children) == 2
    program.kill()
    program.wait()
    _, alive = psutil.wait_procs(children, timeout=20)
    assert not alive
    assert not (tmp_path / "demo" / "trn_processed.json").exists()


@pytest.mark.parametrize(("value", "text"), [
    (["a" * 30, ["b" * 30]], "a" * 30 + " " + "b" * 30), (10**45, str(10**45)), (1e300, "1e+300"), (True, "true"),
    ({"text": "a" * 60, "lang": "en"}, "a" * 60), ([{"type": "text", "text": "aaa"}, {"text": ["bbb", 1]}], "aaa bbb 1"),
])  # fmt: skip
def test_contents_that_are_not_strings_are_text_all_the_same(tmp_path, value, text):
    path = tmp_path / "trn.jsonl"
    path.write_text(json.dumps({"title": "t", "content": value}), encoding="utf-8")
    records, _ = process(tmp_path, input=path, min_content_chars=3)
    assert records[0]["description"] == text


@pytest.mark.parametrize(("value", "reason"), [
    ("9" * 5000, "unreadable"), ("[" * 90 + "]" * 90, "empty content"),
    ("null", "empty content"), ("NaN", "empty content"), ("[null]", "empty content"), ('{"text": null}', "empty content"),
    ('{"a": "b"}', "not a text"), ('["a", {"image": "b"}]', "not a text"), ("{}", "not a text"),
])  # fmt: skip
def test_contents_without_a_text_are_rejected_for_their_reason(tmp_path, value, reason):
    good = json.dumps({"title": "t", "content": "c" * 50})
    rows = [good, f'{{"title": "t", "content": {value}}}']
    for name, text in {"lines.jsonl": "\n".join(rows), "array.json": f"[{', '.join(rows)}]"}.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
        if name == "array.json" and value.startswith("9"):
            continue  # Python's parser refuses the number, and with it the rest of the file
        _, metrics = process(tmp_path, input=tmp_path / name)
        assert metrics["records_written"] == metrics["rejected"][reason] == 1, name


def test_a_content_that_is_nested_too_deeply_is_rejected(tmp_path):
    path = tmp_path / "trn.jsonl"
    path.write_text(
        json.dumps({"title": "t", "content": "c" * 50}) + '\n{"title": "t", "content": ' + "[" * 900 + "]" * 900 + "}"
    )
    _, metrics = process(tmp_path, input=path)
    assert metrics["records_written"] == 1 and sum(metrics["rejected"].values()) == 1


def test_questions_about_code_are_kept_verbatim(tmp_path):
    source = PROJECT_DIR / "tests" / "faults" / "files" / "code.jsonl"
    raw = json.loads(source.read_text(encoding="utf-8"))
    records, _ = process(tmp_path, input=source, cleaning="verbatim")
    assert records == [{"product": raw["title"], "description": raw["content"]}]
    records, _ = process(tmp_path, input=source)
    assert "ptr = &param; sends it" in records[0]["description"]
