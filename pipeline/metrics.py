"""Measure answers: against the reference, and by themselves."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise
from statistics import fmean
from typing import Any


class UnicodeTokenizer:
    """Words in any script. rouge-score's own tokenizer keeps a-z and 0-9 alone and so cuts 'atenção' in three."""

    def tokenize(self, text: str) -> list[str]:
        """Return the words of a text in lower case."""
        return re.findall(r"\w+", text.lower())


def summarise(entries: Sequence[dict[str, Any]]) -> dict[str, float | int | None]:
    """Return the metrics of one model's answers.

    Args:
        entries: as in an answers file: answer, reference, tokens, ended, seconds.

    Returns:
        rouge_l and chrf are means over the answers that have a reference, from 0 to 100 (None without any): ROUGE-L F1
        (Lin 2004) and chrF2 (Popović 2015). distinct_2 is the share of distinct word pairs among all (Li et al. 2016).
        ended is the share of answers that ended by themselves.
    """
    from rouge_score.rouge_scorer import RougeScorer
    from sacrebleu.metrics import CHRF

    rouge, chrf = RougeScorer(["rougeL"], tokenizer=UnicodeTokenizer()), CHRF()
    compared = [(entry["reference"], entry["answer"]) for entry in entries if entry["reference"]]
    rouge_scores = [100 * rouge.score(reference, answer)["rougeL"].fmeasure for reference, answer in compared]
    chrf_scores = [chrf.sentence_score(answer, [reference]).score for reference, answer in compared]
    return {
        "answers": len(entries),
        "with_reference": len(compared),
        "rouge_l": fmean(rouge_scores) if compared else None,
        "chrf": fmean(chrf_scores) if compared else None,
        "distinct_2": distinct_2([entry["answer"] for entry in entries]),
        "ended": fmean(entry["ended"] for entry in entries),
        "tokens": fmean(entry["tokens"] for entry in entries),
        "seconds": fmean(entry["seconds"] for entry in entries),
    }


def distinct_2(texts: Sequence[str]) -> float:
    """Return the number of distinct word pairs divided by the number of all; 0 where there is no pair."""
    tokenizer = UnicodeTokenizer()
    pairs = []
    for text in texts:
        words = tokenizer.tokenize(text)
        pairs += pairwise(words)
    return len(set(pairs)) / len(pairs) if pairs else 0.0
