"""Index and search records in Chroma, embedded or on a server.

The id of a piece begins with a hash of its record, so indexing again embeds only what is new or was not finished.
"""

from __future__ import annotations

import time
from array import array
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING

from config import RagConfig
from pipeline.artifacts import UserError, command
from pipeline.chunking import Chunk, ChunkSize, chunks, record_id
from pipeline.duplicates import SeenHashes
from pipeline.embedding import document_encoder

if TYPE_CHECKING:
    import numpy
    from chromadb.api import ClientAPI
    from chromadb.api.models.Collection import Collection
    from langchain_chroma import Chroma
    from langchain_huggingface import HuggingFaceEmbeddings

# Chroma's default search width finds 9 of the 10 nearest among 100,000 documents; 400 finds 99 of 100.
SEARCH_WIDTH = 400
BUILD_WIDTH = 200
SORTED_AT_A_TIME = 8192  # pieces among which those of similar length are embedded together
SECONDS_BETWEEN_ADDS = 30.0  # what an interruption costs at most
IDS_AT_A_TIME = 50_000
COMPARED_AT_A_TIME = 4096  # records
BYTES_OF_REQUEST = 16 << 20  # below the limit of a Chroma server


@dataclass(frozen=True)
class VectorStore:
    """A collection of Chroma."""

    collection: Collection
    most_added: int
    """Pieces that it takes, or removes, at a time."""
    langchain: Chroma
    """The same for LangChain: titles are its documents, contents the metadata `text`."""


@dataclass(frozen=True)
class Hit:
    """A piece that was found for a query."""

    title: str
    text: str
    score: float
    """Cosine similarity to the query: 1 is the same direction, 0 nothing in common."""


@dataclass(frozen=True)
class IndexReport:
    """What indexing changed, in pieces."""

    added: int
    removed: int
    unchanged: int


def open_store(
    folder: Path, config: RagConfig, embeddings: HuggingFaceEmbeddings | None = None, create: bool = False
) -> VectorStore:
    """Open the collection of a run, or make it.

    Args:
        folder: outputs/PRESET/chroma; the collection is named after the preset, here and on a server.
        config: says whether a server holds the collection.
        embeddings: what queries are embedded with; needed to search.
        create: make the collection if there is none.

    Raises:
        UserError: the collection was made with another embedding model or from another folder, or there is none.
    """
    from langchain_chroma import Chroma

    client = connect(folder, config)
    name = config.collection or folder.parent.name
    index_command = command("rag_indexing", folder.parent)
    if name not in {collection.name for collection in client.list_collections()} and not create:
        raise UserError(f"{config.chroma_host or folder} holds no index {name!r} yet. Run `{index_command}` first.")
    made_for = {"embedding_model": config.embedding_model}
    if config.chroma_host:
        made_for["folder"] = str(folder.parent.resolve())
    langchain = Chroma(
        name,
        embeddings,
        client=client,
        collection_metadata=made_for,
        collection_configuration={
            "hnsw": {"space": "cosine", "ef_search": SEARCH_WIDTH, "ef_construction": BUILD_WIDTH}
        },
    )
    collection = client.get_collection(name, embedding_function=None)
    found = collection.metadata or {}
    if found.get("embedding_model") != config.embedding_model:
        raise UserError(
            f"{config.chroma_host or folder} was indexed with the embedding model {found.get('embedding_model')!r}, not "
            f"with {config.embedding_model!r}. Give --rag.embedding-model {found.get('embedding_model')}, or delete the "
            f"index and run `{index_command}`."
        )
    if found.get("folder") != made_for.get("folder"):
        raise UserError(
            f"The collection {name!r} on {config.chroma_host} holds the records of {found.get('folder')}. "
            "Name another with --rag.collection, or delete it."
        )
    return VectorStore(collection, client.get_max_batch_size(), langchain)


def connect(folder: Path, config: RagConfig) -> ClientAPI:
    """Return a client of the Chroma server, or of the folder if there is none."""
    import chromadb

    settings = chromadb.Settings(anonymized_telemetry=False)
    if config.chroma_host is None:
        return chromadb.PersistentClient(str(folder), settings)
    host, _, port = config.chroma_host.partition(":")
    try:
        return chromadb.HttpClient(host, int(port or 8000), settings=settings)
    except ValueError as error:
        raise UserError(
            f"No Chroma server answers at {config.chroma_host}. Start one with `chroma run --path FOLDER --port PORT`, or "
            "leave --rag.chroma-host out."
        ) from error


def index(
    store: VectorStore,
    records: Iterable[tuple[str, str]],
    size: ChunkSize,
    config: RagConfig,
    load_embeddings: Callable[[], HuggingFaceEmbeddings],
    advance: Callable[[int], object] = lambda _: None,
) -> IndexReport:
    """Bring the collection to hold exactly the records; only new ones are embedded.

    Interrupted at any moment, it goes on where it stopped when it is called again.

    Args:
        store: what to fill.
        records: (title, content) pairs.
        size: of the pieces that records are cut into.
        config: how to embed.
        load_embeddings: returns the embedding model; called only if there is something to embed.
        advance: called with the number of records that were dealt with since the last call.
    """
    present = PresentRecords(store)
    wanted = array("Q")
    new = _new_records(records, size, present, wanted, advance)

    def missing(embeddings: HuggingFaceEmbeddings, records: Iterable[tuple[str, str]]) -> Iterator[Chunk]:
        for pieces in chunks(records, size, embeddings):
            if pieces[0].id in present.partial:
                advance(1)
            yield from (chunk for chunk in pieces if chunk.id not in present.partial)

    added = 0
    for first in new:  # once: the rest is read there
        embeddings = load_embeddings()
        added = _add(store, missing(embeddings, chain([first], new)), config, embeddings, advance)
    removed = present.remove_all_but(wanted)
    return IndexReport(added, removed, store.collection.count() - added)


