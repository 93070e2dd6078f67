"""Two processes that train together learn what one learns."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

import fine_tuning
import process_data
from config import PROJECT_DIR
from pipeline.models import distributed
from pipeline.run.errors import UserError
from pipeline.run.manifests import read_manifest
from pipeline.run.run_folder import RunFolder
from pipeline.training.batching import EVALUATION_TOKENS
from pipeline.training.log import read_log

TWO_GPUS = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="there are no two GPUs")


def run(command):
    """Run a stage to its end and return what it printed."""
    done = subprocess.run(command, cwd=PROJECT_DIR, capture_output=True, text=True, encoding="utf-8")
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_weights_are_not_sharded_in_silence_where_there_is_no_gpu(make_config):
    config = make_config()
    with pytest.raises(UserError, match=r"--train\.shard-weights needs several NVIDIA GPUs"):
        fine_tuning.run(replace(config, train=replace(config.train, shard_weights=True)))
    assert not distributed.shards_weights()


@pytest.mark.parametrize(
    "sharding",
    [(), pytest.param(("--train.shard-weights",), marks=[pytest.mark.gpu, TWO_GPUS])],
    ids=["whole", "sharded"],
)
def test_two_processes_take_the_steps_of_one(make_config, sharding):
    config = make_config()
    process_data.run(config)
    options = [
        "fine_tuning.py", "--output-dir", str(config.output_dir), "--model.name", config.model.name,
        # 9 records are two steps of 4 and one of 1, so that the second process has nothing to learn in the last.
        "--prompt.format", "alpaca", "--train.sample-size", "9", "--train.max-steps", "6", "--train.batch-size", "4",
        "--train.gradient-accumulation-steps", "1", "--train.max-length", "512", "--train.validation-size", "19",
        "--train.logging-steps", "1", "--train.eval-steps", "3", "--train.save-steps", "3", "--generation.max-new-tokens", "2",
        "--questions.held-out", "1",
    ]  # fmt: skip
    logs, printed, adapters = [], [], []
    backend = ["--model.backend", "transformers"] if sharding else []
    for launcher, more in (([], ()), (["-m", "torch.distributed.run", "--nproc-per-node", "2"], sharding)):
        command = [sys.executable, *launcher, *options, *backend, *more]
        printed.append(run(command))
        logs.append(read_log(config.run_dir / "training_log.jsonl"))
        adapters.append(load_file(config.run_dir / "lora_model" / "adapter_model.safetensors"))
    alone, together = logs
    assert [line["step"] for line in together] == [line["step"] for line in alone] == [0, 1, 2, 3, 3, 4, 5, 6, 6]
    assert together[1]["tokens"] == alone[1]["tokens"]
    for one, other in zip(together, alone, strict=True):
        for name in ("loss", "validation_loss"):
            assert one.get(name) == pytest.approx(other.get(name), abs=2e-2)  # sums in another order, in 16 bits
    assert printed[1].count("Written:") == 1 and printed[1].count("Memory:") == 1
    metrics = read_manifest(RunFolder.of(config), "fine_tuning")["metrics"]
    assert metrics["steps"] == 6 and metrics["passes"] == 1
    assert metrics["validation_tokens"] > EVALUATION_TOKENS  # each process has a part of them
    assert adapters[0].keys() == adapters[1].keys()
    for name, weights in adapters[0].items():
        # Steps are of the learning rate, whatever the gradient, so that rounding may turn some of them.
        assert (weights.float() - adapters[1][name].float()).abs().mean() < 2e-4, name
    if sharding:
        (config.run_dir / "checkpoints" / "checkpoint-6" / "trainer_state.json").unlink()  # as if killed before
        run([*command, "--train.resume"])
        assert [line["step"] for line in read_log(config.run_dir / "training_log.jsonl")][-1] == 6
