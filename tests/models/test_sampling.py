"""transformers and llama.cpp draw from the same tokens with the same probabilities, whatever is set."""

from __future__ import annotations

import itertools
import shutil
from contextlib import closing
from dataclasses import replace

import pytest
import torch

from config import GenerationConfig, ModelConfig, PromptConfig
from pipeline.export import gguf
from pipeline.models import generation, llama_cpp, loading, prompts
from pipeline.models.answerer import TransformersModel
from pipeline.models.llama_cpp import GgufModel

CONTEXT = 512
NEUTRAL = GenerationConfig(max_new_tokens=8, temperature=1.5)
GREEDY = replace(NEUTRAL, temperature=0.0)
# The first title leaves the window of 64 tokens that llama.cpp and Ollama look back by themselves.
TITLES = ["Girls Ballet Tutu Neon Blue" + ", for ages two to eight with a belt" * 6, "Tea", "The Prophet, the prophet"]
SETTINGS = [
    {"temperature": 0.7}, {"top_k": 7}, {"top_k": 10**9}, {"top_p": 0.6}, {"min_p": 0.1}, {"repetition_penalty": 4.0},
    {"repetition_penalty": 0.3}, {"top_k": 20, "top_p": 0.7, "min_p": 0.05, "repetition_penalty": 2.0, "temperature": 2.5},
]  # fmt: skip


@pytest.fixture(scope="module")
def tiny(tiny_model):
    """The tiny Phi-3 in transformers; what its answers are padded with does not end them."""
    loaded = loading.load_base(ModelConfig(name=str(tiny_model("phi3"))), "16bit")
    prompt_format = prompts.make_prompt_format(PromptConfig(instruction="DESCRIBE"), loaded.tokenizer)
    return TransformersModel(loaded, prompt_format)


@pytest.fixture(scope="module")
def served(tiny, tiny_model, tmp_path_factory):
    """Its GGUF in llama.cpp."""
    folder = tmp_path_factory.mktemp("merged")
    file = folder / "model.gguf"
    shutil.copytree(tiny_model("phi3"), folder, dirs_exist_ok=True)
    gguf.complete_tokenizer_config(folder, tiny.loaded.tokenizer, tiny.prompt_format)
    gguf.convert(folder, file, gguf.gguf_model_name(str(folder), tiny.loaded.tokenizer), "f32", None)
    with closing(GgufModel(file, tiny.prompt_format, CONTEXT)) as model:
        yield model


def asked(model):
    """The ids of prompts, each with the beginning of an answer."""
    prompt_format, tokenizer = model.prompt_format, model.loaded.tokenizer
    return [
        prompts.prompt_ids(prompt_format, tokenizer, prompt_format.prompt(title) + "Girls of three") for title in TITLES
    ]


def in_transformers(model, config, rows):
    """The probabilities of the next token after each row of a padded batch, of shape (rows, tokens)."""
    loaded = model.loaded
    padded = loaded.tokenizer.pad({"input_ids": rows}, padding_side="left", return_tensors="pt")
    ends = generation.stop_ids(loaded, model.prompt_format)
    arguments = generation._generation_arguments(config, ends, loaded.tokenizer, padded["attention_mask"])
    arguments |= {"max_new_tokens": 1, "output_scores": True, "return_dict_in_generate": True}
    return loaded.model.generate(**padded, **arguments).scores[0].softmax(-1)


def in_llama_cpp(model, config, ids, **changes):
    """The same of one row."""
    request = llama_cpp._request(model.prompt_format, "", config, CONTEXT) | changes
    request |= {"prompt": ids, "n_predict": 1, "n_probs": model._vocabulary, "post_sampling_probs": True}
    # Where a part of a character is drawn, the server holds it back, with all it would tell: draw again.
    replies = (model._post("/completion", {**request, "seed": seed}) for seed in itertools.count())
    [told] = next(filter(None, (reply.get("completion_probabilities") for reply in replies)))
    found = torch.zeros(model._vocabulary)
    for token in told["top_probs"]:
        found[token["id"]] = token["prob"]
    return found


def distance(one, other):
    """Of two distributions: the share of draws that they would divide otherwise."""
    return float((one - other).abs().sum() / 2)


@pytest.mark.parametrize("setting", SETTINGS, ids=str)
def test_both_draw_with_the_same_probabilities(tiny, served, setting):
    rows, config = asked(tiny), replace(NEUTRAL, **setting)
    ours, neutral = in_transformers(tiny, config, rows), in_transformers(tiny, NEUTRAL, rows)
    theirs = [in_llama_cpp(served, config, ids) for ids in rows]
    assert max(map(distance, ours, theirs)) < 0.005
    assert (max(map(distance, ours, neutral)) > 0.05) == (setting != {"top_k": 10**9}), "or nothing was compared"


def test_the_order_of_the_samplers_and_the_window_of_the_penalty_are_transformers(tiny, served):
    """What llama.cpp does by itself is not the same: the test above could fail."""
    rows = asked(tiny)
    for setting, own in (
        ({"temperature": 2.5, "top_p": 0.6}, {"samplers": ["penalties", "top_k", "top_p", "min_p", "temperature"]}),
        ({"repetition_penalty": 4.0}, {"repeat_last_n": 64}),
    ):
        config = replace(NEUTRAL, **setting)
        ours = in_transformers(tiny, config, rows)[0]
        assert distance(ours, in_llama_cpp(served, config, rows[0])) < 0.005
        assert distance(ours, in_llama_cpp(served, config, rows[0], **own)) > 0.01


def answers(model, config):
    """What a model answers in a batch, and streams, up to the first part of a character, which each tells in its own way."""
    texts = [model.prompt_format.prompt(title) for title in TITLES]
    answered = [answer.text for answer in model.generate(texts, config, lambda _: None)]
    streamed = ["".join(model.stream(text, config)).strip() for text in texts]
    return [text.partition("\ufffd")[0] for text in (*answered, *streamed)]


def test_answers_and_streams_are_drawn_as_set(tiny, served):
    likeliest = answers(tiny, GREEDY)
    assert answers(served, GREEDY) == likeliest and likeliest[:3] == likeliest[3:]
    for alone in ({"top_k": 1}, {"top_p": 1e-9}, {"min_p": 1.0}):
        for model in (tiny, served):
            assert answers(model, replace(NEUTRAL, **alone)) == likeliest, alone
    # The penalty is part of greedy answers too. Below 1 it is a reward: a random model does not repeat itself otherwise.
    rewarded = replace(GREEDY, repetition_penalty=0.2)
    repeated = answers(tiny, rewarded)
    assert answers(served, rewarded) == repeated and repeated[:3] == repeated[3:]
    assert not set(repeated) & set(likeliest)


def test_the_padding_of_a_batch_is_not_penalised(tiny):
    rows, config = asked(tiny), replace(NEUTRAL, repetition_penalty=5)
    padding = tiny.loaded.tokenizer.pad_token_id
    assert padding not in rows[1] and len(rows[1]) < len(rows[0])
    together, alone = (in_transformers(tiny, config, batch) for batch in (rows, rows[1:2]))
    assert distance(together[1], alone[0]) < 1e-4
    assert together[1, padding].log().item() == pytest.approx(alone[0, padding].log().item(), abs=1e-3)


def test_what_has_no_effect_changes_no_greedy_answer(tiny):
    ignored = replace(GREEDY, top_k=3, top_p=0.5, min_p=0.5)
    assert answers(tiny, ignored) == answers(tiny, GREEDY)
