"""The metrics are those of their papers, and a page with hostile text stays a page."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

import compare_models
from config import PRESETS
from pipeline.metrics import distinct_2, summarise


def entry(answer, reference="the cat sat on the mat", **values):
    return {"title": "t", "split": "test", "reference": reference, "answer": answer, "tokens": 6, "ended": True,
            "seconds": 0.5, **values}  # fmt: skip


def test_equal_and_different_texts():
    same = summarise([entry("the cat sat on the mat")])
    assert same["rouge_l"] == pytest.approx(100) and same["chrf"] == pytest.approx(100)
    other = summarise([entry("zzz", ended=False)])
    assert other["rouge_l"] == 0 and other["chrf"] == 0 and other["ended"] == 0


def test_rouge_l_by_hand():
    # Longest common subsequence "the cat on mat": 4 of 4 words of the answer, 4 of 6 of the reference.
    assert summarise([entry("the cat on mat")])["rouge_l"] == pytest.approx(100 * 2 * 1 * (4 / 6) / (1 + 4 / 6))


def test_words_with_accents_are_words():
    assert summarise([entry("atenção", "atencao")])["rouge_l"] == 0
    assert summarise([entry("Atenção primária", "atenção primária")])["rouge_l"] == pytest.approx(100)


def test_distinct_2_by_hand():
    assert distinct_2(["a b a b", "c"]) == pytest.approx(2 / 3)
    assert distinct_2(["one", ""]) == 0


def test_answers_without_reference_do_not_count():
    figures = summarise([entry("x", ""), entry("the cat sat on the mat")])
    assert (figures["answers"], figures["with_reference"]) == (2, 1) and figures["rouge_l"] == pytest.approx(100)
    assert summarise([entry("x", "")])["rouge_l"] is None


def test_hostile_text_stays_text(tmp_path):
    config = replace(PRESETS["demo"], output_dir=tmp_path)
    config.run_dir.mkdir()
    hostile = "<script>alert(1)</script> | a [bold]b[/bold] \\ `c`\nnew line"
    for file, _ in compare_models.SOURCES.values():
        answers = {"model": "<b>m</b>", "generation": {}, "answers": [entry(hostile, hostile, title=hostile)]}
        (config.run_dir / file).write_text(json.dumps(answers), encoding="utf-8")
    page = compare_models.run(config).read_text(encoding="utf-8")
    assert "<script" not in page and "<b>m" not in page and "&lt;script&gt;" in page
    rows = (config.run_dir / "comparison.md").read_text(encoding="utf-8").splitlines()
    assert "<script" not in "".join(rows)
    assert sum("alert" in row for row in rows) == 1
