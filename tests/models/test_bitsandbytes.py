"""What needs bitsandbytes on a GPU says so before anything is loaded, with the command that installs it."""

from __future__ import annotations

import importlib.util
import json
import shutil
from dataclasses import replace

import pytest

from config import PRESETS, ModelConfig
from pipeline.models import devices, loading, precision
from pipeline.run.errors import UserError
from pipeline.training import plan

INSTALL = "needs bitsandbytes: run `pip install bitsandbytes`, or "


@pytest.fixture(autouse=True)
def gpu_without_bitsandbytes(monkeypatch):
    """An NVIDIA GPU, on which no model may be loaded yet."""
    find = importlib.util.find_spec

    def loaded(*_, **__):
        raise AssertionError("the model is loaded")

    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "bitsandbytes" else find(name, *rest)
    )
    for module in (devices, loading, precision):
        monkeypatch.setattr(module, "best_device", lambda: "cuda")
    monkeypatch.setattr(loading, "_load_with_transformers", loaded)
    monkeypatch.setattr("transformers.AutoModelForCausalLM.from_pretrained", loaded)
    monkeypatch.setattr(precision, "compute_format", lambda *_: devices.ComputeFormat("bfloat16", "as set"))


@pytest.fixture
def quantized(tiny_model, tmp_path):
    """A function that returns a model whose files some method has quantized; None names none."""

    def make(method):
        folder = tmp_path / "model"
        shutil.copytree(tiny_model("llama"), folder)
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        config["quantization_config"] = {"load_in_4bit": True} | ({"quant_method": method} if method else {})
        (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
        return ModelConfig(name=str(folder))

    return make


def refused(call, needing, otherwise):
    """Check that a call ends in the sentence."""
    with pytest.raises(UserError) as raised:
        call()
    assert needing in str(raised.value) and str(raised.value).endswith(f"{INSTALL}{otherwise}.")


def test_four_bits(tiny_model):
    model = ModelConfig(name=str(tiny_model("llama")), precision="4bit")
    for call in (lambda: loading.prepare_backend(model), lambda: precision.precision_to_answer(model)):
        refused(call, "--model.precision 4bit", "give --model.precision 16bit")


def test_an_adapter_that_was_trained_in_four_bits(tiny_model):
    model = ModelConfig(name=str(tiny_model("llama")))
    refused(lambda: loading.load_base(model, "4bit"), "Loading in 4 bits", "give --model.precision 16bit")


@pytest.mark.parametrize("method", ["bitsandbytes", None])
def test_files_that_are_quantized(quantized, method):
    model = quantized(method)
    for call in (
        lambda: loading.prepare_backend(model), lambda: precision.precision_to_answer(model),
        lambda: loading.load_base(model, "16bit"), lambda: loading.load_for_merging(model, "16bit"),
    ):  # fmt: skip
        refused(call, f"{model.name}, whose files hold quantized weights,", "name another model with --model.name")


def test_a_model_that_does_not_fit_in_16_bits(tiny_model, monkeypatch):
    model = ModelConfig(name=str(tiny_model("llama")))
    monkeypatch.setattr(precision, "free_memory", lambda _: 2**40)
    assert precision.precision_to_answer(model) == "16bit"
    monkeypatch.setattr(precision, "free_memory", lambda _: 2**10)
    refused(lambda: precision.precision_to_answer(model), "in 16 bits", "name a smaller model with --model.name")


@pytest.mark.parametrize("optimizer", ["adamw_8bit", "paged_adamw_8bit"])
def test_an_optimizer_of_8_bits(optimizer):
    demo = PRESETS["demo"]
    config = replace(demo, train=replace(demo.train, optimizer=optimizer))
    refused(
        lambda: plan.check_settings(config),
        f"--train.optimizer {optimizer}",
        "give --train.optimizer adamw_torch",
    )
    plan.check_settings(demo)
