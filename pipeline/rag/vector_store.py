"""The pieces of the records in Chroma, in a folder or on a server."""

from __future__ import annotations

import heapq
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from config import RagConfig
from pipeline.data.metadata import Metadata
from pipeline.rag.embedding import embed_queries
from pipeline.run.errors import UserError
from pipeline.run.files import told_if_full
from pipeline.run.run_folder import VECTORS, RunFolder

if TYPE_CHECKING:
    import numpy
    from chromadb.api import ClientAPI
    from chromadb.api.models.Collection import Collection
    from chromadb.api.types import GetResult
    from langchain_chroma import Chroma
    from langchain_huggingface import HuggingFaceEmbeddings

# Chroma's default search width finds 9 of the 10 nearest among 100,000 documents; 400 finds 99 of 100.
SEARCH_WIDTH = 400
BUILD_WIDTH = 200
DATABASE = "chroma.sqlite3"
SHORTEST_NAME = 3  # of a collection
IDS_AT_A_TIME = 50_000
# Chroma's graph takes longer for few of its pieces than for many. Of 300,000, on two cores: 300 in 269 ms, 1,000 in 166 ms,
# 10,000 in 79 ms; comparing each with the query takes 10 ms, 29 ms and 361 ms.
MOST_COMPARED = 1000
IDS_OF_REQUEST = 100_000  # some 5 MB


@dataclass(frozen=True)
class VectorStore:
    """A collection of Chroma."""

    collection: Collection
    most_added: int
    """Pieces that it takes, or removes, at a time."""
    langchain: Chroma
    """The same for LangChain: titles are its documents, contents the metadata `text`, beside those of the record."""

    def ids(self) -> Iterator[list[str]]:
        """Yield the ids of all pieces, page by page."""
        offset = 0
        while page := self.collection.get(limit=IDS_AT_A_TIME, offset=offset, include=[])["ids"]:
            yield page
            offset += len(page)

    def pieces(self, ids: list[str]) -> Iterator[tuple[str, str, str, Metadata]]:
        """Yield id, title, text and metadata of pieces."""
        found = self.collection.get(ids, include=["documents", "metadatas"])
        return zip(found["ids"], *_titles_texts_and_metadata(found), strict=True)

    def embed(self, query: str) -> numpy.ndarray:
        """Return the embedding of a query, of length 1."""
        return self.embed_all([query])[0]

    def embed_all(self, queries: list[str]) -> numpy.ndarray:
        """Return the embeddings of queries, each of length 1, of shape (queries, dimensions)."""
        # Whoever searches has opened the store with them.
        return embed_queries(cast("HuggingFaceEmbeddings", self.langchain.embeddings), queries)

    def nearest(self, vector: numpy.ndarray, most: int, among: list[str] | None = None) -> list[Piece]:
        """Return the pieces nearest to the embedding of a query, the nearest first; of all, or of those with some ids."""
        if among is not None:
            pieces = self.compared(vector, self._nearest_ids(vector, most, among))
            return sorted(pieces, key=lambda piece: piece.similarity, reverse=True)
        found = self.langchain.similarity_search_by_vector_with_relevance_scores(vector.tolist(), k=most)
        texts, metadata = _texts_and_metadata([d.metadata for d, _ in found])
        return [
            Piece(d.id, d.page_content, text, 1 - distance, fields)  # type: ignore[arg-type]  # Chroma's have an id
            for (d, distance), text, fields in zip(found, texts, metadata, strict=True)
        ]

    def _nearest_ids(self, vector: numpy.ndarray, most: int, ids: list[str]) -> list[str]:
        if not ids:
            return []
        if len(ids) <= MOST_COMPARED:
            found = self.collection.get(ids, include=["embeddings"])
            compared = zip(_similarities(found, vector), found["ids"], strict=True)
            return [piece_id for _, piece_id in heapq.nlargest(most, compared)]
        nearest: list[tuple[float, str]] = []
        for start in range(0, len(ids), IDS_OF_REQUEST):
            some = ids[start : start + IDS_OF_REQUEST]
            close = self.collection.query(vector[None], n_results=most, ids=some, include=["distances"])
            assert close["distances"] is not None  # they were asked for
            nearest += zip(close["distances"][0], close["ids"][0], strict=True)
        return [piece_id for _, piece_id in heapq.nsmallest(most, nearest)]

    def compared(self, vector: numpy.ndarray, ids: list[str]) -> list[Piece]:
        """Return pieces with their similarity to the embedding of a query."""
        if not ids:
            return []
        found = self.collection.get(ids, include=["documents", "metadatas", "embeddings"])
        titles, texts, metadata = _titles_texts_and_metadata(found)
        return list(map(Piece, found["ids"], titles, texts, _similarities(found, vector), metadata))


