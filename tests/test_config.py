"""The presets reproduce the numbers of the systems that they come from."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from config import (
    PRESETS,
    SECTIONS,
    Config,
    DataConfig,
    GenerationConfig,
    GgufConfig,
    LoraConfig,
    RagConfig,
    StudyConfig,
    TrainConfig,
)

# The public config.json of each base model, as far as it decides the shapes.
ARCHITECTURES = {
    "amazon-llama3": ("LlamaConfig", "LlamaForCausalLM", {
        "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
        "num_key_value_heads": 8, "vocab_size": 128256}),
    "saude-phi3": ("Phi3Config", "Phi3ForCausalLM", {
        "hidden_size": 3072, "intermediate_size": 8192, "num_hidden_layers": 32, "num_attention_heads": 32,
        "num_key_value_heads": 32, "vocab_size": 32064, "pad_token_id": 32000}),
    "books-phi3-medium": ("MistralConfig", "MistralForCausalLM", {
        "hidden_size": 5120, "intermediate_size": 17920, "num_hidden_layers": 40, "num_attention_heads": 40,
        "num_key_value_heads": 10, "vocab_size": 32064}),
}  # fmt: skip
TRAINABLE = {"amazon-llama3": 83_886_080, "saude-phi3": 25_165_824, "books-phi3-medium": 65_536_000}


@pytest.mark.parametrize("preset", TRAINABLE)
def test_trainable_parameters(preset):
    import torch
    import transformers
    from peft import get_peft_model

    from pipeline.models.adapter import peft_lora_config

    config_class, model_class, shape = ARCHITECTURES[preset]
    with torch.device("meta"):
        base = getattr(transformers, model_class)(getattr(transformers, config_class)(**shape))
        model = get_peft_model(base, peft_lora_config(PRESETS[preset].lora))
    assert model.get_nb_trainable_parameters()[0] == TRAINABLE[preset]


def test_amazon_preset():
    preset = PRESETS["amazon-llama3"]
    assert preset.model.name == "unsloth/llama-3-8b-bnb-4bit" and preset.model.precision == "auto"
    assert preset.data.min_content_chars == 100 and preset.train.sample_size == 5000
    assert (preset.lora.r, preset.lora.alpha, preset.lora.dropout) == (32, 32, 0)
    train = preset.train
    assert (train.batch_size, train.gradient_accumulation_steps, train.epochs) == (2, 4, 2)
    assert (train.learning_rate, train.scheduler, train.warmup_steps) == (2e-4, "linear", 0)
    assert (train.weight_decay, train.optimizer, train.max_grad_norm) == (0.01, "adamw_8bit", 0.3)
    assert (train.seed, train.max_length) == (3407, 8192)
    assert (preset.generation.max_new_tokens, preset.generation.temperature) == (128, 0.2)
    assert (preset.answers.max_new_tokens, preset.answers.temperature) == (512, 0.3)
    assert preset.rag.k == 3 and preset.rag.embedding_model == "sentence-transformers/all-mpnet-base-v2"


def test_saude_preset():
    preset = PRESETS["saude-phi3"]
    assert preset.model.name == "microsoft/Phi-3-mini-4k-instruct" and preset.model.precision == "auto"
    assert (preset.data.read_title_from, preset.data.read_content_from) == ("input", "output")
    assert (preset.data.write_title_as, preset.data.write_content_as) == ("pergunta", "resposta")
    assert not preset.data.deduplicate and all(p.data.deduplicate for p in PRESETS.values() if p is not preset)
    assert (preset.lora.r, preset.lora.alpha, preset.lora.dropout) == (16, 32, 0.05)
    train = preset.train
    assert (train.batch_size, train.gradient_accumulation_steps, train.epochs, train.max_length) == (1, 4, 3, 512)
    assert (train.learning_rate, train.optimizer, train.logging_steps) == (2e-4, "paged_adamw_8bit", 25)
    assert (preset.gguf.file_name, preset.gguf.type) == ("novo_modelo.gguf", "q8_0")


def test_books_preset():
    preset = PRESETS["books-phi3-medium"]
    assert preset.model.name == "unsloth/Phi-3-medium-4k-instruct" and preset.model.precision == "auto"
    assert (preset.lora.r, preset.lora.alpha) == (16, 32)
    train = preset.train
    assert (train.batch_size, train.gradient_accumulation_steps, train.max_steps) == (2, 8, 100)
    assert (train.scheduler, train.warmup_steps) == ("cosine", 5)
    assert train.batching == "packed" and train.tokens_wanted == 100 * 16 * 2048 and train.records_wanted is None
    assert preset.questions.probe == "what is the minimum recommended age for reading {title} and why?"


@pytest.mark.parametrize("make", [
    lambda: DataConfig(min_content_chars=-1),
    lambda: DataConfig(validation_fraction=0.6, test_fraction=0.5),
    lambda: DataConfig(validation_fraction=math.nan),
    lambda: LoraConfig(r=0),
    lambda: LoraConfig(target_modules=()),
    lambda: TrainConfig(learning_rate=-1e-4),
    lambda: TrainConfig(learning_rate=math.inf),
    lambda: TrainConfig(batch_size=0),
    lambda: TrainConfig(passes=0),
    lambda: TrainConfig(memory_gb=math.nan),
    lambda: GenerationConfig(temperature=math.nan),
    lambda: GenerationConfig(top_p=0.0),
    lambda: GenerationConfig(repetition_penalty=0.0),
    lambda: GgufConfig(file_name="../outside.gguf"),
    lambda: RagConfig(k=0),
    lambda: RagConfig(chunk_tokens=10, chunk_overlap_tokens=10),
    lambda: TrainConfig(eval_steps=2.5),
    lambda: StudyConfig(trials=0),
    lambda: StudyConfig(hours=0),
    lambda: StudyConfig(learning_rate_low=math.nan),
    lambda: StudyConfig(learning_rate_low=1e-3, learning_rate_high=1e-4),
    lambda: StudyConfig(ranks=()),
    lambda: StudyConfig(ranks=(8, 8)),
    lambda: StudyConfig(ranks=(8, 0)),
    lambda: StudyConfig(epochs=(1.0, math.inf)),
])  # fmt: skip
def test_impossible_settings_are_refused(make):
    with pytest.raises(ValueError, match="must be"):
        make()


def test_every_setting_says_what_it_is():
    import ast

    from config import PROJECT_DIR

    tree = ast.parse((PROJECT_DIR / "config.py").read_text(encoding="utf-8"))
    for node in tree.body:
        if not isinstance(node, ast.ClassDef) or node.name == "Config":
            continue
        for position, statement in enumerate(node.body):
            if isinstance(statement, ast.AnnAssign):
                after = node.body[position + 1]
                assert isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant), (
                    f"{node.name}.{statement.target.id}"
                )


def test_stages_name_sections_of_the_config():
    sections = set(Config.__dataclass_fields__)
    assert all(section in sections for used in SECTIONS.values() for section in used)


@pytest.mark.parametrize("preset", PRESETS)
def test_the_trainer_gets_the_settings_of_the_preset(preset, tmp_path):
    import torch

    from pipeline.training.trainer import sft_arguments

    train = PRESETS[preset].train
    if train.optimizer != "adamw_torch" and not torch.cuda.is_available():
        train = replace(train, optimizer="adamw_torch")  # transformers asks for bitsandbytes at once
    arguments = sft_arguments(
        train, tmp_path, 3, "end_to_end", True, has_validation=True, resumes=False, dtype=torch.bfloat16
    )
    assert arguments.learning_rate == train.learning_rate and arguments.weight_decay == train.weight_decay
    assert arguments.lr_scheduler_type == train.scheduler and arguments.warmup_steps == train.warmup_steps
    assert arguments.max_grad_norm == train.max_grad_norm and arguments.optim == train.optimizer
    assert arguments.per_device_train_batch_size == 1 and arguments.gradient_accumulation_steps == 3
    assert arguments.max_steps == (train.max_steps or -1) and arguments.num_train_epochs == train.epochs
    assert arguments.seed == train.seed and arguments.gradient_checkpointing and arguments.eval_on_start


def test_the_names_of_the_stages_are_those_of_the_scripts():
    from typing import get_args

    from config import PROJECT_DIR, SECTIONS, StageName

    assert get_args(StageName) == tuple(SECTIONS)
    assert all((PROJECT_DIR / f"{stage}.py").exists() for stage in SECTIONS)
