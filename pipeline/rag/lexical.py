"""Search by words: the stems of all pieces in SQLite's full text index (FTS5), on disk and in step with the vector store."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import sqlite3
from collections.abc import Collection, Iterable, Iterator, Sequence, Set
from itertools import islice
from typing import Any, Literal, Protocol

from config import Condition
from pipeline.data.cleaning import normalise_title
from pipeline.data.language import language_of
from pipeline.data.metadata import Metadata
from pipeline.data.words import indexed_words, is_spaceless, search_words
from pipeline.rag import metadata_index
from pipeline.rag.everyday_questions import asking_words
from pipeline.rag.levels import Levels
from pipeline.rag.metadata_index import Selection
from pipeline.rag.stems import stemmer
from pipeline.run.errors import UserError
from pipeline.run.files import temporary_path
from pipeline.run.run_folder import WORDS, RunFolder

# Of what is kept of the words and titles; to be raised with every change of indexed_words, ALGORITHMS, normalise_title or SCHEMA.
VERSION = 2
# Title and text are the stems of indexed_words, with blanks between; SQLite splits them at the blanks and does no more.
SCHEMA = """
CREATE TABLE IF NOT EXISTS pieces (
    number INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, title_key TEXT NOT NULL, length INTEGER NOT NULL,
    title TEXT NOT NULL, text TEXT NOT NULL
);
CREATE INDEX IF NOT EXISTS titles ON pieces (title_key);
CREATE VIRTUAL TABLE IF NOT EXISTS words USING fts5 (
    title, text, content='pieces', content_rowid='number', tokenize='ascii'
);
INSERT INTO words (words, rank) VALUES ('rank', 'bm25(3.0, 1.0)'); -- TITLE_WEIGHT
CREATE VIRTUAL TABLE IF NOT EXISTS vocabulary USING fts5vocab (words, row);
CREATE TABLE IF NOT EXISTS spellings (word TEXT PRIMARY KEY) WITHOUT ROWID; -- words before stemming
CREATE TABLE IF NOT EXISTS about (name TEXT PRIMARY KEY, value) WITHOUT ROWID;
CREATE TRIGGER IF NOT EXISTS added AFTER INSERT ON pieces BEGIN
    INSERT INTO words (rowid, title, text) VALUES (new.number, new.title, new.text);
END;
CREATE TRIGGER IF NOT EXISTS removed AFTER DELETE ON pieces BEGIN
    INSERT INTO words (words, rowid, title, text) VALUES ('delete', old.number, old.title, old.text);
