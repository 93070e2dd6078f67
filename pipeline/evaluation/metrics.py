"""Measure an answer: against the reference, by itself, and against the records that it was given."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from pipeline.data.cleaning import normalise_title
from pipeline.data.words import cut, is_spaceless, words

LOOP_WORDS, LOOP_TIMES = 4, 3  # an answer that says so many words in a row so many times goes in circles
LETTERS_OF_A_WORD = 3  # of a script without blanks: a Chinese word has less than two, a Thai word about four


@dataclass(frozen=True)
class Metric:
    """A figure of a model: the sum of one measure of its answers over the sum of another, 1 for each answer unless named."""

    label: str
    form: str
    """Format of the figure."""
    meaning: str
    measure: str
    per: str | None = None
    exponential: bool = False
    """Whether the figure is e to the quotient."""
    interval: bool = True
    """Whether its interval means something: the answers of a batch share their time."""
    yes_no: bool = False
    """Whether the measure of an answer is 0 or 1, and the figure the share of those with 1."""
    better: int = 0
    """1 if more is better, -1 if less is, 0 if neither."""
    compared: bool = False
    """Whether models are compared in it."""


METRICS: dict[str, Metric] = {
    "rouge_l": Metric("ROUGE-L", "{:.1f}", "words in the reference's order, 0 to 100", "rouge_l", better=1, compared=True),
    "chrf": Metric("chrF", "{:.1f}", "character sequences shared with the reference, 0 to 100", "chrf", better=1, compared=True),
    "similarity": Metric(
        "similarity", "{:.3f}", "cosine between the embeddings of answer and reference", "similarity", better=1, compared=True,
    ),
    "perplexity": Metric(
        "perplexity", "{:.1f}", "of the reference, given the prompt: how unlikely the model finds each token",
        "reference_loss", "reference_tokens", exponential=True, better=-1, compared=True,
    ),
    "exact": Metric("exact match", "{:.0%}", "answers with the reference's words, all of them, in order", "exact", yes_no=True, better=1, compared=True),
    "judge": Metric("judge", "{:.2f}", "grade that another model gave, 1 to 5", "judge", better=1, compared=True),
    "general": Metric(
        "perplexity of general texts", "{:.1f}", "of texts that have nothing to do with the data; more than the base model's: it has forgotten",
        "general_loss", "general_tokens", exponential=True, better=-1, compared=True,
    ),
    "drift": Metric("drift", "{:.3f}", "KL divergence from the base model on those texts, in nats per token", "kl", "general_tokens"),
    "preferred": Metric("the judge's choice", "{:.0%}", "questions won less questions lost", "preferred", better=1),
    "retrieved": Metric("right record found", "{:.0%}", "the record of the title was among those retrieved", "retrieved", yes_no=True, better=1),
    "support": Metric("supported", "{:.0%}", "share of the answer's information that is in the records it was given", "support", better=1),
    "refused": Metric("refused", "{:.0%}", "no record fitted, so that no model was asked", "refused", yes_no=True),
    "looping": Metric("in circles", "{:.0%}", "answers that say four words in a row three times", "looping", yes_no=True, better=-1, compared=True),
    "distinct_2": Metric("distinct-2", "{:.2f}", "share of an answer's word pairs that differ", "distinct_2"),
    "ended": Metric("ended by itself", "{:.0%}", "answers that were not cut off at the limit of new tokens", "ended", yes_no=True),
    "tokens": Metric("tokens per answer", "{:.0f}", "", "tokens"),
    "seconds": Metric("seconds per answer", "{:.2f}", "the retrieval and a share of the seconds of the batch", "seconds", interval=False, better=-1),
    "tokens_per_second": Metric("tokens/s", "{:.1f}", "without the retrieval", "tokens", "writing_seconds", interval=False, better=1),
}  # fmt: skip


class UnicodeTokenizer:
    """Words in any script. rouge-score's own tokenizer keeps a-z and 0-9 alone and so cuts 'atenção' in three."""

    def tokenize(self, text: str) -> list[str]:
        """Return the words of a text."""
        return words(text)


