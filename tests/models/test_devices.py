"""The number format follows from what the device is fast in, or from the setting; it is printed and kept."""

from __future__ import annotations

import importlib.machinery
import os
import subprocess
import sys
import types
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import fine_tuning
import foundation_model
import ft_test_trained_model
import merge_and_convert
import process_data
import rag_indexing
from config import PRESETS, PROJECT_DIR, STAGES, LoraConfig, ModelConfig, RagConfig, TrainConfig
from pipeline.models import adapter, devices, language_model, loading
from pipeline.models.devices import ComputeFormat, Machine, compute_format
from pipeline.models.size import ModelSize, model_size
from pipeline.rag import embedding
from pipeline.run import files
from pipeline.run.errors import UserError
from pipeline.run.manifests import read_manifest
from pipeline.run.run_folder import RunFolder
from pipeline.training import duration, memory

PRODUCTS = ("output", "gradient of the weights", "gradient of the inputs")


def cpu(*speedups, free_memory=float("inf")):
    """A processor that multiplies so many times as fast in bfloat16, in the three products."""
    known = dict(zip(PRODUCTS, speedups, strict=False))
    seconds = lambda number_format, product: 1.0 if number_format == "float32" else 1 / known[product]  # noqa: E731
    return Machine("cpu", seconds, free_memory=free_memory)


def gpu(*capability):
    return Machine("cuda", lambda *_: pytest.fail("measured"), capability)


AVX2, AVX512, AMX = cpu(0.2, 0.2, 0.03), cpu(0.6, 0.6, 0.6), cpu(5.3, 2.7, 4.4)
APPLE = replace(cpu(1.9, 1.8, 1.7), device="mps")
OLD_APPLE = replace(cpu(), device="mps", seconds=lambda name, _: 1.0 if name == "float32" else float("inf"))


@pytest.mark.parametrize(
    ("machine", "purpose", "chosen", "why"),
    [
        (AVX2, "training", "float32", "bfloat16 multiplies matrices 0.2 times as fast as float32"),
        (AVX512, "training", "float32", "0.6 times"),
        (AMX, "training", "bfloat16", "2.7 times"),
        (APPLE, "training", "bfloat16", "1.7 times"),
        (OLD_APPLE, "training", "float32", "this device has no bfloat16"),
        (gpu(7, 5), "training", "float16", "compute capability 7.5 only emulates bfloat16"),
        (gpu(8, 0), "training", "bfloat16", "compute capability 8.0 is fast in it"),
        (gpu(9, 0), "training", "bfloat16", "compute capability 9.0 is fast in it"),
        (AVX2, "answering", "float32", "0.2 times"),
        (AMX, "answering", "bfloat16", "5.3 times"),
        (gpu(7, 5), "answering", "float16", "7.5"),
        (AVX2, "embedding", "float32", "0.2 times"),
        (AMX, "embedding", "bfloat16", "5.3 times"),
        (gpu(7, 5), "embedding", "float16", "7.5"),
        (AMX, "merging", "float32", "rounded once"),
        (gpu(9, 0), "merging", "float32", "rounded once"),
    ],
)
def test_the_format_is_what_the_device_is_fast_in(machine, purpose, chosen, why):
    form = compute_format(purpose, on=machine)
    assert form.name == chosen and why in form.reason


@pytest.mark.parametrize("slow", range(3))
def test_a_training_is_in_bfloat16_only_where_all_three_products_are_faster(slow):
    speedups = [3.0, 3.0, 3.0]
    speedups[slow] = 1.2
    assert compute_format("training", on=cpu(*speedups)).name == "float32"
    # Answers and embeddings need the first product alone.
    assert compute_format("answering", on=cpu(*speedups)).name == ("float32" if slow == 0 else "bfloat16")


def test_what_decides_already_is_not_measured_further():
    measured = []

    def seconds(number_format, product):
        measured.append(product)
        return 1.0

    compute_format("training", on=Machine("cpu", seconds))
    assert set(measured) == {"output"}


