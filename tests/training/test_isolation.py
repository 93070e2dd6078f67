"""Records are laid end to end only in models of which it is proved that each record has the logits it has alone."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import pytest
import torch
from datasets import Dataset
from tiny_models import tiny_config
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

import fine_tuning
import process_data
from config import LoraConfig, TrainConfig
from pipeline.models import bundled, loading
from pipeline.models.devices import ComputeFormat
from pipeline.models.language_model import LanguageModel
from pipeline.models.loading import own_attention
from pipeline.run.errors import UserError
from pipeline.run.manifests import read_manifest
from pipeline.run.run_folder import TRAINING_LOG, RunFolder
from pipeline.training import isolation

TINY = {
    "vocab_size": 500, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 512, "initializer_range": 0.2,
}  # fmt: skip
EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}
MANY_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
SHARED_EXPERT = {**MANY_EXPERTS, "shared_expert_intermediate_size": 32}
LATENT = {
    "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 16, "num_key_value_heads": 4,
    "n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "first_k_dense_replace": 1, "n_group": 1,
    "topk_group": 1,
}  # fmt: skip
GPT = {"n_embd": 64, "n_layer": 2, "n_head": 4}
# What a tiny model of an architecture needs beyond TINY, small windows among it.
SHAPES = {
    "bamba": {"attn_layer_indices": [1], "mamba_n_heads": 8, "mamba_d_head": 16, "mamba_d_state": 8},
    "bloom": {"n_layer": 2, "n_head": 4},
    "codegen": {**GPT, "rotary_dim": 8},
    "cohere2": {"sliding_window": 8},
    "deepseek_v2": {**LATENT, "q_lora_rank": None},
    "deepseek_v3": {**LATENT, "q_lora_rank": 16},
    "dots1": {**LATENT, "n_shared_experts": 1},
    "ernie4_5": {"head_dim": 16},
    "exaone4": {"sliding_window": 8, "sliding_window_pattern": 2},
    "falcon": {"alibi": False, "new_decoder_architecture": False, "multi_query": True},
    "falcon_h1": {"mamba_d_ssm": 64, "mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 8, "head_dim": 16},
    "gemma": {"head_dim": 16},
    "gemma2": {"head_dim": 16, "query_pre_attn_scalar": 16, "attn_logit_softcapping": 1.0},
    "gemma3_text": {"head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 8},
    "glm": {"head_dim": 16, "pad_token_id": 0},
    "glm4": {"head_dim": 16, "pad_token_id": 0},
    "gpt2": {**GPT, "attn_pdrop": 0.0},
    "gpt_neo": {"num_layers": 2, "num_heads": 4, "attention_types": [[["global", "local"], 1]], "window_size": 8},
    "gpt_oss": {**EXPERTS, "head_dim": 16, "sliding_window": 8},
    "gptj": {**GPT, "rotary_dim": 8},
    "granitemoe": EXPERTS,
    "granitemoehybrid": {
        "layer_types": ["mamba", "attention"], "mamba_n_heads": 8, "mamba_d_head": 16, "mamba_d_state": 8,
        "num_local_experts": 0, "shared_intermediate_size": 64,
    },
    "helium": {"head_dim": 16},
    "hunyuan_v1_dense": {"head_dim": 16},
    "jamba": {
        "attn_layer_period": 2, "attn_layer_offset": 1, "num_experts": 2, "mamba_d_state": 8, "use_mamba_kernels": False,
    },
    "lfm2": {"layer_types": ["conv", "full_attention"], "block_ff_dim": 128},
    "llama4_text": {
        "head_dim": 16, "num_local_experts": 2, "num_experts_per_tok": 1, "intermediate_size_mlp": 128,
        "attention_chunk_size": 8, "pad_token_id": 0,
    },
    "mamba": {"state_size": 8},
    "mamba2": {"num_heads": 8, "head_dim": 16, "state_size": 8, "n_groups": 2},
    "minimax": {
        "head_dim": 16, "num_local_experts": 2, "num_experts_per_tok": 1,
        "layer_types": ["linear_attention", "full_attention"], "block_size": 8,
    },
    "ministral": {"head_dim": 16, "sliding_window": 8},
    "mixtral": EXPERTS,
    "mpt": {"d_model": 64, "n_layers": 2, "n_heads": 4},
    "nemotron": {"head_dim": 16},
    "nemotron_h": {"mamba_num_heads": 8, "mamba_head_dim": 16, "ssm_state_size": 8, "layers_block_type": ["mamba", "attention"]},
    "olmoe": {"num_experts": 4, "num_experts_per_tok": 2},
    "opt": {"ffn_dim": 128, "word_embed_proj_dim": 64},
    "phi3": {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2},
    "qwen2_moe": SHARED_EXPERT,
    "qwen3": {"head_dim": 16},
    "qwen3_moe": {**MANY_EXPERTS, "head_dim": 16},
    "qwen3_next": {
        **SHARED_EXPERT, "head_dim": 16, "layer_types": ["linear_attention", "full_attention"],
        "linear_num_value_heads": 4, "linear_num_key_heads": 2, "linear_key_head_dim": 16, "linear_value_head_dim": 16,
    },
    "recurrent_gemma": {"lru_width": 64, "attention_window_size": 8, "block_types": ["recurrent", "attention"]},
    "rwkv": {"attention_hidden_size": 64},
    "seed_oss": {"head_dim": 16, "attention_dropout": 0.0},
    "smollm3": {"pad_token_id": 0},
    "xglm": {"d_model": 64, "ffn_dim": 128, "num_layers": 2, "attention_heads": 4},
}  # fmt: skip
VARIANTS = {"falcon_alibi": ("falcon", {"alibi": True}), "gpt2_dropout": ("gpt2", {"attn_pdrop": 0.1})}
TOO_LARGE = 20e6  # parameters, since these settings do not shrink it
# Those that can be built: each record laid end to end has the logits it has alone.
END_TO_END = {
    "afmoe", "apertus", "arcee", "aria_text", "bitnet", "codegen", "cohere", "cohere2", "cohere2_moe", "ctrl",
    "cwm", "deepseek_v2", "deepseek_v3", "diffllama", "dots1", "ernie4_5", "ernie4_5_moe", "exaone4", "exaone_moe",
    "fuyu", "gemma", "gemma3_text", "gemma4_unified_text", "glm", "glm4", "gpt2", "gpt_neo", "gpt_neox",
    "gpt_neox_japanese", "gptj", "granite", "granitemoe", "granitemoeshared", "helium", "hrm_text",
    "hunyuan_v1_dense", "hyperclovax", "jais2", "jetmoe", "llama", "minimax_m2", "minimax_m3_vl_text", "ministral",
    "ministral3", "mistral", "mixtral", "nanochat", "olmo", "olmo2", "olmo3", "olmoe", "opt", "persimmon", "phi",
    "phi3", "phimoe", "qwen2", "qwen2_moe", "qwen3", "qwen3_moe", "seed_oss", "smollm3", "starcoder2",
}  # fmt: skip
# Recurrence, convolution, ALiBi, sinks, caps, chunks, dropout in the attention, attention of its own: padded.
PADDED = {
    "bamba", "bart", "bert", "bert-generation", "big_bird", "bigbird_pegasus", "biogpt", "blenderbot-small",
    "bloom", "camembert", "data2vec-text", "electra", "ernie", "falcon", "falcon_alibi", "falcon_h1",
    "falcon_mamba", "gemma2", "gpt-sw3", "gpt2_dropout", "gpt_bigcode", "gpt_oss", "granite_swa", "granitemoe_swa",
    "granitemoehybrid", "jamba", "lfm2", "llama4_text", "mamba", "mamba2", "mbart", "megatron-bert", "minimax",
    "moshi", "mpt", "mvp", "nemotron", "nemotron_h", "openai-gpt", "pegasus", "qwen3_5_text", "qwen3_next",
    "recurrent_gemma", "rembert", "roberta", "roberta-prelayernorm", "roc_bert", "roformer", "rwkv", "stablelm",
    "trocr", "vaultgemma", "xglm", "xlm", "xlm-roberta", "xlm-roberta-xl", "xlstm", "zaya",
}  # fmt: skip
# Padding changes what CpmAnt and Doge answer; the others take no input at all with these settings.
NEITHER = {
    "axk2", "cpmant", "doge", "minicpm3", "xmod", "youtu",
}  # fmt: skip
RECORDS = [torch.randint(5, 499, (n,), generator=torch.Generator().manual_seed(n)).tolist() for n in (23, 17, 31)]


def tiny_causal_model(name: str):
    """Return a tiny model with random weights, or None if one cannot be built from these settings."""
    model_type, extra = VARIANTS.get(name, (name, {}))
    try:
        config = AutoConfig.for_model(model_type, **{**TINY, **SHAPES.get(model_type, {}), **extra})
        with torch.device("meta"):
            size = AutoModelForCausalLM.from_config(config).num_parameters()
        torch.manual_seed(1)
        return (
            AutoModelForCausalLM.from_config(config, dtype=torch.float32, **own_attention(config))
            if size < TOO_LARGE
            else None
        )
    except Exception:
        return None


@torch.no_grad()
def logits(model, rows, layout):
    records = [{"input_ids": row, "labels": row} for row in rows]
    return isolation._logits(model.eval(), records, "transformers", layout)


def test_what_is_laid_end_to_end_is_exact_in_every_architecture(monkeypatch):
    torch.set_num_threads(1)
    exact, padded, neither = set(), set(), set()
    for name in [*MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, *VARIANTS]:
        model = tiny_causal_model(name)
        if model is None:
            continue
        if isolation.why_not("end_to_end", model, "transformers", RECORDS[2]) is None:
            exact.add(name)
            parts = logits(model, RECORDS, "end_to_end")[0].split([len(row) for row in RECORDS])
        elif isolation.why_not("padded", model, "transformers", RECORDS[2]) is None:
            padded.add(name)
            parts = [row[: len(ids)] for row, ids in zip(logits(model, RECORDS, "padded"), RECORDS, strict=True)]
        else:
            neither.add(name)
            continue
        for row, part in zip(RECORDS, parts, strict=True):
            with torch.no_grad():
                alone = model(input_ids=torch.tensor([row]), use_cache=False).logits[0]
            assert isolation._distance(part, alone) < 1e-3, name
    assert (exact, padded, neither) == (END_TO_END, PADDED, NEITHER)


@pytest.mark.parametrize("name", ["lfm2", "mamba", "bloom", "falcon_h1", "recurrent_gemma", "gpt_oss", "gemma2"])
def test_16_bits_hide_no_neighbour(name):
    model = tiny_causal_model(name).to(torch.bfloat16)
    assert isolation.why_not("end_to_end", model, "transformers", RECORDS[2])
    assert isolation.why_not("padded", model, "transformers", RECORDS[2]) is None


def test_the_rounding_of_16_bits_is_no_neighbour():
    exact, rounded = tiny_causal_model("llama"), tiny_causal_model("llama").to(torch.bfloat16)
    noise = max(map(isolation._distance, logits(rounded, RECORDS[:1], "padded"), logits(exact, RECORDS[:1], "padded")))
    assert 1e-3 < noise < isolation.TOLERANCE[torch.bfloat16] / 2


def test_a_window_is_tried_where_a_record_is_longer():
    config = AutoConfig.for_model("mistral", **TINY, sliding_window=100)
    assert isolation._tokens_to_try(config, 90) == 32
    assert isolation._tokens_to_try(config, 200) == 132


def base_model(name):
    model = tiny_causal_model(name)
    form = ComputeFormat("float32", "as set")
    return LanguageModel(model, None, "transformers", name, "16bit", form, form)


def test_the_reason_is_one_line_and_a_model_that_cannot_be_padded_either_is_refused():
    records = Dataset.from_dict({"input_ids": RECORDS})
    assert isolation.layout_of(base_model("llama"), records) == ("end_to_end", "")
    layout, reason = isolation.layout_of(base_model("stablelm"), records)
    assert layout == "padded" and "StableLmAttention does not pass on where records begin" in reason
    layout, reason = isolation.layout_of(base_model("lfm2"), records)
    assert layout == "padded" and re.search(r"^in Lfm2ForCausalLM, records .* see one another$", reason)
    with pytest.raises(UserError, match=r"doge cannot be trained here: .*--model\.name"):
        isolation.layout_of(base_model("doge"), records)


@pytest.fixture
def lfm2(tmp_path):
    """The folder of a tiny LFM2, whose convolutions see what lies before a record."""
    folder = tmp_path / "lfm2"
    tokenizer = loading.load_tokenizer(bundled.resolve("bundled/SmolLM2-135M-Instruct"))
    tokenizer.save_pretrained(folder)
    torch.manual_seed(1)
    config = AutoConfig.for_model("lfm2", **{**TINY, **SHAPES["lfm2"], "vocab_size": len(tokenizer), "eos_token_id": 2})
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


def test_padded_passes_of_any_size_learn_what_records_alone_do(lfm2, tmp_path, capsys):
    def train(passes):
        config = tiny_config(
            lfm2, tmp_path / f"passes-{passes}", lora=LoraConfig(r=4, target_modules=("q_proj", "w1")),
            train=TrainConfig(passes=passes, batch_size=4, max_steps=3, warmup_steps=0, eval_steps=None, logging_steps=1),
        )  # fmt: skip
        config = replace(config, model=replace(config.model, compute_dtype="float32"))
        process_data.run(config)
        fine_tuning.run(config)
        folder = RunFolder.of(config)
        lines = map(json.loads, (folder / TRAINING_LOG).read_text(encoding="utf-8").splitlines())
        return folder, [line[name] for line in lines for name in ("loss", "eval_loss") if name in line]

    folder, alone = train(4)  # a record each
    assert "Records are trained in padded batches, since in Lfm2ForCausalLM" in capsys.readouterr().out
    _, together = train(1)
    assert together == pytest.approx(alone, rel=1e-4) and len(alone) == 3
    metrics = read_manifest(folder, "fine_tuning")["metrics"]
    assert metrics["layout"] == "padded"
