"""Tiny models of the presets' architectures, built here with random weights, and settings for them."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Collection
from dataclasses import replace
from pathlib import Path
from typing import Any

from config import (
    PRESETS,
    PROJECT_DIR,
    Config,
    GenerationConfig,
    LoraConfig,
    ModelConfig,
    QuestionsConfig,
    TrainConfig,
)

SAMPLE = PROJECT_DIR / "data" / "trn_sample.json"
PHI3_SPECIAL = (
    "<|endoftext|>", "<|assistant|>", "<|placeholder1|>", "<|placeholder2|>", "<|placeholder3|>", "<|placeholder4|>",
    "<|system|>", "<|end|>", "<|placeholder5|>", "<|placeholder6|>", "<|user|>",
)  # fmt: skip
# The chat template of microsoft/Phi-3-mini-4k-instruct.
PHI3_CHAT_TEMPLATE = (
    "{% for message in messages %}{% if message['role'] == 'system' %}{{'<|system|>\n' + message['content'] + '<|end|>\n'}}"
    "{% elif message['role'] == 'user' %}{{'<|user|>\n' + message['content'] + '<|end|>\n'}}"
    "{% elif message['role'] == 'assistant' %}{{'<|assistant|>\n' + message['content'] + '<|end|>\n'}}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}"
)
# Chat templates of today, shortened, with SmolLM2's tokens.
_TURNS = "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] | trim + '<|im_end|>\n' }}"
CHAT_TEMPLATES = {
    # Llama 3.2's tells the date, before the user's system message.
    "dated": (
        "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{% set system, messages = messages[0]['content'], messages[1:] %}"
        "{% else %}{% set system = '' %}{% endif %}{% set date_string = strftime_now('%d %b %Y') %}"
        "{{ '<|im_start|>system\nToday Date: ' + date_string + '\n\n' + system + '<|im_end|>\n' }}"
        "{% for message in messages %}" + _TURNS + "{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    ),
    # Gemma 2's refuses a system message.
    "no-system": (
        "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
        "{% for message in messages %}" + _TURNS + "{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    ),
    # Mistral's writes BOS and EOS itself, and the system message into the question.
    "brackets": (
        "{{ bos_token }}{% if messages[0]['role'] == 'system' %}"
        "{% set system, messages = messages[0]['content'] + '\n\n', messages[1:] %}{% else %}{% set system = '' %}{% endif %}"
        "{% for message in messages %}{% if message['role'] == 'user' %}"
        "{{ '<repo_name> ' + (system if loop.last else '') + message['content'] + '<file_sep>' }}"
        "{% else %}{{ message['content'] + eos_token }}{% endif %}{% endfor %}"
    ),
}
# What the fixture `tokenizer` can be: SmolLM2's BPE, the same with an automatic BOS as Llama 3 has one, and with each
# template above; SentencePiece as Phi-3 has it.
TOKENIZERS = ("smollm2", "smollm2-bos", *CHAT_TEMPLATES, "phi3", "mistral")
# What formats and templates could take for their own.
HOSTILE_INSTRUCTION = (
    'Say """hi""" and "ho", {{ .Prompt }}, {{- {{{ }} {% raw %} {# no comment #} \\ \\n \\" \' `\n"""\r\n\t'
    "{context}{title}{\u00a0\u200b🙂"
)
TINY_SHAPE = {
    "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 2048, "initializer_range": 0.2,
}  # fmt: skip


def sample_lines() -> list[str]:
    """The lines of the demo's input."""
    return SAMPLE.read_text(encoding="utf-8").splitlines()


def save_phi3_tokenizer(folder: Path) -> int:
    """Write a SentencePiece tokenizer as Phi-3 has one, with tokenizer.model; return its vocabulary size."""
    import sentencepiece
    from tokenizers import AddedToken, normalizers
    from transformers import LlamaTokenizer

    texts = [line[60:] for line in sample_lines()]
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts), model_writer=model, vocab_size=800, model_type="bpe", byte_fallback=True,
        character_coverage=0.995, normalization_rule_name="identity", remove_extra_whitespaces=False,
        split_digits=True, unk_id=0, bos_id=1, eos_id=2, pad_id=-1, minloglevel=2, num_threads=1,
    )  # fmt: skip
    (folder / "tokenizer.model").write_bytes(model.getvalue())
    backend = LlamaTokenizer.from_pretrained(folder).backend_tokenizer
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.pre_tokenizer = None
    backend.add_special_tokens(
        [AddedToken(name, special=True, rstrip=name != "<|endoftext|>", normalized=False) for name in PHI3_SPECIAL]
    )
    backend.save(str(folder / "tokenizer.json"))
    settings = {
        "add_bos_token": False, "add_eos_token": False, "bos_token": "<s>", "eos_token": "<|endoftext|>",
        "pad_token": "<|endoftext|>", "unk_token": "<unk>", "legacy": False, "model_max_length": 2048,
        "tokenizer_class": "LlamaTokenizer", "chat_template": PHI3_CHAT_TEMPLATE,
    }  # fmt: skip
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    return backend.get_vocab_size()


