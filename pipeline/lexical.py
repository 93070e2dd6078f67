"""Search by words: the pieces of the vector store in SQLite's full text index (FTS5), on disk and in step with it."""

from __future__ import annotations

import math
import re
import sqlite3
import unicodedata
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.artifacts import require
from pipeline.cleaning import normalise_title

if TYPE_CHECKING:
    from pipeline.vector_store import VectorStore

FILE_NAME = "lexical.sqlite"
SCHEMA = """
CREATE TABLE IF NOT EXISTS pieces (
    number INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, title_key TEXT NOT NULL, title TEXT NOT NULL, text TEXT NOT NULL
);
CREATE INDEX IF NOT EXISTS titles ON pieces (title_key);
CREATE VIRTUAL TABLE IF NOT EXISTS words USING fts5 (
    title, text, content='pieces', content_rowid='number', tokenize='unicode61 remove_diacritics 2'
);
INSERT INTO words (words, rank) VALUES ('rank', 'bm25(3.0, 1.0)'); -- a word in a title tells three times as much
CREATE VIRTUAL TABLE IF NOT EXISTS vocabulary USING fts5vocab (words, row);
CREATE TRIGGER IF NOT EXISTS added AFTER INSERT ON pieces BEGIN
    INSERT INTO words (rowid, title, text) VALUES (new.number, new.title, new.text);
END;
CREATE TRIGGER IF NOT EXISTS removed AFTER DELETE ON pieces BEGIN
    INSERT INTO words (words, rowid, title, text) VALUES ('delete', old.number, old.title, old.text);
END;
"""
MOST_ROWS = 200_000  # that a query may rank: of its words, the rarest that occur in so many pieces together
SHORTEST_CORRECTED = 4  # letters; shorter words have too many neighbours
SIMILAR_ENOUGH = 0.7  # 1 - edits / letters
CORRECTIONS = 3  # words that may be meant by one that does not occur
_WORD = re.compile(r"[^\W_]+")


def words_of(text: str) -> list[str]:
    """Return the words of a text as the index holds them: in lower case, without diacritics."""
    if not text.isascii():
        text = "".join(c for c in unicodedata.normalize("NFKD", text) if not unicodedata.combining(c))
    return _WORD.findall(text.lower())


class LexicalIndex:
    """The words of all pieces."""

    def __init__(self, path: Path) -> None:
        """Open the index, or make an empty one."""
        self._db = sqlite3.connect(path, check_same_thread=False)
        self._db.executescript(SCHEMA)
        self._vocabulary: list[str] | None = None
        self._count = len(self)

    @classmethod
    def of_run(cls, run_dir: Path) -> LexicalIndex:
        """Open the index of a run, or raise a UserError that names the stage that makes it."""
        return cls(require(run_dir / FILE_NAME, "rag_indexing"))

    def __len__(self) -> int:
        """Return the number of pieces."""
        return self._db.execute("SELECT count(*) FROM pieces").fetchone()[0]

    def follow(self, store: VectorStore) -> None:
        """Bring the index to hold exactly the pieces of a vector store, whatever has happened to either."""
        with self._db:
            self._db.execute("CREATE TEMP TABLE present (id TEXT PRIMARY KEY) WITHOUT ROWID")
            for page in store.ids():
                self._db.executemany("INSERT INTO present VALUES (?)", ((piece_id,) for piece_id in page))
            self._db.execute("DELETE FROM pieces WHERE id NOT IN present")
            missing = self._db.execute("SELECT id FROM present EXCEPT SELECT id FROM pieces").fetchall()
            for start in range(0, len(missing), store.most_added):
                self._add(store.pieces([piece_id for (piece_id,) in missing[start : start + store.most_added]]))
            self._db.execute("DROP TABLE present")
        self._vocabulary, self._count = None, len(self)

    def _add(self, pieces: Iterable[tuple[str, str, str]]) -> None:
        rows = ((piece_id, normalise_title(title), title, text) for piece_id, title, text in pieces)
        self._db.executemany("INSERT INTO pieces (id, title_key, title, text) VALUES (?, ?, ?, ?)", rows)

    def with_title(self, title: str, most: int) -> list[str]:
        """Return the ids of pieces with a title, case and punctuation left out."""
        found = self._db.execute(
            "SELECT id FROM pieces WHERE title_key = ? ORDER BY id LIMIT ?", (normalise_title(title), most)
        )
        return [piece_id for (piece_id,) in found]

    def meant(self, query: str) -> dict[str, list[str]]:
        """Return for each word of a query the words that may be meant: itself, or if it does not occur its neighbours."""
        return {word: [word] if self.occurrences(word) else self._corrections(word) for word in words_of(query)}

    def occurrences(self, word: str) -> int:
        """Return the number of pieces that hold a word."""
        row = self._db.execute("SELECT doc FROM vocabulary WHERE term = ?", (word,)).fetchone()
        return row[0] if row else 0

    def information(self, word: str) -> float:
        """Return how much a word tells: its inverse document frequency as in BM25 (Robertson and Zaragoza 2009)."""
        count = self.occurrences(word)
        return math.log(1 + (self._count - count + 0.5) / (count + 0.5))

    def search(self, words: Collection[str], most: int) -> list[str]:
        """Return the ids of the pieces that rank first by BM25 for any of the words."""
        rows, chosen = 0, []
        for count, word in sorted((self.occurrences(word), word) for word in words):
            if chosen and rows + count > MOST_ROWS:
                break
            rows += count
            chosen.append(f'"{word}"')
        if not chosen:
            return []
        query = "SELECT rowid FROM words WHERE words MATCH ? ORDER BY rank LIMIT ?"
        numbers = self._db.execute(query, (" OR ".join(chosen), most)).fetchall()
        by_number = "SELECT id FROM pieces WHERE number = ?"
        return [self._db.execute(by_number, number).fetchone()[0] for number in numbers]

    def _corrections(self, word: str) -> list[str]:
        from rapidfuzz.distance import DamerauLevenshtein
        from rapidfuzz.process import extract

        if len(word) < SHORTEST_CORRECTED:
            return [word]
        if self._vocabulary is None:
            self._vocabulary = [term for (term,) in self._db.execute("SELECT term FROM vocabulary")]
        near = extract(
            word, self._vocabulary, scorer=DamerauLevenshtein.normalized_similarity, limit=CORRECTIONS,
            score_cutoff=SIMILAR_ENOUGH,
        )  # fmt: skip
        return [term for term, _, _ in near] or [word]
