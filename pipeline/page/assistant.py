"""Answer questions as the stages do: the base model, the fine-tuned one and RAG, one answer after another."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from config import Condition, Config, GenerationConfig, RagConfig
from pipeline import artifacts, citations, generation, manifests, rag_prompt, records, retrieval
from pipeline.artifacts import StageNeeded, UserError
from pipeline.language_model import LanguageModel
from pipeline.page.models import Loaded, ModelName, Models, load_models
from pipeline.page.worker import Worker
from pipeline.prompts import PromptFormat
from pipeline.retrieval import Hit, Retriever

Kind = Literal["foundation", "finetuned", "rag"]
KINDS: tuple[Kind, ...] = ("foundation", "finetuned", "rag")
STAGE_OF: dict[Kind, str] = {"foundation": "process_data", "finetuned": "fine_tuning", "rag": "rag_indexing"}
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
        paths = {stage: manifests.manifest_path(config.run_dir, stage) for stage in STAGE_OF.values()}
        data = paths["process_data"]
        # Opening the records reads them whole, to tell whether they are those that stage 1 wrote.
        self._data = Loaded(lambda: records.open_processed(config.run_dir), [data])
        self._models = Loaded(self._load_models, [data, paths["fine_tuning"]])
        self._retriever = Loaded(self._open_retriever, [data, paths["rag_indexing"]])

    def missing(self, kind: Kind) -> StageNeeded | None:
        """Return the error that names the stage to run before this kind of answer, as far as a glance can tell."""
        made = {"process_data": "trn_processed.json", "fine_tuning": "lora_model", "rag_indexing": "lexical.sqlite"}
        try:
            for stage in dict.fromkeys(("process_data", STAGE_OF[kind])):
                artifacts.require(self.config.run_dir / made[stage], stage)
                manifests.read_manifest(self.config.run_dir, stage)
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
        """Return the k pieces that fit a query best, and the words that it means; to be called in the index's thread."""
        retriever = self._retriever.get()
        cleaned = self._data.get().clean(query)
        meant = retriever.lexical.meant(cleaned)
        words = {word for words in meant.values() for word in words}
        # A word that stands in every third record marks nothing.
        return retriever.search(cleaned, k, where), {word for word in words if retriever.lexical.information(word) > 1}

    def answers(self, question: str, settings: GenerationConfig, rag: RagConfig) -> Iterator[tuple[Kind, Progress]]:
        """Yield how far each answer is, whenever one gets further; to be called in the thread of the models."""
        title = self._data.get().clean(question)
        if not (self._models.is_current and self._retriever.is_current):
            yield from ((kind, Progress("loading")) for kind in KINDS)
        models = self._models.get()
        found = self._retrieved(title, rag)
        for kind in ("foundation", "finetuned"):
            yield kind, Progress("waiting")
        yield "rag", found
        for kind in ("foundation", "finetuned"):
            yield from ((kind, progress) for progress in self._answer(models, kind, title, settings))
        if found.state == "waiting":
            answered = self._answer_with_records(models, title, found, settings, rag)
            yield from (("rag", progress) for progress in answered)

    def _answer(self, models: Models, name: ModelName, title: str, settings: GenerationConfig) -> Iterator[Progress]:
        started = time.perf_counter()
        try:
            with models.use(name) as (model, prompt_format):
                prompt = prompt_format.prompt(title)
                yield from _written(model, prompt_format, prompt, settings, Progress("writing"), started)
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
            return Progress("done", rag.not_found, seconds, ())
        return Progress("waiting", "", seconds, tuple(hits))

    def _answer_with_records(
        self, models: Models, title: str, found: Progress, settings: GenerationConfig, rag: RagConfig
    ) -> Iterator[Progress]:
        started = time.perf_counter() - found.seconds
        try:
            # One column is RAG's: the base model writes in it unless the fine-tuned one is wanted.
            name: ModelName = "finetuned" if rag.answer_with == "finetuned" else "foundation"
            with models.use(name) as (model, prompt_format):
                prompt, used = rag_prompt.prompt_with_context(
                    prompt_format, model, title, list(found.sources), rag.max_context_tokens
                )
                begun = replace(found, state="writing", sources=tuple(used))
                for progress in _written(model, prompt_format, prompt, settings, begun, started):
                    if progress.state != "done":
                        yield progress
            yield replace(progress, text=self._cited(progress))
        except UserError as error:
            yield Progress("failed", problem=error)

    def _cited(self, progress: Progress) -> str:
        retriever = self._retriever.get
        return self.index.submit(lambda: citations.cite(progress.text, progress.sources, retriever().lexical)).result()

    def _load_models(self) -> Models:
        return load_models(self.config, self._data.get(), self.config.rag.max_context_tokens + MOST_NEW_TOKENS)

    def _open_retriever(self) -> Retriever:
        data = self._data.get()
        manifests.require_current(self.config.run_dir, "rag_indexing", data.path)
        return retrieval.open_retriever(self.config.run_dir, self.config.rag)


def _written(
    model: LanguageModel,
    prompt_format: PromptFormat,
    prompt: str,
    settings: GenerationConfig,
    progress: Progress,
    started: float,
) -> Iterator[Progress]:
    """Yield the progress of an answer while it is written, at last with the state done."""
    yield progress
    text = ""
    with contextlib.closing(generation.stream(model, prompt_format, prompt, settings)) as pieces:
        for piece in pieces:
            text += piece
            yield replace(progress, text=text.strip(), seconds=time.perf_counter() - started)
    yield replace(progress, state="done", text=text.strip(), seconds=time.perf_counter() - started)
