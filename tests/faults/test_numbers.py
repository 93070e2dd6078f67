"""Numbers that leave their format, and trainings that leave the model worse than it was: said, with the remedy."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace

import pytest
import torch
from tiny_models import change_weights, sample_lines, tiny_config

import fine_tuning
import merge_and_convert
import process_data
from config import GenerationConfig, GgufConfig, LoraConfig, ModelConfig
from pipeline.export import parity
from pipeline.models import finite, loading
from pipeline.models.generation import Reading
from pipeline.run import manifests
from pipeline.run.errors import UserError
from pipeline.run.run_folder import RunFolder
from pipeline.training import report
from pipeline.training.progress import require_numbers

UP, DOWN = "model.layers.0.mlp.up_proj.weight", "model.layers.0.mlp.down_proj.weight"


def outlier(weights, factor):
    """One channel is large, and made small again by the next layer, as in bfloat16 checkpoints of some models."""
    weights[UP][0] *= factor
    weights[DOWN][:, 0] /= factor


@pytest.fixture(scope="module")
def run(tiny_model, tmp_path_factory):
    """Settings of a run whose base model has an outlier, with its cleaned records."""
    folder = tmp_path_factory.mktemp("numbers")
    shutil.copytree(tiny_model("llama"), folder / "llama")
    change_weights(folder / "llama", lambda weights: outlier(weights, 1e4))
    config = tiny_config(folder / "llama", folder / "outputs")
    config = replace(
        config, prompt=replace(config.prompt, format="alpaca"), lora=LoraConfig(r=2, alpha=2),
        train=replace(config.train, validation_size=2, eval_steps=None), generation=GenerationConfig(2, 0.0),
    )  # fmt: skip
    process_data.run(config)
    return config


def trained_with(config, **train):
    return replace(config, train=replace(config.train, **train))


def test_a_gguf_in_f16_of_a_model_that_needs_more(run):
    fine_tuning.run(trained_with(run, max_steps=1, learning_rate=1e-4))
    small = GgufConfig(type="f16", parity_prompts=1, parity_tokens=2)
    with pytest.raises(
        UserError, match=r"in f16 end at 65,504, and model\.layers\.0\.mlp\.down_proj is given .*type bf16\."
    ):
        merge_and_convert.run(replace(run, gguf=small))
    assert not list(run.run_dir.glob("*.gguf"))
    merge = replace(run.merge, validation_size=2, validation_tokens=4)
    merge_and_convert.run(replace(run, gguf=replace(small, type="bf16", min_agreement=0.5), merge=merge))
    assert (run.run_dir / "model-bf16.gguf").exists()


@pytest.mark.parametrize(("number_format", "largest", "fits"), [
    ("f16", 65_504, True), ("f16", 65_505, False), ("bf16", 1e30, True), ("f32", 1e30, True), ("q8_0", 1e6, True),
    ("q8_0", 1e7, False),
])  # fmt: skip
@pytest.mark.parametrize("where", ["weights", "inputs"])
def test_the_range_of_each_type(number_format, largest, fits, where):
    layer = torch.nn.Linear(2, 2)
    torch.nn.init.constant_(layer.weight, largest if where == "weights" else 1.0)
    with finite.largest_inputs(torch.nn.Sequential(layer)) as inputs:
        layer(torch.tensor([[1.0, -largest if where == "inputs" else 1.0]]))
    assert inputs["0"] == pytest.approx(largest if where == "inputs" else 1.0)
    if fits:
        parity.check_range(number_format, layer, inputs)
    else:
        with pytest.raises(UserError, match=r"(weight holds|0 is given) .*bf16"):
            parity.check_range(number_format, layer, inputs)


def test_a_gguf_without_numbers():
    parity.check_numbers("f16", [Reading([1], [0.5])])
    with pytest.raises(UserError, match=r"in q8_0 computes what is no number.*--gguf\.type bf16"):
        parity.check_numbers("q8_0", [Reading([1, 2], [0.5, math.nan])])


def prefers_words_of(weights, ids):
    """Each embedding has the same large number, which makes some tokens likelier: what a training can destroy."""
    weights["model.embed_tokens.weight"][:, 0] = 100
    weights["lm_head.weight"][:, 0] = -0.5
    weights["lm_head.weight"][ids, 0] = 0.5


def test_a_learning_rate_that_makes_the_model_worse(run, tmp_path, capsys):
    folder = shutil.copytree(run.model.name, tmp_path / "llama")
    ids = loading.load_tokenizer(str(folder))("\n".join(sample_lines()))["input_ids"]
    change_weights(folder, lambda weights: prefers_words_of(weights, ids))
    harmful = replace(run, model=ModelConfig(name=str(folder)), lora=LoraConfig(r=2, alpha=256))
    harmful = trained_with(harmful, learning_rate=1.0, max_steps=2)
    said = r"has made the model worse: .*`python fine_tuning\.py .*--train\.learning-rate 0\.1"
    with pytest.raises(UserError, match=said):
        fine_tuning.run(harmful)
    assert "final training loss" in capsys.readouterr().out
    figures = manifests.read_manifest(RunFolder.of(run), "fine_tuning")["metrics"]
    assert figures["validation_loss_after"] > figures["validation_loss_before"] + report.WORSE
    assert fine_tuning.run(trained_with(harmful, allow_worse=True)).exists()


def test_a_training_that_breaks_down_ends_at_once_and_saves_nothing(run, monkeypatch):
    folder = fine_tuning.run(trained_with(run, max_steps=1, learning_rate=1e-4))
    before = {path: path.read_bytes() for path in folder.iterdir()}

    def broken(weights):
        with torch.no_grad():
            next(weight for weight in weights if weight.requires_grad).fill_(math.nan)

    step = torch.optim.AdamW.step

    def breaks(self, *arguments, **named):
        step(self, *arguments, **named)
        broken(weight for group in self.param_groups for weight in group["params"])

    monkeypatch.setattr(torch.optim.AdamW, "step", breaks)
    with pytest.raises(
        UserError, match=r"at step [12], the loss is not a number .* No adapter is saved\. Run `python fine_"
    ):
        fine_tuning.run(trained_with(run, max_steps=50))
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


def test_what_a_loss_that_is_no_number_means():
    layer = torch.nn.Linear(2, 2)
    require_numbers({"loss": 3.0, "validation_loss": 2.0}, 0, layer)
    require_numbers({"loss": math.nan}, 5, layer)  # of a step that float16 leaves out
    with pytest.raises(UserError, match=r"base model is not a number.*--model\.compute-dtype float32"):
        require_numbers({"validation_loss": math.nan}, 0, layer)
    with pytest.raises(report.Diverged, match="at step 5"):
        require_numbers({"validation_loss": math.inf}, 5, layer)
    torch.nn.init.constant_(layer.weight, math.nan)
    with pytest.raises(report.Diverged, match="at step 5"):
        require_numbers({"loss": math.nan}, 5, layer)


def test_a_little_more_is_noise():
    for after, worse in ((2.0, False), (2.09, False), (2.11, True), (9.0, True)):
        metrics = {"validation_loss_before": 2.0, "validation_loss_after": after}
        if worse:
            with pytest.raises(report.Diverged, match=r"was 2\.0000 and is"):
                report.require_better(metrics)
        else:
            report.require_better(metrics)
    report.require_better({})  # no validation records


def test_a_base_model_without_numbers_is_not_trained(run, tmp_path):
    folder = shutil.copytree(run.model.name, tmp_path / "llama")
    change_weights(folder, lambda weights: weights[UP].fill_(math.nan))
    with pytest.raises(UserError, match=f"{UP} in its files holds numbers that are not finite"):
        fine_tuning.run(replace(run, model=ModelConfig(name=str(folder))))
    assert json.loads((folder / "config.json").read_text())["model_type"] == "llama"


def test_float16_is_left_by_activations_alone(run):
    model = loading.load_base(run.model, "16bit").model
    assert max(weight.abs().max() for weight in model.parameters()) < parity.F16_MAX