def measure(entry: dict[str, Any]) -> dict[str, float | None]:
    """Return the measures of one answer.

    Args:
        entry: as in an answers file.

    Returns:
        rouge_l and chrf from 0 to 100: ROUGE-L F1 (Lin 2004) and chrF2 (Popović 2015). exact, retrieved, refused, looping and
        ended are 0 or 1. None where it does not apply: without a reference, without retrieval, where no model was asked, or
        where an answer has no pair of words.
    """
    from rouge_score.rouge_scorer import RougeScorer
    from sacrebleu.metrics import CHRF

    answer, reference = entry["answer"], entry["reference"]
    found: dict[str, float | None] = {
        "seconds": entry["seconds"] + (entry.get("retrieval_seconds") or 0.0),
        "support": entry.get("support"),
        "reference_loss": entry.get("reference_loss"),
        "reference_tokens": entry.get("reference_tokens"),
    }
    if entry["prompt"] is not None:
        said = words(answer)
        found["looping"], found["distinct_2"] = float(is_looping(said)), distinct_2(said)
        found["ended"], found["tokens"], found["writing_seconds"] = (
            float(entry["ended"]),
            entry["tokens"],
            entry["seconds"],
        )
    if "sources" in entry:
        found["refused"] = float(entry["prompt"] is None)
    if reference:
        rouge = RougeScorer(["rougeL"], tokenizer=UnicodeTokenizer())
        found["rouge_l"] = 100 * rouge.score(reference, answer)["rougeL"].fmeasure
        found["chrf"] = CHRF().sentence_score(answer, [reference]).score
        found["exact"] = float(normalise_title(answer) == normalise_title(reference))
    if reference and "sources" in entry:
        key = normalise_title(entry["title"])
        found["retrieved"] = float(any(normalise_title(source["title"]) == key for source in entry["sources"]))
    return found


def is_looping(said: Sequence[str]) -> bool:
    """Tell whether words say the same LOOP_WORDS in a row LOOP_TIMES times or more."""
    runs: Counter[tuple[str, ...]] = Counter()
    lengths = [1 if is_spaceless(word) else LETTERS_OF_A_WORD for word in said]
    end = length = 0  # of the run that begins at `start`, as long as LOOP_WORDS or hardly longer
    for start, first in enumerate(lengths):
        while length < LOOP_WORDS * LETTERS_OF_A_WORD and end < len(said):
            length += lengths[end]
            end += 1
        if length >= LOOP_WORDS * LETTERS_OF_A_WORD:
            runs[tuple(said[start:end])] += 1
        length -= first
    return max(runs.values(), default=0) >= LOOP_TIMES


def distinct_2(said: Sequence[str]) -> float | None:
    """Return the number of distinct word pairs divided by the number of all (Li et al. 2016); None without a pair."""
    pairs = list(pairwise(said))
    return len(set(pairs)) / len(pairs) if pairs else None


def shared_words(reference: str, answer: str) -> list[tuple[str, bool]]:
    """Cut an answer into pieces; return each with whether its words are in the reference, in the same order."""
    from difflib import SequenceMatcher

    pieces = cut(answer)
    placed = [(word, place) for place, piece in enumerate(pieces) for word in words(piece)]
    matcher = SequenceMatcher(None, words(reference), [word for word, _ in placed], autojunk=False)
    shared: set[int] = set()
    for block in matcher.get_matching_blocks():
        run = placed[block.b : block.b + block.size]
        if run:
            shared.update(range(run[0][1], run[-1][1] + 1))  # with what stands between them
    marked: list[tuple[str, bool]] = []
    for place, piece in enumerate(pieces):
        if marked and marked[-1][1] == (place in shared):
            marked[-1] = (marked[-1][0] + piece, marked[-1][1])
        else:
            marked.append((piece, place in shared))
    return marked
