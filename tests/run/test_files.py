"""A name that exists is complete; a missing input names the stage that makes it."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from config import PRESETS, SECTIONS
from pipeline.run import files, manifests
from pipeline.run.errors import UserError
from pipeline.run.run_folder import RunFolder


class Interrupted(Exception):
    """Stands for Ctrl-C, a full disk or a crash."""


@pytest.mark.parametrize("before", [None, "old"])
def test_an_interrupted_write_leaves_nothing_behind(tmp_path, before):
    path = tmp_path / "folder" / "file.json"
    if before is not None:
        path.parent.mkdir()
        path.write_text(before, encoding="utf-8")
    with pytest.raises(Interrupted), files.atomic_write(path) as file:
        file.write("half of it")
        file.flush()
        raise Interrupted
    assert [p.name for p in path.parent.iterdir()] == ([] if before is None else ["file.json"])
    assert before is None or path.read_text(encoding="utf-8") == before


def test_an_interrupted_folder_leaves_the_old_one(tmp_path):
    path = tmp_path / "model"
    path.mkdir()
    (path / "weights").write_text("old", encoding="utf-8")
    with pytest.raises(Interrupted), files.atomic_path(path) as temporary:
        temporary.mkdir()
        (temporary / "weights").write_text("half", encoding="utf-8")
        raise Interrupted
    assert [p.name for p in tmp_path.iterdir()] == ["model"]
    assert (path / "weights").read_text(encoding="utf-8") == "old"


def test_a_folder_that_cannot_be_put_in_place_leaves_the_old_one(tmp_path, monkeypatch):
    """Ctrl-C at that moment, or on Windows somebody who reads what is to be renamed."""
    path, replace = tmp_path / "model", Path.replace
    path.mkdir()
    (path / "weights").write_text("old", encoding="utf-8")

    def interrupted(self, target):
        if self.name.startswith(".model") and "old" not in self.name:
            raise KeyboardInterrupt
        return replace(self, target)

    with pytest.raises(KeyboardInterrupt), files.atomic_path(path) as temporary:
        temporary.mkdir()
        monkeypatch.setattr(Path, "replace", interrupted)
    assert [p.name for p in tmp_path.iterdir()] == ["model"]
    assert (path / "weights").read_text(encoding="utf-8") == "old"


def test_a_new_folder_replaces_the_old_one_whole(tmp_path):
    path = tmp_path / "model"
    path.mkdir()
    (path / "stale").write_text("old", encoding="utf-8")
    with files.atomic_path(path) as temporary:
        temporary.mkdir()
        (temporary / "weights").write_text("new", encoding="utf-8")
    assert [p.name for p in path.iterdir()] == ["weights"]


def test_what_is_needed_for_a_while_is_removed_and_so_is_what_a_killed_process_left(tmp_path, monkeypatch):
    path = tmp_path / "index"
    path.write_text("another", encoding="utf-8")
    left = tmp_path / ".index.999999999.tmp"
    left.write_text("left", encoding="utf-8")
    for end in (None, Interrupted):
        with contextlib.suppress(Interrupted), files.temporary_path(path) as temporary:
            assert not left.exists() and temporary.parent == tmp_path
            temporary.write_text("mine", encoding="utf-8")
            if end:
                raise end
        assert [p.name for p in tmp_path.iterdir()] == ["index"]
    assert path.read_text(encoding="utf-8") == "another"


def config_in(folder):
    """The demo's settings for a run in a folder."""
    return replace(PRESETS["demo"], output_dir=folder.parent, name=folder.name)


def test_a_manifest_exists_only_when_its_stage_has_finished(tmp_path):
    source = tmp_path / "input"
    source.write_text("x", encoding="utf-8")
    with manifests.stage_manifest(config_in(tmp_path), "process_data", [source]) as metrics:
        metrics["count"] = 3
    manifest = manifests.read_manifest(RunFolder(tmp_path), "process_data")
    assert manifest["metrics"] == {"count": 3}
    assert manifest["inputs"] == {str(source): files.file_hash(source)}
    assert manifest["versions"]["python"]
    with pytest.raises(Interrupted), manifests.stage_manifest(config_in(tmp_path), "process_data", [source]) as metrics:
        metrics["count"] = 4
        raise Interrupted
    assert manifests.read_manifest(RunFolder(tmp_path), "process_data") == manifest
    with pytest.raises(UserError, match="has not finished"):
        manifests.read_manifest(RunFolder(tmp_path), "fine_tuning")


def test_an_input_that_changed_since_a_stage_read_it_is_noticed(tmp_path):
    source = tmp_path / "trn_processed.json"
    source.write_text("x", encoding="utf-8")
    with manifests.stage_manifest(config_in(tmp_path), "fine_tuning", [source]):
        pass
    manifests.require_current(RunFolder(tmp_path), "fine_tuning", source)
    source.write_text("y", encoding="utf-8")
    with pytest.raises(UserError, match=r"has changed since fine_tuning\.py read it"):
        manifests.require_current(RunFolder(tmp_path), "fine_tuning", source)


def test_a_missing_input_names_its_producer_and_the_command(tmp_path):
    run_dir = tmp_path / "my outputs" / "saude-phi3"
    with pytest.raises(UserError, match=r"fine_tuning\.py makes it") as raised:
        RunFolder(run_dir, "saude-phi3").require("lora_model")
    command = f'`python fine_tuning.py --preset saude-phi3 --output-dir "{tmp_path / "my outputs"}"`'
    assert command in str(raised.value)
    assert RunFolder(Path("outputs/demo")).command("fine_tuning") == "python fine_tuning.py"


def test_hashes_tell_contents_and_names_apart(tmp_path):
    (tmp_path / "a").write_text("x", encoding="utf-8")
    one = files.file_hash(tmp_path)
    (tmp_path / "a").rename(tmp_path / "b")
    two = files.file_hash(tmp_path)
    (tmp_path / "b").write_text("y", encoding="utf-8")
    assert len({one, two, files.file_hash(tmp_path)}) == 3


def test_damaged_json_is_one_sentence(tmp_path):
    path = tmp_path / "x.json"
    path.write_text('{"a": ', encoding="utf-8")
    with pytest.raises(UserError, match="is damaged"):
        files.read_json(path)


def test_secrets_never_reach_a_manifest(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret_token_value")
    demo = PRESETS["demo"]
    for stage in SECTIONS:
        with manifests.stage_manifest(config_in(tmp_path), stage, []):
            pass
    for file in sorted(path for path in tmp_path.rglob("*") if path.is_file()):
        assert "hf_secret_token_value" not in file.read_text(encoding="utf-8")
    text = json.dumps(manifests.read_manifest(RunFolder(tmp_path), "fine_tuning"))
    assert demo.model.name in text
    assert "hf_secret_token_value" not in text


def test_what_a_killed_program_left_behind_is_removed(tmp_path):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    left, alive = tmp_path / f".trn.json.{dead.pid}.tmp", tmp_path / f".trn.json.{os.getppid()}.tmp"
    for path in (left, alive):
        path.write_text("half", encoding="utf-8")
    names = ("backup", "123.backup", "old.backup", "9" * 30, "gz." + str(dead.pid))
    others = [tmp_path / f".trn.json.{name}.tmp" for name in names]
    for path in others:
        path.write_text("of another program", encoding="utf-8")
    files.write_json(tmp_path / "trn.json", [])
    assert not left.exists() and alive.exists() and all(path.exists() for path in others)
