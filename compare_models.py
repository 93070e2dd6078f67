"""Stage 9: put the answers of all models side by side, measure them, and tell which differences are more than noise.

Reads what stages 2, 4 and 8 answered; two of the four files are enough. Writes comparison.json, comparison.md and
comparison.html (one file, nothing else needed to read it).

    python compare_models.py
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from config import Config
from pipeline import answers, artifacts, comparison_pages, embedding, judge, leakage, manifests, records
from pipeline.command_line import run_stage
from pipeline.comparison import Comparison, Score, compare

if TYPE_CHECKING:
    from langchain_huggingface import HuggingFaceEmbeddings

COLUMNS = {
    "Foundation": ("foundation_answers.json", "foundation_model"),
    "Fine-tuned": ("finetuned_answers.json", "ft_test_trained_model"),
    "RAG": ("rag_answers.json", "rag_model_retriever"),
    "RAG + fine-tuned": ("rag_finetuned_answers.json", "rag_model_retriever"),
}


def run(config: Config) -> Path:
    """Compare the answers and return the path of comparison.html."""
    paths = find_answers(config)
    settings = {"rag": config.rag, "judge": config.judge}
    with manifests.stage_manifest(config.run_dir, "compare_models", settings, list(paths.values())) as metrics:
        stages = {column: stage for column, (_, stage) in COLUMNS.items()}
        files = {column: answers.read(path, stages[column]) for column, path in paths.items()}
        older = answers.check_made_from(config.run_dir, files, stages)
        embeddings = functools.cache(lambda: embedding.load_embeddings(config.rag))  # once, for all columns
        scores: dict[str, Score] = {"similarity": lambda entries: similarity(embeddings(), entries)}
        if config.judge.url is not None:
            scores["judge"] = lambda entries: judge.grade(config.judge, entries)
        commands = {column: artifacts.command(stage, config.run_dir) for column, stage in stages.items()}
        comparison = compare(files, commands, scores)
        notes = [*older, *make_notes(config, comparison)]
        metrics.update(comparison.as_json()["figures"])
        comparison_pages.show(comparison, notes)
        artifacts.write_json(config.run_dir / "comparison.json", {**comparison.as_json(), "notes": notes})
        return comparison_pages.write(config.run_dir, config.preset, comparison, notes)


def find_answers(config: Config) -> dict[str, Path]:
    """Return the answers file of each column that there is, or say which stage makes the missing ones."""
    paths = {column: config.run_dir / file for column, (file, _) in COLUMNS.items()}
    found = {column: path for column, path in paths.items() if path.exists()}
    missing = [column for column in COLUMNS if column not in found]
    if len(found) < 2:
        artifacts.require(paths[missing[0]], COLUMNS[missing[0]][1])
    for column in missing:
        print(f"Not compared: {column}. {COLUMNS[column][1]}.py answers for it.")
    return found


def similarity(embeddings: HuggingFaceEmbeddings, entries: Sequence[dict[str, Any]]) -> list[float | None]:
    """Return the cosine between the embeddings of each answer and its reference; None without a reference."""
    compared = [entry for entry in entries if entry["reference"]]
    answers = embeddings.embed_documents([entry["answer"] for entry in compared])
    references = embeddings.embed_documents([entry["reference"] for entry in compared])
    cosines = iter(
        sum(a * b for a, b in zip(answer, reference, strict=True))
        for answer, reference in zip(answers, references, strict=True)
    )
    return [next(cosines) if entry["reference"] else None for entry in entries]


def make_notes(config: Config, comparison: Comparison) -> list[str]:
    """Return what a reader must know to believe the figures."""
    notes = []
    if any(column.lower().endswith("fine-tuned") for column in comparison.models):
        trained_on = manifests.require_unchanged(config.run_dir, "fine_tuning", "trn_processed_dataset.json")
        data = replace(records.open_processed(config.run_dir), path=trained_on, title_key="input", content_key="output")
        notes.append(str(leakage.find_leakage(comparison.questions, data)))
    if any(column.startswith("RAG") for column in comparison.models):
        notes.append(
            "The index of the retrieval holds all records, those of the held-out titles too: RAG is asked what it can look up, "
            "the others what they have never seen."
        )
    return notes


def main() -> None:
    """Run the stage from the command line."""
    run_stage("compare_models", __doc__, run, "app")


if __name__ == "__main__":
    main()
