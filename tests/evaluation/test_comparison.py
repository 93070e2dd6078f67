"""The metrics are those of their papers, an interval is as sure as it says, and a page with hostile text stays a page."""

from __future__ import annotations

import random
import re
from dataclasses import replace

import pytest

import compare_models
from config import PRESETS, JudgeConfig
from pipeline.evaluation.leakage import find_leakage
from pipeline.evaluation.metrics import METRICS, distinct_2, is_looping, measure, shared_words
from pipeline.evaluation.significance import figure
from pipeline.run import files
from pipeline.run.errors import UserError
from pipeline.run.run_folder import RunFolder


def entry(answer, reference="the cat sat on the mat", **values):
    return {"title": "t", "split": "test", "reference": reference, "prompt": "p", "answer": answer, "tokens": 6, "ended": True,
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


def test_words_of_other_scripts_are_words():
    for one, other in (("दान", "दिन"), ("กิน", "กัน")):
        assert measure(entry(one, other))["exact"] == 0 and measure(entry(one, one))["exact"] == 1
    assert measure(entry("दान", "दिन"))["rouge_l"] == 0
    # Each letter counts where a script has no blanks: four of the answer's five, and of the reference's six.
    assert measure(entry("红色自行车", "电动自行车。红"))["rouge_l"] == pytest.approx(100 * 2 * 3 / (5 + 6))
    assert measure(entry("👍", "👎"))["exact"] == 0 and measure(entry("👍", "👍"))["exact"] == 1


def test_a_name_of_four_chinese_letters_may_be_said_three_times():
    said = [f"电动自行车{end}。" for end in ("很轻", "可以折叠", "适合通勤")]
    assert measure(entry("".join(said)))["looping"] == 0
    assert measure(entry("这款电动自行车可以折叠，适合城市通勤。" * 3))["looping"] == 1


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
    marked = shared_words("दिन में सूरज", "दान में सूरज होता")
    assert marked == [("दान ", False), ("में सूरज", True), (" होता", False)]
    assert shared_words("电动自行车", "红色自行车") == [("红色", False), ("自行车", True)]


def write_answers(config, file, entries, **values):
    made = {"base model": "m", "prompt format": "p", "precision": "16bit"}
    answers = {"model": "<b>m</b>", "runs_on": {}, "made_from": made, "generation": {}, "answers": entries, **values}
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
    assert (
        f"Not compared: Fine-tuned. `python ft_test_trained_model.py --output-dir {tmp_path}` answers for it."
        in printed
    )
    assert "1 titles with a reference are few:" in printed
    write_answers(config, "finetuned_answers.json", [entry("the cat", title="another")])
    command = ["foundation_model.py", "--questions.held-out", "9", "--answers.temperature=0.5", "--model.name", "m"]
    files.write_json(RunFolder.of(config).manifest_path("foundation_model"), {"command": command})
    alike = f"ft_test_trained_model.py --output-dir {tmp_path} --questions.held-out 9 --answers.temperature=0.5` again"
    with pytest.raises(UserError, match=f"answered different titles.*{re.escape(alike)}"):
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


def test_a_refusal_is_no_answer_of_the_model_and_its_retrieval_took_its_time():
    refused = measure(entry("Not in the data.", prompt=None, tokens=0, seconds=0.0, retrieval_seconds=0.25, sources=[]))
    answered = measure(entry("a cat", tokens=10, seconds=2.0, retrieval_seconds=0.25, sources=[{"title": "t"}]))
    assert (refused["refused"], answered["refused"]) == (1, 0)
    assert not {"tokens", "ended", "looping", "distinct_2", "writing_seconds"} & refused.keys()
    assert figure(METRICS["seconds"], [refused, answered]).value == pytest.approx((0.25 + 2.25) / 2)
    speed = figure(METRICS["tokens_per_second"], [refused, answered])
    assert (speed.value, speed.answers) == (pytest.approx(5), 1)
    assert figure(METRICS["tokens"], [refused, answered]).answers == 1
    assert refused["rouge_l"] is not None, "what it says instead is compared with the reference"


def make_columns(config, rag_loses, **values):
    """Write answers of the base model and of RAG, which refuses some of the questions, and finds all else as likely."""
    losses = [20.0, 30.0, 25.0, 22.0, 60.0, 70.0, 65.0, 55.0]
    base = [entry("a", title=str(n), reference_loss=loss, reference_tokens=20) for n, loss in enumerate(losses)]
    rag = [
        entry("a", title=str(n), prompt=None, sources=[]) if n in rag_loses else {**old, "sources": []}
        for n, old in enumerate(base)
    ]
    write_answers(config, "foundation_answers.json", base)
    write_answers(config, "rag_answers.json", rag, **values)


def test_a_figure_of_fewer_answers_says_so_and_differences_are_of_common_questions(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(compare_models, "similarity", lambda embed, entries: [None] * len(entries))
    config = replace(PRESETS["demo"], output_dir=tmp_path)
    make_columns(config, rag_loses=(4, 5, 6, 7))
    page = compare_models.run(config).read_text(encoding="utf-8")
    printed = capsys.readouterr().out
    comparison = files.read_json(config.run_dir / "comparison.json")
    row = comparison["figures"]["perplexity"]
    assert row["Foundation"]["value"] > 2 * row["RAG"]["value"]
    assert f"{row['RAG']['value']:.1f} (4 of 8)" in printed and f"{row['RAG']['value']:.1f} (4 of 8)" in page
    assert f"{row['RAG']['value']:.1f} (of 4)" in page, "the chart"
    found = next(f for f in comparison["findings"] if f["metric"] == "perplexity")
    assert found["difference"] == {"value": 0, "answers": 4, "p": 1} and found["better"] is None
    assert page.count("not asked") == 4


def test_the_prompt_that_was_sent_is_in_the_page(tmp_path, monkeypatch):
    monkeypatch.setattr(compare_models, "similarity", lambda embed, entries: [None] * len(entries))
    config = replace(PRESETS["demo"], output_dir=tmp_path)
    prompt = "### Input:\n<b>a title</b>\n\n### Response:\n"
    for file in ("foundation_answers.json", "rag_answers.json"):
        write_answers(config, file, [entry("a", prompt=f"{file} {prompt}")])
    page = compare_models.run(config).read_text(encoding="utf-8")
    for file in ("foundation_answers.json", "rag_answers.json"):
        assert f"<pre>\n{file} {prompt.replace('<', '&lt;').replace('>', '&gt;')}</pre>" in page


def test_the_references_are_embedded_once_for_all_columns(tmp_path, monkeypatch):
    embedded = []

    class Embeddings:
        def embed_documents(self, texts):
            embedded.extend(texts)
            return [[1.0, 0.0] for _ in texts]

    monkeypatch.setattr(compare_models.embedding, "load_embeddings", lambda config: Embeddings())
    config = replace(PRESETS["demo"], output_dir=tmp_path)
    for file in ("foundation_answers.json", "rag_answers.json"):
        write_answers(config, file, [entry(f"{file} {n}", f"reference {n}", title=str(n)) for n in range(3)])
    compare_models.run(config)
    assert sorted(text for text in embedded if text.startswith("reference")) == [f"reference {n}" for n in range(3)]
    assert len(embedded) == 9


def test_what_a_judge_prefers_is_a_share_with_an_interval_and_one_of_the_tests(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(compare_models, "similarity", lambda embed, entries: [None] * len(entries))
    monkeypatch.setattr(compare_models.judge, "grade", lambda config, entries: [3.0] * len(entries))
    monkeypatch.setattr(compare_models.judge, "prefer", lambda config, ours, theirs: [1.0] * 12 + [0.0, 0.5, 0.5, None])
    judged = JudgeConfig("http://127.0.0.1:9/v1", "m", pairwise=True)
    config = replace(PRESETS["demo"], output_dir=tmp_path, judge=judged)
    for file in ("foundation_answers.json", "rag_answers.json"):
        write_answers(config, file, [entry("a", title=str(n)) for n in range(16)])
    compare_models.run(config)
    printed = " ".join(capsys.readouterr().out.split())
    assert "The judge prefers RAG to Foundation in 12 of 15 questions (80% [55%, 93%]) and the reverse in 1." in printed
    comparison = files.read_json(config.run_dir / "comparison.json")
    found = next(f for f in comparison["findings"] if f["metric"] == "preferred")
    assert found["difference"]["p"] == pytest.approx(2 * (1 + 13) / 2**13) and found["better"] == "RAG"


def test_what_was_forgotten_is_a_row_and_a_sentence(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(compare_models, "similarity", lambda embed, entries: [None] * len(entries))
    monkeypatch.setattr(compare_models, "make_notes", lambda config, comparison: [])
    config = replace(PRESETS["demo"], output_dir=tmp_path)
    rng = random.Random(5)
    texts = [{"tokens": 40, "base_loss": rng.gauss(100, 9), "kl": 4.0} for _ in range(30)]
    for change, said in ((8.0, "Something: "), (0.0, "It cannot be told: "), (-8.0, "No sign of it: ")):
        read = [text | {"tuned_loss": text["base_loss"] + change + rng.gauss(0, 1)} for text in texts]
        write_answers(config, "foundation_answers.json", [entry("a", title=str(n)) for n in range(8)])
        tuned = [entry("a", title=str(n)) for n in range(8)]
        write_answers(config, "finetuned_answers.json", tuned, general=read)
        write_answers(config, "rag_answers.json", [entry("a", title=str(n)) for n in range(8)])
        compare_models.run(config)
        printed = " ".join(capsys.readouterr().out.split())
        assert f"Did it forget? {said}the perplexity of 30 general texts went from" in printed
        row = files.read_json(config.run_dir / "comparison.json")["figures"]
        base, after = row["general"]["Foundation"], row["general"]["Fine-tuned"]
        assert base["low"] < base["value"] < base["high"] and base["answers"] == after["answers"] == 30
        assert row["general"]["RAG"] is None
        assert row["drift"]["Fine-tuned"]["value"] == pytest.approx(0.1) and row["drift"]["Foundation"] is None


def test_answers_that_do_not_say_how_they_were_asked_are_made_again(tmp_path):
    config = replace(PRESETS["demo"], output_dir=tmp_path)
    for file in ("foundation_answers.json", "rag_answers.json"):
        write_answers(config, file, [entry("a cat")], made_from={"base model": "m"})
    with pytest.raises(UserError, match=r"of another version\. Run `python foundation_model\.py"):
        compare_models.run(config)


def test_a_measure_of_other_questions_than_the_neighbours_says_so(tmp_path, monkeypatch, capsys):
    def similarity(embed, entries):
        return [None if entry["answer"] == f"no {entry['title']}" else 0.5 for entry in entries]

    monkeypatch.setattr(compare_models, "similarity", similarity)
    config = replace(PRESETS["demo"], output_dir=tmp_path)
    for file, missing in (("foundation_answers.json", "1"), ("rag_answers.json", "2")):
        entries = [entry(f"no {n}" if str(n) == missing else "yes", title=str(n)) for n in range(8)]
        write_answers(config, file, entries)
    compare_models.run(config)
    assert capsys.readouterr().out.count("0.500 (7 of 8)") == 2


def test_few_titles_still_tell_what_was_forgotten_and_what_a_judge_prefers(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(compare_models, "similarity", lambda embed, entries: [None] * len(entries))
    monkeypatch.setattr(compare_models, "make_notes", lambda config, comparison: [])
    monkeypatch.setattr(compare_models.judge, "grade", lambda config, entries: [3.0] * len(entries))
    monkeypatch.setattr(compare_models.judge, "prefer", lambda config, ours, theirs: [1.0, 0.0])
    judged = JudgeConfig("http://127.0.0.1:9/v1", "m", pairwise=True)
    config = replace(PRESETS["demo"], output_dir=tmp_path, judge=judged)
    read = [{"tokens": 40, "base_loss": 100.0, "tuned_loss": 101.0, "kl": 1.0}]
    for file in ("foundation_answers.json", "finetuned_answers.json"):
        write_answers(config, file, [entry("a", title=str(n)) for n in range(2)], general=read)
    compare_models.run(config)
    printed = " ".join(capsys.readouterr().out.split())
    assert "2 titles with a reference are few:" in printed and "Did it forget? It cannot be told" in printed
    assert "The judge prefers Fine-tuned to Foundation in 1 of 2 questions" in printed
