"""How many weights a model has, from its config.json alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from config import LoraConfig, ModelConfig
from pipeline.models import bundled
from pipeline.models.language_model import Precision
from pipeline.models.loading_errors import helpful_loading_errors

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

NF4_BYTES = 0.5 + 1 / 64 + 4 / (64 * 256)  # of a weight: its 4 bits, and scales that are quantized themselves


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


def model_size(config: ModelConfig, lora: LoraConfig) -> ModelSize:
    """Count the weights of a model; its files are not read."""
    from transformers import AutoConfig

    with helpful_loading_errors(config.name):
        path = bundled.resolve(config.name)
        return size_of_architecture(AutoConfig.from_pretrained(path, trust_remote_code=False), lora)


def size_of_architecture(shape: PreTrainedConfig, lora: LoraConfig) -> ModelSize:
    """Count the weights of a model with a config.json of transformers."""
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(shape, trust_remote_code=False)
    head = model.get_output_embeddings()
    linears = {name: m for name, m in model.named_modules() if isinstance(m, torch.nn.Linear) and m is not head}
    sizes = [m.in_features * m.out_features for m in linears.values()]
    adapted = [m for name, m in linears.items() if name.rpartition(".")[2] in lora.target_modules]
    linear, blocks = sum(sizes), shape.get_text_config().num_hidden_layers
    return ModelSize(
        linear=linear,
        other=sum(weight.numel() for weight in model.parameters()) - linear,
        adapter=lora.r * sum(m.in_features + m.out_features for m in adapted),
        layers=blocks,
        hidden=shape.get_text_config().hidden_size,
        vocabulary=head.out_features,
        features=sum(m.in_features + m.out_features for m in linears.values()) // blocks,
        adapter_inputs=sum(m.in_features for m in adapted) // blocks if lora.dropout else 0,
        largest=max(sizes, default=0),
        quantized_files=getattr(shape, "quantization_config", None) is not None,
    )


def count_parameters(path: str) -> int:
    """Return the parameters of a model, from its config.json alone."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    with torch.device("meta"):
        shape = AutoConfig.from_pretrained(path, trust_remote_code=False)
        return AutoModelForCausalLM.from_config(shape, trust_remote_code=False).num_parameters()
