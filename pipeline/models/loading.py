"""Load a language model with transformers or Unsloth, put an adapter on it, merge it.

Code that comes with a model is never run: where trust_remote_code is left out, transformers asks the user.
"""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from config import ModelConfig
from pipeline.models import base_checks, bundled, devices, distributed, finite, generation
from pipeline.models.devices import ComputeFormat, NumberFormat, best_device
from pipeline.models.language_model import Backend, LanguageModel, Precision, cast_weights, set_training
from pipeline.models.loading_errors import complete_weights, helpful_loading_errors, quiet_loading
from pipeline.models.size import count_parameters, load_shape
from pipeline.run.errors import UserError

if TYPE_CHECKING:
    import torch
    from peft import PeftModel
    from transformers import BitsAndBytesConfig, PreTrainedConfig, PreTrainedTokenizerBase
    from transformers import GenerationConfig as HuggingFaceGenerationConfig

    from pipeline.models.language_model import CausalModel

INSTALL_BITSANDBYTES = "pip install bitsandbytes"
# Unsloth has kernels of its own for these; others it compiles, for minutes, and gains little.
UNSLOTH_KERNELS = ("llama", "mistral", "gemma", "gemma2", "qwen2", "qwen3")


def choose_backend(requested: str, *, cuda: bool, unsloth: bool) -> Backend:
    """Return the backend for a request, given what is present; what was asked for and is absent is a UserError."""
    if requested == "unsloth" and not (cuda and unsloth):
        missing = "the package unsloth (pip install -r requirements/gpu.txt)" if cuda else "an NVIDIA GPU with CUDA"
        raise UserError(f"--model.backend unsloth needs {missing}. Use --model.backend transformers instead.")
    if requested == "auto":
        return "unsloth" if cuda and unsloth else "transformers"
    return "unsloth" if requested == "unsloth" else "transformers"


def prepare_backend(config: ModelConfig) -> Backend:
    """Return the backend that this machine uses for a model's settings; to be called before transformers is imported."""
    import torch

    base_checks.require_readable_quantization(config.name, model_config(config.name))
    present = importlib.util.find_spec("unsloth") is not None
    if distributed.shards_weights():
        if config.precision == "4bit" or config.backend == "unsloth" or quantized_files(config.name):
            raise UserError(
                "--train.shard-weights takes a base model with 16-bit files, --model.precision 16bit and --model.backend "
                "transformers."
            )
        base_checks.require_causal_language_model(config.name, model_config(config.name))
        return "transformers"
    backend = choose_backend(config.backend, cuda=torch.cuda.is_available(), unsloth=present)
    if backend == "unsloth":
        # Told float32, or bfloat16 on a GPU without it, it computes in another format of 16 bits and does not say so.
        asked = config.compute_dtype
        knows_format = asked in ("auto", "float16") or asked == devices.compute_format("training").name
        if config.backend == "unsloth" and not knows_format:
            raise UserError(
                f"Unsloth does not compute in {asked} on this GPU. Give --model.backend transformers, or leave "
                "--model.compute-dtype out."
            )
        has_kernels = config.backend == "unsloth" or model_config(config.name).get("model_type") in UNSLOTH_KERNELS
        backend = "unsloth" if knows_format and has_kernels else "transformers"
    if config.precision == "4bit" and best_device() != "cuda":
        raise UserError(
            "Loading in 4 bits needs an NVIDIA GPU with CUDA, and there is none here. Use --model.precision 16bit, with "
            "--model.name naming a small model and --train.optimizer adamw_torch, or the preset demo."
        )
    if config.precision == "4bit":
        require_bitsandbytes("--model.precision 4bit", "give --model.precision 16bit")
    else:
        _require_what_reads(config.name)
    if backend == "unsloth":
        import unsloth  # noqa: F401  It changes transformers, and must come first.
    base_checks.require_causal_language_model(config.name, model_config(config.name))
    return backend


def model_config(name: str) -> dict[str, Any]:
    """Return config.json of a model, without importing transformers."""
    with helpful_loading_errors(name):
        file = Path(bundled.resolve(name)) / "config.json"
        base_checks.require_model_folder(file.parent)
        if not file.exists():
            from huggingface_hub import hf_hub_download

            file = Path(hf_hub_download(name, "config.json"))
        return _read_settings(file)


def _read_settings(file: Path) -> dict[str, Any]:
    content = json.loads(file.read_text(encoding="utf-8"))
    if not isinstance(content, dict):
        raise ValueError(f"{file} holds no settings.")
    return content


