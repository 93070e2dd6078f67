"""The losses of trained, merged and converted model stand beside each other, with what the difference is worth."""

from __future__ import annotations

import random

import pytest

from pipeline.evaluation.forms import TRAINED, compare_losses
from pipeline.models.generation import Reading


def readings(rng, records, more=0.0):
    return [
        Reading([0] * 10, [1 + rng.random() + more + rng.gauss(0, 0.001) for _ in range(10)]) for _ in range(records)
    ]


def test_a_form_that_lost_something_is_told_from_one_that_did_not():
    forms = {
        TRAINED: readings(random.Random(1), 24),
        "merged model": readings(random.Random(1), 24),
        "GGUF in q8_0": readings(random.Random(1), 24, 0.05),
    }
    lines, noted = compare_losses(forms)
    assert lines[0].startswith("base + adapter: 1.4") and "noise" not in lines[0]
    assert "no more than noise" in lines[1] and "+0.05" in lines[2] and ", more than noise" in lines[2]
    assert noted["merged model"]["more_than_noise"] is False and noted["GGUF in q8_0"]["more_than_noise"] is True
    assert noted["GGUF in q8_0"]["against_trained"]["value"] == pytest.approx(0.05, abs=0.002)
    assert noted[TRAINED]["low"] < noted[TRAINED]["value"] < noted[TRAINED]["high"]


def test_without_validation_records_there_is_nothing_to_tell():
    assert compare_losses({TRAINED: [], "merged model": []}) == ([], {})
