"""What llama.cpp's converter does not take is known before the training, and one sentence after it."""

from __future__ import annotations

import logging
import shutil
import sys

import gguf as our_gguf
import pytest
from tiny_models import tiny_config
from tokenizers import pre_tokenizers
from transformers import AutoTokenizer, Gemma2Config, OPTConfig

import fine_tuning
from config import PromptConfig
from pipeline.export import gguf
from pipeline.models.prompts import make_prompt_format
from pipeline.run.errors import UserError

UNKNOWN_TOKENIZER = "NotImplementedError: BPE pre-tokenizer was not recognized"


@pytest.fixture
def base(tiny_model, tmp_path):
    """A base model, to be changed."""
    return shutil.copytree(tiny_model("llama"), tmp_path / "base")


def refusal(folder, converter=None):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    prompt_format = make_prompt_format(PromptConfig(format="alpaca"), tokenizer)
    return gguf.why_not_convertible(str(folder), tokenizer, prompt_format, converter)


def with_unknown_tokenizer(folder):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.save_pretrained(folder)
    return folder


def test_a_model_is_refused_before_the_training_for_what_the_converter_says(base):
    assert refusal(base) is None
    (base / "model.safetensors").unlink()
    OPTConfig(vocab_size=49152).save_pretrained(base)
    assert refusal(base) == "Model OPTForCausalLM is not supported"
    Gemma2Config(vocab_size=49152).save_pretrained(base)
    said = refusal(base)
    assert said.startswith("FileNotFoundError: File not found: ") and said.endswith("tokenizer.model")


def test_stage_3_says_that_there_will_be_no_gguf(base, tmp_path, capsys):
    tokenizer = AutoTokenizer.from_pretrained(base)
    config = tiny_config(base, tmp_path, prompt=PromptConfig(format="alpaca"))
    prompt_format = make_prompt_format(config.prompt, tokenizer)
    fine_tuning.warn_if_not_convertible(config, tokenizer, prompt_format)
    assert capsys.readouterr().out == ""
    OPTConfig(vocab_size=49152).save_pretrained(base)
    fine_tuning.warn_if_not_convertible(config, tokenizer, prompt_format)
    said = (
        "trains, but stage 5 will make no GGUF of it, by what llama.cpp's converter says: Model OPTForCausalLM is not"
    )
    assert said in capsys.readouterr().out


def test_sentencepiece_models_pass(tiny_model):
    for architecture in ("phi3", "mistral"):
        assert refusal(tiny_model(architecture)) is None


def test_an_assertion_is_told_with_what_it_asserts(base):
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.add_tokens(["<image>"], special_tokens=True)
    tokenizer.save_pretrained(base)
    assert refusal(base).startswith("AssertionError: assert max(tokenizer.vocab.values()) < vocab_size")


def test_a_tokenizer_that_the_converter_does_not_know_is_one_sentence_before_and_after(base, tmp_path):
    assert refusal(with_unknown_tokenizer(base)).startswith(UNKNOWN_TOKENIZER)
    with pytest.raises(UserError) as raised:
        gguf.convert(base, tmp_path / "model.gguf", "name", "f16", None)
    sentence = str(raised.value)
    assert UNKNOWN_TOKENIZER in sentence and "--gguf.converter" in sentence
    assert "Traceback" not in sentence and "\n" not in sentence


def test_a_converter_that_is_not_there_is_told(base, tmp_path):
    assert "--gguf.converter names the folder of a llama.cpp checkout" in refusal(base, tmp_path)


def test_the_converter_leaves_nothing_in_this_process(base, capsys):
    arguments, path, handlers, level = sys.argv[:], sys.path[:], logging.root.handlers[:], logging.root.level
    for folder in (base, with_unknown_tokenizer(base)):
        refusal(folder)
        assert sys.modules["gguf"] is our_gguf and "conversion" not in sys.modules
        assert (sys.argv, sys.path) == (arguments, path)
        assert (logging.root.handlers, logging.root.level) == (handlers, level)
    assert capsys.readouterr() == ("", "")
