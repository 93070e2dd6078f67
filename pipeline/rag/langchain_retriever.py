"""The search of stages 7 and 8 as a retriever of LangChain, to be put into a chain.

from pipeline.rag.langchain_retriever import open_langchain_retriever

retriever = open_langchain_retriever("demo")
documents = retriever.invoke("ballet tutu for small girls")
"""

from __future__ import annotations

import threading
from pathlib import Path

from langchain_core.callbacks import CallbackManagerForRetrieverRun
from langchain_core.documents import Document
from langchain_core.retrievers import BaseRetriever
from pydantic import InstanceOf, PrivateAttr

from config import Config
from pipeline.data import records
from pipeline.rag import retrieval
from pipeline.run import manifests
from pipeline.run.command_line import NoOptions, parse
from pipeline.run.run_folder import RunFolder


class RecordRetriever(BaseRetriever):
    """Finds the records that fit a query best, by meaning, by words and by title; none where none fits."""

    config: InstanceOf[Config]
    """Of the run; rag.k, rag.where and rag.min_score say what is returned."""
    data: InstanceOf[records.ProcessedData]
    """The cleaned records, as which a query is cleaned."""
    retriever: InstanceOf[retrieval.Retriever]
    """The open index."""
    _one_at_a_time: threading.Lock = PrivateAttr(default_factory=threading.Lock)

    def _get_relevant_documents(self, query: str, *, run_manager: CallbackManagerForRetrieverRun) -> list[Document]:
        rag = self.config.rag
        with self._one_at_a_time:
            hits = self.retriever.search(self.data.clean(query), rag.k, rag.conditions)
        return list(map(as_document, hits)) if retrieval.answerable(hits, rag) else []


def as_document(hit: retrieval.Hit) -> Document:
    """Return a hit as LangChain has it: its text, and title, score and the record's own metadata beside it."""
    return Document(hit.text, id=hit.id, metadata={"title": hit.title, "score": hit.score, **hit.metadata})


def open_langchain_retriever(preset: str = "demo", *settings: str, output_dir: Path | None = None) -> RecordRetriever:
    """Open the index of a run.

    Args:
        preset: name of a preset, or path of a recipe.
        settings: as on the command line of stage 7, such as "--rag.k", "5".
        output_dir: folder of all outputs; None takes that of the preset or recipe.

    Raises:
        UserError: there is no index, or it is older than the records; the stage is named.
    """
    folder = ["--output-dir", str(output_dir)] if output_dir is not None else []
    config, _ = parse("rag_search_vs", "", NoOptions, ["--preset", preset, *folder, *settings])
    run = RunFolder.of(config)
    data = records.open_processed(run)
    manifests.require_current(run, "rag_indexing", data.path)
    return RecordRetriever(config=config, data=data, retriever=retrieval.open_retriever(run, config.rag))
