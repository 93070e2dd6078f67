"""In how many bits a model is loaded."""

from __future__ import annotations

from typing import Literal

from config import LoraConfig, ModelConfig
from pipeline.models import distributed
from pipeline.models.devices import ANSWERING_SHARE, best_device, compute_format, free_memory
from pipeline.models.language_model import Precision
from pipeline.models.loading import prepare_backend, quantized_files
from pipeline.models.size import model_size


def precisions(asked: Precision | Literal["auto"]) -> tuple[Precision, ...]:
    """Return the precisions that a model may be loaded in, the faster first."""
    if asked == "auto":
        four_bits = best_device() == "cuda" and not distributed.shards_weights()
        return ("16bit", "4bit") if four_bits else ("16bit",)
    return (asked,)


def precision_to_answer(model: ModelConfig) -> Precision:
    """Return the precision in which a model is loaded to answer: 4 bits if its files are, else 16 if they fit."""
    prepare_backend(model)
    wanted = precisions(model.precision)
    if len(wanted) == 1:
        return wanted[0]
    if quantized_files(model.name):
        return "4bit"
    number = compute_format("answering", model.compute_dtype).bytes
    needed = model_size(model, LoraConfig()).weights("16bit", number) * ANSWERING_SHARE
    return "16bit" if needed <= free_memory("cuda") else "4bit"
