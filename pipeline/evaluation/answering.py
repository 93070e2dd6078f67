"""Answer questions with a model, with retrieved records at hand or without."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tqdm import tqdm

from config import GenerationConfig, RagConfig
from pipeline.evaluation.questions import Question
from pipeline.models.answerer import AnsweringModel
from pipeline.models.generation import Answer
from pipeline.rag import citations, context, retrieval
from pipeline.rag.lexical import LexicalIndex
from pipeline.rag.retrieval import Hit


@dataclass(frozen=True)
class Retrieved:
    """What was retrieved for each of some questions."""

    hits: Sequence[Sequence[Hit]]
    seconds: Sequence[float]
    """How long that took."""
    lexical: LexicalIndex
    rag: RagConfig


def answer_questions(
    model: AnsweringModel, asked: Sequence[Question], settings: GenerationConfig, retrieved: Retrieved | None = None
) -> list[dict[str, Any]]:
    """Answer every question under one progress bar, print question and answer, and return them for the answers file.

    Where records were retrieved and none of them fits a question, the model is not asked: the answer is rag.not_found.
    """
    texts: dict[int, str] = {}
    answers: dict[int, Answer] = {}
    sources: dict[int, list[Hit]] = {}
    room = room_for_records(model, settings, retrieved.rag) if retrieved is not None else 0
    for position, question in enumerate(asked):
        if retrieved is None:
            texts[position] = model.prompt_format.prompt(question.title)
        elif retrieval.answerable(retrieved.hits[position], retrieved.rag):
            texts[position], sources[position] = context.prompt_with_records(
                model, question.title, retrieved.hits[position], room
            )
        else:
            answers[position] = Answer(retrieval.not_found(retrieved.hits[position], retrieved.rag), 0, True, 0.0)
    with tqdm(total=len(asked), desc="Answering", unit="answer", dynamic_ncols=True) as bar:
        answers |= zip(texts, model.generate(list(texts.values()), settings, bar.update), strict=True)
        bar.update(len(asked) - len(texts))
    entries = []
    for position, question in enumerate(asked):
        answer = answers[position]
        sent = model.prompt_format.bos + texts[position] if position in texts else None
        entry = {**dataclasses.asdict(question), "prompt": sent, "answer": answer.text}
        entry |= {"tokens": answer.tokens, "ended": answer.ended, "seconds": round(answer.seconds, 4)}
        if retrieved is not None:
            entry["retrieval_seconds"] = round(retrieved.seconds[position], 4)
            entry |= explain(answer.text, sources.get(position, []), retrieved.lexical)
        if position in texts:
            entry |= model.reference_loss(texts[position], question.reference)
        print_entry(entry, model.prompt_format.title_label, model.prompt_format.content_label)
        entries.append(entry)
    return entries


def room_for_records(model: AnsweringModel, settings: GenerationConfig, rag: RagConfig) -> int:
    """Return how many tokens prompt and retrieved texts may have; print it if that is fewer than rag.max_context_tokens."""
    room = context.room_for_context(model, rag.max_context_tokens, settings.max_new_tokens)
    if room < rag.max_context_tokens:
        print(
            f"{model.name} reads {model.token_limit:,} tokens: prompt and retrieved texts have {room:,} at most "
            f"(--rag.max-context-tokens {rag.max_context_tokens})."
        )
    return room


def explain(answer: str, used: Sequence[Hit], lexical: LexicalIndex) -> dict[str, Any]:
    """Return the answer with marks of where it comes from, how much of it the records hold, and the records."""
    return {
        "cited": citations.cite(answer, used, lexical),
        "support": round(citations.support(answer, used, lexical), 4) if used else None,
        "sources": [{**dataclasses.asdict(hit), "score": hit.score} for hit in used],
    }


def print_entry(entry: dict[str, Any], title_label: str, content_label: str) -> None:
    """Print a question and its answer, with the records that were at hand."""
    print(f"\n{title_label}: {entry['title']}")
    print(f"{content_label}: {entry.get('cited', entry['answer'])}")
    if "sources" in entry:
        named = [f"[{n}] {source['title']} ({source['score']:.2f})" for n, source in enumerate(entry["sources"], 1)]
        print("Sources: " + ("; ".join(named) or "none"))