def load_base(
    config: ModelConfig, precision: Precision, max_length: int = 2048, training_format: ComputeFormat | None = None
) -> LanguageModel:
    """Load the base model and its tokenizer, and print what it computes in.

    Args:
        config: which model, which backend.
        precision: of the weights; files that hold 4-bit weights are dequantized for 16 bits.
        max_length: tokens of a sequence that Unsloth prepares for; transformers needs no such limit.
        training_format: to be trained in; None loads the model to answer.
    """
    backend = prepare_backend(config)
    if precision == "4bit":
        require_bitsandbytes("Loading in 4 bits", "give --model.precision 16bit")
    path = bundled.resolve(config.name)
    with helpful_loading_errors(config.name):
        tokenizer = load_tokenizer(path)
        answering = answering_format(config, path, backend, precision)
        form = training_format or answering
        print(f"{config.name} computes in {form}.", flush=True)
        if backend == "unsloth":
            from unsloth import FastLanguageModel

            # Above what the model was made for, Unsloth would scale its positions, for this stage alone.
            most = model_config(config.name).get("max_position_embeddings", max_length)
            with complete_weights():
                model, _ = FastLanguageModel.from_pretrained(
                    path, max_seq_length=min(max_length, most), load_in_4bit=precision == "4bit",
                    use_exact_model_name=True, dtype=form.dtype,
                )  # fmt: skip
        else:
            model = _load_with_transformers(path, precision, form.dtype)
    if precision == "16bit":
        model = _dequantized(model)
    ready = _ready(model, tokenizer, backend, config.name, precision, form, answering)
    if training_format is None:
        set_training(ready, False)
    # Unsloth's models answer only once they were made ready to; sharded ones have no weights yet.
    if not distributed.shards_weights() and (training_format is None or backend == "transformers"):
        require_finite(ready)
    return ready


def require_finite(language_model: LanguageModel) -> None:
    """Raise a UserError if a model computes no numbers: its files are damaged, or its number format is too narrow."""
    import torch

    model = language_model.model
    ids = torch.tensor([language_model.tokenizer("a")["input_ids"]], device=model.device)

    def logits() -> torch.Tensor:
        with torch.inference_mode():
            return model(input_ids=ids).logits

    if not logits().isnan().any():
        return
    place, damaged = finite.where_not(model, logits)
    if damaged:
        with helpful_loading_errors(language_model.name):
            raise ValueError(f"{place} in its files holds numbers that are not finite.")
    form = language_model.compute_format.name
    raise UserError(
        f"{language_model.name} leaves the range of {form} in {place}. Give --model.compute-dtype "
        f"{'bfloat16, or float32' if form == 'float16' else 'float32'}."
    )


def answering_format(config: ModelConfig, path: str, backend: Backend, precision: Precision) -> ComputeFormat:
    """Return what a model answers in; Unsloth, 4 bits and shards know no 32."""
    plain = backend == "transformers" and precision == "16bit" and not distributed.shards_weights()
    return devices.compute_format("answering", config.compute_dtype, count_parameters(path) if plain else None)


def load_for_merging(config: ModelConfig, precision: Precision) -> tuple[LanguageModel, torch.dtype]:
    """Load the base model on the CPU, ready to answer; return it with the number format of its files.

    Files that hold 4-bit weights are dequantized; their number format is the one that config.json names.

    Args:
        config: which model.
        precision: that of the training; for 4bit, weights that the files hold in 16 bits are rounded as they were there.

    Raises:
        UserError: bitsandbytes, which reads and rounds to 4 bits, is not installed.
    """
    from transformers import AutoModelForCausalLM

    path, options = bundled.resolve(config.name), {}
    with helpful_loading_errors(config.name), quiet_loading(), complete_weights():
        _require_what_reads(path)
        shape = load_shape(path)
        if not quantized_files(path):
            shape.dtype = None  # the format is that of the weights, whatever config.json says
            if precision == "4bit":
                needing = "An adapter that was trained on weights of 4 bits"
                require_bitsandbytes(needing, "run this stage on the machine that trained it")
                options["quantization_config"] = four_bits()
        model = AutoModelForCausalLM.from_pretrained(
            path, config=shape, generation_config=_stop_tokens(path), dtype="auto", device_map="cpu",
            use_safetensors=True, trust_remote_code=False, **own_attention(shape), **options,
        )  # fmt: skip
        tokenizer = load_tokenizer(path)
    model, stored = _dequantized(model), model.dtype
    form, needed = devices.compute_format("merging"), devices.ANSWERING_SHARE * 4 * model.num_parameters()
    if needed > devices.free_memory("cpu"):
        reason = f"as the base model's files, since float32 would need {needed / devices.GIB:.1f} GiB"
        stored_name = cast(NumberFormat, str(stored).removeprefix("torch."))  # torch gives its names no type
        form = ComputeFormat(stored_name, reason)
    print(f"{config.name} is merged in {form}.", flush=True)
    cast_weights(model, form.dtype)
    ready = _ready(model, tokenizer, "transformers", config.name, precision, form, form)
    require_finite(ready)
    return ready, stored


