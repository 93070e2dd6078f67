"""What is wrong with a base model's small files is one sentence, before anything is spent."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer, GPT2Config, LlamaConfig, MixtralConfig

import fine_tuning
import foundation_model
import process_data
from config import LoraConfig, ModelConfig
from pipeline.models import loading
from pipeline.models.base_checks import require_causal_language_model, require_embeddings, require_layers
from pipeline.models.loading_errors import helpful_loading_errors
from pipeline.models.size import linear_layers, size_of_architecture, without_weights
from pipeline.run.errors import UserError

SMALL = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 30}


def refusal(name):
    """What the stages that load a base model say before they read anything of it."""
    with pytest.raises(UserError) as raised:
        loading.prepare_backend(ModelConfig(name=str(name)))
    sentence = str(raised.value)
    assert "could not be loaded" not in sentence and str(name) in sentence and "--model.name" in sentence
    return sentence


def write(folder, **files):
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name.replace("__", ".")).write_text(json.dumps(content))
    return folder


def test_a_gguf_file_and_a_folder_of_one_are_called_that(tmp_path):
    file = tmp_path / "model-f16.gguf"
    file.write_bytes(b"GGUF")
    for name in (file, tmp_path):
        assert "a GGUF file, which llama.cpp runs" in refusal(name)
    assert "is a file." in refusal(write(tmp_path, model__safetensors={}) / "model.safetensors")


@pytest.mark.parametrize("has_config", [False, True])
def test_an_adapter_names_its_base_model(tmp_path, has_config):
    folder = write(tmp_path, adapter_config__json={"base_model_name_or_path": "some/base"})
    if has_config:  # transformers would load both in silence
        write(folder, config__json={"model_type": "llama"})
    assert "is an adapter, not a model. Give its base model with --model.name some/base," in refusal(folder)
    write(folder, adapter_config__json=[])
    assert "is an adapter, not a model. Give its base model with --model.name, or" in refusal(folder)


def test_the_folder_of_a_run_names_its_merged_model(tmp_path):
    write(tmp_path / "manifests")
    assert "is the folder of a run, not a model. Give the name of a model" in refusal(tmp_path)
    merged = write(tmp_path / "merged_model", config__json={"model_type": "llama"})
    assert refusal(tmp_path).endswith(f"Give --model.name {merged}.")


def test_pickled_weights_are_told_with_the_command_that_writes_safetensors(tiny_model, tmp_path):
    folder = shutil.copytree(tiny_model("llama"), tmp_path / "old")
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(weights, folder / "pytorch_model.bin")
    sentence = refusal(folder)
    assert "pickled (pytorch_model.bin)" in sentence
    command = shlex.split(re.search(r"`(.*)`", sentence)[1])
    assert command[0] == "python"
    subprocess.run([sys.executable, *command[1:]], check=True)
    converted = tmp_path / "old-safetensors"
    assert sentence.endswith(f"--model.name {converted}.")
    written = load_file(converted / "model.safetensors")
    assert all(torch.equal(written[name], weight) for name, weight in weights.items())
    assert loading.prepare_backend(ModelConfig(name=str(converted))) and loading.load_tokenizer(str(converted))


@pytest.mark.parametrize("method", ["awq", "gptq", "hqq", "compressed-tensors", "fp8", "mxfp4", "eetq"])
def test_files_quantized_otherwise_than_by_bitsandbytes_are_not_supported(tmp_path, method):
    for key in ("quantization_config", "compression_config"):
        folder = write(tmp_path, config__json={"model_type": "llama", key: {"quant_method": method}})
        assert f"quantized with {method}, which is not supported" in refusal(folder)


def test_a_package_that_transformers_misses_is_one_sentence():
    with (
        pytest.raises(UserError, match="'some/model' could not be loaded: It needs mamba-ssm"),
        helpful_loading_errors("some/model"),
    ):
        raise ImportError("It needs mamba-ssm.")


@pytest.mark.parametrize("settings", [
    {"model_type": "bert"}, {"model_type": "roberta", "is_decoder": False}, {"model_type": "t5"}, {"model_type": "bart"},
    {"model_type": "vit"},
])  # fmt: skip
def test_what_does_not_continue_a_text_is_no_causal_language_model(tmp_path, settings):
    assert f"no causal language model: its architecture is {settings['model_type']}" in refusal(
        write(tmp_path, config__json=settings)
    )


def test_an_architecture_that_transformers_does_not_know_is_named(tmp_path):
    assert "does not know the architecture 'qwen9'" in refusal(write(tmp_path, config__json={"model_type": "qwen9"}))
    own = {"model_type": "own", "auto_map": {"AutoConfig": "configuration_own.OwnConfig"}}
    assert "code of its own, which is never run here" in refusal(write(tmp_path, config__json=own))


@pytest.mark.parametrize(
    "kind", ["llama", "gpt2", "gemma3", "gemma3_text", "mixtral", "phi", "xlnet", "mamba", "gpt_oss"]
)
def test_causal_language_models_pass(kind):
    require_causal_language_model("a model", {"model_type": kind})
    require_causal_language_model("a model", {"model_type": "bert", "is_decoder": True})
    require_causal_language_model("a model", {})


def with_tokens(tokenizer_folder, target, *, pad=None, added=(), special=()):
    """A copy of a model whose tokenizer has tokens beyond its embeddings, as where nobody has resized these."""
    folder = shutil.copytree(tokenizer_folder, target)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(list(added))
    tokenizer.add_tokens(list(special), special_tokens=True)
    if pad:
        tokenizer.add_special_tokens({"pad_token": pad})
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize(("tokens", "named"), [
    ({"pad": "[PAD]"}, "no embedding for: '[PAD]' (49152); its"), ({"added": ["sturdy", "Kitchen"]}, "'sturdy' (49152), 'Kitchen' (49153); its"),
    ({"added": [f"word{number}" for number in range(7)]}, "'word4' (49156) and 2 more; its"),
])  # fmt: skip
def test_a_token_beyond_the_embeddings_is_named(tiny_model, tmp_path, tokens, named):
    folder = with_tokens(tiny_model("llama"), tmp_path / "base", **tokens)
    with pytest.raises(UserError) as raised:
        loading.load_tokenizer(str(folder))
    assert named in str(raised.value) and "its last one is 49151" in str(raised.value)


def test_a_token_that_nothing_writes_may_lie_beyond_the_embeddings(tiny_model, tmp_path):
    # Gemma 3's text models have such a one, for images.
    folder = with_tokens(tiny_model("llama"), tmp_path / "base", special=["<image_soft_token>"])
    tokenizer = loading.load_tokenizer(str(folder))
    tokenizer.chat_template = "{{ messages }}<image_soft_token>"
    with pytest.raises(UserError, match="image_soft_token"):
        require_embeddings("base", tokenizer, 49152)
    require_embeddings("base", tokenizer, 49153)


@pytest.mark.parametrize("stage", [foundation_model, fine_tuning])
def test_both_stages_refuse_before_they_load(make_config, tiny_model, tmp_path, monkeypatch, stage):
    folder = with_tokens(tiny_model("llama"), tmp_path / "base", pad="[PAD]")
    config = replace(make_config(), model=ModelConfig(name=str(folder)))
    process_data.run(config)
    monkeypatch.setattr(loading, "_load_with_transformers", lambda *_: pytest.fail("the weights were loaded"))
    with pytest.raises(UserError, match=r"\[PAD\]"):
        stage.run(config)
    if stage is fine_tuning:
        whole = replace(config, model=make_config().model, lora=LoraConfig(target_modules=("q_proj", "lm_head")))
        with pytest.raises(UserError, match="lm_head is the output layer"):
            stage.run(whole)


def test_layers_for_an_adapter_are_known_before_any_weight_is_loaded():
    llama, gpt2 = LlamaConfig(**SMALL), GPT2Config(n_embd=16, n_layer=2, n_head=2, vocab_size=30)
    require_layers("a model", llama, LoraConfig().target_modules)
    require_layers("a model", gpt2, ("c_attn", "c_fc", "c_proj"))
    with pytest.raises(
        UserError, match=r"lm_head is the output layer of a model\. Leave it out of --lora\.target-modules"
    ):
        require_layers("a model", llama, ("q_proj", "lm_head"))
    with pytest.raises(
        UserError, match=r"has no layer q_proj \(--lora.target-modules\). Its linear layers are c_attn, c_fc, c_proj\."
    ):
        require_layers("a model", gpt2, ("q_proj", "c_fc"))
    with pytest.raises(UserError, match="no layer embed_tokens, gate_proj"):
        require_layers("a model", MixtralConfig(**SMALL, num_key_value_heads=2), ("embed_tokens", "gate_proj"))


def test_gpt2s_layers_are_counted_as_what_they_are():
    shape = GPT2Config(n_embd=16, n_layer=2, n_head=2, vocab_size=30)
    lora = LoraConfig(r=4, dropout=0.1, target_modules=("c_attn", "c_proj"))
    size = size_of_architecture(shape, lora)
    assert size.linear == 2 * 16 * (48 + 16 + 64 + 64) and size.largest == 16 * 64
    assert size.adapter == 2 * 4 * ((16 + 48) + (16 + 16) + (64 + 16)) and size.adapter_inputs == 16 + 16 + 64
    assert size.features == (16 + 48) + (16 + 16) + 2 * (64 + 16)
    assert "lm_head" not in linear_layers(without_weights(shape))
