"""In how many bits a model is loaded."""

from __future__ import annotations

from typing import Literal

from config import LoraConfig, ModelConfig
from pipeline.models import distributed
from pipeline.models.devices import ANSWERING_SHARE, GIB, best_device, compute_format, free_memory
from pipeline.models.language_model import Precision
from pipeline.models.loading import has_bitsandbytes, prepare_backend, quantized_files, require_bitsandbytes
from pipeline.models.size import model_size


def precisions(asked: Precision | Literal["auto"]) -> tuple[Precision, ...]:
    """Return the precisions that a model may be loaded in here, the faster first."""
    if asked == "auto":
        return ("16bit", "4bit") if _knows_four_bits() and has_bitsandbytes() else ("16bit",)
    return (asked,)


def _knows_four_bits() -> bool:
    return best_device() == "cuda" and not distributed.shards_weights()


def precision_to_answer(model: ModelConfig) -> Precision:
    """Return the precision in which a model is loaded to answer: 4 bits if its files are, else 16 if they fit.

    Raises:
        UserError: it does not fit in 16 bits, and bitsandbytes, which rounds to 4, is not installed.
    """
    prepare_backend(model)
    if model.precision != "auto":
        return model.precision
    if not _knows_four_bits():
        return "16bit"
    if quantized_files(model.name):
        return "4bit"
    number = compute_format("answering", model.compute_dtype).bytes
    needed = model_size(model, LoraConfig()).weights("16bit", number) * ANSWERING_SHARE
    if needed <= free_memory("cuda"):
        return "16bit"
    too_large = f"{model.name} needs {needed / GIB:.1f} GiB in 16 bits, more than are free. Loading it in 4 bits"
    require_bitsandbytes(too_large, "name a smaller model with --model.name")
    return "4bit"
