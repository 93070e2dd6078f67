"""The peak of a training on this machine's processor is the one that is told before it begins."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from tiny_models import build_llama, tiny_config

import process_data
from config import PROJECT_DIR
from pipeline.models.devices import best_device
from pipeline.run.manifests import read_manifest
from pipeline.run.run_folder import RunFolder

# Narrow and deep, as no model is that the estimate was fitted to: more than half of its peak are activations.
SHAPE = {
    "hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 4, "num_key_value_heads": 4,
}  # fmt: skip
OPTIONS = (
    "--model.compute-dtype", "float32", "--prompt.format", "alpaca", "--lora.r", "8", "--train.max-steps", "1",
    "--train.batch-size", "8", "--train.gradient-accumulation-steps", "1", "--train.passes", "1", "--train.eval-steps", "None",
    "--train.gradient-checkpointing", "off", "--train.validation-size", "0", "--questions.held-out", "0",
    "--generation.max-new-tokens", "1",
)  # fmt: skip
# A process counts from the peak of the one that started it, which is pytest's, unless a small one is between them.
BETWEEN = (sys.executable, "-c", "import subprocess, sys; sys.exit(subprocess.call(sys.argv[1:]))")


@pytest.mark.skipif(sys.platform != "linux" or best_device() != "cpu", reason="other allocators keep other pieces")
def test_the_peak_is_within_20_percent_of_the_estimate(tmp_path):
    model = tmp_path / "model"
    model.mkdir()
    torch.manual_seed(7)
    build_llama(model, **SHAPE)
    process_data.run(tiny_config(model, tmp_path))
    command = [sys.executable, "fine_tuning.py", "--output-dir", str(tmp_path), "--model.name", str(model), *OPTIONS]
    done = subprocess.run(
        [*BETWEEN, *command], cwd=PROJECT_DIR, capture_output=True, text=True, encoding="utf-8", check=False
    )
    assert done.returncode == 0, done.stderr
    figures = read_manifest(RunFolder(tmp_path / "demo"), "fine_tuning")["metrics"]
    assert figures["peak_memory_gib"] == pytest.approx(figures["memory_estimate_gib"], rel=0.2)
