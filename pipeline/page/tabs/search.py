"""The tab that searches the index while somebody types."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any, ClassVar

import gradio as gr

from config import Condition, parse_condition
from pipeline.page import views
from pipeline.page.assistant import Assistant
from pipeline.page.tab import Tab
from pipeline.page.texts import LANGUAGES, language_of
from pipeline.run.errors import UserError
from pipeline.run.run_folder import StageNeeded

MOST_RESULTS = 50
MOST_EXAMPLES = 3


class SearchTab(Tab):
    """A query, filters, and the records that fit."""

    name, position = "search", 2
    texts: ClassVar = {
        "search": ("Search", "Buscar"),
        "query": ("What are you looking for?", "O que você procura?"),
        "query_hint": (
            "Results appear as you type: by meaning, by words and by title",
            "Os resultados aparecem enquanto você digita: por significado, palavras e título",
        ),
        "results": ("Results, at most", "Resultados, no máximo"),
        "least_score": ("Score, at least", "Pontuação, no mínimo"),
        "filters": ("Filters", "Filtros"),
        "filters_hint": (
            "Choose or type conditions, such as {0}; a record must meet all of them",
            "Escolha ou digite condições, como {0}; um registro deve atender a todas",
        ),
        "no_filter": (
            "{0} is no filter. Filters are such as brand=Sansha, brand!=Sansha or price<=20.",
            "{0} não é um filtro. Filtros são como brand=Sansha, brand!=Sansha ou price<=20.",
        ),
        "opening": ("Opening the index …", "Abrindo o índice …"),
        "found": ("Results: {0}", "Resultados: {0}"),
        "nothing_found": (
            "Nothing fits. Try other words, a lower score or fewer filters.",
            "Nada combina. Tente outras palavras, uma pontuação menor ou menos filtros.",
        ),
        "type_to_search": (
            "Type a few words of what you are looking for.",
            "Digite algumas palavras do que você procura.",
        ),
    }

    def __init__(self, assistant: Assistant, i18n: gr.I18n, block: gr.Tab) -> None:
        """Lay out the tab in its block, which is open."""
        self.assistant = assistant
        self.query = gr.Textbox(label=i18n("query"), placeholder=i18n("query_hint"), max_lines=1, elem_id="query")
        with gr.Row():
            self.most = gr.Slider(1, MOST_RESULTS, 10, step=1, label=i18n("results"))
            self.least_score = gr.Slider(0, 1, 0, step=0.05, label=i18n("least_score"))
        where = list(assistant.config.rag.where)
        self.filters = gr.Dropdown(
            where, value=where, multiselect=True, allow_custom_value=True, visible=bool(where), label=i18n("filters"),
            elem_id="filters",
        )  # fmt: skip
        self.results = gr.HTML(elem_id="results")
        quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private", "concurrency_limit": None}
        block.select(self.show, self.query, self.results, queue=False, **quiet)
        block.select(self.show_filters, None, self.filters, **quiet)
        gr.on(
            [self.query.input, self.query.submit, self.most.input, self.least_score.input, self.filters.change],
            self.search, [self.query, self.most, self.least_score, self.filters], self.results,
            trigger_mode="always_last", **quiet,
        )  # fmt: skip

    def show(self, query: str | None, request: gr.Request) -> Any:
        """Return what to do, unless there are results."""
        language = language_of(request.headers)
        if (missing := self.assistant.missing("rag")) is not None:
            return self._problem(missing, language)
        if query:
            return gr.skip()
        return views.render("notice", language, kind="hint", text=LANGUAGES[language].type_to_search)

    async def show_filters(self, request: gr.Request) -> Any:
        """Open the index, so that it is open when something is typed, and return the conditions that it can meet."""
        try:
            if (missing := self.assistant.missing("rag")) is not None:
                raise missing
            fields = await asyncio.wrap_future(self.assistant.index.submit(self.assistant.fields))
        except UserError:
            return gr.skip()  # the search says it
        hint = LANGUAGES[language_of(request.headers)].filters_hint.format(", ".join(examples_of(fields)))
        return gr.Dropdown(choices_of(fields), visible=bool(fields), info=hint)

    async def search(
        self, query: str | None, most: int, least_score: float, where: list[str], request: gr.Request
    ) -> AsyncIterator[str]:
        """Yield the records that fit a query, the best first, or why there are none."""
        language = language_of(request.headers)
        texts, query = LANGUAGES[language], (query or "").strip()
        try:
            if (missing := self.assistant.missing("rag")) is not None:
                raise missing
            if (problem := views.too_long(query, language)) is not None:
                raise UserError(problem)
            if not query:
                yield views.render("notice", language, kind="hint", text=texts.type_to_search)
                return
            if not self.assistant.index_is_open:
                yield views.render("notice", language, kind="queue", text=texts.opening)
            conditions = [condition_of(text, language) for text in where]
            search = self.assistant.index.submit(lambda: self.assistant.search(query, int(most), conditions))
            hits, words = await asyncio.wrap_future(search)
        except UserError as error:
            yield self._problem(error, language)
            return
        hits = [hit for hit in hits if hit.score >= least_score]
        if hits:
            heading = texts.found.format(len(hits))
            yield views.render("records", language, hits=hits, words=words, heading=heading, layout="list")
        else:
            yield views.render("notice", language, kind="hint", text=texts.nothing_found)

    def _problem(self, error: UserError, language: str) -> str:
        if isinstance(error, StageNeeded):
            return views.needed(error, "no_index", language, self.assistant.config)
        return views.render("notice", language, kind="problem", text=str(error))


def choices_of(fields: dict[str, list[str]]) -> list[str]:
    """Return the conditions that can be chosen: for each text of a field, that a record has it."""
    return [f"{name}={text}" for name, texts in fields.items() for text in texts]


def examples_of(fields: dict[str, list[str]]) -> list[str]:
    """Return a condition on each of the first fields, to show how one is written."""
    return [f"{name}={texts[0]}" if texts else f"{name}<=20" for name, texts in list(fields.items())[:MOST_EXAMPLES]]


def condition_of(text: str, language: str) -> Condition:
    """Return the condition that a filter states, or raise a UserError."""
    try:
        return parse_condition(text)
    except ValueError as error:
        raise UserError(LANGUAGES[language].no_filter.format(text)) from error
