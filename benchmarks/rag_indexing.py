"""Indexing and searching: this project's way against the libraries' own.

Builds seeded records from the sentences of the demo's data, or takes a trn_processed.json of yours, and prints

  embed    documents/s of sentence-transformers' own encode (float32, batches of 32) and of ours, in turns, how near
           the vectors are and how many of the ten nearest neighbours are the same
  store    documents/s of LangChain's add_documents by hundreds and of ours, with the same vectors, in turns
  grow     documents/s, seconds of a second run, peak memory, for each size, each in a process of its own
  search   milliseconds of a search and recall@10 against brute force, for each size

    python benchmarks/rag_indexing.py --parts embed store grow search --documents 1000 10000
"""

from __future__ import annotations

import json
import multiprocessing
import random
import re
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy
import psutil
import tyro

from config import PROJECT_DIR, RagConfig
from pipeline.data.cleaning import clean
from pipeline.rag import chunking, embedding, indexing, vector_store
from pipeline.run.command_line import quiet_libraries
from pipeline.run.run_folder import RunFolder

WORDS = 80  # of a document, about as in the Amazon catalogue
Records = list[tuple[str, str]]


@dataclass(frozen=True)
class Benchmark:
    """What to measure."""

    parts: tuple[Literal["embed", "store", "grow", "search"], ...] = ("embed", "store", "grow", "search")
    """Which tables to print."""
    documents: tuple[int, ...] = (1000, 10_000)
    """Sizes of the tables grow and search; the first of them is that of embed and store, too."""
    processed: Path | None = None
    """A trn_processed.json, instead of records that are built."""
    rounds: int = 3
    """Runs of each side of embed and store, in turns."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of our side."""
    backend: Literal["torch", "openvino"] = "torch"
    """Of our side."""