@pytest.mark.parametrize("asked", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("purpose", ["training", "answering", "embedding"])
def test_a_setting_decides_without_a_measurement(asked, purpose):
    never = Machine("cpu", lambda *_: pytest.fail("measured"))
    assert compute_format(purpose, asked, 1000, never) == ComputeFormat(asked, "as set")


def test_a_small_model_answers_in_32_bits_on_every_device():
    for machine in (AVX2, AMX, APPLE, gpu(7, 5), gpu(9, 0)):
        form = compute_format("answering", parameters=135_000_000, on=machine)
        assert form.name == "float32" and "below a billion" in form.reason


def test_a_model_that_fits_in_16_bits_alone_answers_in_them():
    for machine in (cpu(0.2, free_memory=20 * 2**30), replace(APPLE, free_memory=20 * 2**30, seconds=AVX2.seconds)):
        form = compute_format("answering", parameters=8_000_000_000, on=machine)
        assert form.name == "bfloat16" and "float32 would need 37.3 GiB of the 20.0 that are free" in form.reason
    assert compute_format("answering", parameters=8_000_000_000, on=cpu(0.2, free_memory=64 * 2**30)).name == "float32"


def test_this_processor_is_measured_and_the_program_s_random_numbers_stay_as_they_are():
    torch.manual_seed(5)
    wanted = torch.rand(3)
    torch.manual_seed(5)
    devices.product_seconds.cache_clear()
    form = compute_format("training", on=devices.machine("cpu"))
    assert torch.equal(torch.rand(3), wanted)
    assert form.name in ("float32", "bfloat16") and "times as fast as float32" in form.reason
    assert form.dtype == getattr(torch, form.name) and form.bytes == form.dtype.itemsize


def test_the_products_are_those_of_a_linear_layer():
    tokens, ins, outs = devices.TIMED_LAYER["cpu"]
    layer, inputs = torch.nn.Linear(ins, outs, bias=False), torch.randn(tokens, ins, requires_grad=True)
    output = layer(inputs)
    gradient = torch.randn_like(output)
    output.backward(gradient)
    products = devices.products(inputs, layer.weight, gradient)
    expected = (output, layer.weight.grad, inputs.grad)
    for product, value in zip(PRODUCTS, expected, strict=True):
        left, right = products[product]
        torch.testing.assert_close(left @ right, value, rtol=1e-3, atol=1e-3)


@pytest.fixture
def in_float32(make_config):
    """A run with cleaned records and a base model with files in float32."""
    config = make_config()
    process_data.run(config)
    return config


@pytest.mark.parametrize("asked", ["float32", "bfloat16"])
def test_a_whole_training_runs_in_each_format(in_float32, asked, capsys):
    config = replace(in_float32, model=replace(in_float32.model, compute_dtype=asked))
    fine_tuning.run(config)
    printed = capsys.readouterr().out
    assert f"computes in {asked} (as set)" in printed and f"base in {asked}" in printed and f"torch.{asked}" in printed
    metrics = read_manifest(RunFolder.of(config), "fine_tuning")["metrics"]
    assert (metrics["compute_dtype"], metrics["compute_dtype_reason"]) == (asked, "as set")
    assert metrics["validation_loss_after"] < metrics["validation_loss_before"]


@pytest.mark.parametrize(("machine", "chosen"), [(AVX2, "float32"), (AMX, "bfloat16")])
def test_the_choice_is_one_line_and_stands_in_the_manifest(in_float32, monkeypatch, capsys, machine, chosen):
    monkeypatch.setattr(devices, "machine", lambda _: replace(machine, free_memory=2**35))
    fine_tuning.run(in_float32)
    reason = compute_format("training", on=machine).reason
    assert capsys.readouterr().out.count(f"computes in {chosen} ({reason}).\n") == 1
    metrics = read_manifest(RunFolder.of(in_float32), "fine_tuning")["metrics"]
    assert (metrics["compute_dtype"], metrics["compute_dtype_reason"]) == (chosen, reason)


def test_every_stage_with_a_model_notes_its_format(in_float32, capsys):
    fine_tuning.run(in_float32)
    foundation_model.run(in_float32)
    ft_test_trained_model.run(in_float32, ft_test_trained_model.TestOptions())
    merge_and_convert.run(in_float32)
    rag_indexing.run(in_float32)
    reasons = {
        "foundation_model": "below a billion",
        "ft_test_trained_model": "below a billion",
        "merge_and_convert": "once",
    }
    for stage, reason in reasons.items():
        metrics = read_manifest(RunFolder.of(in_float32), stage)["metrics"]
        assert metrics["compute_dtype"] == "float32" and reason in metrics["compute_dtype_reason"], stage
    metrics = read_manifest(RunFolder.of(in_float32), "rag_indexing")["metrics"]
    assert metrics["precision"] == compute_format("embedding").name
    assert metrics["precision_reason"] == compute_format("embedding").reason
    assert metrics["precision_reason"] in capsys.readouterr().out


def test_an_interrupted_training_goes_on_in_its_format(in_float32, monkeypatch):
    monkeypatch.setattr(devices, "machine", lambda _: replace(AMX, free_memory=2**35))
    train = replace(in_float32.train, max_steps=2, save_steps=1)
    fine_tuning.run(replace(in_float32, train=train))
    monkeypatch.setattr(devices, "machine", lambda _: replace(AVX2, free_memory=2**35))
    (in_float32.run_dir / "checkpoints" / "checkpoint-2" / "hashes.json").unlink()  # as if killed before
    fine_tuning.run(replace(in_float32, train=replace(train, resume=True)))
    metrics = read_manifest(RunFolder.of(in_float32), "fine_tuning")["metrics"]
    assert metrics["compute_dtype"] == "bfloat16"
    assert metrics["compute_dtype_reason"] == "as the run that goes on"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_float16_without_a_gpu_is_refused_before_anything_is_loaded(make_config):
    config = replace(make_config(), model=ModelConfig(name="no/such-model", compute_dtype="float16"))
    with pytest.raises(UserError, match=r"float16 needs an NVIDIA GPU.*--model\.compute-dtype"):
        fine_tuning.run(config)


@pytest.mark.parametrize("number_format", ["float32", "bfloat16", "float16"])
def test_a_merged_model_has_the_format_of_the_base_and_is_rounded_once(in_float32, tmp_path, number_format):
    from pipeline.models.trained import adapter_folder

    dtype = getattr(torch, number_format)
    base = loading.load_base(in_float32.model, "16bit")
    base.model.to(dtype).save_pretrained(tmp_path / "base")
    base.tokenizer.save_pretrained(tmp_path / "base")
    config = replace(in_float32, model=ModelConfig(name=str(tmp_path / "base")))
    fine_tuning.run(config)
    merge_and_convert.run(config)
    assert read_manifest(RunFolder.of(config), "merge_and_convert")["metrics"]["merged_dtype"] == number_format
    merged = load_file(config.run_dir / "merged_model" / "model.safetensors")
    assert {weight.dtype for weight in merged.values()} == {dtype}
    before = load_file(tmp_path / "base" / "model.safetensors")
    adapter = load_file(adapter_folder(RunFolder.of(config), config.model.name, config.run_dir / "trn_processed.json") / "adapter_model.safetensors")  # fmt: skip
    scale = config.lora.alpha / config.lora.r
    changed = 0
    for name, weight in before.items():
        parts = [adapter.get(f"base_model.model.{name.removesuffix('.weight')}.lora_{part}.weight") for part in "AB"]
        exact = weight.double()
        if parts[0] is not None:
            exact = exact + scale * parts[1].double() @ parts[0].double()
            changed += not torch.equal(merged[name], weight)
        # One rounding from the exact sum, and what float32 may be off near the middle between two numbers.
        tolerance = torch.finfo(dtype).eps * exact.abs() * 0.5001 + 1e-7
        assert ((merged[name].double() - exact).abs() <= tolerance).all(), name
    assert changed == 7 * 2


def test_the_format_of_files_is_that_of_their_weights_whatever_their_config_says(in_float32, tmp_path):
    base = loading.load_base(in_float32.model, "16bit")
    base.model.save_pretrained(tmp_path / "base")
    base.tokenizer.save_pretrained(tmp_path / "base")
    path = tmp_path / "base" / "config.json"
    files.write_json(path, {**files.read_json(path), "dtype": "bfloat16"})
    assert loading.load_for_merging(ModelConfig(name=str(path.parent)), "16bit")[1] == torch.float32


def test_a_model_that_is_too_large_for_32_bits_is_merged_in_the_format_of_its_files(
    in_float32, tmp_path, monkeypatch, capsys
):
    base = loading.load_base(in_float32.model, "16bit")
    base.model.to(torch.float16).save_pretrained(tmp_path / "base")
    base.tokenizer.save_pretrained(tmp_path / "base")
    monkeypatch.setattr(devices, "free_memory", lambda _: 0)
    loaded, stored = loading.load_for_merging(ModelConfig(name=str(tmp_path / "base")), "16bit")
    assert stored == loaded.model.dtype == torch.float16 and loaded.compute_format.name == "float16"
    assert "merged in float16 (as the base model's files, since float32 would need" in capsys.readouterr().out


def test_rotary_frequencies_are_never_rounded(in_float32):
    loaded, stored = loading.load_for_merging(ModelConfig(), "16bit")  # SmolLM2, in bfloat16
    exact = loaded.model.model.rotary_emb.inv_freq.clone()
    assert stored == torch.bfloat16 and not torch.equal(exact, exact.bfloat16().float())
    tuned = adapter.add_adapter(loaded, LoraConfig(r=2, alpha=4), 1, False)
    merged = adapter.merge(tuned, stored)
    assert merged.model.dtype == torch.bfloat16
    language_model.cast_weights(merged.model, torch.float32)
    assert torch.equal(merged.model.model.rotary_emb.inv_freq, exact)


@pytest.mark.parametrize(
    ("asked", "capability", "chosen"),
    [
        ("auto", (7, 5), "unsloth"), ("float16", (7, 5), "unsloth"), ("bfloat16", (7, 5), None), ("float32", (7, 5), None),
        ("auto", (9, 0), "unsloth"), ("float16", (9, 0), "unsloth"), ("bfloat16", (9, 0), "unsloth"), ("float32", (9, 0), None),
    ],
)  # fmt: skip
def test_unsloth_is_not_asked_for_a_format_that_it_would_change(tiny_model, monkeypatch, asked, capability, chosen):
    unsloth = types.ModuleType("unsloth")
    unsloth.__spec__ = importlib.machinery.ModuleSpec("unsloth", None)
    monkeypatch.setitem(sys.modules, "unsloth", unsloth)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(devices, "machine", lambda _: gpu(*capability))
    model = ModelConfig(name=str(tiny_model("llama")), compute_dtype=asked)
    assert loading.prepare_backend(model) == (chosen or "transformers")
    if chosen is None:
        with pytest.raises(UserError, match=rf"Unsloth does not compute in {asked}.*--model\.backend transformers"):
            loading.prepare_backend(replace(model, backend="unsloth"))


def test_embeddings_that_are_not_finite_are_never_stored():
    with pytest.raises(UserError, match=r"not finite.*--rag\.embedding-precision float32"):
        embedding._of_length_one(np.array([[1.0, 2.0], [np.inf, 0.0]], np.float16))


def test_a_merge_that_is_not_finite_is_an_error(in_float32, tmp_path):
    base = loading.load_base(in_float32.model, "16bit")
    base.model.to(torch.float16).save_pretrained(tmp_path / "base")
    base.tokenizer.save_pretrained(tmp_path / "base")
    weights = load_file(tmp_path / "base" / "model.safetensors")
    name = "model.layers.1.mlp.down_proj.weight"
    weights[name][0, 0] = torch.finfo(torch.float16).max
    save_file(weights, tmp_path / "base" / "model.safetensors", {"format": "pt"})
    lora = LoraConfig(r=2, alpha=4, target_modules=("down_proj",))
    loaded, stored = loading.load_for_merging(ModelConfig(name=str(tmp_path / "base")), "16bit")
    tuned = adapter.add_adapter(loaded, lora, 1, False)
    for part, weight in tuned.model.named_parameters():
        if "layers.1" in part and "lora" in part:
            weight.data.fill_(100.0)  # each entry of the update is 40,000
    with pytest.raises(UserError, match=r"layers\.1\.mlp\.down_proj\.weight.*not finite in float16.*learning-rate"):
        adapter.merge(tuned, stored)


def test_embeddings_are_in_the_format_that_is_asked_for():
    for asked in ("float32", "bfloat16"):
        loaded = embedding.load_embeddings(RagConfig(embedding_precision=asked))
        assert embedding.sentence_transformer(loaded).dtype == getattr(torch, asked)


@pytest.mark.parametrize("script", [*STAGES, "app", "search_hyperparameters"])
@pytest.mark.parametrize("set_to", [None, "active"])
def test_threads_wait_without_spinning_unless_the_user_says_otherwise(script, set_to):
    code = (
        "import os, sys, runpy\n"
        "class Stop(Exception): pass\n"
        "class Watch:\n"
        "    def find_spec(self, name, *_):\n"
        "        if name == 'torch': print('policy', os.environ.get('OMP_WAIT_POLICY')); os._exit(0)\n"
        f"sys.meta_path.insert(0, Watch()); sys.argv = ['{script}.py', '--output-dir', '/nowhere']\n"
        "import pipeline.run.command_line as c\n"
        "c.print_settings = lambda *_: __import__('torch')\n"  # the first that a stage does after its settings
        f"runpy.run_path('{script}.py', run_name='__main__')\n"
    )
    environment = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    environment |= {"OMP_WAIT_POLICY": set_to} if set_to else {}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=PROJECT_DIR, capture_output=True, text=True, env=environment
    )
    assert done.stdout == f"policy {set_to or 'passive'}\n", done.stderr


