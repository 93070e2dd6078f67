"""Cut records into pieces that the embedding model reads to the end."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice, starmap
from typing import TYPE_CHECKING, NamedTuple

from config import RagConfig
from pipeline.data.metadata import Metadata
from pipeline.rag.embedding import prefixes, sentence_transformer, tokenize
from pipeline.run.errors import UserError

if TYPE_CHECKING:
    from langchain_huggingface import HuggingFaceEmbeddings

TOKENIZED_AT_A_TIME = 1024
MOST_STATED = 2**20  # tokens; what a model seems to read beyond stands for no limit

Record = tuple[str, str] | tuple[str, str, Metadata | None]
"""(title, content) or (title, content, metadata), which may be None."""


class Document(NamedTuple):
    """A record to be indexed."""

    title: str
    content: str
    metadata: Metadata | None = None


@dataclass(frozen=True)
class Chunk:
    """A piece of a record, small enough for the embedding model."""

    id: str
    """RECORD-NUMBER-PIECES: the hash of the record, which of its pieces this is, and how many it has."""
    title: str
    text: str
    """The piece of the content."""
    embedded_text: str
    """What the embedding model reads: the title, shortened if it is very long, and the piece."""
    tokens: list[int]
    """The same as tokens."""
    metadata: Metadata | None = None
    """That of the record."""


@dataclass(frozen=True)
class ChunkSize:
    """How large pieces are, in tokens, and what the embedding model reads before each."""

    tokens: int
    overlap: int
    prefix: str = ""
    """It counts as a part of the piece."""


def chunk_size(config: RagConfig, embeddings: HuggingFaceEmbeddings) -> ChunkSize:
    """Return the size of the pieces: the setting, or the limit of the embedding model.

    Raises:
        UserError: the model does not read so much, or does not say how much it reads where that is not set.
    """
    limit = sentence_transformer(embeddings).max_seq_length
    if limit is not None and limit > MOST_STATED:  # the largest integer there is, or infinity
        limit = None
    tokens = config.chunk_tokens or limit
    if tokens is None:
        raise UserError(f"{config.embedding_model} does not say how many tokens it reads. Give --rag.chunk-tokens.")
    if limit is not None and tokens > limit:
        raise UserError(
            f"--rag.chunk-tokens {tokens} is more than the {limit} tokens that {config.embedding_model} reads."
        )
    return ChunkSize(tokens, config.chunk_overlap_tokens, prefixes(embeddings)[1])


def record_id(title: str, content: str, size: ChunkSize, metadata: Metadata | None = None) -> str:
    """Return the hash of a record, of how it is cut and of what is read before it: 32 hexadecimal digits."""
    import msgspec
    import xxhash

    hashed = f"{title}\0{content}\0{size.tokens}\0{size.overlap}".encode()
    if size.prefix:
        hashed += b"\0" + size.prefix.encode()
    if metadata:
        hashed += b"\0" + msgspec.json.encode(metadata, order="deterministic")
    return xxhash.xxh3_128_hexdigest(hashed)


def chunk_records(
    records: Iterable[Record], size: ChunkSize, embeddings: HuggingFaceEmbeddings
) -> Iterator[list[Chunk]]:
    """Yield the pieces of each record, in order."""

    def count(text: str) -> int:
        return len(tokenize(embeddings, [text])[0])

    documents = starmap(Document, records)
    while some := list(islice(documents, TOKENIZED_AT_A_TIME)):
        whole = [f"{size.prefix}{document.title}\n{document.content}" for document in some]
        for (title, content, metadata), text, tokens in zip(some, whole, tokenize(embeddings, whole), strict=True):
            record = record_id(title, content, size, metadata)
            if len(tokens) <= size.tokens:
                yield [Chunk(f"{record}-0-1", title, content, text, tokens, metadata)]
            else:
                heading, pieces = split_record(size.prefix + title, content, size, count)
                texts = [f"{heading}\n{piece}" for piece in pieces]
                yield [
                    Chunk(f"{record}-{number}-{len(pieces)}", title, piece, embedded_text, tokens, metadata)
                    for number, (piece, embedded_text, tokens) in enumerate(
                        zip(pieces, texts, tokenize(embeddings, texts), strict=True)
                    )
                ]


def split_record(title: str, content: str, size: ChunkSize, count: Callable[[str], int]) -> tuple[str, list[str]]:
    """Return the heading of all pieces of a record and the pieces of its content."""
    from langchain_text_splitters import RecursiveCharacterTextSplitter

    heading = shorten(title, size.tokens // 2, count)
    room = size.tokens - count(heading)
    if count(content) <= room:
        return heading, [content]
    splitter = RecursiveCharacterTextSplitter(
        chunk_size=room,
        chunk_overlap=min(size.overlap, room // 2),
        length_function=count,
        separators=["\n", "。", "। ", ". ", "; ", ", ", "，", " ", ""],
        keep_separator="end",
    )
    return heading, splitter.split_text(content)


def shorten(text: str, limit: int, count: Callable[[str], int]) -> str:
    """Return text without the words, or characters of a single word, at its end that are over the limit in tokens."""
    words = text.split(" ")
    while len(words) > 1 and count(" ".join(words)) > limit:
        words = words[: max(1, len(words) * 9 // 10)]
    text = " ".join(words)
    while len(text) > 1 and count(text) > limit:  # Chinese and Japanese have no blanks
        text = text[: len(text) * 9 // 10]
    return text
