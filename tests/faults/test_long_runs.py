"""Generate, search and index again and again in one process: neither memory nor open files grow."""

from __future__ import annotations

import gc
import json
import os
from dataclasses import replace

import psutil
import pytest

import process_data
import rag_indexing
from config import DataConfig
from pipeline.models import generation, loading
from pipeline.models.prompts import make_prompt_format
from pipeline.rag import embedding, retrieval
from pipeline.run.run_folder import RunFolder

REPETITIONS = 24
WARM_UP = 8  # repetitions in which libraries fill their caches
# From there to the end. Of 50 repetitions, the last 40 took 7 MiB and opened 2 files, which Chroma's pool keeps.
MOST_GROWTH = 32  # MiB
MOST_FILES = 8


@pytest.mark.skipif(os.name == "nt", reason="open files are counted as descriptors")
def test_memory_and_open_files_stay_as_they_are(tmp_path, make_config, embeddings, monkeypatch):
    # Loaded once, as in a process that serves; what the allocator keeps of a model would hide what a search leaves.
    monkeypatch.setattr(embedding, "load_embeddings", lambda config: embeddings)
    source = tmp_path / "raw.jsonl"
    config = replace(make_config("llama"), data=DataConfig(input=source, min_content_chars=1))
    model = loading.load_base(config.model, "16bit")
    prompt_format = make_prompt_format(config.prompt, model.tokenizer)
    process = psutil.Process()
    sizes, files = [], []
    for repetition in range(REPETITIONS):
        # Some records change, so that there is something to embed, to add and to remove.
        rows = [{"title": f"title {n}", "content": f"text {n} of {repetition if n < 8 else 0}"} for n in range(64)]
        source.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
        process_data.run(config)
        rag_indexing.run(config)
        retriever = retrieval.open_retriever(RunFolder.of(config), config.rag)
        hits = retriever.search("title 9", config.rag.k)
        assert hits[0].title == "title 9"
        prompts = [prompt_format.prompt(hit.title, prompt_format.source_text(hit.title, hit.text)) for hit in hits]
        assert len(generation.generate(model, prompt_format, prompts, config.answers)) == len(hits)
        del retriever, hits
        gc.collect()
        sizes.append(process.memory_info().rss / 2**20)
        files.append(process.num_fds())
    assert sizes[-1] - sizes[WARM_UP] < MOST_GROWTH, [round(size) for size in sizes]
    assert files[-1] - files[WARM_UP] <= MOST_FILES, files
