"""The memory that a model needs is told from its config.json, for every causal architecture of transformers."""

from __future__ import annotations

import contextlib
from types import SimpleNamespace

import pytest

from config import LoraConfig
from pipeline.models import generation
from pipeline.models.size import shape_of, size_of_architecture, token_limit

# Where an architecture has a setting of this name.
TINY = {
    "vocab_size": 500, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 512, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
    "num_experts": 4, "num_local_experts": 4, "n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32,
}  # fmt: skip
FEWEST_BUILT, FEWEST_RUN, MOST_PARAMETERS = 140, 70, 300_000
# Sliding layers with heads of their own, and an index beside the keys.
KEEP_MORE_THAN_THEY_NAME = {"hy_v4", "inkling_text", "mimo_v2_flash"}
# Named otherwise than in Llama, or not at all; heads of another width than hidden_size has for them.
KEEP_EXACTLY = {
    "llama", "gpt_neox", "falcon", "gpt_bigcode", "gpt2", "bloom", "mpt", "opt", "phi", "nemotron", "gemma2", "gemma4_unified_text",
    "cpmant",
}  # fmt: skip


@pytest.fixture(scope="module")
def architectures():
    """Tiny settings of every causal architecture that they build, and the model without its weights."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    built = {}
    for name in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        with contextlib.suppress(Exception), torch.device("meta"):  # many want settings of their own
            default = AutoConfig.for_model(name)
            known = {key for key in TINY if key in vars(default) or key in default.attribute_map}
            config = AutoConfig.for_model(name, **{key: TINY[key] for key in known})
            built[name] = config, AutoModelForCausalLM.from_config(config)
    assert len(built) >= FEWEST_BUILT
    return built


def test_every_architecture_has_a_size_and_is_answered_with_in_batches(architectures, monkeypatch):
    monkeypatch.setattr(generation, "free_memory", lambda _: 2**40)
    for name, (config, model) in architectures.items():
        size = size_of_architecture(config, LoraConfig())
        assert size.layers and size.hidden and size.vocabulary, name
        assert size.linear + size.other == sum(weight.numel() for weight in model.parameters()), name
        assert generation.fitting_batch_size(SimpleNamespace(model=model), 100) >= 1, name


def numbers_in(cache, seen):
    """Count the numbers of all tensors that can be reached from a cache."""
    import torch

    if id(cache) in seen:
        return 0
    seen.add(id(cache))
    if torch.is_tensor(cache):
        return cache.numel()
    parts = cache if isinstance(cache, (list, tuple)) else getattr(cache, "__dict__", {}).values()
    return sum(numbers_in(part, seen) for part in parts)


def kept_by_a_token(config):
    """Return how many numbers a further token adds to the cache of a model, or None if it cannot be run like others."""
    import torch
    from transformers import AutoModelForCausalLM

    model, kept = AutoModelForCausalLM.from_config(config).eval(), []
    for tokens in (8, 16):
        try:
            with torch.inference_mode():
                cache = model(input_ids=torch.arange(5, 5 + tokens)[None], use_cache=True).get("past_key_values")
        except Exception:
            return None
        kept.append(numbers_in(cache, set()))
    return (kept[1] - kept[0]) / 8


def test_a_token_keeps_no_more_than_is_told(architectures):
    run = {}
    for name, (config, model) in architectures.items():
        small = sum(weight.numel() for weight in model.parameters()) <= MOST_PARAMETERS
        if name not in KEEP_MORE_THAN_THEY_NAME and (small or name in KEEP_EXACTLY):
            run[name] = (shape_of(config).cached, kept_by_a_token(config))
    run = {name: (told, kept) for name, (told, kept) in run.items() if kept is not None}
    assert len(run) >= FEWEST_RUN
    assert {name: pair for name, pair in run.items() if pair[1] > pair[0]} == {}
    assert {name: run[name] for name in KEEP_EXACTLY if run[name][0] != run[name][1]} == {}


# Beyond its table of positions, each of these fails.
WITH_A_TABLE = ("gpt2", "gpt_bigcode", "opt", "biogpt", "openai-gpt", "roberta", "xlm-roberta", "electra")


@pytest.mark.parametrize("name", WITH_A_TABLE)
def test_a_model_reads_as_many_tokens_as_is_told_and_no_more(architectures, name):
    import torch
    from transformers import AutoModelForCausalLM

    config, _ = architectures[name]
    model = AutoModelForCausalLM.from_config(config).eval()
    limit = token_limit(model)
    assert limit in (512, 511)
    ids = torch.full((1, limit + 1), 7)
    with torch.inference_mode():
        assert model(input_ids=ids[:, 1:]).logits.isfinite().all()
        with pytest.raises((IndexError, RuntimeError)):
            model(input_ids=ids)


def test_what_bounds_other_models(architectures):
    told = {name: token_limit(model) for name, (_, model) in architectures.items()}
    assert {name for name, limit in told.items() if limit is None} >= {"bloom", "mamba", "xlstm"}
    assert (told["llama"], told["mpt"], told["gpt_neox"]) == (512, 2048, 512)
