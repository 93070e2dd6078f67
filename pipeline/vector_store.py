"""The pieces of the records in Chroma, in a folder or on a server."""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from config import RagConfig
from pipeline.artifacts import StageNeeded, UserError, command, told_if_full
from pipeline.metadata import Metadata

if TYPE_CHECKING:
    import numpy
    from chromadb.api import ClientAPI
    from chromadb.api.models.Collection import Collection
    from langchain_chroma import Chroma
    from langchain_huggingface import HuggingFaceEmbeddings

# Chroma's default search width finds 9 of the 10 nearest among 100,000 documents; 400 finds 99 of 100.
SEARCH_WIDTH = 400
BUILD_WIDTH = 200
DATABASE = "chroma.sqlite3"
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
        return zip(found["ids"], found["documents"], *_texts_and_metadata(found["metadatas"]), strict=True)

    def embed(self, query: str) -> numpy.ndarray:
        """Return the embedding of a query, of length 1."""
        import numpy

        vector = numpy.array(self.langchain.embeddings.embed_query(query), "float32")
        return vector / numpy.linalg.norm(vector)

    def nearest(self, vector: numpy.ndarray, most: int, among: list[str] | None = None) -> list[Piece]:
        """Return the pieces nearest to the embedding of a query, the nearest first; of all, or of those with some ids."""
        if among is not None:
            pieces = self.compared(vector, self._nearest_ids(vector, most, among))
            return sorted(pieces, key=lambda piece: piece.similarity, reverse=True)
        found = self.langchain.similarity_search_by_vector_with_relevance_scores(vector.tolist(), k=most)
        texts, metadata = _texts_and_metadata([d.metadata for d, _ in found])
        return [
            Piece(d.id, d.page_content, text, 1 - distance, fields)
            for (d, distance), text, fields in zip(found, texts, metadata, strict=True)
        ]

    def _nearest_ids(self, vector: numpy.ndarray, most: int, ids: list[str]) -> list[str]:
        if len(ids) <= MOST_COMPARED:
            found = self.collection.get(ids, include=["embeddings"]) if ids else {"ids": []}
            similarities = found["embeddings"] @ vector if found["ids"] else []
            return [piece_id for _, piece_id in heapq.nlargest(most, zip(similarities, found["ids"], strict=True))]
        nearest: list[tuple[float, str]] = []
        for start in range(0, len(ids), IDS_OF_REQUEST):
            some = ids[start : start + IDS_OF_REQUEST]
            found = self.collection.query(vector[None], n_results=most, ids=some, include=["distances"])
            nearest += zip(found["distances"][0], found["ids"][0], strict=True)
        return [piece_id for _, piece_id in heapq.nsmallest(most, nearest)]

    def compared(self, vector: numpy.ndarray, ids: list[str]) -> list[Piece]:
        """Return pieces with their similarity to the embedding of a query."""
        found = self.collection.get(ids, include=["documents", "metadatas", "embeddings"]) if ids else {"ids": []}
        if not found["ids"]:
            return []
        similarities = (found["embeddings"] @ vector).tolist()
        texts, metadata = _texts_and_metadata(found["metadatas"])
        return list(map(Piece, found["ids"], found["documents"], texts, similarities, metadata))


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

    name = config.collection or folder.parent.name
    index_command = command("rag_indexing", folder.parent)
    no_index = StageNeeded(
        f"{config.chroma_host or folder} holds no index {name!r} yet.", "rag_indexing", folder.parent
    )
    if config.chroma_host is None and not create and not (folder / DATABASE).is_file():
        raise no_index  # Chroma would make one
    client = connect(folder, config)
    if name not in {collection.name for collection in client.list_collections()} and not create:
        raise no_index
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


def graph_bytes(folder: Path) -> dict[str, int]:
    """Return the sizes of the files with the graphs of the pieces: where one is cut off, Chroma finds less and says nothing."""
    files = sorted(path for path in folder.glob("*/*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.stat().st_size for path in files}


def require_graph(folder: Path, sizes: dict[str, int]) -> None:
    """Raise a UserError if the graphs have other sizes than the last run of stage 6 left them with."""
    if (folder / DATABASE).is_file() and graph_bytes(folder) != sizes:
        again = command("rag_indexing", folder.parent)
        raise UserError(f"{folder} has lost a part, or has one too much. Delete it and run `{again}` again.")


def connect(folder: Path, config: RagConfig) -> ClientAPI:
    """Return a client of the Chroma server, or of the folder if there is none."""
    import chromadb

    settings = chromadb.Settings(anonymized_telemetry=False)
    if config.chroma_host is None:
        try:
            with told_if_full(folder.parent):
                return chromadb.PersistentClient(str(folder), settings)
        except chromadb.errors.InternalError as error:
            if "readonly" in str(error):
                raise UserError(
                    f"{folder} is on a read-only file system, and Chroma writes there even to search. Copy "
                    f"{folder.parent} to another --output-dir."
                ) from error
            again = command("rag_indexing", folder.parent)
            raise UserError(f"{folder} cannot be read ({error}). Delete it and run `{again}` again.") from error
    host, _, port = config.chroma_host.partition(":")
    try:
        return chromadb.HttpClient(host, int(port or 8000), settings=settings)
    except ValueError as error:
        raise UserError(
            f"No Chroma server answers at {config.chroma_host}. Start one with `chroma run --path FOLDER --port PORT`, or "
            "leave --rag.chroma-host out."
        ) from error


def _texts_and_metadata(stored: list[dict[str, Any]]) -> tuple[list[str], list[Metadata]]:
    # Chroma returns the fields in any order.
    texts = [fields["text"] for fields in stored]
    return texts, [{name: fields[name] for name in sorted(fields) if name != "text"} for fields in stored]
