"""The metrics are those of their papers, an interval is as sure as it says, and a page with hostile text stays a page."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

import compare_models
from config import PRESETS
from pipeline.evaluation.leakage import find_leakage
from pipeline.evaluation.metrics import METRICS, distinct_2, is_looping, measure, shared_words
from pipeline.evaluation.significance import Difference, difference, figure, significant
from pipeline.run import files
from pipeline.run.errors import UserError


def entry(answer, reference="the cat sat on the mat", **values):
    return {"title": "t", "split": "test", "reference": reference, "answer": answer, "tokens": 6, "ended": True,
            "seconds": 0.5, **values}  # fmt: skip


def test_equal_and_different_texts():
    same, other = measure(entry("The cat sat on the mat.")), measure(entry("zzz", ended=False))
    assert same["rouge_l"] == pytest.approx(100) and same["exact"] == 1
    assert measure(entry("the cat sat on the mat"))["chrf"] == pytest.approx(100)
    assert other["rouge_l"] == 0 and other["chrf"] == 0 and other["ended"] == 0 and other["exact"] == 0


def test_rouge_l_by_hand():
    # Longest common subsequence "the cat on mat": 4 of 4 words of the answer, 4 of 6 of the reference.
    assert measure(entry("the cat on mat"))["rouge_l"] == pytest.approx(100 * 2 * 1 * (4 / 6) / (1 + 4 / 6))


def test_words_with_accents_are_words():
    assert measure(entry("atenção", "atencao"))["rouge_l"] == 0
    assert measure(entry("Atenção primária", "atenção primária"))["rouge_l"] == pytest.approx(100)


def test_repetition_by_hand():
    assert distinct_2(["a", "b", "a", "b"]) == pytest.approx(2 / 3) and distinct_2(["one"]) is None
    assert (
        is_looping(("a b c d " * 3).split()) and not is_looping(("a b c d " * 2 + "e").split()) and not is_looping([])
    )


def test_what_does_not_apply_is_not_measured():
    measured = measure(entry("x", ""))
    assert "rouge_l" not in measured and "retrieved" not in measured
    assert figure(METRICS["rouge_l"], [measured]) is None
    assert figure(METRICS["rouge_l"], [measured, measure(entry("the cat sat on the mat"))]).value == pytest.approx(100)


def test_the_right_record_is_looked_for_by_title():
    sources = [{"title": "other"}, {"title": "Girls' Tutu!"}]
    assert measure(entry("x", title="girls tutu", sources=sources))["retrieved"] == 1
    assert measure(entry("x", title="girls tutu", sources=sources[:1]))["retrieved"] == 0


def test_perplexity_is_of_all_tokens_together():
    answers = [{"reference_loss": 1.0, "reference_tokens": 1}, {"reference_loss": 1.0, "reference_tokens": 3}, {}]
    found = figure(METRICS["perplexity"], answers)
    assert found.value == pytest.approx(2.718281828**0.5) and found.answers == 2


def test_intervals_hold_the_truth_as_often_as_they_say():
    rng = random.Random(5)
    held = 0
    for _ in range(100):
        found = figure(METRICS["rouge_l"], [{"rouge_l": rng.gauss(20, 10)} for _ in range(50)])
        held += found.low <= 20 <= found.high
    assert 88 <= held <= 99


def test_no_interval_of_few_answers_or_of_times_that_a_batch_shares():
    answers = [{"rouge_l": float(n), "seconds": float(n)} for n in range(20)]
    assert (
        figure(METRICS["rouge_l"], answers[:7]).low is None and figure(METRICS["rouge_l"], answers[:8]).low is not None
    )
    assert figure(METRICS["seconds"], answers).low is None


def test_a_difference_is_told_from_noise_by_pairs():
    rng = random.Random(5)
    hard = [rng.gauss(20, 10) for _ in range(40)]
    theirs = [{"chrf": value} for value in hard]
    # Two more on each question: as much as a fifth of the spread between questions, which pairs leave out.
    ours = [{"chrf": value + 2 + rng.gauss(0, 1)} for value in hard]
    found = difference(METRICS["chrf"], ours, theirs)
    assert found.low > 0 and found.p < 0.01 and found.value == pytest.approx(2, abs=0.6)
    none = difference(METRICS["chrf"], [{"chrf": value + rng.gauss(0, 1)} for value in hard], theirs)
    assert none.p > 0.05 and none.low < 0 < none.high
    assert difference(METRICS["chrf"], theirs, theirs) is None


def test_of_many_comparisons_some_look_large_by_chance():
    def with_p(p):
        return Difference(1.0, 0.1, 2.0, p)

    assert significant([with_p(0.04)]) == [True]
    assert significant([with_p(0.04)] + [with_p(0.5)] * 9) == [False] * 10
    assert significant([with_p(0.001)] + [with_p(0.5)] * 9) == [True] + [False] * 9
    assert significant([]) == []


def test_leakage_by_title_and_by_answer():
    def question(title, reference, split="test"):
        return {"title": title, "reference": reference, "split": split}

    asked = [
        question("One", "first"),
        question("Two", "second"),
        question("Three", "third", "train"),
        question("4", ""),
    ]
    found = find_leakage(asked, [("ONE!", "another"), ("x", "Second."), ("y", "second"), ("Three", "third")])
    assert (found.trained_on, found.asked, found.titles, found.answers) == (4, 2, 1, 1)
    assert "by heart" in str(found)
    assert "none" in str(find_leakage(asked, [("x", "y")]))


def test_words_of_the_reference_are_marked_in_their_order():
    marked = shared_words("the cat sat on the mat", "A cat, sat <b>under</b> the Mat")
    assert "".join(piece for piece, _ in marked) == "A cat, sat <b>under</b> the Mat"
    assert [piece for piece, shared in marked if shared] == ["cat, sat", "the Mat"]


def write_answers(config, file, entries, **values):
    answers = {"model": "<b>m</b>", "made_from": {}, "generation": {}, "answers": entries, **values}
    files.write_json(config.run_dir / file, answers)


def test_hostile_text_stays_text(tmp_path, monkeypatch):
    monkeypatch.setattr(compare_models, "similarity", lambda config, entries: [0.5] * len(entries))
    config = replace(PRESETS["demo"], output_dir=tmp_path)
    hostile = "<script>alert(1)</script> | a [bold]b[/bold] \\ `c`\nnew line <img src=x onerror=alert(2)>"
    monkeypatch.setattr(compare_models, "make_notes", lambda config, comparison: [])  # no training to look into
    for file in compare_models.COLUMNS.values():
        write_answers(config, file, [entry(hostile, hostile, title=hostile, split="<i>")])
    page = compare_models.run(config).read_text(encoding="utf-8")
    assert page.count("<script") == 1 and "<b>m" not in page and "&lt;script&gt;" in page and "<img src=x" not in page
    assert page.count("<i>") == 0 and "default-src 'none'" in page
    rows = (config.run_dir / "comparison.md").read_text(encoding="utf-8").splitlines()
    assert "<script" not in "".join(rows)
    assert sum("alert" in row for row in rows) == 1


def test_two_columns_are_enough_and_one_is_not(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(compare_models, "similarity", lambda config, entries: [0.5] * len(entries))
    config = replace(PRESETS["demo"], output_dir=tmp_path)
    write_answers(config, "foundation_answers.json", [entry("a cat")])
    with pytest.raises(UserError, match=r"finetuned_answers\.json does not exist yet: ft_test"):
        compare_models.run(config)
    write_answers(config, "rag_answers.json", [entry("the cat")])
    compare_models.run(config)
    printed = capsys.readouterr().out
    assert "Not compared: Fine-tuned. ft_test_trained_model.py answers for it." in printed
    assert "too few to compare" in printed
    write_answers(config, "finetuned_answers.json", [entry("the cat", title="another")])
    with pytest.raises(UserError, match="answered different titles"):
        compare_models.run(config)
    write_answers(config, "finetuned_answers.json", [entry("the cat")], generation={"temperature": 1.0})
    with pytest.raises(UserError, match="different --answers settings"):
        compare_models.run(config)


def test_the_report_says_who_is_better(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(compare_models, "similarity", lambda config, entries: [None] * len(entries))
    config = replace(PRESETS["demo"], output_dir=tmp_path)
    rng = random.Random(5)
    words = [[rng.choice("abcdefghijkl") * 3 for _ in range(12)] for _ in range(20)]
    for file, kept in (("foundation_answers.json", 3), ("rag_answers.json", 10)):
        entries = [entry(" ".join(w[: kept + n % 2]), " ".join(w), title=str(n)) for n, w in enumerate(words)]
        write_answers(config, file, entries)
    compare_models.run(config)
    printed = " ".join(capsys.readouterr().out.split())
    assert "RAG against Foundation: is better in ROUGE-L (+" in printed and "chrF (+" in printed
    comparison = files.read_json(config.run_dir / "comparison.json")
    assert {f["better"] for f in comparison["findings"] if f["metric"] in ("rouge_l", "chrf")} == {"RAG"}
    low, value, high = (comparison["figures"]["chrf"]["RAG"][key] for key in ("low", "value", "high"))
    assert low < value < high
