"""Stage 7: search the index.

Reads chroma/. Prints the k records nearest to --query, or to each query that is typed.

    python rag_search_vs.py --query "ballet tutu for small girls"
"""

from __future__ import annotations

from dataclasses import dataclass

from config import Config
from pipeline import artifacts, embedding, records, vector_store
from pipeline.command_line import prompt_lines, run_stage


@dataclass(frozen=True)
class SearchOptions:
    """Options of this stage alone."""

    query: str | None = None
    """What to look for; without it, queries are read as you type them."""


def run(config: Config, options: SearchOptions) -> None:
    """Print what is nearest to the query, or to each query that is typed."""
    data = records.open_processed(config.run_dir)
    artifacts.require_current(config.run_dir, "rag_indexing", data.path)
    embeddings = embedding.load_embeddings(config.rag)
    store = vector_store.open_store(config.run_dir / "chroma", config.rag, embeddings)
    labels = config.prompt.title_label, config.prompt.content_label
    for query in [options.query] if options.query is not None else prompt_lines("Query"):
        print_hits(vector_store.search(store, data.clean(query), config.rag.k), *labels)


def print_hits(hits: list[vector_store.Hit], title_label: str, content_label: str) -> None:
    """Print hits, the nearest first."""
    for number, hit in enumerate(hits, 1):
        print(f"{number}. {title_label}: {hit.title}")
        print(f"   Score: {hit.score:.3f}")
        print(f"   {content_label}: {hit.text}\n")


def main() -> None:
    """Run the stage from the command line."""
    run_stage("rag_search_vs", __doc__, run, None, SearchOptions)


if __name__ == "__main__":
    main()
