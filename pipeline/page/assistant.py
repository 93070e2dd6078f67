"""Answer questions as the stages do: the base model, the fine-tuned one and RAG, one answer after another."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from config import Condition, Config, GenerationConfig, RagConfig, StageName
from pipeline.data import records
from pipeline.models.answerer import AnsweringModel, Form
from pipeline.page.models import Loaded, Models
from pipeline.page.worker import Worker
from pipeline.rag import citations, context, retrieval
from pipeline.rag.retrieval import Hit, Retriever
from pipeline.run import manifests
from pipeline.run.errors import UserError
from pipeline.run.run_folder import ADAPTER, PROCESSED, WORDS, RunFolder, StageNeeded

Kind = Literal["foundation", "finetuned", "rag"]
KINDS: tuple[Kind, ...] = ("foundation", "finetuned", "rag")
WITHOUT_RECORDS: tuple[Literal["foundation", "finetuned"], ...] = ("foundation", "finetuned")
"""Forms of the model that are kinds of answers themselves."""
STAGE_OF: dict[Kind, StageName] = {"foundation": "process_data", "finetuned": "fine_tuning", "rag": "rag_indexing"}
MOST_NEW_TOKENS = 1024


@dataclass(frozen=True)
class Progress:
    """How far an answer is."""

    state: Literal["idle", "waiting", "loading", "writing", "done", "stopped", "failed"]
    text: str = ""
    """What has been written so far; at the end, RAG's with marks of the records that it comes from."""
    seconds: float | None = None
    sources: tuple[Hit, ...] | None = None
    """The records that RAG is given; None if it has not searched yet."""
    problem: UserError | None = None
    """Why there is no answer."""


class Assistant:
    """What a run can answer with. Models are used in one thread, the index in another."""

    def __init__(self, config: Config) -> None:
        """Prepare for a run; nothing is loaded before it is wanted."""
        self.config = config
        self.models, self.index = Worker(), Worker()
        self.run_folder = RunFolder.of(config)
        paths = {stage: self.run_folder.manifest_path(stage) for stage in STAGE_OF.values()}
        data = paths["process_data"]
        # Opening the records reads them whole, to tell whether they are those that stage 1 wrote.
        self._data = Loaded(lambda: records.open_processed(self.run_folder), [data])
        self._models = Models(config, self._data.get, config.rag.max_context_tokens + MOST_NEW_TOKENS)
        self._retriever = Loaded(self._open_retriever, [data, paths["rag_indexing"]])

    def missing(self, kind: Kind) -> StageNeeded | None:
        """Return the error that names the stage to run before this kind of answer, as far as a glance can tell."""
        made = {"process_data": PROCESSED, "fine_tuning": ADAPTER, "rag_indexing": WORDS}
        try:
            for stage in dict.fromkeys(("process_data", STAGE_OF[kind])):
                self.run_folder.require(made[stage])
                manifests.read_manifest(self.run_folder, stage)
        except StageNeeded as error:
            return error
        return None

    @property
    def index_is_open(self) -> bool:
        """Tell whether a search need not wait for the index."""
        return self._retriever.is_current

    def open_index(self) -> None:
        """Load the index; to be called in its thread."""
        self._retriever.get()

    def fields(self) -> dict[str, list[str]]:
        """Return the fields that conditions can be on, each with its texts; to be called in the index's thread."""
        return self._retriever.get().fields()

    def search(self, query: str, k: int, where: Sequence[Condition]) -> tuple[list[Hit], set[str]]:
        """Return the k pieces that fit a query best, and the words in them that it means; to be called in the index's thread."""
        retriever = self._retriever.get()
        cleaned, lexical = self._data.get().clean(query), retriever.lexical
        stems = {stem for stems in lexical.expand_query(cleaned).values() for stem in stems}
        # A word that stands in every third record marks nothing.
        telling = {stem for stem in stems if lexical.information(stem) > 1}
        hits = retriever.search(cleaned, k, where)
        return hits, {word for hit in hits for word in lexical.words_of(f"{hit.title} {hit.text}", telling)}

    def answers(
        self, question: str, settings: GenerationConfig, rag: RagConfig
    ) -> Generator[tuple[Kind, Progress], None, None]:
        """Yield how far each answer is, whenever one gets further; to be called in the thread of the models."""
        title = self._data.get().clean(question)
        if not (self._models.are_current and self._retriever.is_current):
            yield from ((kind, Progress("loading")) for kind in KINDS)
        self._models.get("foundation")
        found = self._retrieved(title, rag)
        for form in WITHOUT_RECORDS:
            yield form, Progress("waiting")
        yield "rag", found
        for form in WITHOUT_RECORDS:
            yield from ((form, progress) for progress in self._answer(form, title, settings))
        if found.state == "waiting":
            answered = self._answer_with_records(title, found, settings, rag)
            yield from (("rag", progress) for progress in answered)

    def _answer(self, form: Form, title: str, settings: GenerationConfig) -> Iterator[Progress]:
        started = time.perf_counter()
        try:
            model = self._models.get(form)
            prompt = model.prompt_format.prompt(title)
            yield from _written(model, prompt, settings, Progress("writing"), started)
        except UserError as error:
            yield Progress("failed", problem=error)

    def _retrieved(self, title: str, rag: RagConfig) -> Progress:
        """Return RAG's progress after the search: waiting to be written, done if nothing fits, or failed."""
        try:
            self.index.submit(self.open_index).result()
            started = time.perf_counter()
            hits = self.index.submit(lambda: self._retriever.get().search(title, rag.k, rag.conditions)).result()
        except UserError as error:
            return Progress("failed", problem=error)
        seconds = time.perf_counter() - started
        if not retrieval.answerable(hits, rag):
            return Progress("done", retrieval.not_found(hits, rag), seconds, ())
        return Progress("waiting", "", seconds, tuple(hits))

    def _answer_with_records(
        self, title: str, found: Progress, settings: GenerationConfig, rag: RagConfig
    ) -> Iterator[Progress]:
        started, hits = time.perf_counter() - (found.seconds or 0), found.sources or ()
        try:
            # One column is RAG's: the base model writes in it unless another is wanted.
            model = self._models.get("foundation" if rag.answer_with == "auto" else rag.answer_with)
            room = context.room_for_context(model, rag.max_context_tokens, settings.max_new_tokens)
            prompt, used = context.prompt_with_records(model, title, hits, room)
            begun = replace(found, state="writing", sources=tuple(used))
            for progress in _written(model, prompt, settings, begun, started):
                if progress.state != "done":
                    yield progress
            yield replace(progress, text=self._cited(progress))
        except UserError as error:
            yield Progress("failed", problem=error)

    def _cited(self, progress: Progress) -> str:
        retriever, hits = self._retriever.get, progress.sources or ()
        return self.index.submit(lambda: citations.cite(progress.text, hits, retriever().lexical)).result()

    def _open_retriever(self) -> Retriever:
        data = self._data.get()
        manifests.require_current(self.run_folder, "rag_indexing", data.path)
        return retrieval.open_retriever(self.run_folder, self.config.rag)


def _written(
    model: AnsweringModel,
    prompt: str,
    settings: GenerationConfig,
    progress: Progress,
    started: float,
) -> Iterator[Progress]:
    """Yield the progress of an answer while it is written, at last with the state done."""
    yield progress
    text = ""
    with contextlib.closing(model.stream(prompt, settings)) as pieces:
        for piece in pieces:
            text += piece
            yield replace(progress, text=text.strip(), seconds=time.perf_counter() - started)
    yield replace(progress, state="done", text=text.strip(), seconds=time.perf_counter() - started)