def _stop_tokens(path: str) -> HuggingFaceGenerationConfig:
    """Return the tokens that end an answer by the files of a model, and nothing else of what these set.

    transformers refuses to load a model whose generation_config.json it finds contradictory.
    """
    from transformers.utils import cached_file

    # Where it is missing, the ends are those of config.json, as for transformers.
    file = cached_file(path, "generation_config.json", _raise_exceptions_for_missing_entries=False)
    settings = _read_settings(Path(file)) if file else model_config(path)
    return generation.plain_settings(eos_token_id=settings.get("eos_token_id"))


def load_tokenizer(path: str) -> PreTrainedTokenizerBase:
    """Load a tokenizer from a folder or a Hugging Face id; a UserError if it knows tokens that its model does not."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
    vocabulary = load_shape(path).get_text_config(decoder=True).vocab_size
    base_checks.require_embeddings(path, tokenizer, vocabulary)
    return tokenizer


def _load_with_transformers(path: str, precision: Precision, dtype: torch.dtype) -> CausalModel:
    from transformers import AutoModelForCausalLM

    config, options = load_shape(path), {}
    if quantized_files(path):
        # What the files name is what the machine that made them was fast in.
        config.quantization_config["bnb_4bit_compute_dtype"] = str(dtype).removeprefix("torch.")
    elif precision == "4bit":
        options["quantization_config"] = four_bits(bnb_4bit_compute_dtype=dtype)
    with quiet_loading(), complete_weights():
        return AutoModelForCausalLM.from_pretrained(
            path,
            config=config,
            generation_config=_stop_tokens(path),
            dtype=dtype,
            device_map=_device_map(),
            use_safetensors=True,
            trust_remote_code=False,
            **own_attention(config),
            **options,
        )


def keeps_scores(model: Any) -> bool:
    """Tell whether the attention of a model computes and keeps the score of each pair of tokens."""
    return model.config.get_text_config(decoder=True)._attn_implementation == "eager"


def own_attention(config: PreTrainedConfig) -> dict[str, str]:
    """Return the option with which a model attends as it was trained: fused attention would drop a cap on the scores."""
    capped = getattr(config.get_text_config(decoder=True), "attn_logit_softcapping", None)
    return {"attn_implementation": "eager"} if capped else {}


def four_bits(**options: Any) -> BitsAndBytesConfig:
    """Return how weights are rounded to 4 bits: nf4 with double quantization (Dettmers et al. 2023)."""
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, **options)


def has_bitsandbytes() -> bool:
    """Tell whether bitsandbytes, which knows 4-bit weights and 8-bit optimizers, is installed."""
    return importlib.util.find_spec("bitsandbytes") is not None


def require_bitsandbytes(needing: str, otherwise: str) -> None:
    """Raise a UserError if bitsandbytes is not installed.

    Args:
        needing: what needs it.
        otherwise: what to do without it.
    """
    if not has_bitsandbytes():
        raise UserError(f"{needing} needs bitsandbytes: run `{INSTALL_BITSANDBYTES}`, or {otherwise}.")


def _dequantized(model: CausalModel) -> CausalModel:
    """Return the model in 16 bits, whatever its files hold."""
    if getattr(model, "is_quantized", False):
        model = model.dequantize()
        # save_pretrained would want to undo the conversion from 4 bits, and cannot.
        model._weight_conversions = None  # type: ignore[assignment]  # for torch, attributes are tensors and modules
    return model


def _device_map() -> dict[str, Any] | None:
    import torch

    if distributed.shards_weights():
        return None  # accelerate brings each device its part
    # Of several processes, each has a GPU of its own.
    return {"": torch.cuda.current_device() if best_device() == "cuda" else best_device()}


def quantized_files(name: str) -> bool:
    """Tell whether the files of a model hold quantized weights."""
    return "quantization_config" in model_config(name)


def _require_what_reads(name: str) -> None:
    """Raise a UserError if the files of a model were quantized by bitsandbytes, and that is not installed."""
    if has_bitsandbytes() or not quantized_files(name):
        return
    # Its first versions named no method.
    if model_config(name)["quantization_config"].get("quant_method", "bitsandbytes") == "bitsandbytes":
        require_bitsandbytes(f"{name}, whose files hold quantized weights,", "name another model with --model.name")


def _ready(
    model: CausalModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    backend: Backend,
    name: str,
    precision: Precision,
    compute_format: ComputeFormat,
    answering_format: ComputeFormat,
) -> LanguageModel:
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    model.eval()
    ends = model.generation_config.eos_token_id
    stop_ids = ends if isinstance(ends, list) else [] if ends is None else [ends]
    # What a model's files ask for beside its tokens (penalties, beams, a cache) would mix with ours: --answers decides alone.
    model.generation_config = generation.plain_settings(
        eos_token_id=ends, bos_token_id=tokenizer.bos_token_id, pad_token_id=tokenizer.pad_token_id
    )
    return LanguageModel(model, tokenizer, backend, name, precision, compute_format, answering_format, stop_ids)
