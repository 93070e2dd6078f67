"""Find records that are near in words to one that is asked for, and are not the right ones: distractors."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice, starmap

from pipeline.data.cleaning import normalise_title
from pipeline.data.metadata import Metadata
from pipeline.data.records import ProcessedData
from pipeline.rag.context import Record
from pipeline.rag.lexical import LexicalIndex

# Pieces that a search ranks: a training searches once for each of its prompts, and needs no more than what is near.
MOST_ROWS = 2_000


@dataclass(frozen=True)
class TrainingSplit:
    """The records of the training split, of which a LexicalIndex is made; an id is the place of a record in its file."""

    data: ProcessedData
    most_added: int = 1000

    def ids(self) -> Iterator[list[str]]:
        """Yield the ids of all records, some at a time; they are ordered as the records are."""
        places = (f"{place:015}" for place, title, _ in self.data.with_places() if self.data.split_of(title) == "train")
        while some := list(islice(places, self.most_added)):
            yield some

    def pieces(self, ids: Sequence[str]) -> Iterator[tuple[str, str, str, Metadata]]:
        """Yield (id, title, content, nothing) of some records."""
        for place, (title, content) in zip(ids, self.data.at(map(int, ids)), strict=True):
            yield place, title, content, {}


@dataclass(frozen=True)
class Distractors:
    """Searches the words of the training split."""

    data: ProcessedData
    words: LexicalIndex

    def near(self, title: str, content: str, most: int) -> list[Record]:
        """Return the records nearest to the title, then those nearest to the content, with another title and content.

        Args:
            title: of the record that is asked for.
            content: of the same.
            most: how many are wanted; fewer are returned where fewer have a word in common with it.
        """
        own_title, own_content = normalise_title(title), normalise_title(content)
        found: dict[Record, None] = {}
        for query in (title, content):
            if len(found) == most:
                break
            places = map(int, self.words.ranked(self.words.stems(query), MOST_ROWS))
            for record in starmap(Record, self.data.at(places)):
                if normalise_title(record.title) != own_title and normalise_title(record.text) != own_content:
                    found[record] = None
                if len(found) == most:
                    break
        return list(found)


@contextlib.contextmanager
def open_distractors(data: ProcessedData) -> Iterator[Distractors]:
    """Index the words of the training split, on disk, and yield what searches them; the index ends with the block.

    No record that is held out, for validation or test, is in it.
    """
    with LexicalIndex.temporary(data.run) as words:
        words.synchronise(TrainingSplit(data))
        yield Distractors(data, words)
