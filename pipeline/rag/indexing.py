"""Bring a vector store to hold exactly the records; only what is new is embedded.

The id of a piece begins with a hash of its record, so indexing again embeds only what is new or was not finished.
"""

from __future__ import annotations

import time
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain, islice, starmap
from typing import TYPE_CHECKING, Any

from config import RagConfig
from pipeline.data.duplicates import SeenHashes
from pipeline.rag.chunking import Chunk, ChunkSize, Document, Record, chunk_records, record_id
from pipeline.rag.embedding import document_encoder
from pipeline.rag.vector_store import VectorStore

if TYPE_CHECKING:
    import numpy
    from langchain_huggingface import HuggingFaceEmbeddings

SORTED_AT_A_TIME = 8192  # pieces among which those of similar length are embedded together
SECONDS_BETWEEN_ADDS = 30.0  # what an interruption costs at most
COMPARED_AT_A_TIME = 4096  # records
BYTES_OF_REQUEST = 16 << 20  # below the limit of a Chroma server


@dataclass(frozen=True)
class IndexReport:
    """What indexing changed, in pieces."""

    added: int
    removed: int
    unchanged: int


def index(
    store: VectorStore,
    records: Iterable[Record],
    size: ChunkSize,
    config: RagConfig,
    load_embeddings: Callable[[], HuggingFaceEmbeddings],
    advance: Callable[[int], object] = lambda _: None,
) -> IndexReport:
    """Bring the collection to hold exactly the records; only new ones are embedded.

    Interrupted at any moment, it goes on where it stopped when it is called again.

    Args:
        store: what to fill.
        records: (title, content), or (title, content, metadata).
        size: of the pieces that records are cut into.
        config: how to embed.
        load_embeddings: returns the embedding model; called only if there is something to embed.
        advance: called with the number of records that were dealt with since the last call.
    """
    present = PresentRecords(store)
    wanted = array("Q")
    new = _new_records(records, size, present, wanted, advance)

    def missing(embeddings: HuggingFaceEmbeddings, records: Iterable[Record]) -> Iterator[Chunk]:
        for pieces in chunk_records(records, size, embeddings):
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


def record_key(piece_id: str) -> int:
    """Return the first 64 bits of the hash of a record."""
    return int(piece_id[:16], 16)


def _new_records(
    records: Iterable[Record],
    size: ChunkSize,
    present: PresentRecords,
    wanted: array[int],
    advance: Callable[[int], object],
) -> Iterator[Document]:
    """Yield the records that are not complete in the collection, each once, and note the keys of all in `wanted`."""
    seen = SeenHashes(expected=1 << 16)
    documents = starmap(Document, records)
    while some := list(islice(documents, COMPARED_AT_A_TIME)):
        keys = array("Q", [record_key(record_id(d.title, d.content, size, d.metadata)) for d in some])
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

        self._store = store
        keys, pieces = array("Q"), array("L")
        for page in store.ids():
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
        most = self._store.most_added
        for start in range(0, len(ids), most):
            self._store.collection.delete(ids=ids[start : start + most])
        return len(ids)

    def _pieces_of(self, keys: set[int]) -> list[str]:
        return [piece_id for page in self._store.ids() for piece_id in page if record_key(piece_id) in keys]


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
            metadata: list[Mapping[str, Any]] = [
                {**(chunk.metadata or {}), "text": chunk.text} for chunk in self._chunks
            ]
            self._store.collection.upsert(
                ids=[chunk.id for chunk in self._chunks],
                embeddings=numpy.concatenate(self._vectors),
                # Chroma makes an index for full text search of documents, which takes more time than all else.
                documents=[chunk.title for chunk in self._chunks],
                metadatas=metadata,
            )
        self._chunks, self._vectors, self._last = [], [], time.monotonic()
