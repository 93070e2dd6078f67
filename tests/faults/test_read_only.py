"""Outputs that cannot be written to: one sentence that names them, and nothing changed. What only reads works."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace

import pytest

from config import STAGES

READERS = (
    ("ft_test_trained_model", "--title", "A drum"),
    ("ft_test_trained_model", "--model", "gguf", "--title", "A drum"),
)
CHROMA = (("rag_search_vs",), ("rag_model_retriever", "--title", "A drum"), ("rag_model_retriever",))


@pytest.fixture
def read_only(run):
    """The outputs of all stages on a read-only mount: root may write to a folder whatever its mode is."""
    if sys.platform != "linux" or os.geteuid() != 0:
        pytest.skip("only root can mount a folder read-only")
    if subprocess.run(["mount", "--bind", run.folder, run.folder]).returncode:
        pytest.skip("a folder cannot be mounted here")
    try:
        subprocess.run(["mount", "-o", "remount,ro,bind", run.folder], check=True)
        yield run
    finally:
        subprocess.run(["umount", "--lazy", run.folder], check=True)  # this process may have files open there


@pytest.mark.parametrize(
    "stage",
    [*(stage for stage in STAGES if stage not in ("rag_search_vs", "rag_model_retriever")), "search_hyperparameters"],
)
def test_a_stage_that_writes(read_only, stage):
    sentence = read_only.stage(stage).sentence
    assert str(read_only.path) in sentence and "Read-only file system" in sentence


@pytest.mark.parametrize("command", CHROMA, ids=" ".join)
def test_chroma_cannot_read_what_it_cannot_write(read_only, command):
    sentence = read_only.stage(*command).sentence
    assert f"{read_only.path / 'chroma'} is on a read-only file system" in sentence
    assert f"Copy {read_only.path} to another --output-dir." in sentence


@pytest.mark.parametrize("command", READERS, ids=" ".join)
def test_a_stage_that_reads(read_only, command):
    assert read_only.stage(*command).status == 0


def test_a_new_folder(read_only):
    elsewhere = replace(read_only, folder=read_only.folder / "new")
    sentence = elsewhere.stage("process_data").sentence
    assert str(elsewhere.folder) in sentence and "Read-only file system" in sentence
