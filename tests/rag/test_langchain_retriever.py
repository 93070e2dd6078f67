"""The retriever of LangChain: it finds what stage 7 finds, and goes into a chain."""

from __future__ import annotations

from dataclasses import replace

import pytest

import process_data
import rag_indexing
from config import PRESETS, DataConfig
from pipeline.rag.langchain_retriever import open_langchain_retriever
from pipeline.run.errors import UserError


@pytest.fixture(scope="module")
def outputs(tmp_path_factory):
    """A folder of outputs in which the demo's records are indexed."""
    folder = tmp_path_factory.mktemp("outputs")
    config = replace(PRESETS["demo"], output_dir=folder, data=DataConfig())
    process_data.run(config)
    rag_indexing.run(config)
    return folder


def test_it_finds_what_stage_7_finds_and_goes_into_a_chain(outputs):
    from langchain_core.runnables import RunnableLambda, RunnablePassthrough

    retriever = open_langchain_retriever("demo", "--rag.k", "2", output_dir=outputs)
    title = "By Tractor to the Black Sea"
    found = retriever.invoke(title)
    assert len(found) == 2 and found[0].metadata["title"] == title and "Alf Nettleship" in found[0].page_content
    assert found[0].metadata["score"] > found[1].metadata["score"] and found[0].id
    chain = {"question": RunnablePassthrough(), "records": retriever} | RunnableLambda(
        lambda asked: f"{asked['question']}: {asked['records'][0].page_content}"
    )
    assert chain.invoke(title) == f"{title}: {found[0].page_content}"


def test_nothing_is_found_where_nothing_fits(outputs):
    strict = open_langchain_retriever("demo", "--rag.min-score", "1", output_dir=outputs)
    assert strict.invoke("quantum chromodynamics") == []


def test_a_run_without_an_index_names_the_stage(tmp_path):
    with pytest.raises(UserError, match=r"process_data\.py"):
        open_langchain_retriever(output_dir=tmp_path)
