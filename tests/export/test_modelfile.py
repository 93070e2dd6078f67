"""Ollama asks with the prompt of the training, turn by turn, and samples as the GGUF was checked."""

from __future__ import annotations

import json
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from ollama import ollama_prompt, read_modelfile, render, template_values
from tiny_models import HOSTILE_INSTRUCTION, TOKENIZERS

from config import GenerationConfig, PromptConfig
from pipeline.export.modelfile import modelfile
from pipeline.models.llama_cpp import _request
from pipeline.models.prompts import make_prompt_format

TITLES = ["Mog's Kittens", 'Ring 1/2" {{ .System }}', "Café — 28°"]
every_tokenizer = pytest.mark.parametrize("tokenizer", TOKENIZERS, indirect=True)
every_format = pytest.mark.parametrize("name", ["alpaca", "chat"])
every_instruction = pytest.mark.parametrize("instruction", ["", "DESCRIBE THIS", HOSTILE_INSTRUCTION])


def user(content):
    return {"role": "user", "content": content}


def assistant(content):
    return {"role": "assistant", "content": content}


def system(content):
    return {"role": "system", "content": content}


def written(prompt_format, generation=None, context_tokens=4096):
    return read_modelfile(modelfile("model-f16.gguf", prompt_format, generation or GenerationConfig(), context_tokens))


def template_of(prompt_format):
    return dict(written(prompt_format))["TEMPLATE"]


@every_tokenizer
@every_format
@every_instruction
def test_each_turn_is_asked_as_in_the_training(tokenizer, name, instruction):
    prompt_format = make_prompt_format(PromptConfig(format=name, instruction=instruction), tokenizer)
    template = template_of(prompt_format)
    for title in TITLES:
        assert ollama_prompt(template, [user(title)]) == prompt_format.prompt(title)
        turns = [user(title), assistant("One.\n\nTwo."), user("Tea"), assistant("Three."), user(title)]
        conversation = prompt_format.conversation([(title, "One.\n\nTwo."), ("Tea", "Three.")], title)
        assert ollama_prompt(template, turns) == conversation


@every_tokenizer
@every_format
def test_a_system_message_takes_the_place_of_the_chat_templates_own(tokenizer, name):
    prompt_format = make_prompt_format(PromptConfig(format=name), tokenizer)
    template = template_of(prompt_format)
    turns = [user("Tea"), assistant("Green."), user("Cake")]
    asked = prompt_format.conversation([("Tea", "Green.")], "Cake").removeprefix(prompt_format.before)
    rhymed = prompt_format.before_with_system.replace("{system}", 'Rhyme "{{ .Prompt }}".')
    assert ollama_prompt(template, [system('Rhyme "{{ .Prompt }}".'), *turns]) == rhymed + asked


@every_format
def test_a_conversation_that_was_cut_and_an_answer_to_go_on_with(smollm2_tokenizer, name):
    prompt_format = make_prompt_format(PromptConfig(format=name), smollm2_tokenizer)
    template = template_of(prompt_format)
    # Ollama leaves out the oldest messages, one by one.
    assert ollama_prompt(template, [assistant("Green."), user("Cake")]) == prompt_format.prompt("Cake")
    assert ollama_prompt(template, [user("Tea"), assistant("Gre")]) == prompt_format.prompt("Tea") + "Gre"


@pytest.mark.parametrize("generation", [
    GenerationConfig(), GenerationConfig(max_new_tokens=7, temperature=0.0, seed=5), GenerationConfig(temperature=0.01),
    GenerationConfig(top_k=30, top_p=0.9, min_p=0.05, repetition_penalty=1.1),
])  # fmt: skip
def test_the_sampling_is_that_of_our_own_requests_to_llama_cpp(smollm2_tokenizer, generation):
    prompt_format = make_prompt_format(PromptConfig(), smollm2_tokenizer)
    parameters = {name: value for name, value in written(prompt_format, generation, 2048) if name.islower()}
    request = _request(prompt_format, "", generation, 2048)
    assert parameters.pop("num_ctx") == "2048"
    assert int(parameters.pop("num_predict")) == request.pop("n_predict")
    assert parameters.pop("stop") == "<|im_start|>"
    del request["prompt"], request["stop"], request["samplers"]  # Ollama has an order of its own
    assert {name: float(value) for name, value in parameters.items()} == request
    # What has no effect too: Ollama's own defaults are others.
    assert {"top_k", "top_p", "min_p", "repeat_penalty", "repeat_last_n", "seed", "temperature"} == set(request)
    assert request["repeat_last_n"] == 2048


@pytest.mark.parametrize(
    "token", ["<|im_end|>", '"""', '"a"', '"" b', "{{ .Prompt }}", "\\n", " </s> ", "`", "<｜end▁of｜>"]
)
def test_an_answer_ends_at_its_end_token_whatever_that_is_made_of(smollm2_tokenizer, token):
    prompt_format = replace(make_prompt_format(PromptConfig(), smollm2_tokenizer), end=token)
    file = written(prompt_format)
    opening = ["<|im_end|>", "<|im_start|>"]
    assert [value for name, value in file if name == "stop"] == list(dict.fromkeys([token, *opening]))
    assert [name for name, _ in file if name.isupper()] == ["FROM", "TEMPLATE"]


def test_a_token_that_a_modelfile_cannot_hold_is_no_stop(smollm2_tokenizer):
    prompt_format = replace(make_prompt_format(PromptConfig(), smollm2_tokenizer), end="<\u00a0>")
    assert [value for name, value in written(prompt_format) if name == "stop"] == ["<|im_end|>", "<|im_start|>"]


@pytest.mark.skipif(not shutil.which("go"), reason="Go is not installed")
def test_templates_are_rendered_as_by_go(smollm2_tokenizer):
    conversations = [
        [user("Tea")], [user('"'), assistant("{{"), user("\\")], [system("Rhyme."), user("Tea")], [assistant("Tea")], [],
    ]  # fmt: skip
    asked = []
    for name in ("alpaca", "chat"):
        for instruction in ("DESCRIBE THIS", HOSTILE_INSTRUCTION):
            prompt_format = make_prompt_format(PromptConfig(format=name, instruction=instruction), smollm2_tokenizer)
            asked += [(template_of(prompt_format), template_values(turns)) for turns in conversations]
    given = json.dumps([{"Template": template, **values} for template, values in asked])
    command = ["go", "run", str(Path(__file__).with_name("render.go"))]
    done = subprocess.run(command, input=given, capture_output=True, encoding="utf-8")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [render(template, values) for template, values in asked]
