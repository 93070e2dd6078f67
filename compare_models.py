"""Stage 9: put the answers of all models side by side, measure them, and tell which differences are more than noise.

Reads what stages 2, 4 and 8 answered; two of the four files are enough. Writes comparison.json, comparison.md and
comparison.html (one file, nothing else needed to read it).

    python compare_models.py
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from config import Config
from pipeline.data import records
from pipeline.evaluation import answers, judge, leakage, report
from pipeline.evaluation.comparison import Comparison, Score, compare
from pipeline.rag import embedding
from pipeline.run import files, manifests, run_folder
from pipeline.run.command_line import run_stage

COLUMNS = {
    "Foundation": run_folder.FOUNDATION_ANSWERS,
    "Fine-tuned": run_folder.FINETUNED_ANSWERS,
    "RAG": run_folder.RAG_ANSWERS,
    "RAG + fine-tuned": run_folder.RAG_FINETUNED_ANSWERS,
}


def run(config: Config) -> Path:
    """Compare the answers and return the path of comparison.html."""
    folder = run_folder.RunFolder.of(config)
    names = find_answers(folder)
    with manifests.stage_manifest(config, "compare_models", [folder / name for name in names.values()]) as metrics:
        stages = {column: run_folder.maker_of(name) for column, name in names.items()}
        answered = {column: answers.read(folder, name) for column, name in names.items()}

        def command_alike(column: str, like: str) -> str:
            return folder.command_again(stages[column], ("--questions.", "--answers."), stages[like])

        older = answers.check_made_from(folder, answered, stages)
        # Loaded once it is known that all can be compared; the references are embedded once, for all columns.
        embeddings = functools.cache(lambda: embedding.load_embeddings(config.rag))
        embed = functools.cache(lambda texts: embeddings().embed_documents(list(texts)))
        scores: dict[str, Score] = {"similarity": lambda entries: similarity(embed, entries)}
        if config.judge.url is not None:
            scores["judge"] = lambda entries: judge.grade(config.judge, entries)
        prefer = functools.partial(judge.prefer, config.judge) if config.judge.pairwise else None
        comparison = compare(answered, command_alike, scores, prefer)
        notes = [*older, *make_notes(config, comparison)]
        metrics.update(comparison.as_json()["figures"])
        report.print_report(comparison, notes)
        files.write_json(folder / run_folder.COMPARISON, {**comparison.as_json(), "notes": notes})
        return report.write_report(folder, comparison, notes)


def find_answers(folder: run_folder.RunFolder) -> dict[str, str]:
    """Return the name of the answers file of each column that there is, or say which stage makes the missing ones."""
    found = {column: name for column, name in COLUMNS.items() if (folder / name).exists()}
    missing = [column for column in COLUMNS if column not in found]
    if len(found) < 2:
        folder.require(COLUMNS[missing[0]])
    for column in missing:
        print(f"Not compared: {column}. `{folder.command(run_folder.maker_of(COLUMNS[column]))}` answers for it.")
    return found


def similarity(
    embed: Callable[[tuple[str, ...]], list[list[float]]], entries: Sequence[dict[str, Any]]
) -> list[float | None]:
    """Return the cosine between the embeddings of each answer and its reference; None without a reference.

    Args:
        embed: returns a vector of length 1 for each text.
        entries: as in an answers file.
    """
    compared = [entry for entry in entries if entry["reference"]]
    answers = embed(tuple(entry["answer"] for entry in compared))
    references = embed(tuple(entry["reference"] for entry in compared))
    cosines = iter(
        sum(a * b for a, b in zip(answer, reference, strict=True))
        for answer, reference in zip(answers, references, strict=True)
    )
    return [next(cosines) if entry["reference"] else None for entry in entries]


def make_notes(config: Config, comparison: Comparison) -> list[str]:
    """Return what a reader must know to believe the figures."""
    notes = []
    if any(column.lower().endswith("fine-tuned") for column in comparison.models):
        folder = run_folder.RunFolder.of(config)
        trained_on = manifests.require_unchanged(folder, run_folder.TRAINED_RECORDS)
        data = replace(records.open_processed(folder), path=trained_on, title_key="input", content_key="output")
        notes.append(str(leakage.find_leakage(comparison.questions, data)))
    if any(column.startswith("RAG") for column in comparison.models):
        notes.append(
            "The index of the retrieval holds all records, those of the held-out titles too: RAG is asked what it can look up, "
            "the others what they have never seen."
        )
    return notes


def main() -> None:
    """Run the stage from the command line."""
    run_stage("compare_models", __doc__, run)


if __name__ == "__main__":
    main()