SIZE = ModelSize(
    linear=10**9, other=0, adapter=10**6, layers=10, hidden=1000, heads=1, vocabulary=0, features=1, adapter_inputs=0,
    largest=1, quantized_files=False,
)  # fmt: skip


def slow_machine(operations_per_second):
    layer = 2 * devices.TIMED_LAYER["cpu"][0] * devices.TIMED_LAYER["cpu"][1] * devices.TIMED_LAYER["cpu"][2]
    return Machine("cpu", lambda *_: layer / operations_per_second)


def plan(checkpointing=False):
    nothing = memory.MemoryEstimate(0, 0, 0, 0)
    return memory.TrainingPlan("16bit", ComputeFormat("float32", ""), checkpointing, 1, 100, nothing, 0)


def test_a_training_of_more_than_an_hour_says_so_and_names_the_setting(capsys):
    train = TrainConfig(batch_size=4, gradient_accumulation_steps=2, epochs=1)
    lengths = [100] * 8000  # 1,000 steps of 800 tokens
    # 2 × 1e9 weights × 800,000 tokens, forward and backward, at 0.6 of the rate
    rate = 2 * 2e9 * 800_000 / 0.6 / 7200
    duration.warn_if_long(SIZE, plan(), train, lengths, slow_machine(rate), 1)
    assert "about 2 h for the 1,000 steps" in (said := capsys.readouterr().out)
    assert "In an hour it makes about 500: --train.max-steps" in said
    duration.warn_if_long(SIZE, plan(), train, lengths, slow_machine(2.1 * rate), 1)
    duration.warn_if_long(SIZE, plan(), train, lengths, slow_machine(rate), 4)
    assert capsys.readouterr().out == ""
    duration.warn_if_long(SIZE, plan(checkpointing=True), train, lengths, slow_machine(rate), 1)
    assert "about 3 h" in capsys.readouterr().out


