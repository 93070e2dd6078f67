"""What can be told of a base model from its small files, before anything is spent on it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.models.prompts import control_tokens
from pipeline.models.size import linear_layers, without_weights
from pipeline.run.errors import UserError
from pipeline.run.run_folder import MANIFESTS, MERGED_MODEL

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedTokenizerBase

SHOWN_TOKENS = 5
ADAPTER_SETTINGS = "adapter_config.json"


def require_model_folder(path: Path) -> None:
    """Raise a UserError that says what lies at a path, where that is something else than a model in safetensors.

    A path where nothing lies passes: it may be the name of a model on Hugging Face.
    """
    other = "safetensors, as it was published,"
    if path.is_file():
        kind = "a GGUF file, which llama.cpp runs" if path.suffix == ".gguf" else "a file"
        raise UserError(f"{path} is {kind}. Give the folder of the model in {other} with --model.name.")
    if (path / ADAPTER_SETTINGS).exists():
        raise UserError(
            f"{path} is an adapter, not a model. Give its base model with --model.name{_base_of(path)}, or what "
            f"merge_and_convert.py has made of both: {MERGED_MODEL}/ of its run."
        )
    if (path / "config.json").exists():
        _require_safetensors(path)
    elif (path / MANIFESTS).is_dir():
        merged = path / MERGED_MODEL
        remedy = f"Give --model.name {merged}" if merged.is_dir() else "Give the name of a model with --model.name"
        raise UserError(f"{path} is the folder of a run, not a model. {remedy}.")
    elif any(path.glob("*.gguf")):
        raise UserError(f"{path} holds a GGUF file, which llama.cpp runs. Give the model in {other} with --model.name.")


def _base_of(adapter: Path) -> str:
    """Return the base model that an adapter names, with a space before it, or nothing."""
    try:
        settings = json.loads((adapter / ADAPTER_SETTINGS).read_text(encoding="utf-8"))
        return f" {settings['base_model_name_or_path']}"
    except (ValueError, KeyError, TypeError):
        return ""


def _require_safetensors(path: Path) -> None:
    pickled = sorted(file.name for pattern in ("*.bin", "*.pt", "*.pth") for file in path.glob(pattern))
    if pickled and not any(path.glob("*.safetensors")):
        target = f"{path}-safetensors"
        convert = (
            "from transformers import AutoModelForCausalLM as M, AutoTokenizer as T; "
            f"M.from_pretrained({str(path)!r}, dtype='auto').save_pretrained({target!r}); "
            f"T.from_pretrained({str(path)!r}).save_pretrained({target!r})"
        )
        raise UserError(
            f"The weights of {path} are pickled ({pickled[0]}), and pickles are never read here. Write them as safetensors "
            f'with `python -c "{convert}"`, and give --model.name {target}.'
        )


def require_readable_quantization(name: str, settings: dict[str, Any]) -> None:
    """Raise a UserError if the files of a model are quantized in a way in which no adapter is trained here.

    Args:
        name: of the model.
        settings: its config.json.
    """
    quantization = settings.get("quantization_config") or settings.get("compression_config")
    # The first versions of bitsandbytes named no method.
    method = (quantization or {}).get("quant_method", "bitsandbytes")
    if method != "bitsandbytes":
        raise UserError(
            f"The files of {name} are quantized with {method}, which is not supported: only those of bitsandbytes are. Give "
            "the same model in 16 bits with --model.name; --model.precision 4bit quantizes it while it is loaded."
        )


def require_causal_language_model(name: str, settings: dict[str, Any]) -> None:
    """Raise a UserError if the installed transformers cannot load a model as one that continues a text.

    Args:
        name: of the model.
        settings: its config.json.
    """
    import transformers
    from transformers.models.auto import configuration_auto, modeling_auto

    kind = settings.get("model_type")
    if kind is None:
        return  # transformers may know it by its name
    causal = modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    if kind not in configuration_auto.CONFIG_MAPPING_NAMES:
        if "auto_map" in settings:
            raise UserError(
                f"{name} comes with code of its own, which is never run here, and transformers does not know its "
                f"architecture {kind!r}. Give another model with --model.name."
            )
        raise UserError(
            f"transformers {transformers.__version__} does not know the architecture {kind!r} of {name}. Give another model "
            "with --model.name, or install a version of transformers that knows it."
        )
    # Those of which only a decoder, which the settings name, reads from left to right.
    others = {
        **modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES,
        **modeling_auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
    }
    if kind not in causal or (kind in others and not settings.get("is_decoder")):
        raise UserError(
            f"{name} is no causal language model: its architecture is {kind}. Give one that continues a text with "
            "--model.name, such as a Llama, Qwen or Gemma."
        )


def require_embeddings(name: str, tokenizer: PreTrainedTokenizerBase, vocabulary: int) -> None:
    """Raise a UserError if a prompt, an answer or its padding can hold a token that a model has no embedding for.

    Args:
        name: of the model.
        tokenizer: its tokenizer.
        vocabulary: how many embeddings it has.
    """
    outside = {token: number for token, number in tokenizer.get_vocab().items() if number >= vocabulary}
    # Gemma 3's text models lack one for images. Texts cannot write a control token: PromptFormat.neutralise.
    never_written = set(control_tokens(tokenizer)) - {tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token}
    template = str(tokenizer.chat_template)
    needed = [token for token in outside if token not in never_written or token in template]
    if needed:
        shown = ", ".join(
            f"{token!r} ({outside[token]})" for token in sorted(needed, key=lambda token: outside[token])[:SHOWN_TOKENS]
        )
        more = f" and {len(needed) - SHOWN_TOKENS} more" if len(needed) > SHOWN_TOKENS else ""
        raise UserError(
            f"The tokenizer of {name} writes tokens that the model has no embedding for: {shown}{more}; its last one is "
            f"{vocabulary - 1}. Take the tokenizer that the model was published with, or enlarge the model with "
            "model.resize_token_embeddings(len(tokenizer)) and save it."
        )


def require_layers(name: str, shape: PreTrainedConfig, target_modules: Sequence[str]) -> None:
    """Raise a UserError unless a model has linear layers of all names, and the output layer is none of them.

    Args:
        name: of the model.
        shape: its config.json.
        target_modules: the last part of the names of layers.
    """
    model = without_weights(shape)
    head = model.get_output_embeddings()
    known = {layer.rpartition(".")[2] for layer in linear_layers(model)}
    outputs = {layer.rpartition(".")[2] for layer, module in model.named_modules() if module is head}
    if trained := sorted(outputs.intersection(target_modules)):
        raise UserError(f"{trained[0]} is the output layer of {name}. Leave it out of --lora.target-modules.")
    if unknown := [layer for layer in target_modules if layer not in known]:
        raise UserError(
            f"{name} has no layer {', '.join(unknown)} (--lora.target-modules). Its linear layers are "
            f"{', '.join(sorted(known))}."
        )
