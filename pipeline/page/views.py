"""Fill the page's HTML templates. All that comes from data, models or people is escaped and so stays text."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Set
from itertools import groupby, pairwise
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from config import STAGES, Config
from pipeline.data.metadata import value_text
from pipeline.data.words import cut, indexed_words, is_spaceless, search_words
from pipeline.page.texts import LANGUAGES
from pipeline.run.run_folder import RunFolder, StageNeeded

if TYPE_CHECKING:
    import jinja2

MOST_CHARS = 2000  # of a question or a query
_CITATION = re.compile(r" ?\[(\d+)\]")


@functools.cache
def _environment() -> jinja2.Environment:
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(number=number, marked=marked, cited=cited, shown=value_text)
    return environment


def render(template: str, language: str, **values: Any) -> str:
    """Fill a template of pipeline/page/templates for a language, en or pt."""
    texts = LANGUAGES[language]
    return _environment().get_template(f"{template}.html.jinja").render(t=texts, language=language, **values)


def needed(error: StageNeeded, heading: str, language: str, config: Config) -> str:
    """Return a card that says which stage is to be run, and the commands of it alone and of all from it on.

    Args:
        error: what is missing or out of date.
        heading: name of the text that says what there is not yet.
        language: en or pt.
        config: of the run.
    """
    position = list(STAGES).index(error.stage) + 1
    if error.again:
        heading = "out_of_date"
    elif error.stage == "process_data":
        heading = "no_data"
    return render(
        "needed",
        language,
        heading=heading,
        again=error.again,
        position=position,
        command=error.command,
        from_here=run_command(position, config),
    )


def run_command(first: int, config: Config) -> str:
    """Return the command that runs all stages from one on."""
    parts = RunFolder.of(config).command("run")
    return f"{parts} --from {first}" if first > 1 else parts


def number(value: float, digits: int, language: str) -> str:
    """Return a number as a language writes it."""
    shown = f"{value:,.{digits}f}"
    return shown.translate(str.maketrans(",.", ".,")) if language == "pt" else shown


def marked(text: str, words: Set[str]) -> Iterator[tuple[str, bool]]:
    """Yield the parts of a text and whether each is one of the words, case and diacritics left out."""
    pieces = cut(text)
    hits = [not words.isdisjoint(indexed_words(piece)) for piece in pieces]
    for place, (first, second) in enumerate(pairwise(pieces)):
        if is_spaceless(first) and is_spaceless(second) and not words.isdisjoint(search_words(first + second)):
            hits[place] = hits[place + 1] = True
    for hit, part in groupby(zip(hits, pieces, strict=True), key=itemgetter(0)):
        yield "".join(piece for _, piece in part), hit


def cited(text: str) -> Iterator[tuple[str, str | None]]:
    """Yield the parts of an answer, each with the number that is cited after it."""
    parts = _CITATION.split(text)
    yield from zip(parts[::2], [*parts[1::2], None], strict=True)


def too_long(text: str, language: str) -> str | None:
    """Return that a text is too long, or None."""
    if len(text) <= MOST_CHARS:
        return None
    return LANGUAGES[language].too_long.format(*(number(n, 0, language) for n in (len(text), MOST_CHARS)))
