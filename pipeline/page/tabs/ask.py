"""The tab that puts a question to the base model, the fine-tuned one and RAG, and shows the answers side by side."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any, ClassVar, get_args

import gradio as gr

from pipeline.models.answerer import Form
from pipeline.page import views
from pipeline.page.assistant import KINDS, MOST_NEW_TOKENS, Assistant, Kind, Progress
from pipeline.page.tab import Tab
from pipeline.page.texts import LANGUAGES, language_of
from pipeline.page.worker import Ahead, Stream
from pipeline.run import files
from pipeline.run.errors import UserError
from pipeline.run.run_folder import FOUNDATION_ANSWERS, StageNeeded

EXAMPLES = 4
HEADINGS: dict[Kind, str] = {"foundation": "no_data", "finetuned": "no_model", "rag": "no_index"}
UNFINISHED = ("waiting", "loading", "writing")


class AskTab(Tab):
    """A question, its settings, three answers, and the records that RAG was given."""

    name, position = "ask", 1
    texts: ClassVar = {
        "ask": ("Ask", "Perguntar"),
    }

    def __init__(self, assistant: Assistant, i18n: gr.I18n, block: gr.Tab) -> None:
        """Lay out the tab in its block, which is open."""
        self.assistant, self.config = assistant, assistant.config
        self._streams: dict[str | None, Stream[tuple[Kind, Progress]]] = {}
        with gr.Row(elem_classes="question"):
            self.question = gr.Textbox(
                label=i18n("question"), placeholder=i18n("question_hint"), max_lines=4, scale=8, min_width=280,
                elem_id="question",
            )  # fmt: skip
            self.ask = gr.Button(i18n("ask"), variant="primary", scale=1, min_width=110)
            self.stop = gr.Button(i18n("stop"), interactive=False, scale=1, min_width=90, elem_id="stop")
        self.message = gr.HTML(elem_id="message")
        self.examples = gr.Dataset(
            components=[self.question], samples=[], label=i18n("examples"), visible=False, elem_id="examples"
        )
        with gr.Accordion(i18n("settings"), open=False):
            self._lay_out_settings(i18n)
        with gr.Row(equal_height=True, elem_classes="answers"):
            self.answers = {kind: gr.HTML(min_width=280, elem_id=kind) for kind in KINDS}
        self.sources = gr.HTML(elem_id="sources")
        self._connect()

    def _lay_out_settings(self, i18n: gr.I18n) -> None:
        answers, rag = self.config.answers, self.config.rag
        with gr.Row():
            self.max_new_tokens = gr.Slider(
                1, max(MOST_NEW_TOKENS, answers.max_new_tokens), answers.max_new_tokens, step=1,
                label=i18n("max_new_tokens"),
            )  # fmt: skip
            self.temperature = gr.Slider(
                0, max(2.0, answers.temperature), answers.temperature, step=0.05, label=i18n("temperature"),
                info=i18n("temperature_hint"),
            )  # fmt: skip
        with gr.Row():
            self.k = gr.Slider(1, max(10, rag.k), rag.k, step=1, label=i18n("k"))
            self.answer_with = gr.Radio(
                [(i18n(form), form) for form in get_args(Form)],
                value="foundation" if rag.answer_with == "auto" else rag.answer_with,
                label=i18n("answer_with"),
            )  # fmt: skip

    def _connect(self) -> None:
        hidden: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
        settings = [self.max_new_tokens, self.temperature, self.k, self.answer_with]
        gr.on(
            [self.ask.click, self.question.submit], self.answer, [self.question, *settings],
            [self.message, *self.answers.values(), self.sources, self.ask, self.stop],
            concurrency_limit=None, trigger_mode="once", **hidden,
        )  # fmt: skip
        self.stop.click(self.stop_answers, queue=False, **hidden)
        self.examples.click(lambda sample: sample[0], self.examples, self.question, queue=False, **hidden)

    @property
    def filled_on_load(self) -> list[Any]:
        """Return what `load` fills when somebody opens the page."""
        return [self.examples, *self.answers.values()]

    def load(self, request: gr.Request) -> list[Any]:
        """Return the example titles, and an empty answer of each kind, or the stage that is to be run before it."""
        language = language_of(request.headers)
        titles = example_titles(self.assistant)
        return [
            gr.Dataset(samples=[[title] for title in titles], visible=bool(titles)),
            *(self._answer_html(kind, self._idle(kind), language) for kind in KINDS),
        ]

    def _idle(self, kind: Kind) -> Progress:
        return Progress("idle", problem=self.assistant.missing(kind))

    def _answer_html(self, kind: Kind, progress: Progress, language: str) -> str:
        problem, shown = progress.problem, None
        if isinstance(problem, StageNeeded):
            shown = views.needed(problem, HEADINGS[kind], language, self.config)
        elif problem is not None:
            shown = views.render("notice", language, kind="problem", text=str(problem))
        return views.render("answer", language, kind=kind, progress=progress, problem=shown)

    def _sources_html(self, progress: Progress, language: str) -> str:
        if not progress.sources:
            return ""
        heading = LANGUAGES[language].sources
        return views.render(
            "records", language, hits=progress.sources, words=frozenset(), heading=heading, layout="columns"
        )

    async def answer(
        self,
        question: str | None,
        max_new_tokens: int,
        temperature: float,
        k: int,
        answer_with: Form,
        request: gr.Request,
    ) -> AsyncIterator[dict[Any, Any]]:
        """Yield what changes on the page while the answers are written."""
        language, asked = language_of(request.headers), question or ""
        if (problem := refusal(asked, language)) is not None:
            yield {self.message: views.render("notice", language, kind="problem", text=problem)}
            return
        settings = replace(self.config.answers, max_new_tokens=int(max_new_tokens), temperature=float(temperature))
        rag = replace(self.config.rag, k=int(k), answer_with=answer_with)
        stream = self.assistant.models.stream(lambda: self.assistant.answers(asked, settings, rag))
        self._streams[request.session_hash] = stream
        now: dict[Kind, Progress] = dict.fromkeys(KINDS, Progress("waiting"))
        failure: Exception | None = None
        try:
            yield {
                **self._all_html(now, language), self.message: "", self.sources: "",
                self.ask: gr.Button(interactive=False), self.stop: gr.Button(interactive=True),
            }  # fmt: skip
            async for item in stream:
                yield self._changes(item, now, language)
        except Exception as error:
            failure = error
        finally:
            stream.stop()
            self._streams.pop(request.session_hash, None)
        yield self._last_changes(now, failure, language)
        if failure is not None and not isinstance(failure, UserError):
            raise failure

    def _changes(self, item: Ahead | tuple[Kind, Progress], now: dict[Kind, Progress], language: str) -> dict[Any, Any]:
        if isinstance(item, Ahead):
            text = LANGUAGES[language].ahead.format(item.count)
            return {self.message: views.render("notice", language, kind="queue", text=text) if item.count else ""}
        kind, progress = item
        changes = {self.answers[kind]: self._answer_html(kind, progress, language)}
        if progress.sources != now[kind].sources:
            changes[self.sources] = self._sources_html(progress, language)
        now[kind] = progress
        return changes

    def _last_changes(self, now: dict[Kind, Progress], failure: Exception | None, language: str) -> dict[Any, Any]:
        if failure is not None and not isinstance(failure, UserError):
            failure = UserError(LANGUAGES[language].unexpected)
        for kind, progress in now.items():
            if progress.state in UNFINISHED:
                now[kind] = (
                    replace(progress, state="stopped") if failure is None else Progress("failed", problem=failure)
                )
        stopped = any(progress.state == "stopped" for progress in now.values())
        finished = views.render("notice", language, kind="unseen", text=LANGUAGES[language].all_done)
        return {
            **self._all_html(now, language), self.message: "" if stopped else finished, self.ask: gr.Button(interactive=True),
            self.stop: gr.Button(interactive=False),
        }  # fmt: skip

    def _all_html(self, now: dict[Kind, Progress], language: str) -> dict[Any, str]:
        return {self.answers[kind]: self._answer_html(kind, progress, language) for kind, progress in now.items()}

    async def stop_answers(self, request: gr.Request) -> None:
        """Stop what is being written for this person."""
        if (stream := self._streams.get(request.session_hash)) is not None:
            stream.stop()


def refusal(question: str, language: str) -> str | None:
    """Return why a question is not asked, or None."""
    return views.too_long(question, language) if question.strip() else LANGUAGES[language].ask_something


def example_titles(assistant: Assistant) -> list[str]:
    """Return titles that stage 2 asked, or else the examples of the preset."""
    path = assistant.config.run_dir / FOUNDATION_ANSWERS
    if not path.exists():
        return list(assistant.config.questions.examples[:EXAMPLES])
    return [entry["title"] for entry in files.read_json(path)["answers"][:EXAMPLES]]
