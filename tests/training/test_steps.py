"""A training takes the steps that the originals took, whatever the passes, and as many as its duration is told by."""

from __future__ import annotations

from dataclasses import replace

import pytest

from config import PHI3_FUSED, PRESETS, LoraConfig, ModelConfig, TrainConfig
from pipeline.models import adapter, loading
from pipeline.training import duration


class Planned(Exception):
    """Ends a training before its first step."""


@pytest.fixture(scope="module")
def planned(tiny_model, tmp_path_factory):
    """A function that starts a training; it returns the trainer, at its first step."""
    from datasets import Dataset
    from transformers import TrainerCallback

    from pipeline.training.batching import Batching
    from pipeline.training.trainer import make_trainer, sft_arguments

    class Ends(TrainerCallback):
        def on_train_begin(self, *_, **__):
            raise Planned

    folder = tmp_path_factory.mktemp("training")
    base = loading.load_base(ModelConfig(name=str(tiny_model("phi3"))), "16bit")
    tuned = adapter.add_adapter(base, LoraConfig(r=4, target_modules=PHI3_FUSED), 1, False)

    def start(train, records, passes):
        rows = Dataset.from_dict({name: [[3, 4]] * records for name in ("input_ids", "labels")})
        train = replace(train, optimizer="adamw_torch")  # the others ask for a GPU at once
        arguments = sft_arguments(train, folder, passes, "end_to_end", False, False, False, tuned.model.dtype)
        packed = train.tokens_per_step if train.batching == "packed" else None
        batching = Batching(passes, train.seed, train.records_per_step, packed)
        trainer = make_trainer(tuned, arguments, batching, rows, rows.select([]), [Ends()])
        with pytest.raises(Planned):
            trainer.train()
        return trainer

    return start


@pytest.mark.parametrize("passes", [1, 3])
@pytest.mark.parametrize(("preset", "records", "steps"), [
    ("amazon-llama3", 5000, 1250), ("saude-phi3", 2000, 1500), ("books-phi3-medium", 20_000, 100),
])  # fmt: skip
def test_the_presets_take_the_steps_of_the_originals(planned, preset, records, steps, passes):
    assert planned(PRESETS[preset].train, records, passes).state.max_steps == steps


def test_the_first_learning_rate_of_the_amazon_preset(planned):
    trainer = planned(PRESETS["amazon-llama3"].train, 5000, 2)
    trainer.optimizer.step()
    trainer.lr_scheduler.step()
    assert trainer.lr_scheduler.get_last_lr()[0] == pytest.approx(1.9984e-4, abs=1e-9)


@pytest.mark.parametrize("train", [
    TrainConfig(batch_size=2, gradient_accumulation_steps=3, epochs=2.0),
    TrainConfig(batch_size=4, gradient_accumulation_steps=1, epochs=1.5),
    TrainConfig(batch_size=8, gradient_accumulation_steps=2, epochs=0.3),
    TrainConfig(batch_size=4, gradient_accumulation_steps=1, max_steps=7),
    TrainConfig(batching="packed", tokens_per_step=256, epochs=1.5),
])  # fmt: skip
@pytest.mark.parametrize("records", [5, 12, 300])
def test_the_duration_is_told_for_the_steps_that_are_taken(planned, train, records):
    assert duration.training_operations(train, [2] * records)[0] == planned(train, records, 1).state.max_steps
