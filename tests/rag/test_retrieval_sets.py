"""benchmarks/retrieval_sets.py: its measures, its intervals and the ways that it compares."""

from __future__ import annotations

import gzip
import json
import math
from types import SimpleNamespace

import numpy
import pytest

from benchmarks import retrieval_sets
from benchmarks.retrieval import build
from benchmarks.retrieval_sets import JudgedSet, intervals, measure, read_set, row
from config import RagConfig
from pipeline.rag import chunking, retrieval

OTTERS = {"title": "Otters", "content": "Otters hold hands while they sleep."}
RECORDS = [
    {"record": "0"} | OTTERS,
    {"record": "1"} | OTTERS,
    {"record": "2", "title": "Sencha", "content": "Leaves are steamed, not roasted."},
    {
        "record": "3",
        "title": "Rivers",
        "content": " ".join(f"Bend {n} lies behind the mill." for n in range(200))
        + " The ferryman's lantern was amber.",
    },
]
QUERIES = {"a": "what do otters hold", "b": "steaming a leaf", "c": "amber lanterns of ferrymen", "d": "nobody knows"}
QRELS = "a\t1\t1\nb\t2\t2\nc\t3\t1\nc\t0\t0\nd\t0\t0\n"


def write_set(folder):
    folder.mkdir()
    with gzip.open(folder / "records.jsonl.gz", "wt", encoding="utf-8") as file:
        file.writelines(json.dumps(record) + "\n" for record in RECORDS)
    lines = (json.dumps({"query": query, "text": text}) + "\n" for query, text in QUERIES.items())
    (folder / "queries.jsonl").write_text("".join(lines), encoding="utf-8")
    (folder / "qrels.tsv").write_text(QRELS, encoding="utf-8")
    (folder / "language").write_text("english\n", encoding="utf-8")
    return folder


def test_measures_are_those_of_trec_eval():
    gains = {"a": 3.0, "b": 1.0, "c": 2.0}
    ideal = 3 + 2 / math.log2(3) + 1 / 2  # gains as they are, not 2^gain - 1
    assert measure(["b", "x", "a"], gains) == pytest.approx([(1 + 3 / 2) / ideal, 2 / 3, 1])
    assert measure(["x", "y", "z", "c"], gains) == pytest.approx([2 / math.log2(5) / ideal, 0, 1 / 4])
    assert measure([*"0123456789", "a"], gains) == measure([], gains) == [0, 0, 0]
    # Of more relevant records than ranks, the ten best are the ideal.
    many = {str(number): 1.0 for number in range(20)}
    assert measure([str(number) for number in range(20)], many) == pytest.approx([1, 3 / 20, 1])


def test_intervals_are_of_the_mean_over_sets_whatever_their_sizes():
    rng = numpy.random.default_rng(7)
    small, large = rng.normal(0, 1, 100), rng.normal(2, 1, 400)
    low, high = intervals([numpy.array([small, small * 0]), numpy.array([large, large * 0 + 1])])
    middle = (small.mean() + large.mean()) / 2
    error = math.sqrt(small.var() / 100 + large.var() / 400) / 2
    assert (low[0], high[0]) == pytest.approx((middle - 1.96 * error, middle + 1.96 * error), abs=0.1 * error)
    assert low[1] == high[1] == 0.5


def test_a_row_compares_with_the_best_other_way_query_by_query():
    ways = numpy.array([[0.0] * 40, [0.5, 0.7] * 20, [0.1] * 40, [0.2] * 40, [0.4, 0.6] * 20])
    cells = row("a set", 0, [ways[None]]).split(" | ")
    assert cells[1] == "nDCG@10" and cells[3].startswith("0.600 [0.5") and cells[6].startswith("0.500 [0.4")
    assert cells[7] == "-0.100 [-0.100, -0.100] to BM25 |"


def test_a_set_is_read_and_each_way_finds_its_records(tmp_path, embeddings):
    judged = read_set(write_set(tmp_path / "tiny"))
    assert (judged.name, judged.language) == ("tiny", "english")
    assert judged.gains == {"a": {"1": 1}, "b": {"2": 2}, "c": {"3": 1}}
    assert list(judged.queries) == ["a", "b", "c"]  # nothing answers the last
    retriever = build(tmp_path / "index", list(judged.records.values()), embeddings)
    found = retrieval_sets.evaluate(judged, retriever, chunking.chunk_size(RagConfig(), embeddings))
    assert found.measures.shape == (3, 5, 3)
    ndcg = dict(zip(retrieval_sets.WAYS, found.measures[0].tolist(), strict=True))
    # Record 1 is in the index as record 0; stems find the second query; the third is in the last piece of a long record.
    assert ndcg["BM25"] == ndcg["RRF"] == ndcg["convex"] == [1, 1, 1]
    assert ndcg["dense"][0] == ndcg["here"][0] == ndcg["here"][2] == 1
    table = list(retrieval_sets.lines([found], []))
    assert table[2].startswith("| tiny: 3 queries, 4 records | nDCG@10 |")
    assert len({line.count("|") for line in table}) == 1 and not any("mean" in line for line in table)
    assert "| mean of 2 sets | nDCG@10 |" in "".join(retrieval_sets.lines([found, found], []))


def test_a_language_without_stems_is_refused_before_anything_is_embedded(tmp_path):
    (write_set(tmp_path / "tiny") / "language").write_text("klingon", encoding="utf-8")
    with pytest.raises(SystemExit, match="no stems of 'klingon'"):
        retrieval_sets.main(retrieval_sets.Benchmark((tmp_path / "tiny",)))


def test_the_gate_is_asked_what_is_not_in_the_set_in_its_language_alone(tmp_path, monkeypatch):
    def judged(name, language, *texts):
        return JudgedSet(name, language, {}, dict(enumerate(texts)), {})

    sets = [judged("a", "english", "own"), judged("b", "english", "yes", "no", "no"), judged("c", "german", "yes")]
    files = [tmp_path / f"unrelated_{language}.txt" for language in ("english", "german")]
    files[0].write_text("yes\n\nno\n", encoding="utf-8")
    files[1].write_text("yes\n", encoding="utf-8")
    monkeypatch.setattr(retrieval, "answerable", lambda hits, config: hits == ["yes"])
    search = SimpleNamespace(search=lambda text, k: [text])
    evaluation = retrieval_sets.Evaluation(sets[0], search, numpy.zeros(0), 0, 0)
    asked = retrieval_sets.answered_foreign(evaluation, sets, files)
    assert asked == {"unrelated": 1 / 2, "other sets": 1 / 3}
    alone = retrieval_sets.Evaluation(sets[2], search, numpy.zeros(0), 0, 0)
    assert retrieval_sets.answered_foreign(alone, sets, []) == {}
