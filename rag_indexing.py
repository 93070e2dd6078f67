"""Stage 6: index the cleaned records for retrieval.

Reads trn_processed.json. Writes chroma/, a Chroma collection on disk, or fills one of a server (--rag.chroma-host), and
lexical.sqlite, an index of the words. Run again, after an interruption too, it embeds only what is new or changed and
removes what has vanished.

    python rag_indexing.py
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from config import Config
from pipeline.data import language, records
from pipeline.models import card
from pipeline.rag import calibration, chunking, embedding, indexing, lexical, retrieval, vector_store
from pipeline.run import errors, files, manifests
from pipeline.run.command_line import run_stage
from pipeline.run.run_folder import VECTORS, RunFolder

if TYPE_CHECKING:
    from langchain_huggingface import HuggingFaceEmbeddings

SMALL_MULTILINGUAL, LARGE_MULTILINGUAL = "intfloat/multilingual-e5-small", "BAAI/bge-m3"
INDEX_SIZE = 16  # times that of trn_processed.json, roughly: vectors, their graph, texts, words


def run(config: Config) -> Path:
    """Index the records and return the path of chroma/."""
    run_folder = RunFolder.of(config)
    data = records.open_processed(run_folder)
    count = manifests.read_manifest(run_folder, "process_data")["metrics"]["records_written"]
    folder, rag = run_folder / VECTORS, config.rag
    if rag.chroma_host is None:
        there = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        needed = INDEX_SIZE * data.path.stat().st_size - there
        files.require_space(config.run_dir, needed, "The index")
    with manifests.stage_manifest(config, "rag_indexing", [data.path]) as metrics:
        spoken = language.language_of(f"{title}\n{content}" for title, content in data)
        if note := language_note(spoken, rag.embedding_model):
            print(note, flush=True)
        load = Loader(config, metrics)
        last = size_of_last_run(config)
        size = last or chunking.chunk_size(rag, load())
        # The collection is changed in place: until it is complete again, no reader may take it for finished.
        manifests.withdraw_manifest(run_folder, "rag_indexing")
        store = vector_store.open_store(run_folder, rag, create=True)
        with tqdm(total=count, desc="Indexing", unit="record", dynamic_ncols=True) as bar:
            report = indexing.index(store, data.with_metadata(), size, rag, load, bar.update)
        words = lexical.LexicalIndex.make(run_folder)
        if last is None or report.added or report.removed or len(words) != report.unchanged:
            print("Indexing the words …", flush=True)
            words.synchronise(store)
            retriever = retrieval.Retriever(vector_store.open_store(run_folder, rag, load()), words)
            calibration.calibrate(retriever)
        metrics.update(added=report.added, removed=report.removed, unchanged=report.unchanged)
        metrics.update(chunk_tokens=size.tokens, document_prefix=size.prefix, language=spoken)
        metrics["graph_bytes"] = vector_store.graph_bytes(folder)
    print(
        f"\nadded {report.added:,}, removed {report.removed:,}, unchanged {report.unchanged:,} chunks of {count:,} records"
    )
    return folder


def language_note(spoken: str | None, embedding_model: str) -> str | None:
    """Return the sentence that names a model for the language of the records, if the embedding model is for others."""
    made_for = card.languages(embedding_model) if spoken else set()
    if not made_for or spoken in made_for:
        return None
    return (
        f"Note: most records are in {spoken!r}, and {embedding_model} states to be made for {', '.join(sorted(made_for))}. "
        f"`--rag.embedding-model {SMALL_MULTILINGUAL}` (small) or "
        f"{LARGE_MULTILINGUAL} (large) is made for many languages."
    )


def size_of_last_run(config: Config) -> chunking.ChunkSize | None:
    """Return the size of the chunks, if a finished run filled the same collection; then no model may be needed at all."""
    try:
        last = manifests.read_manifest(RunFolder.of(config), "rag_indexing")
    except errors.UserError:  # missing or damaged: what is lost is time
        return None
    names = (
        "embedding_model", "query_prefix", "document_prefix", "chunk_tokens", "chunk_overlap_tokens", "chroma_host", "collection",
    )  # fmt: skip
    # Manifests of old have none.
    tokens, prefix = (last["metrics"].get(name) for name in ("chunk_tokens", "document_prefix"))
    if tokens is None or prefix is None:
        return None
    if any(last["settings"]["rag"][name] != getattr(config.rag, name) for name in names):
        return None
    if config.rag.chroma_host is None:
        vector_store.require_graph(RunFolder.of(config), last["metrics"]["graph_bytes"])
    return chunking.ChunkSize(tokens, config.rag.chunk_overlap_tokens, prefix)


class Loader:
    """Loads the embedding model when it is first called for."""

    def __init__(self, config: Config, metrics: dict[str, Any]) -> None:
        """Note in `metrics` what runs the model."""
        self._config, self._metrics = config.rag, metrics
        self._embeddings: HuggingFaceEmbeddings | None = None

    def __call__(self) -> HuggingFaceEmbeddings:
        """Return the embedding model."""
        if self._embeddings is None:
            self._embeddings = embedding.load_embeddings(self._config)
            runs_on = embedding.runs_on(self._embeddings, self._config)
            self._metrics.update(runs_on)
            *where, reason = runs_on.values()
            print(f"Embedding with {self._config.embedding_model}: {', '.join(where)} ({reason})")
            query, document = embedding.prefixes(self._embeddings)
            if query or document:
                print(f"It reads {query!r} before a query, and {document!r} before a record.")
        return self._embeddings


def main() -> None:
    """Run the stage from the command line."""
    run_stage("rag_indexing", __doc__, run)


if __name__ == "__main__":
    main()
