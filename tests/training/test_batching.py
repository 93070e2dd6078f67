"""Records laid end to end learn what each learns alone, and every record is read once an epoch."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from transformers import AutoModelForCausalLM

from pipeline.training.attention import own_or_end_to_end_attention
from pipeline.training.batching import (
    Batching,
    ForwardPasses,
    PassSize,
    divide_by_length,
    divide_evenly,
    fill_passes,
    lay_end_to_end,
    lay_out,
    size_of_pass,
)

LENGTHS = [5, 300, 17, 64, 33, 1, 128, 90, 4, 250]


def some_records(count: int = 4, answer_only: bool = True) -> list[dict[str, list[int]]]:
    generator = torch.Generator().manual_seed(3)
    rows = [torch.randint(3, 700, (length,), generator=generator).tolist() for length in (9, 40, 23, 64)[:count]]
    return [{"input_ids": ids, "labels": [-100] * 4 + ids[4:] if answer_only else ids} for ids in rows]


@pytest.mark.parametrize("architecture", ["llama", "phi3", "mistral"])
@pytest.mark.parametrize("answer_only", [True, False])
@pytest.mark.parametrize("sliding_window", [None, 16])
@pytest.mark.parametrize("layout", ["end_to_end", "padded"])
def test_each_record_has_the_loss_and_gradient_it_has_alone(
    tiny_model, architecture, answer_only, sliding_window, layout
):
    if sliding_window and architecture == "llama":
        pytest.skip("Llama has no sliding window")
    options = {} if architecture == "llama" else {"sliding_window": sliding_window}
    model = AutoModelForCausalLM.from_pretrained(tiny_model(architecture), dtype=torch.float32, **options).train()
    records = some_records(answer_only=answer_only)
    alone = torch.zeros(())
    for record in records:
        ids, labels = torch.tensor([record["input_ids"]]), torch.tensor([record["labels"]])
        alone = alone + model(input_ids=ids, labels=labels, num_items_in_batch=1).loss
    weight = model.model.layers[0].mlp.down_proj.weight
    (gradient_alone,) = torch.autograd.grad(alone, weight)

    with own_or_end_to_end_attention(model, "transformers", layout):
        together = model(**lay_out(records, "transformers", layout, pad_id=5), num_items_in_batch=1).loss
    assert together.item() == pytest.approx(alone.item(), rel=1e-5)
    (gradient,) = torch.autograd.grad(together, weight)
    assert torch.allclose(gradient, gradient_alone, rtol=1e-3, atol=1e-4 * gradient_alone.abs().max())


def test_without_boundaries_nothing_is_computed(tiny_model):
    model = AutoModelForCausalLM.from_pretrained(tiny_model("llama"))
    inputs = lay_end_to_end(some_records(), "unsloth")
    with (
        own_or_end_to_end_attention(model, "transformers", "end_to_end"),
        pytest.raises(ValueError, match="does not pass on where records begin"),
    ):
        model(input_ids=inputs["input_ids"])
    assert model(input_ids=inputs["input_ids"]).logits.shape[1] == 136


@pytest.mark.parametrize("tokens_per_step", [None, 400])
@pytest.mark.parametrize("passes", [1, 2, 3])
@pytest.mark.parametrize("layout", ["end_to_end", "padded"])
def test_every_record_is_read_once_an_epoch_in_an_order_of_its_own(tokens_per_step, passes, layout):
    batching = Batching(passes, 7, records_per_step=4, tokens_per_step=tokens_per_step, layout=layout)
    epochs = [batching.epoch(LENGTHS, epoch) for epoch in range(3)]
    for batches in epochs:
        assert Counter(position for batch in batches for position in batch) == Counter(range(len(LENGTHS)))
        assert len(batches) == len(epochs[0]) and len(batches) % passes == 0
    assert epochs[0] != epochs[1] and epochs == [batching.epoch(LENGTHS, epoch) for epoch in range(3)]
    of_batches = [[LENGTHS[p] for p in batch] for batches in epochs for batch in batches if batch]
    padded = layout == "padded"
    largest = max((len(batch) * max(batch) if padded else sum(batch)) for batch in of_batches)
    assert batching.largest_pass(LENGTHS, 3).tokens == largest


@pytest.mark.parametrize("tokens_per_step", [None, 400])
def test_the_records_of_a_step_do_not_depend_on_the_number_of_passes(tokens_per_step):
    def steps(passes):
        batches = Batching(passes, seed=7, records_per_step=4, tokens_per_step=tokens_per_step).epoch(LENGTHS, 1)
        return [set().union(*batches[start : start + passes]) for start in range(0, len(batches), passes)]

    assert steps(1) == steps(2) == steps(4) == steps(6)


def test_an_empty_pass_teaches_nothing(tiny_model):
    from datasets import Dataset

    records = Dataset.from_list(some_records())
    inputs = ForwardPasses(records, lambda batch: lay_end_to_end(batch, "transformers"), lambda _: [[1, 2], []])[1]
    assert inputs["labels"].eq(-100).all() and inputs["input_ids"].tolist() == [records[0]["input_ids"]]
    model = AutoModelForCausalLM.from_pretrained(tiny_model("llama")).train()
    with own_or_end_to_end_attention(model, "transformers", "end_to_end"):
        assert model(**inputs, num_items_in_batch=5).loss.item() == 0


def test_a_pass_is_filled_and_a_long_record_has_one_of_its_own():
    assert fill_passes(range(5), [4, 3, 10, 2, 5], 8) == [[0, 1], [2], [3, 4]]
    assert fill_passes(range(5), [4, 3, 10, 2, 5], 8, "padded") == [[0, 1], [2], [3], [4]]


def test_padding_counts_as_tokens():
    assert size_of_pass([5, 2, 3], "end_to_end") == PassSize(10, 25 + 4 + 9)
    assert size_of_pass([5, 2, 3], "padded") == PassSize(15, 3 * 25)
    assert size_of_pass([], "padded") == PassSize(0, 0)


def test_a_padded_pass_hides_the_padding():
    inputs = lay_out([{"input_ids": [7, 8, 9], "labels": [-100, 8, 9]}, {"input_ids": [5], "labels": [5]}], "transformers", "padded", 5)  # fmt: skip
    assert inputs["input_ids"].tolist() == [[7, 8, 9], [5, 5, 5]]
    assert inputs["labels"].tolist() == [[-100, 8, 9], [5, -100, -100]]
    assert inputs["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]


def test_padded_passes_hold_neighbours_in_length():
    assert divide_by_length([0, 1, 2, 3, 4], [10, 100, 50, 40, 5], 2) == [[1, 2], [3, 0, 4]]
    assert divide_by_length([0, 1], [8, 8], 4) == [[0], [], [1], []]
    assert divide_by_length([], [], 2) == [[], []]


def test_a_step_is_divided_evenly():
    parts = divide_evenly([0, 1, 2, 3], [100, 10, 60, 40], 2)
    assert sorted(sum([100, 10, 60, 40][p] for p in part) for part in parts) == [100, 110]
    assert divide_evenly([0], [5], 3) == [[0], [], []]
