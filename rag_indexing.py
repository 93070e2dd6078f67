"""Stage 6: index the cleaned records for retrieval.

Reads trn_processed.json. Writes chroma/, a Chroma collection on disk. Run again, it embeds only what is new or changed
and removes what has vanished.

    python rag_indexing.py
"""

from __future__ import annotations

from pathlib import Path

from tqdm import tqdm

from config import Config
from pipeline import artifacts, records, vector_store
from pipeline.command_line import run_stage


def run(config: Config) -> Path:
    """Index the records and return the path of chroma/."""
    data = records.open_processed(config.run_dir)
    count = artifacts.read_manifest(config.run_dir, "process_data")["metrics"]["records_written"]
    folder = config.run_dir / "chroma"
    with artifacts.stage_manifest(config.run_dir, "rag_indexing", {"rag": config.rag}, [data.path]) as metrics:
        embeddings = vector_store.load_embeddings(config.rag)
        # The collection is changed in place: until it is complete again, no reader may take it for finished.
        artifacts.manifest_path(config.run_dir, "rag_indexing").unlink(missing_ok=True)
        store = vector_store.open_store(folder, config.rag, embeddings, create=True)
        read = tqdm(data, total=count, desc="Indexing", unit="record", dynamic_ncols=True)
        report = vector_store.index(store, vector_store.chunks(read, config.rag, embeddings))
        metrics.update(added=report.added, removed=report.removed, unchanged=report.unchanged)
    print(
        f"\nadded {report.added:,}, removed {report.removed:,}, unchanged {report.unchanged:,} chunks of {count:,} records"
    )
    return folder


def main() -> None:
    """Run the stage from the command line."""
    run_stage("rag_indexing", __doc__, run, "rag_search_vs")


if __name__ == "__main__":
    main()
