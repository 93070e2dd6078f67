"""Weights that are not there, are of another model, or are no numbers: said, with their names, where a model is loaded."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from tiny_models import build_encoder, change_weights

from config import LoraConfig, ModelConfig, RagConfig
from pipeline.models import adapter, loading
from pipeline.rag import embedding, reranking
from pipeline.run.errors import UserError

UP = "model.layers.1.mlp.up_proj.weight"


def renamed(weights, name):
    """Give all weights other names."""
    for old in list(weights):
        weights[name(old)] = weights.pop(old)


def no_number(weights, name):
    weights[name][0, 0] = float("nan")


def narrower(weights, name):
    weights[name] = weights[name][:-1]


CHANGES = {
    "one is missing": (lambda weights: weights.pop(UP), f"missing: {UP}"),
    "a norm is missing": (lambda weights: weights.pop("model.norm.weight"), "missing: model.norm.weight"),
    "other names": (
        lambda weights: renamed(weights, "transformer.{}".format),
        "missing: lm_head.weight, .* and 18 more",
    ),
    "another shape": (
        lambda weights: narrower(weights, UP),
        rf"another shape: {UP} \[127, 64\] instead of \[128, 64\]",
    ),
    "a bias that the model has not": (
        lambda weights: weights.update({UP.replace("weight", "bias"): torch.zeros(128)}),
        "not in the model: model.layers.1.mlp.up_proj.bias",
    ),
    "no number": (lambda weights: no_number(weights, UP), f"{UP} in its files holds numbers that are not finite"),
    "no number in a norm": (lambda weights: weights["model.norm.weight"].fill_(torch.inf), "model.norm.weight in its"),
}


@pytest.fixture
def llama(tiny_model, tmp_path):
    """A copy of a tiny model."""
    return shutil.copytree(tiny_model("llama"), tmp_path / "llama")


def load(folder, **settings):
    return loading.load_base(ModelConfig(name=str(folder), **settings), "16bit")


@pytest.mark.parametrize("change", CHANGES)
def test_a_base_model_without_its_weights(llama, change):
    how, said = CHANGES[change]
    change_weights(llama, how)
    for attempt in (load, lambda folder: loading.load_for_merging(ModelConfig(name=str(folder)), "16bit")):
        with pytest.raises(UserError, match=rf"could not be loaded: .*{said}.* Check --model\.name"):
            attempt(llama)


def test_a_base_model_with_more_layers_than_its_settings_say(llama):
    settings = json.loads((llama / "config.json").read_text())
    (llama / "config.json").write_text(json.dumps({**settings, "num_hidden_layers": 1, "layer_types": None}))
    with pytest.raises(UserError, match=r"not in the model: model\.layers\.1\.input_layernorm\.weight"):
        load(llama)


def test_what_is_computed_or_belongs_to_another_task_may_be_there(llama):
    extra = ("model.layers.0.self_attn.rotary_emb.inv_freq", "model.layers.0.self_attn.masked_bias", "v_head.weight")
    change_weights(llama, lambda weights: weights.update({name: torch.ones(1) for name in extra}))
    assert load(llama).model.num_parameters() > 0


def test_weights_that_are_tied_may_be_missing(llama):
    settings = json.loads((llama / "config.json").read_text())
    (llama / "config.json").write_text(json.dumps({**settings, "tie_word_embeddings": True}))
    change_weights(llama, lambda weights: weights.pop("lm_head.weight"))
    model = load(llama).model
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight


@pytest.mark.parametrize(("factor", "place"), [(1e6, "up_proj.weight"), (3e4, "(up|down)_proj")])
def test_a_model_that_float16_cannot_hold(llama, factor, place):
    change_weights(llama, lambda weights: weights["model.layers.0.mlp.up_proj.weight"].mul_(factor))
    said = rf"leaves the range of float16 in model\.layers\.0\.mlp\.{place}\. .* bfloat16, or float32"
    with pytest.raises(UserError, match=said):
        load(llama, compute_dtype="float16")
    assert load(llama, compute_dtype="bfloat16")


def embed(folder):
    return embedding.load_embeddings(RagConfig(embedding_model=str(folder))).embed_query("ballet")


@pytest.fixture
def encoder(tmp_path):
    """A function that returns the folder of a tiny encoder of a class of transformers."""

    def build(kind):
        folder = tmp_path / kind
        folder.mkdir()
        build_encoder(folder, kind)
        return folder

    return build


@pytest.mark.parametrize(("change", "said"), [
    (lambda weights: weights.pop("encoder.layer.1.output.dense.weight"), r"missing: encoder\.layer\.1\.output\.dense"),
    (lambda weights: narrower(weights, "encoder.layer.1.output.dense.weight"), r"encoder\.layer\.1\.output\.dense.*\[15, 16\]"),
    (lambda weights: renamed(weights, "model.{}".format), r"missing: embeddings\.LayerNorm\.bias"),
    (lambda weights: no_number(weights, "encoder.layer.1.output.dense.weight"), "dense.weight in its files holds numbers"),
])  # fmt: skip
def test_an_embedding_model_without_its_weights(encoder, change, said):
    folder = encoder("BertModel")
    change_weights(folder, change)
    with pytest.raises(UserError, match=rf"could not be loaded: .*{said}.* Check --rag\.embedding-model\."):
        embed(folder)


def test_an_embedding_model_from_one_that_fills_in_words_has_a_head_and_no_pooler(encoder):
    vector = embed(encoder("BertForMaskedLM"))
    assert sum(x * x for x in vector) == pytest.approx(1, abs=1e-2)


def test_an_embedding_model_is_no_reranker(encoder):
    with pytest.raises(
        UserError, match=r"reranker .*missing: classifier\.bias.* --rag\.reranker: it names a cross-encoder"
    ):
        reranking.load_reranker(str(encoder("BertModel")))
    with pytest.raises(UserError, match=r"reranker .*another shape: classifier\.bias \[2\] instead of \[1\]"):
        reranking.load_reranker(str(encoder("BertForSequenceClassification")))


@pytest.fixture(scope="module")
def trained(tiny_model, tmp_path_factory):
    """The folder of an adapter of a tiny model."""
    folder = tmp_path_factory.mktemp("adapter")
    tuned = adapter.add_adapter(load(tiny_model("llama")), LoraConfig(r=2), seed=1, checkpointing=False)
    tuned.peft_model.save_pretrained(folder)
    return folder


DOWN = "base_model.model.model.layers.0.mlp.down_proj.lora_A.weight"


@pytest.mark.parametrize(("change", "said"), [
    (lambda weights: weights.pop(DOWN), f"does not fit .*: it has no {DOWN}"),
    (lambda weights: weights.update({DOWN.replace("s.0", "s.7"): weights[DOWN]}), r"is not of this model, .*layers\.7\.mlp"),
    (lambda weights: narrower(weights, DOWN), "was trained on a model of another shape"),
    (lambda weights: no_number(weights, DOWN), f"holds numbers that are not finite, in {DOWN}"),
])  # fmt: skip
def test_an_adapter_without_its_weights(trained, tiny_model, tmp_path, change, said):
    folder = shutil.copytree(trained, tmp_path / "lora_model")
    change_weights(folder, change)
    with pytest.raises(UserError, match=said):
        adapter.load_adapter(load(tiny_model("llama")), folder)


def test_an_adapter_of_another_model(trained, tiny_model):
    with pytest.raises(UserError, match="does not fit"):
        adapter.load_adapter(load(tiny_model("wide_llama")), trained)
