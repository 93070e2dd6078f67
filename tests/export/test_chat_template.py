"""llama.cpp words a chat with the template in the GGUF, and that is the prompt of the training."""

from __future__ import annotations

import shutil
from contextlib import closing

import pytest
from tiny_models import HOSTILE_INSTRUCTION
from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer

from config import PromptConfig
from pipeline.export import gguf
from pipeline.models.llama_cpp import GgufModel
from pipeline.models.prompts import chat_template, make_prompt_format, prompt_ids


@pytest.mark.parametrize(("architecture", "name"), [("llama", "alpaca"), ("phi3", "chat"), ("mistral", "chat")])
def test_llama_cpp_asks_in_a_chat_as_the_training_did(architecture, name, tiny_model, tmp_path):
    folder = tmp_path / "merged_model"
    shutil.copytree(tiny_model(architecture), folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    if architecture == "mistral":  # with a BOS as the real one
        bos = [("<s>", tokenizer.bos_token_id)]
        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=bos)
    prompt_format = make_prompt_format(PromptConfig(format=name, instruction=HOSTILE_INSTRUCTION), tokenizer)
    assert prompt_format.bos == ("<s>" if architecture == "mistral" else "")
    tokenizer.chat_template = chat_template(prompt_format)
    tokenizer.save_pretrained(folder)
    gguf.complete_tokenizer_config(folder, tokenizer, prompt_format)
    file = tmp_path / "model.gguf"
    gguf.convert(folder, file, gguf.gguf_model_name(str(folder), tokenizer), "f32", None)
    first = [{"role": "user", "content": "Tea"}]
    second = [*first, {"role": "assistant", "content": "Green."}, {"role": "user", "content": "Cake"}]
    with closing(GgufModel(file, prompt_format)) as model:
        for turns, text in (
            (first, prompt_format.prompt("Tea")),
            (second, prompt_format.conversation([("Tea", "Green.")], "Cake")),
            # llama.cpp puts a system message, which the template refuses, before the first title.
            ([{"role": "system", "content": "Rhyme."}, *first], prompt_format.prompt("Rhyme.\nTea")),
        ):
            asked = model._post("/apply-template", {"messages": turns})["prompt"]
            assert asked == text
            ids = prompt_ids(prompt_format, tokenizer, text)
            assert model.tokenize(asked) == ids
            answer = model._post("/v1/chat/completions", {"messages": turns, "max_tokens": 1})
            assert answer["usage"]["prompt_tokens"] == len(ids)
