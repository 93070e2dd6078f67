"""Put an adapter on a base model, load it, merge it."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from config import LoraConfig
from pipeline.models import devices
from pipeline.models.language_model import LanguageModel, cast_weights, set_training
from pipeline.models.loading import _ready
from pipeline.models.loading_errors import quiet_loading
from pipeline.run.errors import UserError
from pipeline.run.run_folder import remake

if TYPE_CHECKING:
    import torch

_OF_LORA = ".lora_"  # in the name of each of the adapter's weights


def add_adapter(base: LanguageModel, config: LoraConfig, seed: int, checkpointing: bool) -> LanguageModel:
    """Put a new LoRA adapter on the base model; only its weights are trainable."""
    if base.backend == "unsloth":
        from unsloth import FastLanguageModel

        model = FastLanguageModel.get_peft_model(
            base.model, r=config.r, lora_alpha=config.alpha, lora_dropout=config.dropout, bias="none",
            target_modules=list(config.target_modules), random_state=seed,
            use_gradient_checkpointing="unsloth" if checkpointing else False,
        )  # fmt: skip
        return replace(base, model=model)
    import torch
    from peft import get_peft_model

    torch.manual_seed(seed)
    return replace(base, model=get_peft_model(base.model, peft_lora_config(config)))


def peft_lora_config(config: LoraConfig) -> Any:
    """Return PEFT's form of the adapter's settings."""
    from peft import LoraConfig as PeftLoraConfig

    return PeftLoraConfig(
        r=config.r, lora_alpha=config.alpha, lora_dropout=config.dropout, bias="none",
        target_modules=list(config.target_modules), task_type="CAUSAL_LM",
    )  # fmt: skip


def load_adapter(base: LanguageModel, folder: Path) -> LanguageModel:
    """Load a trained adapter onto its base model.

    Raises:
        UserError: its weights are not a whole safetensors file, are not those of this base model, or are not finite.
    """
    import torch
    from peft import PeftModel, get_peft_model_state_dict
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    weights = folder / "adapter_model.safetensors"
    try:
        # PEFT would read a pickle instead, if there were one.
        found = {name: tensor for name, tensor in load_file(weights).items() if _OF_LORA in name}
    except (FileNotFoundError, SafetensorError) as error:
        raise remake(weights, f"{weights} is missing or damaged ({error}).") from error
    for name, tensor in found.items():
        if not torch.isfinite(tensor).all():
            raise remake(weights, f"{weights} holds numbers that are not finite, in {name}.")
    try:
        with quiet_loading(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Found missing adapter keys")  # as below
            model = PeftModel.from_pretrained(base.model, str(folder))
    except RuntimeError as error:
        if "size mismatch" not in str(error):
            raise
        raise remake(
            weights, f"{weights} does not fit {base.name}: it was trained on a model of another shape."
        ) from error
    expected = get_peft_model_state_dict(model, save_embedding_layers=False)
    differing = sorted(found.keys() ^ {name for name in expected if _OF_LORA in name})
    if differing:
        missing = "has no" if differing[0] not in found else "has a weight that is not of this model,"
        raise remake(weights, f"{weights} does not fit {base.name}: it {missing} {differing[0]}.")
    name = f"{base.name} + {folder.name}"
    return _ready(model, base.tokenizer, base.backend, name, base.precision, base.compute_format, base.answering_format)


def answer_after_training(tuned: LanguageModel) -> LanguageModel:
    """Return a model that was trained, ready to answer."""
    set_training(tuned, False)
    form = tuned.answering_format
    if form.name != "float32":
        return tuned
    cast_weights(tuned.model, form.dtype)
    return replace(tuned, compute_format=form)


def merge(tuned: LanguageModel, stored: torch.dtype) -> LanguageModel:
    """Return the base model with the adapter's update added to its weights, in the number format of its files.

    Raises:
        UserError: a weight is not finite in that format.
    """
    import torch
    from peft.tuners.lora import LoraLayer

    arithmetic = devices.compute_format("merging").dtype
    for layer in tuned.model.modules():
        if isinstance(layer, LoraLayer):
            base = layer.get_base_layer()
            base.to(arithmetic)
            layer.merge()
            base.to(stored)
    merged = tuned.peft_model.unload()
    cast_weights(merged, stored)
    for name, weight in merged.named_parameters():
        if not torch.isfinite(weight).all():
            raise UserError(
                f"After the merge, {name} holds numbers that are not finite in {str(stored).removeprefix('torch.')}. "
                "Train again with a lower --train.learning-rate."
            )
    return replace(tuned, model=merged)