def build_llama(folder: Path, **shape: float) -> None:
    """Llama with a byte-level BPE tokenizer and no chat template, as a base model has none."""
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    from pipeline.models import bundled

    tokenizer = AutoTokenizer.from_pretrained(bundled.resolve("bundled/SmolLM2-135M-Instruct"))
    tokenizer.chat_template = None
    tokenizer.save_pretrained(folder)
    LlamaForCausalLM(
        LlamaConfig(vocab_size=len(tokenizer), eos_token_id=2, bos_token_id=1, **TINY_SHAPE | shape)
    ).save_pretrained(folder)


def build_opt(folder: Path, positions: int) -> None:
    """OPT, which has a table of positions, with SmolLM2's tokenizer."""
    from transformers import AutoTokenizer, OPTConfig, OPTForCausalLM

    from pipeline.models import bundled

    tokenizer = AutoTokenizer.from_pretrained(bundled.resolve("bundled/SmolLM2-135M-Instruct"))
    tokenizer.save_pretrained(folder)
    OPTForCausalLM(
        OPTConfig(
            vocab_size=len(tokenizer), hidden_size=64, word_embed_proj_dim=64, ffn_dim=128, num_hidden_layers=2,
            num_attention_heads=4, max_position_embeddings=positions, bos_token_id=1, eos_token_id=2, pad_token_id=2,
        )
    ).save_pretrained(folder)  # fmt: skip


def build_wide_llama(folder: Path) -> None:
    """The same with 256 columns: Unsloth's 4-bit kernel for a single sequence is wrong for 64, which no real model has."""
    build_llama(folder, hidden_size=256, intermediate_size=512, initializer_range=0.1)


def build_phi3(folder: Path) -> None:
    """Phi-3 with fused projections."""
    from transformers import Phi3Config, Phi3ForCausalLM

    size = save_phi3_tokenizer(folder)
    config = Phi3Config(
        vocab_size=size, eos_token_id=size - 11, bos_token_id=1, pad_token_id=size - 11,
        original_max_position_embeddings=2048, sliding_window=2047, **TINY_SHAPE,
    )  # fmt: skip
    Phi3ForCausalLM(config).save_pretrained(folder)


def build_mistral(folder: Path) -> None:
    """The split Phi-3 that Unsloth publishes: Mistral's architecture with Phi-3's tokenizer."""
    from transformers import MistralConfig, MistralForCausalLM

    size = save_phi3_tokenizer(folder)
    config = MistralConfig(
        vocab_size=size,
        eos_token_id=size - 11,
        bos_token_id=1,
        pad_token_id=size - 11,
        sliding_window=2048,
        **TINY_SHAPE,
    )
    MistralForCausalLM(config).save_pretrained(folder)


BUILDERS = {"llama": build_llama, "wide_llama": build_wide_llama, "phi3": build_phi3, "mistral": build_mistral}


def tiny_config(model: Path | str, output_dir: Path, **sections: object) -> Config:
    """The demo's settings with a model, a sample and a training of a few seconds."""
    demo = PRESETS["demo"]
    config = replace(
        demo,
        output_dir=output_dir,
        model=ModelConfig(name=str(model)),
        lora=LoraConfig(r=4, alpha=8),
        train=TrainConfig(
            max_steps=4, batch_size=2, gradient_accumulation_steps=1, max_length=128, learning_rate=2e-2,
            logging_steps=1, eval_steps=2, save_steps=2, validation_size=8,
        ),
        generation=GenerationConfig(max_new_tokens=12, temperature=0.0),
        answers=GenerationConfig(max_new_tokens=12, temperature=0.0, batch_size=2),
        questions=QuestionsConfig(examples=("Nothing of this name",), held_out=2),
    )  # fmt: skip
    return replace(config, **sections)


def build_encoder(folder: Path, kind: str = "BertModel", more_words: Collection[str] = (), **shape: int) -> None:
    """A BERT, or another class of transformers named `kind` with its config, over the words of the demo's first records."""
    import transformers

    words = {word for line in sample_lines()[:50] for word in line.lower().split() if word.isalpha()}
    words = sorted(words.union(more_words))
    (folder / "vocab.txt").write_text(
        "\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words]), encoding="utf-8"
    )
    transformers.BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(folder)
    model = getattr(transformers, kind)
    small = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
    config = model.config_class(vocab_size=len(words) + 5, pad_token_id=0, **small | shape)
    model(config).save_pretrained(folder)


def change_weights(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the weights in the files of a model or an adapter: `change` is given them by name."""
    from safetensors.torch import load_file, save_file

    (file,) = folder.glob("*.safetensors")
    weights = load_file(file)
    change(weights)
    save_file({name: weight.clone() for name, weight in weights.items()}, file, {"format": "pt"})
