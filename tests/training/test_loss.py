"""The loss in chunks is the loss of all logits at once, and so is its gradient."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import cross_entropy
from transformers import LlamaConfig, LlamaForCausalLM

from pipeline.training import loss
from pipeline.training.batching import IGNORED_LABEL
from pipeline.training.loss import chunked_cross_entropy

HIDDEN, VOCABULARY, TOKENS = 16, 50, 23


@pytest.fixture
def given():
    torch.manual_seed(3)
    labels = torch.randint(VOCABULARY, (1, TOKENS))
    labels[:, [0, 1, 2, 9, 15]] = IGNORED_LABEL
    weight, bias = torch.randn(VOCABULARY, HIDDEN), torch.randn(VOCABULARY)
    return torch.randn(1, TOKENS, HIDDEN, requires_grad=True), weight, bias, labels


def whole(hidden, weight, bias, labels, scale, cap):
    logits = (hidden[0, :-1] @ weight.t() + bias) * scale
    logits = cap * torch.tanh(logits / cap) if cap else logits
    return cross_entropy(logits, labels[0, 1:], ignore_index=IGNORED_LABEL, reduction="sum")


@pytest.mark.parametrize("chunk", [1, 7, 100])
@pytest.mark.parametrize(("scale", "cap"), [(1.0, None), (0.5, None), (1.0, 5.0)])
def test_loss_and_gradient_are_those_of_all_logits(given, chunk, scale, cap):
    hidden, weight, bias, labels = given
    expected = whole(hidden, weight, bias, labels, scale, cap) / 10
    (gradient,) = torch.autograd.grad(expected, hidden)
    found, *_, count = chunked_cross_entropy(hidden, weight, chunk, labels, None, 10, scale, cap, bias)
    torch.testing.assert_close(found, expected)
    (3 * found).backward()
    torch.testing.assert_close(hidden.grad, 3 * gradient)
    assert count == TOKENS - 5


def test_without_a_number_of_labels_it_is_the_mean(given):
    hidden, weight, bias, labels = given
    found, *_ = chunked_cross_entropy(hidden, weight, 7, labels, lm_head_bias=bias)
    torch.testing.assert_close(found, whole(hidden, weight, bias, labels, 1.0, None) / (TOKENS - 5))


def test_a_pass_without_a_label_has_no_loss_and_a_gradient_of_zeros(given):
    hidden, weight, *_ = given
    found, *_ = chunked_cross_entropy(hidden, weight, 7, torch.full((1, TOKENS), IGNORED_LABEL))
    found.backward()
    assert found == 0 and not hidden.grad.any()


def test_an_evaluation_computes_no_gradient(given, monkeypatch):
    hidden, weight, bias, labels = given
    monkeypatch.setattr(torch.autograd, "grad", lambda *_: pytest.fail("a gradient"))
    with torch.no_grad():
        found, *_ = chunked_cross_entropy(hidden, weight, 7, labels, lm_head_bias=bias)
        torch.testing.assert_close(found, whole(hidden, weight, bias, labels, 1.0, None) / (TOKENS - 5))


def test_an_output_layer_that_is_trained_is_refused(given):
    hidden, weight, _, labels = given
    with pytest.raises(ValueError, match="output layer"):
        chunked_cross_entropy(hidden, weight.requires_grad_(), 7, labels)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_training_on_a_processor_uses_it(make_config, monkeypatch):
    import fine_tuning
    import process_data
    from pipeline.training import trainer

    assert trainer.sft_trainer._chunked_cross_entropy_loss is chunked_cross_entropy
    counted = []

    def counting(*arguments, **named):
        counted.append(1)
        return chunked_cross_entropy(*arguments, **named)

    monkeypatch.setattr(trainer.sft_trainer, "_chunked_cross_entropy_loss", counting)
    config = make_config()
    process_data.run(config)
    fine_tuning.run(config)
    assert len(counted) > 4


def test_it_is_the_loss_of_transformers():
    torch.manual_seed(1)
    config = LlamaConfig(
        hidden_size=HIDDEN, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, vocab_size=VOCABULARY
    )
    model = LlamaForCausalLM(config).eval()
    ids = torch.randint(VOCABULARY, (1, TOKENS))
    with torch.no_grad():
        states, expected = model.model(ids).last_hidden_state, model(ids, labels=ids).loss
        found, *_ = loss.chunked_cross_entropy(states, model.lm_head.weight.detach(), 5, ids)
    torch.testing.assert_close(found, expected)
