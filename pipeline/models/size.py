"""How many weights a model has, from its config.json alone."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from config import LoraConfig, ModelConfig
from pipeline.models import bundled
from pipeline.models.language_model import Precision
from pipeline.models.loading_errors import helpful_loading_errors

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedConfig

    from pipeline.models.language_model import CausalModel

NF4_BYTES = 0.5 + 1 / 64 + 4 / (64 * 256)  # of a weight: its 4 bits, and scales that are quantized themselves
_OF_POSITIONS = re.compile(r"(^|\.)(wpe|embed_positions|positions_embed|position_embeddings)$")


@dataclass(frozen=True)
class ModelSize:
    """Counts of weights, from the model's config.json alone."""

    linear: int
    """Weights of the linear layers in the blocks, which 4 bits shrink."""
    other: int
    """Weights of embeddings, norms and output."""
    adapter: int
    """Weights of the LoRA adapter."""
    layers: int
    hidden: int
    heads: int
    vocabulary: int
    features: int
    """Inputs and outputs of the linear layers of a block."""
    adapter_inputs: int
    """Inputs of the adapter in a block that are subject to dropout."""
    largest: int
    """Weights of the largest linear layer."""
    quantized_files: bool
    """Whether the files hold 4-bit weights, which are loaded first if 16 bits are wanted."""

    def weights(self, precision: Precision, number: int = 2) -> float:
        """Return the bytes of the base model, whose weights that are not quantized have `number` bytes."""
        return self.linear * (NF4_BYTES if precision == "4bit" else number) + number * self.other


@dataclass(frozen=True)
class Shape:
    """What every decoder has, under whatever names its architecture gives it."""

    layers: int
    hidden: int
    heads: int
    """Of the attention of a block; 1 if there is none."""
    inner: int
    """Columns of the widest feed-forward network."""
    cached: int
    """Numbers that a token adds to the keys and values of all layers; of layers without attention, more than these keep."""


def shape_of(config: PreTrainedConfig) -> Shape:
    """Return the shape of a model with a config.json of transformers."""
    text = config.get_text_config(decoder=True)
    # Blt has several models in one.
    parts = [text] if hasattr(text, "num_hidden_layers") else [getattr(text, name) for name in text.sub_configs]
    layers = [part.per_layer_config[number] for part in parts for number in range(part.num_hidden_layers)]
    return Shape(
        layers=len(layers),
        hidden=max(layer.hidden_size for layer in layers),
        heads=max(map(_heads, layers)),
        inner=max(_first(layer, "intermediate_size") or 4 * layer.hidden_size for layer in layers),
        cached=sum(map(_cached, layers)),
    )


def _heads(layer: PreTrainedConfig) -> int:
    return _first(layer, "num_attention_heads") or 1


def _cached(layer: PreTrainedConfig) -> int:
    heads = _heads(layer)
    head = _first(layer, "head_dim", "dim_head") or layer.hidden_size // heads
    kept = _first(layer, "num_key_value_heads", "num_kv_heads") or heads
    if _first(layer, "multi_query") and not _first(layer, "new_decoder_architecture"):
        kept = 1
    return kept * ((_first(layer, "qk_head_dim") or head) + (_first(layer, "v_head_dim") or head))


def _first(layer: PreTrainedConfig, *names: str) -> int | None:
    """Return the first attribute that a layer has and that is set; the largest of a list with one for each layer."""
    for name in names:
        if value := getattr(layer, name, None):
            return max(value) if isinstance(value, (list, tuple)) else value
    return None


def token_limit(model: torch.nn.Module) -> int | None:
    """Return how many tokens a loaded model of transformers reads, prompt and answer together; None if nothing bounds it.

    A table of positions is read to its end, and rotary positions as far as config.json says that they were trained.
    """
    import torch

    config: Any = model.config  # for torch, attributes are tensors and modules
    stated = _first(config.get_text_config(decoder=True), "max_position_embeddings", "max_seq_len")
    limits = [stated] if stated is not None and stated > 0 else []
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Embedding) and _OF_POSITIONS.search(name):
            # Some begin to count after the padding token (RoBERTa), some after a number of their own (OPT).
            first = 0 if module.padding_idx is None else module.padding_idx + 1
            limits.append(module.num_embeddings - getattr(module, "offset", first))
    return min(limits, default=None)


def load_shape(path: str) -> PreTrainedConfig:
    """Return config.json of a model in a folder or on Hugging Face, as transformers reads it."""
    from transformers import AutoConfig

    return AutoConfig.from_pretrained(path, trust_remote_code=False)


def token_limit_of(name: str) -> int | None:
    """Return how many tokens a model reads, as token_limit, from its config.json alone."""
    with helpful_loading_errors(name):
        path = bundled.resolve(name)
        return token_limit(without_weights(load_shape(path)))


def model_size(config: ModelConfig, lora: LoraConfig) -> ModelSize:
    """Count the weights of a model; its files are not read."""
    with helpful_loading_errors(config.name):
        path = bundled.resolve(config.name)
        return size_of_architecture(load_shape(path), lora)


def size_of_architecture(shape: PreTrainedConfig, lora: LoraConfig) -> ModelSize:
    """Count the weights of a model with a config.json of transformers."""
    model = without_weights(shape)
    linears = linear_layers(model)
    sizes = [m.weight.numel() for m in linears.values()]
    adapted = [m for name, m in linears.items() if name.rpartition(".")[2] in lora.target_modules]
    linear, dimensions = sum(sizes), shape_of(shape)
    return ModelSize(
        linear=linear,
        other=sum(weight.numel() for weight in model.parameters()) - linear,
        adapter=lora.r * sum(sum(m.weight.shape) for m in adapted),
        layers=dimensions.layers,
        hidden=dimensions.hidden,
        heads=dimensions.heads,
        vocabulary=len(model.get_output_embeddings().weight),
        features=sum(sum(m.weight.shape) for m in linears.values()) // dimensions.layers,
        adapter_inputs=sum(map(_inputs, adapted)) // dimensions.layers if lora.dropout else 0,
        largest=max(sizes, default=0),
        quantized_files=getattr(shape, "quantization_config", None) is not None,
    )


def linear_layers(model: CausalModel) -> dict[str, Any]:
    """Return the linear layers of a model under their full names, without its output layer; GPT-2's are of another class."""
    import torch
    from transformers.pytorch_utils import Conv1D

    head = model.get_output_embeddings()
    layers = ((name, m) for name, m in model.named_modules() if isinstance(m, (torch.nn.Linear, Conv1D)))
    return {name: layer for name, layer in layers if layer is not head}


def _inputs(layer: Any) -> int:
    return layer.in_features if hasattr(layer, "in_features") else layer.nx


def count_parameters(path: str) -> int:
    """Return the parameters of a model, from its config.json alone."""
    return without_weights(load_shape(path)).num_parameters()


def without_weights(shape: PreTrainedConfig) -> CausalModel:
    """Return a model of an architecture, whose weights have shapes and no values."""
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(shape, trust_remote_code=False)
