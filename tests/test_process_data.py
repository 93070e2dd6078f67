"""Stage 1: what comes in is written or rejected for a reason, and the data is described."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace

import pytest

import process_data
from config import PRESETS, PROJECT_DIR
from pipeline import artifacts
from pipeline.artifacts import UserError

SHARED = PROJECT_DIR.parent / "shared" / "data"
needs_real_data = pytest.mark.skipif(not SHARED.exists(), reason="the real records are not on this machine")


def process(tmp_path, preset="demo", **data):
    config = replace(PRESETS[preset], output_dir=tmp_path, data=replace(PRESETS[preset].data, **data))
    path = process_data.run(config)
    return json.loads(path.read_text(encoding="utf-8")), artifacts.read_manifest(config.run_dir, "process_data")[
        "metrics"
    ]


def balance(metrics):
    return metrics["records_written"] + sum(metrics["rejected"].values())


def test_the_demo_sample(tmp_path):
    records, metrics = process(tmp_path)
    assert metrics["records_read"] == balance(metrics) >= 400
    assert all(metrics["rejected"][reason] > 0 for reason in process_data.REASONS), (
        "the sample holds every kind of noise"
    )
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
    ('{"title": "a", "content": "b"}\n', r"all 1 records were rejected \(1 too short\)"),
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
    from pipeline.records import open_processed

    data = open_processed(tmp_path / "saude-phi3")
    drawn = {split: Counter(t for t, _ in data.sample(split, None, 1)) for split in ("train", "validation", "test")}
    assert sum(sum(titles.values()) for titles in drawn.values()) == 300
    assert not set(drawn["train"]) & (set(drawn["validation"]) | set(drawn["test"]))
