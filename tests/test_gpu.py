"""What only a GPU can show: 4 bits, the attention kernel, Unsloth. Skipped, visibly, where there is none."""

from __future__ import annotations

import contextlib
import importlib.util
from dataclasses import replace

import pytest
import torch
from transformers import AutoModelForCausalLM

import fine_tuning
import foundation_model
import ft_test_trained_model
import process_data
from config import LoraConfig, ModelConfig
from pipeline import language_model
from pipeline.artifacts import read_json, read_manifest
from pipeline.attention import end_to_end_attention
from pipeline.batching import lay_end_to_end
from pipeline.training_log import read_log

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")]
BACKENDS = [
    "transformers",
    pytest.param(
        "unsloth",
        marks=pytest.mark.skipif(importlib.util.find_spec("unsloth") is None, reason="Unsloth is not installed"),
    ),
]


@pytest.mark.parametrize("architecture", ["llama", "phi3", "mistral"])
def test_each_record_has_the_loss_it_has_alone(tiny_model, architecture):
    model = AutoModelForCausalLM.from_pretrained(tiny_model(architecture), dtype=torch.bfloat16).cuda().train()
    generator = torch.Generator().manual_seed(3)
    rows = [torch.randint(3, 700, (length,), generator=generator).tolist() for length in (9, 40, 300, 64)]
    alone = sum(
        model(input_ids=row, labels=row, num_items_in_batch=1).loss.item()
        for row in (torch.tensor([ids], device="cuda") for ids in rows)
    )
    inputs = lay_end_to_end([{"input_ids": ids, "labels": ids} for ids in rows], "transformers")
    inputs = {name: value.cuda() if torch.is_tensor(value) else value for name, value in inputs.items()}
    with end_to_end_attention(model):
        together = model(**inputs, num_items_in_batch=1).loss.item()
    assert together == pytest.approx(alone, rel=2e-3)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("architecture", ["llama", "mistral"])
def test_each_record_has_the_loss_it_has_alone_with_its_backend(tiny_model, backend, architecture):
    model = ModelConfig(name=str(tiny_model(architecture)), backend=backend)
    tuned = language_model.add_adapter(
        language_model.load_base(model, "16bit", 512, training=True), LoraConfig(r=4), seed=1, checkpointing=False
    )
    language_model.set_training(tuned, True)
    generator = torch.Generator().manual_seed(3)
    rows = [torch.randint(3, 700, (length,), generator=generator).tolist() for length in (9, 40, 300, 64)]
    records = [{"input_ids": ids, "labels": ids} for ids in rows]
    losses = []
    with end_to_end_attention(tuned.model) if backend == "transformers" else contextlib.nullcontext():
        for some in (*([record] for record in records), records):
            inputs = lay_end_to_end(some, backend)
            inputs = {name: value.cuda() if torch.is_tensor(value) else value for name, value in inputs.items()}
            with torch.autocast("cuda", torch.bfloat16):
                losses.append(tuned.model(**inputs)["loss"].item() * sum(len(r["labels"]) - 1 for r in some))
    assert losses[-1] == pytest.approx(sum(losses[:-1]), rel=5e-3)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("precision", ["4bit", "16bit"])
@pytest.mark.parametrize("batching", ["faithful", "packed"])
def test_training_goes_on_and_answers(make_config, backend, precision, batching):
    config = make_config()
    config = replace(
        config,
        model=replace(config.model, backend=backend, precision=precision),
        train=replace(config.train, batching=batching, tokens_per_step=1024, optimizer="adamw_8bit"),
    )
    process_data.run(config)
    fine_tuning.run(replace(config, train=replace(config.train, save_steps=2)))
    metrics = read_manifest(config.run_dir, "fine_tuning")["metrics"]
    assert (metrics["backend"], metrics["precision"]) == (backend, precision)
    log = read_log(config.run_dir / "training_log.jsonl")
    (config.run_dir / "checkpoints" / "checkpoint-4" / "trainer_state.json").unlink()  # as if killed after step 2
    fine_tuning.run(replace(config, train=replace(config.train, resume=True)))
    for one, other in zip(read_log(config.run_dir / "training_log.jsonl"), log, strict=True):
        assert one.get("loss") == pytest.approx(other.get("loss"), abs=2e-2)
    answers = read_json(ft_test_trained_model.run(config, ft_test_trained_model.TestOptions()))["answers"]
    assert answers and all(answer["tokens"] for answer in answers)


@pytest.mark.parametrize("backend", BACKENDS)
def test_answers_in_batches_are_those_one_by_one(make_config, backend):
    config = make_config()
    config = replace(config, model=replace(config.model, backend=backend, precision="16bit"))
    process_data.run(config)
    texts = []
    for batch_size in (1, 8):
        answers = replace(config.answers, batch_size=batch_size)
        saved = read_json(foundation_model.run(replace(config, answers=answers)))
        texts.append([answer["answer"] for answer in saved["answers"]])
    assert texts[0] == texts[1]
