"""Embed, index and search records in Chroma, through LangChain.

An id is a hash of what is indexed, so indexing again adds nothing; a changed record gets new ids and its old ones go.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from config import RagConfig
from pipeline import bundled_models
from pipeline.artifacts import UserError, command
from pipeline.language_model import best_device, quiet_loading

if TYPE_CHECKING:
    from langchain_chroma import Chroma
    from langchain_huggingface import HuggingFaceEmbeddings

COLLECTION = "records"
# Chroma's default search width finds 9 of the 10 nearest among 100,000 documents; 400 finds 99 of 100.
SEARCH_WIDTH = 400
ADDED_AT_A_TIME = 512


@dataclass(frozen=True)
class Chunk:
    """A piece of a record, small enough for the embedding model."""

    id: str
    title: str
    text: str
    """The piece of the content."""
    embedded_text: str
    """What the embedding model reads: the title, shortened if it is very long, and the piece."""


@dataclass(frozen=True)
class Hit:
    """A piece that was found for a query."""

    title: str
    text: str
    score: float
    """Cosine similarity to the query: 1 is the same direction, 0 nothing in common."""


@dataclass(frozen=True)
class IndexReport:
    """What indexing changed."""

    added: int
    removed: int
    unchanged: int


def load_embeddings(config: RagConfig) -> HuggingFaceEmbeddings:
    """Load the embedding model."""
    from langchain_huggingface import HuggingFaceEmbeddings

    path = bundled_models.resolve(config.embedding_model)
    try:
        with quiet_loading():
            return HuggingFaceEmbeddings(
                model_name=path,
                model_kwargs={"device": best_device()},
                encode_kwargs={"normalize_embeddings": True, "batch_size": config.embedding_batch_size},
            )
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(
            f"The embedding model {config.embedding_model!r} could not be loaded: {reason} Check --rag.embedding-model."
        ) from error


def open_store(folder: Path, config: RagConfig, embeddings: HuggingFaceEmbeddings, create: bool = False) -> Chroma:
    """Open the collection on disk, or make it.

    Raises:
        UserError: the collection was made with another embedding model or metric, or there is none.
    """
    import chromadb
    from langchain_chroma import Chroma

    client = chromadb.PersistentClient(str(folder), chromadb.Settings(anonymized_telemetry=False))
    existing = {collection.name for collection in client.list_collections()}
    if COLLECTION not in existing and not create:
        raise UserError(f"{folder} holds no index yet. Run `{command('rag_indexing', folder.parent)}` first.")
    store = Chroma(
        COLLECTION,
        embeddings,
        client=client,
        collection_metadata={"embedding_model": config.embedding_model},
        collection_configuration={"hnsw": {"space": "cosine", "ef_search": SEARCH_WIDTH, "ef_construction": 200}},
    )
    collection = client.get_collection(COLLECTION)
    made_with = (collection.metadata or {}).get("embedding_model")
    if made_with != config.embedding_model:
        raise UserError(
            f"{folder} was indexed with the embedding model {made_with!r}, not with {config.embedding_model!r}. "
            f"Give --rag.embedding-model {made_with}, or delete {folder} and run `{command('rag_indexing', folder.parent)}`."
        )
    return store


def chunks(records: Iterable[tuple[str, str]], config: RagConfig, embeddings: HuggingFaceEmbeddings) -> Iterator[Chunk]:
    """Cut records into pieces that the embedding model reads to the end.

    Args:
        records: (title, content) pairs.
        config: chunk_tokens and chunk_overlap_tokens.
        embeddings: the model whose tokenizer counts and whose limit holds.
    """
    from langchain_text_splitters import RecursiveCharacterTextSplitter

    model = embeddings._client  # the SentenceTransformer, which LangChain does not expose otherwise
    limit = model.max_seq_length
    if config.chunk_tokens is not None and config.chunk_tokens > limit:
        raise UserError(
            f"--rag.chunk-tokens {config.chunk_tokens} is more than the {limit} tokens that {config.embedding_model} reads."
        )
    size = config.chunk_tokens or limit

    def tokens(text: str) -> int:
        return len(model.tokenizer(text, add_special_tokens=True, truncation=False, verbose=False)["input_ids"])

    for title, content in records:
        heading = shortened(title, size // 2, tokens)
        room = size - tokens(heading)
        if tokens(content) <= room:
            pieces = [content]
        else:
            splitter = RecursiveCharacterTextSplitter(
                chunk_size=room,
                chunk_overlap=min(config.chunk_overlap_tokens, room // 2),
                length_function=tokens,
                separators=["\n", ". ", "; ", ", ", " ", ""],
                keep_separator="end",
            )
            pieces = splitter.split_text(content)
        for piece in pieces:
            identity = hashlib.sha256(f"{title}\0{piece}".encode()).hexdigest()
            yield Chunk(identity, title, piece, f"{heading}\n{piece}")


def shortened(text: str, limit: int, tokens: Callable[[str], int]) -> str:
    """Return text without the words at its end that are over the limit in tokens."""
    words = text.split(" ")
    while len(words) > 1 and tokens(" ".join(words)) > limit:
        words = words[: max(1, len(words) * 9 // 10)]
    return " ".join(words)


def index(store: Chroma, wanted: Iterable[Chunk]) -> IndexReport:
    """Bring the collection to hold exactly the wanted chunks; only new ones are embedded.

    Args:
        store: the collection.
        wanted: all chunks of the data, one at a time.
    """
    collection = store._chroma_collection
    largest = store._client.get_max_batch_size()
    present, kept = set(ids_of(collection, largest)), set()
    batch: dict[str, Chunk] = {}
    added = 0

    def flush() -> None:
        nonlocal added
        if batch:
            store.add_texts(
                texts=[chunk.embedded_text for chunk in batch.values()],
                metadatas=[{"title": chunk.title, "text": chunk.text} for chunk in batch.values()],
                ids=list(batch),
            )
            added += len(batch)
            batch.clear()

    for chunk in wanted:
        if chunk.id not in present and chunk.id not in kept:
            batch[chunk.id] = chunk
        kept.add(chunk.id)
        if len(batch) == min(largest, ADDED_AT_A_TIME):
            flush()
    flush()
    vanished = sorted(present - kept)
    for start in range(0, len(vanished), largest):
        collection.delete(ids=vanished[start : start + largest])
    return IndexReport(added, len(vanished), len(present & kept))


def ids_of(collection: Any, page: int) -> Iterator[str]:
    """Yield all ids of a collection, a page at a time."""
    offset = 0
    while ids := collection.get(limit=page, offset=offset, include=[])["ids"]:
        yield from ids
        offset += len(ids)


def search(store: Chroma, query: str, k: int) -> list[Hit]:
    """Return the k pieces nearest to a query, the nearest first."""
    found = store.similarity_search_with_score(query, k=k)
    return [Hit(document.metadata["title"], document.metadata["text"], 1 - distance) for document, distance in found]
