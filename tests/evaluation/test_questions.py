"""Which titles are asked, and which record each is compared with."""

from __future__ import annotations

from dataclasses import replace

import pytest

import process_data
from config import PRESETS, PROJECT_DIR, DataConfig, QuestionsConfig
from pipeline.data.records import open_processed
from pipeline.evaluation.questions import NOT_IN_DATA, choose_questions
from pipeline.run.run_folder import RunFolder

FAULTS = PROJECT_DIR / "tests" / "faults" / "files"
SENTENCE = "A sturdy example with enough words to pass the minimum length."


def processed(folder, source):
    config = replace(PRESETS["demo"], output_dir=folder, data=DataConfig(input=source))
    process_data.run(config)
    return open_processed(RunFolder.of(config))


@pytest.mark.parametrize("held_out", [0, 1])
def test_an_example_is_found_whether_or_not_others_are_drawn(tmp_path, held_out):
    data = processed(tmp_path, FAULTS / "three_titles.jsonl")
    config = QuestionsConfig(examples=("Copper kettle", "Tea"), held_out=held_out)
    asked = choose_questions(data, config)[:2]
    assert [question.reference for question in asked] == [f"{SENTENCE} Copper kettle", ""]
    assert asked[0].split != NOT_IN_DATA == asked[1].split


def test_the_record_with_exactly_the_title_is_preferred(tmp_path):
    source = tmp_path / "x.jsonl"
    titles = ("polish", "Polish", "POLISH!")
    source.write_text("\n".join(f'{{"title": "{t}", "content": "{SENTENCE} {t}"}}' for t in titles), encoding="utf-8")
    data = processed(tmp_path, source)

    def references(*examples):
        config = QuestionsConfig(examples=examples, held_out=0)
        return [question.reference.removeprefix(f"{SENTENCE} ") for question in choose_questions(data, config)]

    assert references("Polish") == ["Polish"]
    assert references("POLISH!", "Polish", "polish") == ["POLISH!", "Polish", "polish"]
    assert references("POLISH", "Polish?", "Polish") == ["polish", "Polish"]
