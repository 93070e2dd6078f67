"""Tokens that the environment holds never reach what is printed, written or logged."""

from __future__ import annotations

import os
import subprocess
import sys

from config import PROJECT_DIR

SECRETS = {
    "HF_TOKEN": "hf_planted1234567890",
    "OPENAI_API_KEY": "sk-planted1234567890",
    "WANDB_API_KEY": "planted0987654321",
}


def test_no_file_and_no_line_holds_a_secret(tmp_path, tiny_model):
    small = ["--output-dir", str(tmp_path)]
    model = ["--model.name", str(tiny_model("llama")), "--prompt.format", "alpaca"]
    questions = ["--questions.held-out", "8", "--answers.max-new-tokens", "4"]
    training = ["--train.max-steps", "2", "--train.validation-size", "2", "--generation.max-new-tokens", "2"]
    commands = [
        ["process_data.py", *small],
        ["foundation_model.py", *small, *model, *questions],
        ["fine_tuning.py", *small, *model, *training],
        ["ft_test_trained_model.py", *small, *model[:2], *questions],
        ["compare_models.py", *small],
        # A failure, whose message and traceback are printed too.
        ["compare_models.py", *small, "--judge.url", "http://127.0.0.1:9/v1", "--judge.model", "none"],
    ]
    printed = []
    for command in commands:
        done = subprocess.run(
            [sys.executable, *command], cwd=PROJECT_DIR, env=os.environ | SECRETS, capture_output=True, text=True,
            encoding="utf-8",
        )  # fmt: skip
        assert done.returncode == (1 if "--judge.url" in command else 0), done.stderr
        printed.append(done.stdout + done.stderr)
    written = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    assert len(written) > 10
    for secret in SECRETS.values():
        assert not any(secret in text for text in printed)
        assert not any(secret.encode() in content for content in written)
