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
from pipeline import generation, language_model, retrieval
from pipeline.prompts import make_prompt_format

WARM_UP = 6  # repetitions in which libraries fill their caches
REPETITIONS = int(os.environ.get("LONG_RUN_REPETITIONS", "14"))
MOST_GROWTH = 0.75  # MiB a repetition, after the warm-up: a record's worth of tensors kept would be more


@pytest.mark.skipif(os.name == "nt", reason="open files are counted as descriptors")
def test_memory_and_open_files_stay_as_they_are(tmp_path, make_config, capsys):
    source = tmp_path / "raw.jsonl"
    config = replace(make_config("llama"), data=DataConfig(input=source, min_content_chars=1))
    model = language_model.load_base(config.model, "16bit")
    prompt_format = make_prompt_format(config.prompt, model.tokenizer)
    process = psutil.Process()
    sizes, files = [], []
    for repetition in range(REPETITIONS):
        # Some records change, so that there is something to embed, to add and to remove.
        rows = [{"title": f"title {n}", "content": f"text {n} of {repetition if n < 8 else 0}"} for n in range(64)]
        source.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
        process_data.run(config)
        rag_indexing.run(config)
        retriever = retrieval.open_retriever(config.run_dir, config.rag)
        hits = retriever.search("title 9", config.rag.k)
        assert hits[0].title == "title 9"
        prompts = [prompt_format.prompt(hit.title, prompt_format.source_text(hit.title, hit.text)) for hit in hits]
        assert len(generation.generate(model, prompt_format, prompts, config.answers)) == len(hits)
        del retriever, hits
        gc.collect()
        sizes.append(process.memory_info().rss / 2**20)
        files.append(process.num_fds())
    with capsys.disabled():
        if REPETITIONS > 20:
            print(f"\n{[round(size) for size in sizes]} MiB, {files} files")
    growth = (sizes[-1] - sizes[WARM_UP]) / (REPETITIONS - 1 - WARM_UP)
    assert growth < MOST_GROWTH, [round(size) for size in sizes]
    assert files[-1] <= files[WARM_UP], files
