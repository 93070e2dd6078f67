"""Find the records that a query is about: by meaning, by words and by title, in one score."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from config import Condition, RagConfig
from pipeline.data.cleaning import normalise_title
from pipeline.data.metadata import Metadata
from pipeline.rag import embedding, vector_store
from pipeline.rag.follow_up import standalone_query
from pipeline.rag.lexical import LexicalIndex
from pipeline.rag.reranking import Reranker, load_reranker
from pipeline.rag.word_match import Match, matcher
from pipeline.run.manifests import read_manifest
from pipeline.run.run_folder import VECTORS, WORDS, RunFolder

if TYPE_CHECKING:
    import numpy

CANDIDATES = 50  # by meaning, and by words
RERANKED = 20


@dataclass(frozen=True)
class Hit:
    """A piece that was found for a query."""

    id: str
    title: str
    text: str
    meaning: float
    """How near its meaning is to that of the query: 0 as near as by chance, 1 the same."""
    match: Match
    """How far the query's words are in it."""
    fits: bool = True
    """Whether it fits the query better than pieces fit questions about something else."""
    metadata: Metadata = field(default_factory=dict)
    """Fields of its record beside title and content."""

    @property
    def score(self) -> float:
        """Return the mean of what its meaning and its words say, 1 at most."""
        return combined(self.meaning, self.match)


def combined(meaning: float, match: Match) -> float:
    """Return the convex combination of two normalised scores (Bruch, Gai and Ingber 2023), with half of the weight each.

    benchmarks/retrieval_sets.py compares it with other ways to rank.
    """
    return (meaning + match.score) / 2


def open_retriever(run: RunFolder, config: RagConfig) -> Retriever:
    """Open what stage 6 has made, and load the models that search in it.

    Raises:
        UserError: a part of the index is missing, damaged, or not of the last run of stage 6.
    """
    indexed = read_manifest(run, "rag_indexing")["metrics"]
    lexical = LexicalIndex.of_run(run)
    if config.chroma_host is None:
        vector_store.require_graph(run, indexed["graph_bytes"])
    embeddings = embedding.load_embeddings(config)
    embedding.require_prefix(run, indexed.get("document_prefix", ""), embeddings)  # manifests of old have none
    store = vector_store.open_store(run, config, embeddings)
    pieces = indexed["added"] + indexed["unchanged"]
    parts = {config.chroma_host or run / VECTORS: store.collection.count(), run / WORDS: len(lexical)}
    for place, held in parts.items():
        if held != pieces:
            problem = f"{place} holds {held:,} of the {pieces:,} pieces that rag_indexing.py left."
            raise run.stage_needed(problem, "rag_indexing", again=True)
    return Retriever(store, lexical, load_reranker(config.reranker) if config.reranker else None)


def answerable(hits: Sequence[Hit], config: RagConfig) -> bool:
    """Tell whether a piece fits well enough to answer with: as set, or better than pieces fit questions about something else."""
    if config.min_score is not None:
        return any(hit.score >= config.min_score for hit in hits)
    return any(hit.fits for hit in hits)


def not_found(hits: Sequence[Hit], config: RagConfig) -> str:
    """Return what is answered where no piece fits, with the titles of the nearest."""
    titles = dict.fromkeys(hit.title for hit in hits)
    return config.not_found.replace("{titles}", "; ".join(titles) or "–")


def none_meets(where: Sequence[str]) -> str:
    """Return the sentence that says that no record meets some conditions."""
    return f"No record meets {' and '.join(where)} (--rag.where)."


def rerank(reranker: Reranker, query: str, hits: Sequence[Hit]) -> list[Hit]:
    """Return hits in the order that a cross-encoder gives them."""
    scores = reranker.scores(query, [f"{hit.title}\n{hit.text}" for hit in hits])
    order = sorted(range(len(hits)), key=lambda position: scores[position], reverse=True)
    return [hits[position] for position in order]


@dataclass(frozen=True)
class Retriever:
    """Searches by meaning, by words and by title."""

    store: vector_store.VectorStore
    lexical: LexicalIndex
    """Has the same pieces as the store."""
    reranker: Reranker | None = None
    """Reads the best pieces together with the query and puts them in another order."""

    def fields(self) -> dict[str, list[str]]:
        """Return the fields that conditions can be on, each with its texts in order (1,000 at most).

        A field of numbers has none.
        """
        return self.lexical.fields()

    def search(self, query: str, k: int, where: Sequence[Condition] = (), history: Sequence[str] = ()) -> list[Hit]:
        """Return the k pieces that fit a query best, the best first; those with exactly its title before all others.

        Args:
            query: cleaned as the records were.
            k: how many are wanted; fewer are returned where fewer meet the conditions.
            where: conditions on the metadata of a record, all of which it must meet.
            history: earlier questions of a conversation, the oldest first, cleaned too; a query that refers to them
                (standalone_query) is searched with their words.

        Raises:
            UserError: no record has a field that a condition names.
        """
        if history and not self.lexical.with_title(query, 1):
            query = standalone_query(query, history)
        return self.search_embedded(query, self.store.embed(query), k, where)

    def search_embedded(self, query: str, vector: numpy.ndarray, k: int, where: Sequence[Condition] = ()) -> list[Hit]:
        """Return what search returns for a query whose embedding is known."""
        among = self.lexical.select(where) if where else None
        meant = self.lexical.expand_query(query, among)
        nearest = self.store.nearest(vector, max(CANDIDATES, k), None if among is None else list(among.values()))
        found = {piece.id: piece for piece in nearest}
        same_title = self.lexical.with_title(query, CANDIDATES, among)
        by_words = self.lexical.search({stem for stems in meant.values() for stem in stems}, CANDIDATES, among)
        others = [piece_id for piece_id in dict.fromkeys([*same_title, *by_words]) if piece_id not in found]
        found |= {piece.id: piece for piece in self.store.compared(vector, others)}
        match, stems = matcher(meant, self.lexical.stems(query), self.lexical), self.lexical.stems_of(list(found))
        hits = []
        for piece in found.values():
            meaning = self.lexical.levels.meaning_of(piece.similarity)
            matched = match(
                *stems.get(piece.id, ([], []))
            )  # the words may lack it if the vectors were changed by others
            fits = self.lexical.levels.exceeded(combined(meaning, matched), meaning)
            hits.append(Hit(piece.id, piece.title, piece.text, meaning, matched, fits, piece.metadata))
        key = normalise_title(query)
        hits.sort(key=lambda hit: (normalise_title(hit.title) == key, hit.score), reverse=True)
        if self.reranker is not None:
            hits = rerank(self.reranker, query, hits[: max(RERANKED, k)])
            hits.sort(key=lambda hit: normalise_title(hit.title) == key, reverse=True)  # the order is kept otherwise
        return hits[:k]
