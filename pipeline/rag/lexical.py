"""Search by words: the pieces of the vector store in SQLite's full text index (FTS5), on disk and in step with it."""

from __future__ import annotations

import contextlib
import math
import sqlite3
from collections.abc import Collection, Iterable, Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any, Literal

from config import Condition
from pipeline.data.cleaning import normalise_title
from pipeline.data.metadata import Metadata
from pipeline.data.words import indexed_words, is_spaceless, search_words
from pipeline.rag import metadata_index
from pipeline.rag.metadata_index import Selection
from pipeline.run.errors import UserError
from pipeline.run.run_folder import WORDS, RunFolder

if TYPE_CHECKING:
    from pipeline.rag.vector_store import VectorStore

# Of what is kept of the words and titles; to be raised with every change of indexed_words, normalise_title or SCHEMA.
VERSION = 1
# Title and text are indexed_words, with blanks between; SQLite splits them at the blanks and does no more.
SCHEMA = """
CREATE TABLE IF NOT EXISTS pieces (
    number INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, title_key TEXT NOT NULL, title TEXT NOT NULL, text TEXT NOT NULL
);
CREATE INDEX IF NOT EXISTS titles ON pieces (title_key);
CREATE VIRTUAL TABLE IF NOT EXISTS words USING fts5 (
    title, text, content='pieces', content_rowid='number', tokenize='ascii'
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
MOST_ROWS = 200_000  # pieces that a query ranks: of its words, the rarest that so many hold together, but one at least
SHORTEST_CORRECTED = 4  # letters; shorter words have too many neighbours
SIMILAR_ENOUGH = 0.7  # 1 - edits / letters
CORRECTIONS = 3  # words that may be meant by one that does not occur


class Database(sqlite3.Connection):
    """A connection that says who is in the way where another program holds the file."""

    def execute(self, *arguments: Any) -> sqlite3.Cursor:
        """Run a statement."""
        with _told_if_locked():
            return super().execute(*arguments)

    def executemany(self, *arguments: Any) -> sqlite3.Cursor:
        """Run a statement with each of some parameters."""
        with _told_if_locked():
            return super().executemany(*arguments)

    def executescript(self, *arguments: Any) -> sqlite3.Cursor:
        """Run several statements."""
        with _told_if_locked():
            return super().executescript(*arguments)

    def __exit__(self, *arguments: Any) -> Literal[False]:
        """Keep what the block has changed, or, after an error, undo it."""
        with _told_if_locked():
            return super().__exit__(*arguments)


@contextlib.contextmanager
def _told_if_locked() -> Iterator[None]:
    try:
        yield
    except sqlite3.OperationalError as error:
        if "locked" not in str(error):
            raise
        raise UserError(
            f"{WORDS} is held by another program, perhaps rag_indexing.py. Wait until that has ended, and run this again."
        ) from error


class LexicalIndex:
    """The words of all pieces."""

    def __init__(self, database: sqlite3.Connection, run: RunFolder) -> None:
        """Search in, or change, an open database of a run."""
        self._db, self._run = database, run
        self._forget()

    @classmethod
    def make(cls, run: RunFolder) -> LexicalIndex:
        """Open the index of a run to change it, or make an empty one where there is none or one of another version.

        Raises:
            UserError: the file is something else.
        """
        path = run / WORDS
        try:
            database = sqlite3.connect(path, factory=Database)
            if _version(database) != VERSION:
                database.executescript("DROP TABLE IF EXISTS words; DROP TABLE IF EXISTS vocabulary;")
                database.executescript("DROP TABLE IF EXISTS pieces; DROP TABLE IF EXISTS metadata;")
            database.executescript(SCHEMA + metadata_index.SCHEMA)
            database.execute(f"PRAGMA user_version = {VERSION}")
            return cls(database, run)
        except sqlite3.Error as error:
            again = run.command_again("rag_indexing")
            raise UserError(f"{path} cannot be changed ({error}). Delete it and run `{again}` again.") from error

    @classmethod
    def of_run(cls, run: RunFolder) -> LexicalIndex:
        """Open the index of a run to search in it.

        Raises:
            UserError: there is none, or one of another version, or it cannot be read; the message names the stage.
        """
        path = run.require(WORDS)
        try:
            # A chain of LangChain searches in another thread than the one that opened the index; one at a time.
            database = sqlite3.connect(
                f"{path.resolve().as_uri()}?mode=ro", uri=True, check_same_thread=False, factory=Database
            )
            if _version(database) != VERSION:
                problem = f"{path} divides text into words as another version of this program did."
                raise run.stage_needed(problem, "rag_indexing", again=True)
            return cls(database, run)
        except sqlite3.Error as error:
            raise UserError(f"{path} cannot be read ({error}). Run `{run.command_again('rag_indexing')}`.") from error

    def __len__(self) -> int:
        """Return the number of pieces."""
        return self._db.execute("SELECT count(*) FROM pieces").fetchone()[0]

    def synchronise(self, store: VectorStore) -> None:
        """Bring the index to hold exactly the pieces of a vector store, whatever has happened to either."""
        self._db.executescript("DROP TABLE IF EXISTS temp.present; DROP TABLE IF EXISTS temp.missing;")
        self._db.execute("CREATE TEMP TABLE present (id TEXT PRIMARY KEY) WITHOUT ROWID")
        with self._db:
            for page in store.ids():
                self._db.executemany("INSERT INTO present VALUES (?)", ((piece_id,) for piece_id in page))
            self._db.execute("DELETE FROM pieces WHERE id NOT IN present")
            self._db.execute("CREATE TEMP TABLE missing AS SELECT id FROM present EXCEPT SELECT id FROM pieces")
            first = 1
            while some := self._missing(first, store.most_added):
                self._add(store.pieces(some))
                first += len(some)
        self._forget()

    def _missing(self, first: int, most: int) -> list[str]:
        query = "SELECT id FROM temp.missing WHERE rowid >= ? ORDER BY rowid LIMIT ?"
        return [piece_id for (piece_id,) in self._db.execute(query, (first, most))]

    def _add(self, pieces: Iterable[tuple[str, str, str, Metadata]]) -> None:
        pieces = list(pieces)
        rows = (
            (piece_id, normalise_title(title), " ".join(indexed_words(title)), " ".join(indexed_words(text)))
            for piece_id, title, text, _ in pieces
        )
        self._db.executemany("INSERT INTO pieces (id, title_key, title, text) VALUES (?, ?, ?, ?)", rows)
        metadata_index.add(self._db, ((piece_id, metadata) for piece_id, _, _, metadata in pieces))

    def _forget(self) -> None:
        self._vocabulary: list[str] | None = None
        self._occurrences: dict[str, int] = {}
        self._selected: tuple[tuple[Condition, ...], Selection] | None = None
        self._count = len(self)

    def fields(self) -> dict[str, list[str]]:
        """Return the fields of the metadata, each with its texts in order (1,000 at most); a number is no text."""
        return {name: metadata_index.texts(self._db, name) for name in metadata_index.names(self._db)}

    def select(self, where: Sequence[Condition]) -> Selection:
        """Return the pieces that meet all conditions, which may be none; those of the last call are kept.

        Raises:
            UserError: no piece has a field that a condition names.
        """
        last = self._selected
        if last is None or last[0] != tuple(where):
            last = self._selected = tuple(where), metadata_index.select(self._db, where, self._run)
        return last[1]

    def with_title(self, title: str, most: int, among: Selection | None = None) -> list[str]:
        """Return the ids of pieces with a title, case and punctuation left out."""
        query = "SELECT number, id FROM pieces WHERE title_key = ? ORDER BY id"
        found = self._db.execute(query, (normalise_title(title),))
        return list(islice((piece_id for number, piece_id in found if among is None or number in among), most))

    def expand_query(self, query: str, among: Selection | None = None) -> dict[str, list[str]]:
        """Return for each word of a query the words that may be meant: itself, or if it does not occur its neighbours.

        Neighbours occur among the selected pieces, while a word that occurs in any piece is spelled right.
        """
        return {
            word: [word] if self.occurrences(word) else self._corrections(word, among) for word in search_words(query)
        }

    def occurrences(self, word: str) -> int:
        """Return the number of pieces that hold a word."""
        if word not in self._occurrences:
            row = self._db.execute("SELECT doc FROM vocabulary WHERE term = ?", (word,)).fetchone()
            self._occurrences[word] = row[0] if row else 0
        return self._occurrences[word]

    def inverse_document_frequency(self, word: str) -> float:
        """Return how much a word tells: its inverse document frequency as in BM25 (Robertson and Zaragoza 2009)."""
        count = self.occurrences(word)
        return math.log(1 + (self._count - count + 0.5) / (count + 0.5))

    def search(self, words: Collection[str], most: int, among: Selection | None = None) -> list[str]:
        """Return the ids of the pieces that rank first by BM25 for any of the words."""
        rows = 0
        chosen: list[str] = []
        for count, word in sorted((self.occurrences(word), word) for word in words):
            if chosen and rows + count > MOST_ROWS:
                break
            rows += count
            chosen.append(f'"{word}"')
        if not chosen:
            return []
        numbers = islice(self._holding(" OR ".join(chosen), among), most)
        by_number = "SELECT id FROM pieces WHERE number = ?"
        return [self._db.execute(by_number, (number,)).fetchone()[0] for number in numbers]

    def _holding(self, words: str, among: Selection | None) -> Iterator[int]:
        found = self._db.execute("SELECT rowid FROM words WHERE words MATCH ? ORDER BY rank", (words,))
        return (number for (number,) in found if among is None or number in among)

    def _corrections(self, word: str, among: Selection | None) -> list[str]:
        from rapidfuzz.distance import DamerauLevenshtein
        from rapidfuzz.process import extract

        if len(word) < SHORTEST_CORRECTED or is_spaceless(word):
            return [word]
        if self._vocabulary is None:
            self._vocabulary = [term for (term,) in self._db.execute("SELECT term FROM vocabulary")]
        near = extract(
            word, self._vocabulary, scorer=DamerauLevenshtein.normalized_similarity,
            limit=CORRECTIONS if among is None else None, score_cutoff=SIMILAR_ENOUGH,
        )  # fmt: skip
        held = (term for term, _, _ in near if among is None or any(True for _ in self._holding(f'"{term}"', among)))
        return list(islice(held, CORRECTIONS)) or [word]


def _version(database: sqlite3.Connection) -> int:
    return database.execute("PRAGMA user_version").fetchone()[0]