def _add(
    store: VectorStore,
    pieces: Iterator[Chunk],
    config: RagConfig,
    embeddings: HuggingFaceEmbeddings,
    advance: Callable[[int], object],
) -> int:
    added = 0
    with document_encoder(embeddings, config) as encode:
        adder = Adder(store)
        while window := list(islice(pieces, SORTED_AT_A_TIME)):
            texts, tokens = [chunk.embedded_text for chunk in window], [chunk.tokens for chunk in window]
            for positions, vectors in encode(texts, tokens):
                batch = [window[position] for position in positions]
                adder.add(batch, vectors)
                added += len(batch)
                advance(sum("-0-" in chunk.id for chunk in batch))
        adder.flush()
    return added


def search(store: VectorStore, query: str, k: int) -> list[Hit]:
    """Return the k pieces nearest to a query, the nearest first."""
    found = store.langchain.similarity_search_with_score(query, k=k)
    return [Hit(document.page_content, document.metadata["text"], 1 - distance) for document, distance in found]


def record_key(piece_id: str) -> int:
    """Return the first 64 bits of the hash of a record."""
    return int(piece_id[:16], 16)


def _new_records(
    records: Iterable[tuple[str, str]],
    size: ChunkSize,
    present: PresentRecords,
    wanted: array[int],
    advance: Callable[[int], object],
) -> Iterator[tuple[str, str]]:
    """Yield the records that are not complete in the collection, each once, and note the keys of all in `wanted`."""
    seen = SeenHashes(expected=1 << 16)
    records = iter(records)
    while some := list(islice(records, COMPARED_AT_A_TIME)):
        keys = array("Q", [record_key(record_id(title, content, size)) for title, content in some])
        repeated = set(seen.add(keys))
        wanted.extend(key for position, key in enumerate(keys) if position not in repeated)
        done = present.hold(keys)
        done[list(repeated)] = True
        advance(int(done.sum()))
        yield from (some[position] for position in (~done).nonzero()[0])


class PresentRecords:
    """The records that a collection holds, in 16 bytes each.

    `partial` has the ids of the pieces of records of which an interrupted run added some pieces only.
    """

    def __init__(self, store: VectorStore) -> None:
        """Read the ids of the collection."""
        import numpy

        self._collection, self._most_removed = store.collection, store.most_added
        keys, pieces = array("Q"), array("L")
        for page in self._pages():
            keys.extend(map(record_key, page))
            pieces.extend(int(piece_id.rpartition("-")[2]) for piece_id in page)
        found, first, counts = numpy.unique(numpy.array(keys), return_index=True, return_counts=True)
        whole = counts == numpy.array(pieces)[first]
        self._complete, self._found = found[whole], found
        begun = set(found[~whole].tolist())
        self.partial = set(self._pieces_of(begun)) if begun else set()

    def hold(self, keys: array[int]) -> numpy.ndarray:
        """Tell of each record whether all its pieces are there."""
        import numpy

        if not len(self._complete):
            return numpy.zeros(len(keys), bool)
        wanted = numpy.array(keys)
        places = self._complete.searchsorted(wanted).clip(max=len(self._complete) - 1)
        return self._complete[places] == wanted

    def remove_all_but(self, wanted: array[int]) -> int:
        """Remove the pieces of other records, which were there before, and return their number."""
        import numpy

        vanished = numpy.setdiff1d(self._found, numpy.array(wanted), assume_unique=True)
        if not len(vanished):
            return 0
        ids = self._pieces_of(set(vanished.tolist()))
        for start in range(0, len(ids), self._most_removed):
            self._collection.delete(ids=ids[start : start + self._most_removed])
        return len(ids)

    def _pieces_of(self, keys: set[int]) -> list[str]:
        return [piece_id for page in self._pages() for piece_id in page if record_key(piece_id) in keys]

    def _pages(self) -> Iterator[list[str]]:
        offset = 0
        while page := self._collection.get(limit=IDS_AT_A_TIME, offset=offset, include=[])["ids"]:
            yield page
            offset += len(page)


class Adder:
    """Adds pieces in the largest batches that Chroma takes, or what there is after some time."""

    def __init__(self, store: VectorStore) -> None:
        """Add to this store."""
        self._store = store
        self._chunks: list[Chunk] = []
        self._vectors: list[numpy.ndarray] = []
        self._last = time.monotonic()

    def add(self, chunks: list[Chunk], vectors: numpy.ndarray) -> None:
        """Add pieces with their vectors, now or later."""
        most = min(self._store.most_added, BYTES_OF_REQUEST // (6 * vectors.shape[1]))
        for start in range(0, len(chunks), most):
            some = chunks[start : start + most]
            if len(self._chunks) + len(some) > most:
                self.flush()
            self._chunks += some
            self._vectors.append(vectors[start : start + most])
        if time.monotonic() - self._last > SECONDS_BETWEEN_ADDS:
            self.flush()

    def flush(self) -> None:
        """Add what has not been added yet."""
        import numpy

        if self._chunks:
            self._store.collection.upsert(
                ids=[chunk.id for chunk in self._chunks],
                embeddings=numpy.concatenate(self._vectors),
                # Chroma makes an index for full text search of documents, which takes more time than all else.
                documents=[chunk.title for chunk in self._chunks],
                metadatas=[{"text": chunk.text} for chunk in self._chunks],
            )
        self._chunks, self._vectors, self._last = [], [], time.monotonic()