def test_the_stage_tells_it_before_the_model_is_loaded(in_float32, monkeypatch, capsys):
    monkeypatch.setattr(devices, "machine", lambda _: replace(slow_machine(1.0), free_memory=2**35))
    fine_tuning.run(in_float32)
    printed = capsys.readouterr().out
    assert 0 < printed.index("this machine will need about") < printed.index("computes in")


@pytest.mark.parametrize(
    ("train", "steps", "tokens"),
    [
        (TrainConfig(epochs=2, batch_size=2, gradient_accumulation_steps=1), 100, 20_000),
        (TrainConfig(max_steps=7, batch_size=2, gradient_accumulation_steps=1), 7, 1400),
        (TrainConfig(batching="packed", tokens_per_step=1000, epochs=3), 30, 30_000),
        (TrainConfig(batching="packed", tokens_per_step=1000, max_steps=4), 4, 4000),
    ],
)
def test_the_work_of_a_training(train, steps, tokens):
    assert duration.training_operations(train, [100] * 100) == (steps, tokens)


def test_the_demo_is_no_long_training_on_the_slowest_processor_measured():
    demo, size = PRESETS["demo"], model_size(PRESETS["demo"].model, PRESETS["demo"].lora)
    steps, tokens = duration.training_operations(demo.train, [139] * 320)
    assert steps == 40 and duration.expected_seconds(size, plan(), tokens, slow_machine(36e9)) < 3600
