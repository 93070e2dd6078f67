"""The merged model and the GGUF are the model that was trained: the same next tokens up to the end, the same loss, the same ends."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import get_args, get_type_hints

import pytest
import torch
import transformers
from safetensors.torch import load_file

import fine_tuning
import merge_and_convert
import process_data
from config import GgufConfig, LoraConfig, MergeConfig, ModelConfig, TrainConfig
from pipeline.evaluation.forms import TRAINED
from pipeline.export import parity
from pipeline.models import generation, loading, prompts
from pipeline.models.generation import Reading
from pipeline.models.llama_cpp import GgufModel
from pipeline.run import files, manifests
from pipeline.run.errors import UserError
from pipeline.run.run_folder import RunFolder

TYPES = get_args(get_type_hints(GgufConfig)["type"])


@pytest.fixture
def trained(make_config):
    """Settings of a run whose adapter has learned something."""
    gguf = GgufConfig(type="f32", parity_prompts=2, parity_tokens=8, min_agreement=0.5)
    train = TrainConfig(max_steps=3, learning_rate=5e-3, max_length=128)
    config = make_config(
        "phi3", gguf=gguf, train=train, lora=LoraConfig(r=4, alpha=8, target_modules=("qkv_proj", "down_proj"))
    )
    process_data.run(config)
    fine_tuning.run(config)
    return config


def metrics_of(config):
    return manifests.read_manifest(RunFolder.of(config), "merge_and_convert")["metrics"]


def test_trained_merged_and_converted_model_have_the_same_loss(trained, capsys):
    for number_format in TYPES:
        config = replace(trained, gguf=replace(trained.gguf, type=number_format))
        merge_and_convert.run(config)
        losses = metrics_of(config)["validation_loss"]
        assert list(losses) == [TRAINED, "merged model", f"GGUF in {number_format}"]
        printed = capsys.readouterr().out
        for form in list(losses)[1:]:
            change = losses[form]["against_trained"]["value"]
            assert f"{form}: {losses[form]['value']:.3f}" in printed
            assert abs(change) < 0.02, "the weights are random and large: what is lost is what the format cannot hold"
            noise = "more than noise" if losses[form]["more_than_noise"] else "no more than noise"
            assert f"{change:+.4f}, {noise}" in printed


def test_merged_model_ends_where_the_training_ended_and_draws_as_set(trained):
    merge_and_convert.run(trained)
    folder = trained.run_dir / "merged_model"
    prompt_format = prompts.load_prompt_format(folder)
    saved = json.loads((folder / "generation_config.json").read_text())
    tokenizer = loading.load_tokenizer(str(folder))
    assert prompts.end_id(prompt_format, tokenizer) in saved["eos_token_id"]
    assert prompts.end_id(prompt_format, tokenizer) != tokenizer.eos_token_id, "or this could not fail"
    assert saved["do_sample"] is False
    merge_and_convert.run(replace(trained, generation=replace(trained.generation, temperature=0.3)))
    saved = json.loads((folder / "generation_config.json").read_text())
    assert saved["do_sample"] is True and (saved["temperature"], saved["top_k"], saved["top_p"]) == (0.3, 0, 1.0)
    assert not {"min_p", "repetition_penalty"} & saved.keys()
    drawn = {"top_k": 20, "top_p": 0.9, "min_p": 0.05}
    for temperature in (0.3, 0.0):
        limited = replace(trained.generation, temperature=temperature, repetition_penalty=2, **drawn)
        merge_and_convert.run(replace(trained, generation=limited))
        saved = json.loads((folder / "generation_config.json").read_text())
        assert saved["repetition_penalty"] == 2 and saved["do_sample"] == (temperature > 0)
        assert (drawn.items() <= saved.items()) == (temperature > 0)
        assert metrics_of(trained)["first_answer_identical"]
    loaded = transformers.GenerationConfig.from_pretrained(folder)
    loaded.validate(strict=True)


def test_nothing_after_the_end_of_an_answer_is_compared(tiny_model, trained):
    model = loading.load_base(ModelConfig(name=str(tiny_model("phi3"))), "16bit")
    prompt_format = prompts.load_prompt_format(trained.run_dir / "lora_model")
    start = prompts.prompt_ids(prompt_format, model.tokenizer, prompt_format.prompt("Tea"))
    whole = generation.greedy_continuation(model, prompt_format, start, 12)
    assert len(whole) == len(start) + 12
    third = whole[len(start) + 2]
    place = whole.index(third, len(start))
    ended = replace(prompt_format, end=model.tokenizer.convert_ids_to_tokens(third))
    assert generation.greedy_continuation(model, ended, start, 12) == whole[: place + 1]


def test_llama_cpp_reads_what_transformers_reads(trained):
    text = "Plain text, and then: atenção 😀 às crianças: 漢字"  # tokens that are parts of a character, too
    gguf_file = merge_and_convert.run(trained)
    merged = loading.load_base(ModelConfig(name=str(trained.run_dir / "merged_model")), "16bit")
    prompt_format = prompts.load_prompt_format(trained.run_dir)
    [(start, ids)] = prompts.answered_ids(prompt_format, merged.tokenizer, [prompt_format.prompt("Chá")], [text])
    ours = generation.read(merged, ids, start)
    served = GgufModel(gguf_file, prompt_format)
    theirs = served.read(ids, start)
    assert theirs.losses == pytest.approx(ours.losses, abs=0.02)
    assert parity.agreement([ours], [theirs]) >= 0.9
    row = served.likeliest(ids[:start], 50)
    served.close()
    assert list(row.values()) == sorted(row.values(), reverse=True) and len(row) == 50
    assert row[theirs.choices[0]] == pytest.approx(max(row.values()))


def test_a_model_that_chooses_otherwise_is_not_kept():
    ours = [Reading([1, 2, 3, 4], [0.0] * 4), Reading([5], [0.0])]
    theirs = [Reading([1, 2, 3, 9], [0.0] * 4), Reading([5], [0.0])]
    assert parity.agreement(ours, theirs) == pytest.approx(4 / 5)
    parity.check_agreement("one", ours, "the other", theirs, 0.8)
    with pytest.raises(
        UserError, match=r"The other differs from one: they agree on 80\.0% .* 95% is the least allowed"
    ):
        parity.check_agreement("one", ours, "the other", theirs, parity.MIN_AGREEMENT["f16"])


def test_every_type_has_a_threshold_and_those_of_16_bits_and_more_are_strict():
    assert set(parity.MIN_AGREEMENT) == set(TYPES)
    assert all(parity.MIN_AGREEMENT[name] >= 0.95 for name in ("f32", "f16", "bf16"))


def as_trained_in_4_bits(config):
    """Note in the manifest that the training was in 4 bits, as on a small GPU."""
    path = RunFolder.of(config).manifest_path("fine_tuning")
    manifest = files.read_json(path)
    manifest["metrics"]["precision"] = "4bit"
    files.write_json(path, manifest)


def test_without_bitsandbytes_what_was_trained_in_4_bits_is_not_merged_into_other_weights(trained, monkeypatch):
    as_trained_in_4_bits(trained)
    monkeypatch.setattr(loading, "has_bitsandbytes", lambda: False)
    with pytest.raises(UserError, match="needs bitsandbytes: run `pip install bitsandbytes`"):
        merge_and_convert.run(trained)


def test_what_was_trained_in_4_bits_is_merged_into_the_weights_that_it_was_trained_on(trained, tiny_model, capsys):
    functional = pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed").functional
    as_trained_in_4_bits(trained)
    name = "model.layers.0.mlp.down_proj.weight"
    original = load_file(tiny_model("phi3") / "model.safetensors")[name]
    rounded = functional.dequantize_4bit(
        *functional.quantize_4bit(original, quant_type="nf4", compress_statistics=True), quant_type="nf4"
    )
    adapter = load_file(trained.run_dir / "lora_model" / "adapter_model.safetensors")
    a, b = (adapter[f"base_model.model.{name.removesuffix('weight')}lora_{part}.weight"] for part in "AB")
    merged, agreements = {}, {}
    for base in ("trained", "original"):
        merge_and_convert.run(replace(trained, merge=MergeConfig(base=base)))
        merged[base] = load_file(trained.run_dir / "merged_model" / "model.safetensors")[name]
        found = metrics_of(trained)
        assert found["trained_in"] == "4bit"
        agreements[base] = abs(found["validation_loss"]["merged model"]["against_trained"]["value"])
    update = 2 * b @ a  # alpha / r
    assert torch.allclose(merged["trained"].float(), rounded.float() + update, atol=2e-3)
    assert torch.allclose(merged["original"].float(), original.float() + update, atol=2e-3)
    assert agreements["trained"] < 0.002 < agreements["original"]
