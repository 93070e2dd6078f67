"""Which pieces meet conditions on the metadata: a table beside the words in SQLite."""

from __future__ import annotations

import itertools
import sqlite3
from collections.abc import Iterable, Iterator, Sequence

from config import Condition
from pipeline.data.metadata import Metadata, comparable_value, comparable_values
from pipeline.run.errors import UserError
from pipeline.run.run_folder import RunFolder

# A value is a number or a text that is not empty; for SQLite, any number is less than any text.
SCHEMA = """
CREATE TABLE IF NOT EXISTS metadata (
    field TEXT NOT NULL, value NOT NULL, piece INTEGER NOT NULL, PRIMARY KEY (field, value, piece)
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS metadata_of_piece ON metadata (piece);
CREATE TRIGGER IF NOT EXISTS metadata_removed AFTER DELETE ON pieces BEGIN
    DELETE FROM metadata WHERE piece = old.number;
END;
"""
MOST_LISTED = 1000  # texts of a field
_PIECES = "number IN (SELECT piece FROM metadata WHERE field = :field{{0}} AND value {})"
_MEETING = {
    "=": _PIECES.format("= :value{0}"),
    "!=": _PIECES.format("IS NOT NULL") + " AND NOT " + _PIECES.format("= :value{0}"),
    "<": _PIECES.format("< :value{0}"),
    "<=": _PIECES.format("<= :value{0}"),
    ">": _PIECES.format("> :value{0} AND value < ''"),
    ">=": _PIECES.format(">= :value{0} AND value < ''"),
}

Selection = dict[int, str]
"""Number in SQLite and id of the pieces among which is searched."""


def add(database: sqlite3.Connection, pieces: Iterable[tuple[str, Metadata]]) -> None:
    """Add the metadata of pieces, given with their ids, that the table of the words holds."""
    rows = (
        (name, value, i)
        for i, metadata in pieces
        for name, held in metadata.items()
        for value in comparable_values(held)
    )
    database.executemany("INSERT OR IGNORE INTO metadata SELECT ?, ?, number FROM pieces WHERE id = ?", rows)


def names(database: sqlite3.Connection) -> list[str]:
    """Return the names of the fields that any piece has."""
    if not database.execute("SELECT 1 FROM sqlite_master WHERE name = 'metadata'").fetchone():
        return []  # made before there was metadata
    return list(_ascending(database, "SELECT min(field) FROM metadata WHERE field > :last", {}))


def texts(database: sqlite3.Connection, name: str) -> list[str]:
    """Return the texts that a field has, in order, MOST_LISTED at most."""
    query = "SELECT min(value) FROM metadata WHERE field = :name AND value > :last"
    return list(itertools.islice(_ascending(database, query, {"name": name}), MOST_LISTED))


def select(database: sqlite3.Connection, where: Sequence[Condition], run: RunFolder) -> Selection:
    """Return the pieces that meet all conditions; a piece without a field meets no condition on it.

    Args:
        database: of the words.
        where: the conditions.
        run: whose index it is, for the message.

    Raises:
        UserError: no piece has one of the fields.
    """
    known = names(database)
    for condition in where:
        if condition.field not in known:
            keep = f"run `{run.command_again('process_data')}` with --data.metadata {condition.field}"
            there_is = f"there are {', '.join(known)}" if known else f"to keep it, {keep}"
            raise UserError(f"The index has no field {condition.field!r} (--rag.where); {there_is}.")
    parameters: dict[str, float | str] = {f"field{n}": condition.field for n, condition in enumerate(where)}
    for n, condition in enumerate(where):
        alike = condition.operator in ("=", "!=")
        parameters[f"value{n}"] = comparable_value(condition.value) if alike else condition.number
    meeting = " AND ".join(_MEETING[condition.operator].format(n) for n, condition in enumerate(where))
    return dict(database.execute(f"SELECT number, id FROM pieces WHERE {meeting}", parameters))


def _ascending(database: sqlite3.Connection, query: str, parameters: dict[str, str]) -> Iterator[str]:
    # A search in the tree for each, instead of reading all.
    last = ""
    while last := database.execute(query, {**parameters, "last": last}).fetchone()[0]:
        yield last
