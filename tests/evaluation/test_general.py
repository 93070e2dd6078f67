"""What a fine-tuned model makes of general texts is measured beside the base model that is under its adapter."""

from __future__ import annotations

import unicodedata
from collections import Counter
from dataclasses import replace

import pytest
import torch

from config import PRESETS, LoraConfig, ModelConfig, QuestionsConfig
from pipeline.evaluation import general
from pipeline.models import adapter, generation, loading, prompts


def test_the_texts_are_of_many_kinds_in_two_languages():
    texts = general.load_texts(300, seed=1)
    assert len({text.prompt for text in texts}) == len({text.text for text in texts}) == 300
    assert Counter(text.language for text in texts) == {"en": 180, "pt": 120}
    kinds = Counter((text.kind, text.language) for text in texts)
    assert len(kinds) == 24 and min(kinds.values()) == 10
    assert all(unicodedata.is_normalized("NFC", text.prompt + text.text) for text in texts)
    assert all(25 <= len(text.text.split()) <= 80 for text in texts if text.kind != "code")
    most = QuestionsConfig.__dataclass_fields__["general"].default
    assert most == len(texts), "the default is all"


def test_fewer_texts_are_drawn_at_random_and_alike():
    few = general.load_texts(10, seed=1)
    assert len(few) == 10 and few == general.load_texts(10, seed=1) != general.load_texts(10, seed=2)


@pytest.fixture
def tuned(tiny_model):
    base = loading.load_base(ModelConfig(name=str(tiny_model("phi3"))), "16bit")
    lora = LoraConfig(r=4, alpha=8, target_modules=("qkv_proj", "down_proj"))
    return adapter.add_adapter(base, lora, seed=1, checkpointing=False)


def test_the_base_model_is_measured_with_the_adapter_switched_off(tuned):
    prompt_format = prompts.make_prompt_format(PRESETS["demo"].prompt, tuned.tokenizer)
    texts = general.load_texts(3, seed=1)
    before = general.compare_with_base(tuned, prompt_format, texts)
    assert all(text["kl"] == 0 and text["base_loss"] == text["tuned_loss"] for text in before)
    for name, weight in tuned.model.named_parameters():
        if "lora_B" in name:
            weight.data = torch.randn(weight.shape, generator=torch.Generator().manual_seed(1))
    after = general.compare_with_base(tuned, prompt_format, texts)
    for text, first, second in zip(texts, before, after, strict=True):
        assert second["base_loss"] == first["base_loss"] and second["tokens"] == first["tokens"] > 20
        assert second["kl"] > 0.01 and second["tuned_loss"] != second["base_loss"]
        # Without the instruction of the records, and without the end token.
        prompt = prompt_format.plain(text.prompt)
        assert prompt_format.instruction not in prompt
        [(start, ids)] = prompts.answered_ids(prompt_format, tuned.tokenizer, [prompt], [text.text])
        losses = generation.read(tuned, ids, start).losses[:-1]
        assert second["tuned_loss"] == pytest.approx(sum(losses), rel=1e-4) and second["tokens"] == len(losses)


def test_the_divergence_is_that_from_the_base_to_the_tuned_model(tuned):
    prompt_format = replace(prompts.make_prompt_format(PRESETS["demo"].prompt, tuned.tokenizer))
    for name, weight in tuned.model.named_parameters():
        if "lora_B" in name:
            weight.data += 0.3
    [text] = general.load_texts(1, seed=3)
    [found] = general.compare_with_base(tuned, prompt_format, [text])
    prompt = prompt_format.plain(text.prompt)
    [(start, ids)] = prompts.answered_ids(prompt_format, tuned.tokenizer, [prompt], [text.text])
    row = torch.tensor([ids])
    with torch.inference_mode():
        ours = tuned.model(input_ids=row).logits[0, start - 1 : -2].double().log_softmax(-1)
        with tuned.peft_model.disable_adapter():
            base = tuned.model(input_ids=row).logits[0, start - 1 : -2].double().log_softmax(-1)
    assert found["kl"] == pytest.approx((base.exp() * (base - ours)).sum().item(), rel=1e-3)
