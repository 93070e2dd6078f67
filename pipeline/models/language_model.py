"""A model with its tokenizer, ready to be used."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from pipeline.models.devices import ComputeFormat

if TYPE_CHECKING:
    import torch
    from peft import PeftModel
    from transformers import PreTrainedTokenizerBase
    from transformers.models.auto.modeling_auto import _BaseModelWithGenerate as CausalModel


Backend = Literal["unsloth", "transformers"]
Precision = Literal["4bit", "16bit"]


@dataclass
class LanguageModel:
    """A model with its tokenizer, ready to be used on its device."""

    model: CausalModel | PeftModel
    tokenizer: PreTrainedTokenizerBase
    backend: Backend
    name: str
    precision: Precision
    """Of the base model's weights."""
    compute_format: ComputeFormat
    """What it computes in, and why."""
    answering_format: ComputeFormat
    """What it answers in: a small model that is trained in 16 bits answers in 32."""
    stop_ids: list[int] = field(default_factory=list)

    @property
    def peft_model(self) -> PeftModel:
        """Return the model, which has an adapter."""
        from peft import PeftModel

        assert isinstance(self.model, PeftModel)  # or this was asked of a base model
        return self.model

    @property
    def device(self) -> str:
        """Return the device of the weights: cpu, cuda:0 or mps:0."""
        return str(self.model.device)

    @property
    def runs_on(self) -> dict[str, str]:
        """Return what runs the model, where, in which number format and why, for the manifest."""
        form = self.compute_format
        return {
            "backend": self.backend,
            "device": self.device,
            "precision": self.precision,
            "compute_dtype": form.name,
            "compute_dtype_reason": form.reason,
        }


def cast_weights(model: torch.nn.Module, dtype: torch.dtype) -> None:
    """Bring the weights of a model into a number format, and nothing else: rounded rotary frequencies stay wrong."""
    for weight in model.parameters():
        weight.data = weight.data.to(dtype)


def set_training(language_model: LanguageModel, training: bool) -> None:
    """Make a model ready to be trained, or to answer between two steps, its weights unchanged."""
    if language_model.backend == "unsloth":
        from unsloth import FastLanguageModel

        (FastLanguageModel.for_training if training else FastLanguageModel.for_inference)(language_model.model)
    language_model.model.config.use_cache = not training
    language_model.model.train(training)


def trainable_parameters(model: PeftModel) -> tuple[int, int]:
    """Return the numbers of trainable and of all parameters; 4-bit weights count as what they stand for."""
    return model.get_nb_trainable_parameters()