@dataclass(frozen=True)
class Piece:
    """A piece of a record, compared with a query."""

    id: str
    title: str
    text: str
    similarity: float
    """Cosine similarity to the query: 1 is the same direction, 0 nothing in common."""
    metadata: Metadata = field(default_factory=dict)
    """That of the record."""


def open_store(
    run: RunFolder, config: RagConfig, embeddings: HuggingFaceEmbeddings | None = None, create: bool = False
) -> VectorStore:
    """Open the collection of a run, or make it.

    Args:
        run: the folder of the run; the collection is named after it, here and on a server.
        config: says whether a server holds the collection.
        embeddings: what queries are embedded with; needed to search.
        create: make the collection if there is none.

    Raises:
        UserError: the collection was made with another embedding model or from another folder, or there is none.
    """
    from langchain_chroma import Chroma

    folder, name = run / VECTORS, config.collection or collection_name(run)
    no_index = run.stage_needed(f"{config.chroma_host or folder} holds no index {name!r} yet.", "rag_indexing")
    if config.chroma_host is None and not create and not (folder / DATABASE).is_file():
        raise no_index  # Chroma would make one
    client = connect(run, config)
    if name not in {collection.name for collection in client.list_collections()} and not create:
        raise no_index
    made_for = {"embedding_model": config.embedding_model}
    if config.chroma_host:
        made_for["folder"] = str(run.path.resolve())
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
            f"index and run `{run.command_again('rag_indexing')}`."
        )
    if found.get("folder") != made_for.get("folder"):
        raise UserError(
            f"The collection {name!r} on {config.chroma_host} holds the records of {found.get('folder')}. "
            "Name another with --rag.collection, or delete it."
        )
    return VectorStore(collection, client.get_max_batch_size(), langchain)


def collection_name(run: RunFolder) -> str:
    """Return the name of a run, without what Chroma allows in no name of a collection."""
    return re.sub(r"[^a-zA-Z0-9._-]", "-", run.path.name).strip("._-").ljust(SHORTEST_NAME, "0")


def graph_bytes(folder: Path) -> dict[str, int]:
    """Return the sizes of the files with the graphs of the pieces: where one is cut off, Chroma finds less and says nothing."""
    files = sorted(path for path in folder.glob("*/*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.stat().st_size for path in files}


def require_graph(run: RunFolder, sizes: dict[str, int]) -> None:
    """Raise a UserError if the graphs have other sizes than the last run of stage 6 left them with."""
    folder = run / VECTORS
    if (folder / DATABASE).is_file() and graph_bytes(folder) != sizes:
        again = run.command_again("rag_indexing")
        raise UserError(f"{folder} has lost a part, or has one too much. Delete it and run `{again}` again.")


def connect(run: RunFolder, config: RagConfig) -> ClientAPI:
    """Return a client of the Chroma server, or of the folder of a run if there is none."""
    import chromadb

    settings = chromadb.Settings(anonymized_telemetry=False)
    if config.chroma_host is None:
        folder = run / VECTORS
        try:
            with told_if_full(run.path):
                return chromadb.PersistentClient(str(folder), settings)
        except chromadb.errors.InternalError as error:
            if "readonly" in str(error):
                raise UserError(
                    f"{folder} is on a read-only file system, and Chroma writes there even to search. Copy "
                    f"{run} to another --output-dir."
                ) from error
            again = run.command_again("rag_indexing")
            raise UserError(f"{folder} cannot be read ({error}). Delete it and run `{again}` again.") from error
    host, _, port = config.chroma_host.partition(":")
    try:
        return chromadb.HttpClient(host, int(port or 8000), settings=settings)
    except ValueError as error:
        raise UserError(
            f"No Chroma server answers at {config.chroma_host}. Start one with `chroma run --path FOLDER --port PORT`, or "
            "leave --rag.chroma-host out."
        ) from error


def _similarities(found: GetResult, vector: numpy.ndarray) -> list[float]:
    """Return the cosine similarities to a vector of length 1 of pieces that were read with their embeddings."""
    import numpy

    embeddings = found["embeddings"]
    assert embeddings is not None  # they were asked for
    return (numpy.asarray(embeddings) @ vector).tolist() if found["ids"] else []


def _titles_texts_and_metadata(found: GetResult) -> tuple[list[str], list[str], list[Metadata]]:
    titles, stored = found["documents"], found["metadatas"]
    assert titles is not None and stored is not None  # they were asked for
    return titles, *_texts_and_metadata(stored)


def _texts_and_metadata(stored: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[Metadata]]:
    # Chroma returns the fields in any order.
    texts = [fields["text"] for fields in stored]
    return texts, [{name: fields[name] for name in sorted(fields) if name != "text"} for fields in stored]