def build_records(count: int, processed: Path | None, seed: int = 3407) -> Records:
    """Return records made of real sentences in random order, so that their vectors lie as those of real ones."""
    if processed is not None:
        rows = json.loads(processed.read_text(encoding="utf-8"))[:count]
        return [tuple(row.values())[:2] for row in rows]
    lines = (PROJECT_DIR / "data" / "trn_sample.json").read_text(encoding="utf-8").splitlines()
    texts = []
    for line in lines:
        try:
            row = json.loads(line)
            texts.append((clean(str(row["title"])), clean(str(row["content"]))))
        except (ValueError, KeyError, TypeError):
            continue
    sentences = [part for _, content in texts for part in re.split(r"(?<=[.!?]) ", content) if len(part) > 20]
    title_words = [word for title, _ in texts for word in title.split()]
    rng = random.Random(seed)
    records = []
    for number in range(count):
        title = " ".join(rng.sample(title_words, rng.randint(3, 8)))
        content: list[str] = []
        while len(content) < rng.randint(WORDS // 2, WORDS * 3 // 2):
            content += rng.choice(sentences).split()
        records.append((f"{title} {number}", " ".join(content)))
    return records


def median_rates(sides: dict[str, Callable[[], Any]], count: int, rounds: int) -> dict[str, float]:
    """Run the sides in turns and return the median documents/s of each."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, run in sides.items():
            started = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - started)
    return {name: count / statistics.median(values) for name, values in seconds.items()}


def embed_all(embeddings: Any, config: RagConfig, records: Records) -> numpy.ndarray:
    """Return the vectors of records that fit whole, as index() embeds them."""
    size = chunking.chunk_size(config, embeddings)
    pieces = [pieces[0] for pieces in chunking.chunk_records(records, size, embeddings)]
    vectors = numpy.empty(
        (len(pieces), embedding.sentence_transformer(embeddings).get_embedding_dimension()), "float32"
    )
    with embedding.document_encoder(embeddings, config) as encode:
        for start in range(0, len(pieces), indexing.SORTED_AT_A_TIME):
            window = pieces[start : start + indexing.SORTED_AT_A_TIME]
            for positions, batch in encode([p.embedded_text for p in window], [p.tokens for p in window]):
                vectors[[start + position for position in positions]] = batch
    return vectors


def nearest(vectors: numpy.ndarray, queries: numpy.ndarray, count: int) -> list[set[int]]:
    """Return the positions of the vectors nearest to each query, by brute force."""
    found = []
    for start in range(0, len(queries), 100):
        scores = queries[start : start + 100] @ vectors.T
        found += [set(row) for row in numpy.argpartition(-scores, count, axis=1)[:, :count].tolist()]
    return found


def measure_embedding(work: Benchmark, config: RagConfig) -> None:
    """Print how fast texts are embedded, and how near the vectors are to those of 32 bits."""
    records = build_records(work.documents[0], work.processed)
    texts = [f"{title}\n{content}" for title, content in records]
    theirs = embedding.sentence_transformer(embedding.load_embeddings(RagConfig(embedding_precision="float32")))
    ours = embedding.load_embeddings(config)
    vectors: dict[str, numpy.ndarray] = {}

    def encode_theirs() -> None:
        vectors["theirs"] = theirs.encode(texts, normalize_embeddings=True, show_progress_bar=False)

    def encode_ours() -> None:
        vectors["ours"] = embed_all(ours, config, records)

    theirs.encode(texts[:64], show_progress_bar=False)
    embed_all(ours, config, records[:64])
    rates = median_rates({"theirs": encode_theirs, "ours": encode_ours}, len(records), work.rounds)
    one, other = nearest(vectors["theirs"], vectors["theirs"], 11), nearest(vectors["ours"], vectors["ours"], 11)
    overlap = statistics.mean((len(a & b) - 1) / 10 for a, b in zip(one, other, strict=True))
    cosine = float((vectors["theirs"] * vectors["ours"]).sum(1).mean())
    print(f"\nembed, {len(records):,} documents, ours on " + ", ".join(embedding.runs_on(ours, config).values()))
    print(
        f"  sentence-transformers {rates['theirs']:,.0f}/s, ours {rates['ours']:,.0f}/s, ratio "
        f"{rates['ours'] / rates['theirs']:.2f}; cosine {cosine:.4f}, ten nearest the same {overlap:.3f}",
        flush=True,
    )


def measure_storing(work: Benchmark, config: RagConfig) -> None:
    """Print how fast records with known vectors are stored."""
    import chromadb
    from langchain_chroma import Chroma
    from langchain_core.documents import Document
    from langchain_core.embeddings import Embeddings

    records = build_records(work.documents[0], work.processed)
    vectors = clustered_vectors(len(records))
    size = chunking.ChunkSize(10_000, 0)
    chunks = [
        chunking.Chunk(f"{chunking.record_id(title, content, size)}-0-1", title, content, "", 1)
        for title, content in records
    ]

    class Known(Embeddings):
        def __init__(self) -> None:
            self.given = 0

        def embed_documents(self, texts: list[str]) -> list[list[float]]:
            self.given += len(texts)
            return vectors[self.given - len(texts) : self.given].tolist()

        def embed_query(self, text: str) -> list[float]:
            return vectors[0].tolist()

    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name:
        folders = (Path(name) / f"store-{number}" for number in range(1000))

        def store_theirs() -> None:
            settings = chromadb.Settings(anonymized_telemetry=False)
            store = Chroma("theirs", Known(), client=chromadb.PersistentClient(str(next(folders)), settings))
            documents = [Document(f"{title}\n{content}", metadata={"title": title}) for title, content in records]
            for start in range(0, len(documents), 100):
                store.add_documents(documents[start : start + 100])

        def store_ours() -> None:
            adder = indexing.Adder(vector_store.open_store(RunFolder(next(folders)), config, create=True))
            adder.add(chunks, vectors)
            adder.flush()

        rates = median_rates({"theirs": store_theirs, "ours": store_ours}, len(records), work.rounds)
    print(f"\nstore, {len(records):,} documents")
    print(
        f"  add_documents by hundreds {rates['theirs']:,.0f}/s, ours {rates['ours']:,.0f}/s, ratio "
        f"{rates['ours'] / rates['theirs']:.2f}",
        flush=True,
    )


def clustered_vectors(count: int, dimensions: int = 384, seed: int = 3407) -> numpy.ndarray:
    """Return vectors of length 1 that lie in clusters, as those of texts do."""
    rng = numpy.random.default_rng(seed)
    centres = rng.standard_normal((max(1, count // 50), dimensions), "float32")
    vectors = centres[rng.integers(0, len(centres), count)] + 0.5 * rng.standard_normal((count, dimensions), "float32")
    return vectors / numpy.linalg.norm(vectors, axis=1, keepdims=True)


def index_once(count: int, work: Benchmark, config: RagConfig, folder: RunFolder, results: Any) -> None:
    """Index records twice and report; runs in a process of its own, whose memory is measured."""
    quiet_libraries()
    process = psutil.Process()
    embeddings = embedding.load_embeddings(config)
    size = chunking.chunk_size(config, embeddings)
    records = build_records(count, work.processed)
    base = process.memory_info().rss
    seconds = []
    for _ in range(2):
        store = vector_store.open_store(folder, config, create=True)
        started = time.perf_counter()
        indexing.index(store, records, size, config, lambda: embeddings)
        seconds.append(time.perf_counter() - started)
    results.put((seconds, base, process.memory_info().rss))


def measure_growth(work: Benchmark, config: RagConfig, folder: Path) -> None:
    """Print what indexing costs at each size; the folders stay for measure_search."""
    print("\ngrow    documents  documents/s   second run   memory before   after")
    for count in work.documents:
        context = multiprocessing.get_context("spawn")
        results = context.Queue()
        arguments = (count, work, config, RunFolder(folder / f"run-{count}"), results)
        process = context.Process(target=index_once, args=arguments)
        process.start()
        (first, second), before, after = results.get()
        process.join()
        print(
            f"     {count:>12,} {count / first:>12,.0f} {second:>8.1f} s {second / first:>5.1%} "
            f"{before / 1e6:>8,.0f} MB {after / 1e6:>8,.0f} MB",
            flush=True,
        )


def measure_search(work: Benchmark, config: RagConfig, folder: Path) -> None:
    """Print how long a search takes and how many of the ten nearest it finds."""
    embeddings = embedding.load_embeddings(config)
    print("\nsearch  documents   vector p50     p95   query p50     p95   recall@10")
    for count in work.documents:
        run = RunFolder(folder / f"run-{count}")
        store = vector_store.open_store(run, config, embeddings, create=True)
        records = build_records(count, work.processed)
        if not store.collection.count():
            size = chunking.chunk_size(config, embeddings)
            indexing.index(store, records, size, config, lambda: embeddings)
        rng = random.Random(1)
        queries = [" ".join(rng.choice(records)[1].split()[:12]) for _ in range(200)]
        vectors = numpy.array([embeddings.embed_query(query) for query in queries], "float32")
        found, by_vector, by_query = [], [], []
        for vector, query in zip(vectors, queries, strict=True):
            started = time.perf_counter()
            found.append(set(store.collection.query(query_embeddings=vector[None], n_results=10)["ids"][0]))
            by_vector.append(1000 * (time.perf_counter() - started))
            started = time.perf_counter()
            store.nearest(store.embed(query), 3)
            by_query.append(1000 * (time.perf_counter() - started))
        everything = store.collection.get(include=["embeddings"])
        exact = nearest(numpy.asarray(everything["embeddings"], "float32"), vectors, 10)
        names = [{everything["ids"][position] for position in positions} for positions in exact]
        recall = statistics.mean(len(a & b) / 10 for a, b in zip(found, names, strict=True))
        (p50, p95), (q50, q95) = (
            (numpy.percentile(v[1:], 50), numpy.percentile(v[1:], 95)) for v in (by_vector, by_query)
        )
        print(
            f"     {count:>12,} {p50:>9.1f} ms {p95:>4.1f} ms {q50:>8.1f} ms {q95:>4.1f} ms {recall:>11.3f}", flush=True
        )


def run(work: Benchmark) -> None:
    """Print the tables."""
    quiet_libraries()
    config = RagConfig(embedding_precision=work.precision, embedding_backend=work.backend)
    print(f"{psutil.cpu_count()} cores; records of about {WORDS} words; medians of {work.rounds} runs in turns")
    if "embed" in work.parts:
        measure_embedding(work, config)
    if "store" in work.parts:
        measure_storing(work, config)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name:
        if "grow" in work.parts:
            measure_growth(work, config, Path(name))
        if "search" in work.parts:
            measure_search(work, config, Path(name))


if __name__ == "__main__":
    run(tyro.cli(Benchmark, description=__doc__))
