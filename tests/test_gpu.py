"""What only a GPU can show: 4 bits, the attention kernel, Unsloth. Skipped, visibly, where there is none.

Stages run in processes of their own, since Unsloth changes transformers for the whole of a process.
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from config import PROJECT_DIR
from pipeline.evaluation import answers
from pipeline.run.errors import UserError
from pipeline.run.files import read_json
from pipeline.run.manifests import read_manifest
from pipeline.run.run_folder import RunFolder
from pipeline.training.attention import own_or_end_to_end_attention
from pipeline.training.batching import lay_end_to_end
from pipeline.training.log import read_log

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")]
UNSLOTH_MISSING = pytest.mark.skipif(importlib.util.find_spec("unsloth") is None, reason="Unsloth is not installed")
BACKENDS = ["transformers", pytest.param("unsloth", marks=UNSLOTH_MISSING)]
TRAINING = ("--prompt.format", "alpaca", "--train.sample-size", "4", "--train.batch-size", "4",
            "--train.gradient-accumulation-steps", "1", "--train.learning-rate", "2e-2", "--train.validation-size", "2",
            "--train.logging-steps", "1", "--questions.held-out", "1", "--generation.max-new-tokens", "4")  # fmt: skip


@pytest.fixture
def run_stage(tiny_model, tmp_path):
    """A function that runs a script on a tiny model and returns its folder of outputs."""

    def run(script: str, architecture: str, *options: str) -> Path:
        command = [sys.executable, script, "--output-dir", str(tmp_path), *options]
        if script != "process_data.py":
            command += ["--model.name", str(tiny_model(architecture))]
        done = subprocess.run(command, cwd=PROJECT_DIR, capture_output=True, text=True, encoding="utf-8")
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
        (tmp_path / "printed.txt").write_text(done.stdout, encoding="utf-8")
        return tmp_path / "demo"

    return run


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
    with own_or_end_to_end_attention(model, "transformers", "end_to_end"):
        together = model(**inputs, num_items_in_batch=1).loss.item()
    assert together == pytest.approx(alone, rel=2e-3)


@pytest.mark.parametrize("architecture", ["llama", "mistral"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_records_end_to_end_have_the_loss_they_have_one_by_one(run_stage, backend, architecture):
    run_stage("process_data.py", architecture)
    losses = []
    for passes in (1, 4):
        run_dir = run_stage(
            "fine_tuning.py", architecture, *TRAINING, "--train.max-steps", "1", "--model.backend", backend,
            "--train.passes", str(passes), "--model.precision", "16bit",
        )  # fmt: skip
        metrics = read_manifest(RunFolder(run_dir), "fine_tuning")["metrics"]
        assert (metrics["backend"], metrics["passes"]) == (backend, passes)
        losses.append([line["loss"] for line in read_log(run_dir / "training_log.jsonl") if "loss" in line])
    assert losses[0] == pytest.approx(losses[1], rel=2e-3)


@pytest.mark.parametrize("precision", ["4bit", "16bit"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_float16_learns_what_bfloat16_learns(run_stage, backend, precision):
    run_stage("process_data.py", "wide_llama")
    losses = []
    for number_format in ("bfloat16", "float16"):
        run_dir = run_stage(
            "fine_tuning.py", "wide_llama", *TRAINING, "--train.max-steps", "20", "--train.learning-rate", "1e-3",
            "--model.backend", backend, "--model.precision", precision, "--model.compute-dtype", number_format,
            "--train.optimizer", "adamw_8bit",
        )  # fmt: skip
        metrics = read_manifest(RunFolder(run_dir), "fine_tuning")["metrics"]
        assert (metrics["backend"], metrics["precision"], metrics["compute_dtype"]) == (
            backend,
            precision,
            number_format,
        )
        losses.append([line["loss"] for line in read_log(run_dir / "training_log.jsonl") if "loss" in line])
    assert losses[1] == pytest.approx(losses[0], rel=2e-2) and losses[1][-1] < losses[1][0]


@pytest.mark.parametrize("precision, batching", [("4bit", "faithful"), ("16bit", "packed")])
@pytest.mark.parametrize("backend", BACKENDS)
def test_training_goes_on_and_answers_in_batches_as_one_by_one(run_stage, backend, precision, batching):
    run_stage("process_data.py", "wide_llama")
    options = [
        *TRAINING, "--train.max-steps", "60", "--train.save-steps", "30", "--train.batching", batching,
        "--model.backend", backend, "--model.precision", precision, "--lora.r", "16", "--train.optimizer", "adamw_8bit",
    ]  # fmt: skip
    run_dir = run_stage("fine_tuning.py", "wide_llama", *options)
    metrics = read_manifest(RunFolder(run_dir), "fine_tuning")["metrics"]
    assert (metrics["backend"], metrics["precision"]) == (backend, precision)
    log = read_log(run_dir / "training_log.jsonl")
    (run_dir / "checkpoints" / "checkpoint-60" / "hashes.json").unlink()  # as if killed before it was written
    run_stage("fine_tuning.py", "wide_llama", *options, "--train.resume")
    resumed = read_log(run_dir / "training_log.jsonl")
    assert [line["step"] for line in resumed] == [line["step"] for line in log]
    assert resumed[32].get("loss") == pytest.approx(
        log[32].get("loss"), rel=0.1
    )  # sums are taken in any order on a GPU
    assert (
        min(line["loss"] for line in resumed if "loss" in line) < 2
    )  # learned, so that its answers are no coin tosses
    titles = [record["input"] for record in json.loads((run_dir / "trn_processed_dataset.json").read_text())]
    texts = []
    for batch_size in ("1", "4"):
        run_stage(
            "ft_test_trained_model.py", "wide_llama", "--model.backend", backend, "--model.precision", precision,
            "--answers.batch-size", batch_size, "--answers.max-new-tokens", "12", "--answers.temperature", "0",
            "--questions.held-out", "0", "--questions.examples", *titles,
        )  # fmt: skip
        texts.append([answer["answer"] for answer in read_json(run_dir / "finetuned_answers.json")["answers"]])
    assert texts[0] == texts[1] and all(texts[0])


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_columns_of_a_run_are_answered_in_the_precision_of_its_training(run_stage, backend, tmp_path):
    model = ("--model.backend", backend)
    short = ("--answers.max-new-tokens", "4", "--questions.held-out", "2")
    stages = {"Foundation": "foundation_model", "Fine-tuned": "ft_test_trained_model"}

    def columns():
        run = RunFolder(run_dir)
        names = ("foundation_answers.json", "finetuned_answers.json")
        return run, {column: answers.read(run, name) for column, name in zip(stages, names, strict=True)}

    run_stage("process_data.py", "wide_llama")
    asked = (*model, *short, "--prompt.format", "alpaca")
    run_stage("foundation_model.py", "wide_llama", *asked)
    training = (*TRAINING, "--train.max-steps", "4", "--train.optimizer", "adamw_8bit")
    run_stage("fine_tuning.py", "wide_llama", *model, *training, "--model.precision", "4bit")
    assert "answered in 16bit, and this training is in 4bit" in (tmp_path / "printed.txt").read_text(encoding="utf-8")
    run_dir = run_stage("ft_test_trained_model.py", "wide_llama", *model, *short, "--questions.general", "3")
    run, mixed = columns()
    assert [file["runs_on"]["precision"] for file in mixed.values()] == ["16bit", "4bit"]
    read = mixed["Fine-tuned"]["general"]
    assert len(read) == 3 and all(text["kl"] > 0 for text in read)
    with pytest.raises(UserError, match="different precisions: 16bit, 4bit"):
        answers.check_made_from(run, mixed, stages)
    run_stage("foundation_model.py", "wide_llama", *asked)
    run, alike = columns()
    assert [file["runs_on"]["precision"] for file in alike.values()] == ["4bit", "4bit"]
    assert answers.check_made_from(run, alike, stages) == []
    before, after = (
        sum(a["reference_loss"] for a in file["answers"]) for file in (mixed["Foundation"], alike["Foundation"])
    )
    assert before != after, "the weights are other ones"