END;
"""
MOST_ROWS = 200_000  # pieces that a query ranks
SHORTEST_CORRECTED = 4  # letters; shorter words have too many neighbours
SIMILAR_ENOUGH = 0.7  # 1 - edits / letters
CORRECTIONS = 3  # words that may be meant by one that does not occur
TITLE_WEIGHT = 3  # times that a word of a title counts
TEXTS_FOR_LANGUAGE = 1000
WHILE_ASKING = 1.0  # as a word tells that stands in a third of the pieces


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


class Pieces(Protocol):
    """What an index is made of, such as a vector store."""

    @property
    def most_added(self) -> int:
        """Return how many pieces are read at a time."""

    def ids(self) -> Iterator[list[str]]:
        """Yield the ids of all pieces, some at a time."""

    def pieces(self, ids: Sequence[str]) -> Iterable[tuple[str, str, str, Metadata]]:
        """Return (id, title, text, metadata) of some pieces."""


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
                for table in ("words", "vocabulary", "pieces", "metadata", "spellings", "about"):
                    database.execute(f"DROP TABLE IF EXISTS {table}")
            return cls._empty(database, run)
        except sqlite3.Error as error:
            again = run.command_again("rag_indexing")
            raise UserError(f"{path} cannot be changed ({error}). Delete it and run `{again}` again.") from error

    @classmethod
    @contextlib.contextmanager
    def temporary(cls, run: RunFolder) -> Iterator[LexicalIndex]:
        """Yield an empty index of its own, which ends with the block."""
        with (
            temporary_path(run / WORDS) as path,
            contextlib.closing(sqlite3.connect(path, factory=Database)) as database,
        ):
            database.executescript("PRAGMA journal_mode = MEMORY; PRAGMA synchronous = OFF")  # nobody opens it again
            yield cls._empty(database, run)

    @classmethod
    def _empty(cls, database: sqlite3.Connection, run: RunFolder) -> LexicalIndex:
        database.executescript(SCHEMA + metadata_index.SCHEMA)
        database.execute(f"PRAGMA user_version = {VERSION}")
        return cls(database, run)

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

    def synchronise(self, store: Pieces) -> None:
        """Bring the index to hold exactly the pieces of a store, whatever has happened to either."""
        self._db.executescript("DROP TABLE IF EXISTS temp.present; DROP TABLE IF EXISTS temp.missing;")
        self._db.execute("CREATE TEMP TABLE present (id TEXT PRIMARY KEY) WITHOUT ROWID")
        with self._db:
            for page in store.ids():
                self._db.executemany("INSERT INTO present VALUES (?)", ((piece_id,) for piece_id in page))
            self._db.execute("DELETE FROM pieces WHERE id NOT IN present")
            self._follow_language(store)
            self._db.execute("CREATE TEMP TABLE missing AS SELECT id FROM present EXCEPT SELECT id FROM pieces")
            first = 1
            while some := self._missing(first, store.most_added):
                self._add(store.pieces(some))
                first += len(some)
            self._note("average_length", self._db.execute("SELECT avg(length) FROM pieces").fetchone()[0])
        self._forget()

    def _follow_language(self, store: Pieces) -> None:
        """Forget all pieces if the texts are in another language now, whose stems differ."""
        # An id is a hash, so the first are drawn at random.
        drawn = self._db.execute("SELECT id FROM temp.present ORDER BY id LIMIT ?", (TEXTS_FOR_LANGUAGE,)).fetchall()
        texts = (f"{title}\n{text}" for _, title, text, _ in store.pieces([piece_id for (piece_id,) in drawn]))
        language = language_of(texts) if drawn else None
        if language != self._about("language"):
            self._db.execute("DELETE FROM pieces")
            self._db.execute("DELETE FROM spellings")
        self._note("language", language)
        self._stems = stemmer(language)

    def _about(self, name: str) -> Any:
        row = self._db.execute("SELECT value FROM about WHERE name = ?", (name,)).fetchone()
        return row[0] if row else None

    def _note(self, name: str, value: str | float | None) -> None:
        self._db.execute("INSERT OR REPLACE INTO about VALUES (?, ?)", (name, value))

    def _missing(self, first: int, most: int) -> list[str]:
        query = "SELECT id FROM temp.missing WHERE rowid >= ? ORDER BY rowid LIMIT ?"
        return [piece_id for (piece_id,) in self._db.execute(query, (first, most))]

    def _add(self, pieces: Iterable[tuple[str, str, str, Metadata]]) -> None:
        pieces = list(pieces)
        divided = [(indexed_words(title), indexed_words(text)) for _, title, text, _ in pieces]
        # Each spelling is stemmed once: texts repeat their words.
        spellings = list({word for of_piece in divided for words in of_piece for word in words})
        stem = dict(zip(spellings, self._stems(spellings), strict=True)).__getitem__
        rows = [
            (piece_id, normalise_title(title), TITLE_WEIGHT * len(of_title) + len(of_text),
             " ".join(map(stem, of_title)), " ".join(map(stem, of_text)))
            for (piece_id, title, _, _), (of_title, of_text) in zip(pieces, divided, strict=True)
        ]  # fmt: skip
        insert = "INSERT INTO pieces (id, title_key, length, title, text) VALUES (?, ?, ?, ?, ?)"
        self._db.executemany(insert, rows)
        self._db.executemany("INSERT OR IGNORE INTO spellings VALUES (?)", ((word,) for word in sorted(spellings)))
        metadata_index.add(self._db, ((piece_id, metadata) for piece_id, _, _, metadata in pieces))

    def _forget(self) -> None:
        self._spellings: list[str] | None = None
        self._levels: Levels | None = None
        self._occurrences: dict[str, int] = {}
        self._selected: tuple[tuple[Condition, ...], Selection] | None = None
        self._count = len(self)
        self._stems = stemmer(self.language)
        self._asking = set(self._stems(list(asking_words(self.language))))
        self.average_length: float = self._about("average_length") or 1.0
        """Of the pieces, in words, those of titles TITLE_WEIGHT times."""

    @property
    def language(self) -> str | None:
        """Return the code of the language that most of the texts are in (ISO 639-1), or None if there is no such language."""
        return self._about("language")

    @property
    def levels(self) -> Levels:
        """What calibration.calibrate has measured."""
        if self._levels is None:
            noted = self._about("levels")
            self._levels = Levels() if noted is None else Levels(**json.loads(noted))
        return self._levels

    @levels.setter
    def levels(self, levels: Levels) -> None:
        """Keep what has been measured."""
        with self._db:
            self._note("levels", json.dumps(dataclasses.asdict(levels)))
        self._levels = levels

    def some_ids(self, most: int) -> list[str]:
        """Return the ids of pieces that are as good as drawn at random: an id is a hash."""
        drawn = self._db.execute("SELECT id FROM pieces ORDER BY id LIMIT ?", (most,))
        return [piece_id for (piece_id,) in drawn]

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

    def stems(self, text: str) -> list[str]:
        """Return the stems of the words of a query."""
        return self._stems(search_words(text))

    def expand_query(self, query: str, among: Selection | None = None) -> dict[str, list[str]]:
        """Return for each stem of a query the stems that may be meant: itself, or those of its word's neighbours.

        Neighbours are words of nearly the same letters. They occur among the selected pieces, while a word whose stem occurs
        in any piece is spelled right.
        """
        words = search_words(query)
        return {
            stem: [stem] if self.occurrences(stem) else self._corrections(word, stem, among)
            for word, stem in zip(words, self._stems(words), strict=True)
        }

    def words_of(self, text: str, stems: Set[str]) -> set[str]:
        """Return the words of a text that have one of some stems."""
        words = indexed_words(text)
        return {word for word, stem in zip(words, self._stems(words), strict=True) if stem in stems}

    def indexed_stems(self, text: str) -> set[str]:
        """Return the stems that find a text."""
        return set(self._stems(indexed_words(text)))

    def stems_of(self, ids: Sequence[str]) -> dict[str, tuple[list[str], list[str]]]:
        """Return the stems of the title and of the text of each of some pieces."""
        query = f"SELECT id, title, text FROM pieces WHERE id IN ({', '.join('?' * len(ids))})"
        return {
            piece_id: (title.split(), text.split()) for piece_id, title, text in self._db.execute(query, tuple(ids))
        }

    def occurrences(self, stem: str) -> int:
        """Return the number of pieces that hold a stem."""
        if stem not in self._occurrences:
            row = self._db.execute("SELECT doc FROM vocabulary WHERE term = ?", (stem,)).fetchone()
            self._occurrences[stem] = row[0] if row else 0
        return self._occurrences[stem]

    def information(self, stem: str) -> float:
        """Return how much a stem tells: its inverse document frequency as in BM25 (Robertson and Zaragoza 2009).

        Words with which one asks tell no more than WHILE_ASKING, however rare they are in records.
        """
        count = self.occurrences(stem)
        frequency = math.log(1 + (self._count - count + 0.5) / (count + 0.5))
        return min(frequency, WHILE_ASKING) if stem in self._asking else frequency

    def search(self, stems: Collection[str], most: int, among: Selection | None = None) -> list[str]:
        """Return the ids of the pieces that rank first by BM25 for any of the stems."""
        return list(islice(self.ranked(stems, MOST_ROWS, among), most))

    def ranked(self, stems: Collection[str], most_rows: int, among: Selection | None = None) -> Iterator[str]:
        """Yield the ids of the pieces that hold any of the stems, the best by BM25 first.

        Args:
            stems: of a query.
            most_rows: pieces that are ranked: of the stems, the rarest that so many hold together, but one at least.
            among: the pieces that are searched.
        """
        rows = 0
        chosen: list[str] = []
        for count, stem in sorted((self.occurrences(stem), stem) for stem in stems):
            if chosen and rows + count > most_rows:
                break
            rows += count
            chosen.append(f'"{stem}"')
        if not chosen:
            return
        by_number = "SELECT id FROM pieces WHERE number = ?"
        for number in self._holding(" OR ".join(chosen), among):
            yield self._db.execute(by_number, (number,)).fetchone()[0]

    def _holding(self, words: str, among: Selection | None) -> Iterator[int]:
        found = self._db.execute("SELECT rowid FROM words WHERE words MATCH ? ORDER BY rank", (words,))
        return (number for (number,) in found if among is None or number in among)

    def _corrections(self, word: str, stem: str, among: Selection | None) -> list[str]:
        from rapidfuzz.distance import DamerauLevenshtein
        from rapidfuzz.process import extract

        if len(word) < SHORTEST_CORRECTED or is_spaceless(word) or stem in self._asking:
            return [stem]
        if self._spellings is None:
            self._spellings = [spelling for (spelling,) in self._db.execute("SELECT word FROM spellings")]
        near = extract(
            word,
            self._spellings,
            scorer=DamerauLevenshtein.normalized_similarity,
            limit=None,
            score_cutoff=SIMILAR_ENOUGH,
        )
        stems = dict.fromkeys(self._stems([spelling for spelling, _, _ in near]))
        # A spelling stays when the last piece that has it goes.
        held = (stem for stem in stems if self.occurrences(stem) and self._held_among(stem, among))
        return list(islice(held, CORRECTIONS)) or [stem]

    def _held_among(self, stem: str, among: Selection | None) -> bool:
        return among is None or any(True for _ in self._holding(f'"{stem}"', among))


def _version(database: sqlite3.Connection) -> int:
    return database.execute("PRAGMA user_version").fetchone()[0]
