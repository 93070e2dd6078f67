"""Stage 7: search the index.

Reads chroma/ and lexical.sqlite. Prints the k records that fit --query best, or each query that is typed: those with
exactly this title first, then by the mean of meaning and words. --rag.where searches only the records that meet
conditions on their metadata (--data.metadata of stage 1).

    python rag_search_vs.py --query "ballet tutu for small girls"
"""

from __future__ import annotations

from dataclasses import dataclass

from config import Config
from pipeline.data import metadata, records
from pipeline.rag import retrieval
from pipeline.run import manifests
from pipeline.run.command_line import prompt_lines, run_stage
from pipeline.run.run_folder import RunFolder


@dataclass(frozen=True)
class SearchOptions:
    """Options of this stage alone."""

    query: str | None = None
    """What to look for; without it, queries are read as you type them."""


def run(config: Config, options: SearchOptions) -> None:
    """Print what fits the query, or each query that is typed."""
    folder = RunFolder.of(config)
    data = records.open_processed(folder)
    index = manifests.require_current(folder, "rag_indexing", data.path)
    with manifests.guard_against_rerun(folder, "rag_indexing", index):
        retriever = retrieval.open_retriever(folder, config.rag)
    for query in [options.query] if options.query is not None else prompt_lines("Query"):
        with manifests.guard_against_rerun(folder, "rag_indexing", index):
            hits = retriever.search(data.clean(query), config.rag.k, config.rag.conditions)
        print_hits(hits, config)


def print_hits(hits: list[retrieval.Hit], config: Config) -> None:
    """Print hits, the best first, and whether they are good enough to answer with."""
    if config.rag.where and not hits:
        print(retrieval.none_meets(config.rag.where))
        return
    for number, hit in enumerate(hits, 1):
        print(f"{number}. {config.prompt.title_label}: {hit.title}")
        words = f"words {hit.match.score:.2f} (BM25 {hit.match.bm25:.2f}, order {hit.match.order:.0%})"
        print(f"   Score: {hit.score:.3f}, the mean of meaning {hit.meaning:.2f} and {words}")
        if hit.metadata:
            print("   " + " | ".join(f"{name}: {metadata.value_text(value)}" for name, value in hit.metadata.items()))
        print(f"   {config.prompt.content_label}: {hit.text}\n")
    if not retrieval.answerable(hits, config.rag):
        least = "fits better than records fit unrelated questions"
        if config.rag.min_score is not None:
            least = f"has the score {config.rag.min_score} (--rag.min-score)"
        print(f"Nothing {least}: this is probably not in the data.")


def main() -> None:
    """Run the stage from the command line."""
    run_stage("rag_search_vs", __doc__, run, SearchOptions)


if __name__ == "__main__":
    main()
