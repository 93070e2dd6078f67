"""What a base model's generation_config.json sets changes no answer, whatever it is."""

from __future__ import annotations

import inspect
import json
import re
import shutil
from dataclasses import replace

import pytest
from transformers import GenerationConfig as HuggingFaceGenerationConfig

from config import GenerationConfig, ModelConfig, PromptConfig
from pipeline.models import generation, loading, prompts

# Of a kind that is valid and changes something, where 7 is not.
VALUES = {
    "do_sample": True, "early_stopping": True, "stop_strings": ["a", "e", "\n"], "use_mtp": True, "use_cache": False,
    "cache_implementation": "static", "cache_config": {"nbits": 4}, "temperature": 0.3, "top_k": 2, "top_p": 0.3, "min_p": 0.5,
    "top_h": 0.5, "typical_p": 0.2, "epsilon_cutoff": 0.5, "eta_cutoff": 0.5, "repetition_penalty": 1.9, "length_penalty": 0.2,
    "encoder_repetition_penalty": 1.9, "bad_words_ids": [[30], [31]], "renormalize_logits": True, "forced_bos_token_id": 3,
    "forced_eos_token_id": 3, "remove_invalid_values": True, "exponential_decay_length_penalty": [1, 2.0], "num_beams": 2,
    "suppress_tokens": list(range(3, 40_000)), "begin_suppress_tokens": list(range(3, 40_000)), "token_healing": True,
    "sequence_bias": [[[30], 9.0]], "guidance_scale": 2.5, "watermarking_config": {"bias": 9.0}, "max_time": 1e-9,
    "output_attentions": True, "output_hidden_states": True, "output_scores": True, "output_logits": True, "max_length": 3,
    "return_dict_in_generate": True, "is_assistant": True, "num_assistant_tokens_schedule": "constant", "no_repeat_ngram_size": 1,
    "assistant_confidence_threshold": 0.5, "assistant_ensemble_weight": 0.5, "speculation_type": "dflash", "low_memory": True,
    "compile_config": {"mode": "default"}, "disable_compile": True, "penalty_alpha": 0.6, "dola_layers": "high",
    "diversity_penalty": 0.5, "num_beam_groups": 2, "constraints": [7], "force_words_ids": [[7]], "logits_processor": [],
    "num_return_sequences": 2, "custom_of_a_model": 7, "continuous_batching_config": {"block_size": 16},
}  # fmt: skip
TOKENS = {"eos_token_id", "bos_token_id", "pad_token_id"}
GREEDY = GenerationConfig(max_new_tokens=6, temperature=0.0, batch_size=2)


def attributes():
    """What transformers' GenerationConfig can hold."""
    source = inspect.getsource(HuggingFaceGenerationConfig.__init__)
    return sorted(set(re.findall(r'kwargs\.pop\("([a-z]\w*)"', source)) | VALUES.keys())


@pytest.fixture(scope="module")
def tiny(tiny_model):
    """The model as it is loaded where its files set nothing but tokens."""
    return loading.load_base(ModelConfig(name=str(tiny_model("llama"))), "16bit")


def told(model):
    """What a model answers in a batch, and streams."""
    prompt_format = prompts.make_prompt_format(PromptConfig(format="alpaca", instruction="DESCRIBE"), model.tokenizer)
    texts = [prompt_format.prompt(title) for title in ("Tea", "A cat of 3")]
    answered = [answer.text for answer in generation.generate(model, prompt_format, texts, GREEDY)]
    return [*answered, "".join(generation.stream(model, prompt_format, texts[0], GREEDY))]


def test_every_setting_of_a_base_model_is_left_out_and_what_is_left_can_be_saved(tiny, tmp_path):
    names = [name for name in attributes() if name not in TOKENS]
    assert len(names) > 60, "or the names were not found"
    expected, changed = told(tiny), []
    assert all(expected)
    for name in names:
        files = HuggingFaceGenerationConfig(eos_token_id=2, bos_token_id=1)
        setattr(files, name, VALUES.get(name, 7))
        tiny.model.generation_config = files
        try:
            ready = loading._ready(
                tiny.model, tiny.tokenizer, "transformers", "tiny", "16bit", tiny.compute_format, tiny.answering_format
            )
            assert told(ready) == expected and ready.stop_ids == [2]
            ready.model.generation_config.save_pretrained(tmp_path)
        except Exception as error:
            changed.append(f"{name}: {type(error).__name__}: {error}")
    assert not changed


@pytest.mark.parametrize("name", ["generation_config.json", "config.json"])
def test_a_model_is_loaded_whatever_its_files_set(tiny, tiny_model, tmp_path, name):
    folder = shutil.copytree(tiny_model("llama"), tmp_path / "base")
    (folder / "generation_config.json").unlink()
    file = folder / name
    before = json.loads(file.read_text()) if file.exists() else {}
    # Those of config.json are of older models, which had nothing else.
    known = VALUES if name == "generation_config.json" else HuggingFaceGenerationConfig._get_default_generation_params()
    file.write_text(json.dumps({**before, **{key: VALUES.get(key, 7) for key in known}, "eos_token_id": [2, 17]}))
    loaded = loading.load_base(ModelConfig(name=str(folder)), "16bit")
    assert loaded.stop_ids == [2, 17]
    assert told(replace(loaded, stop_ids=[2])) == told(tiny)
