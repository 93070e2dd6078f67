"""Every number that can be set: an absurd value is a usage error in one sentence that names the setting."""

from __future__ import annotations

import subprocess
import sys
import typing
from dataclasses import fields

import pytest

import config
from config import PROJECT_DIR, SECTIONS, Config
from pipeline.run import command_line

# Beyond every range, and no numbers at all.
ABSURD = ("-1", "-1e-300", "nan", "inf", "-inf", "1e308", "9" * 30, "9" * 400, "9" * 5000, "0x10", "1_0_", "")


def numbers() -> list[tuple[str, str, str]]:
    """(stage, section, setting) of every number, or tuple of numbers, of the configuration."""
    found = []
    types = typing.get_type_hints(Config)
    for section in dict.fromkeys(section for used in SECTIONS.values() for section in used):
        stage = next(stage for stage, used in SECTIONS.items() if section in used)
        hints = typing.get_type_hints(types[section])
        for setting in fields(types[section]):
            parts = {hints[setting.name], *typing.get_args(hints[setting.name])}
            if parts & {int, float}:
                found.append((stage, section, setting.name))
    return found


def range_of(section: str, setting: str) -> config.Range:
    return config.ranges_of(typing.get_type_hints(Config)[section])[setting]


def parse(stage: str, section: str, setting: str, value: str):
    option = f"--{section}.{setting.replace('_', '-')}"
    return getattr(command_line.parse(stage, "", command_line.NoOptions, [f"{option}={value}"])[0], section)


def refusal(capsys, stage: str, section: str, setting: str, value: str) -> str:
    """What a refused value is told, which must name the setting."""
    with pytest.raises(SystemExit) as ended:
        parse(stage, section, setting, value)
    said = " ".join(capsys.readouterr().err.replace("│", " ").split())
    assert ended.value.code == 2 and "Traceback" not in said
    assert section in said and setting in said.replace("-", "_"), said
    return said


def test_every_number_is_tried_and_has_a_range():
    found = numbers()
    assert len(found) > 45 and ("search_hyperparameters", "study", "ranks") in found
    for _, section, setting in found:
        low, high = range_of(section, setting)
        assert 0 <= low < high


@pytest.mark.parametrize(("stage", "section", "setting"), numbers(), ids=lambda value: value)
def test_absurd_values_are_usage_errors(stage, section, setting, capsys):
    for value in ABSURD:
        refusal(capsys, stage, section, setting, value)


@pytest.mark.parametrize(("stage", "section", "setting"), numbers(), ids=lambda value: value)
def test_the_ends_of_a_range_are_taken_and_what_is_beyond_is_not(stage, section, setting, capsys):
    low, high = range_of(section, setting)
    whole = float not in typing.get_args(hint := typing.get_type_hints(typing.get_type_hints(Config)[section])[setting])
    whole = whole and hint is not float
    said = refusal(capsys, stage, section, setting, str(int(high) + 1) if whole else str(high * 1.01 + 1e-9))
    assert "between" in said or "less than" in said
    for value in (low, high):
        if (section, setting) in {("data", "validation_fraction"), ("data", "test_fraction")} and value == 1:
            continue  # both together are below 1
        if (section, setting) in {
            ("rag", "chunk_tokens"),
            ("rag", "chunk_overlap_tokens"),
            ("study", "learning_rate_high"),
            ("study", "learning_rate_low"),
        }:
            continue  # each depends on another
        taken = getattr(parse(stage, section, setting, str(int(value) if whole else value)), setting)
        assert taken in (value, (value,))


@pytest.mark.parametrize("arguments", [
    ["--train.batch-size", "9" * 400], ["--train.learning-rate", "nan"], ["--generation.temperature", "1e-30"],
])  # fmt: skip
def test_a_command_says_it_in_one_sentence(arguments):
    done = subprocess.run(
        [sys.executable, "fine_tuning.py", *arguments],
        cwd=PROJECT_DIR,
        capture_output=True,
        text=True,
        encoding="utf-8",
    )
    assert done.returncode == 2 and "must be" in done.stderr and "Traceback" not in done.stderr
