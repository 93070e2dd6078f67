"""Load a language model with transformers or Unsloth, put an adapter on it, merge it.

Code that comes with a model is never run: where trust_remote_code is left out, transformers asks the user.
"""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from config import LoraConfig, ModelConfig
from pipeline import bundled_models, devices, processes
from pipeline.artifacts import UserError, read_json
from pipeline.devices import ComputeFormat, best_device

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Backend = Literal["unsloth", "transformers"]
Precision = Literal["4bit", "16bit"]
# Unsloth has kernels of its own for these; others it compiles, for minutes, and gains little.
UNSLOTH_KERNELS = ("llama", "mistral", "gemma", "gemma2", "qwen2", "qwen3")


@dataclass
class LanguageModel:
    """A model with its tokenizer, ready to be used on its device."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    backend: Backend
    name: str
    compute_format: ComputeFormat
    """What it computes in, and why."""
    stop_ids: list[int] = field(default_factory=list)

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
            "compute_dtype": form.name,
            "compute_dtype_reason": form.reason,
        }


def choose_backend(requested: str, *, cuda: bool, unsloth: bool) -> Backend:
    """Return the backend for a request, given what is present; what was asked for and is absent is a UserError."""
    if requested == "unsloth" and not (cuda and unsloth):
        missing = "the package unsloth (pip install -r requirements-gpu.txt)" if cuda else "an NVIDIA GPU with CUDA"
        raise UserError(f"--model.backend unsloth needs {missing}. Use --model.backend transformers instead.")
    if requested == "auto":
        return "unsloth" if cuda and unsloth else "transformers"
    return "unsloth" if requested == "unsloth" else "transformers"


def prepare_backend(config: ModelConfig) -> Backend:
    """Return the backend that this machine uses for a model's settings; to be called before transformers is imported."""
    import torch

    present = importlib.util.find_spec("unsloth") is not None
    if processes.shards_weights():
        if config.precision == "4bit" or config.backend == "unsloth" or quantized_files(config.name):
            raise UserError(
                "--train.shard-weights takes a base model with 16-bit files, --model.precision 16bit and --model.backend "
                "transformers."
            )
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
    if backend == "unsloth":
        import unsloth  # noqa: F401  It changes transformers, and must come first.
    return backend


def model_config(name: str) -> dict[str, Any]:
    """Return config.json of a model, without importing transformers."""
    with helpful_loading_errors(name):
        file = Path(bundled_models.resolve(name)) / "config.json"
        if not file.exists():
            from huggingface_hub import hf_hub_download

            file = Path(hf_hub_download(name, "config.json"))
        return read_json(file)


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
    path = bundled_models.resolve(config.name)
    with helpful_loading_errors(config.name):
        tokenizer = load_tokenizer(path)
        form = training_format or answering_format(config, path, backend, precision)
        print(f"{config.name} computes in {form}.", flush=True)
        if backend == "unsloth":
            from unsloth import FastLanguageModel

            # Above what the model was made for, Unsloth would scale its positions, for this stage alone.
            most = model_config(config.name).get("max_position_embeddings", max_length)
            model, _ = FastLanguageModel.from_pretrained(
                path, max_seq_length=min(max_length, most), load_in_4bit=precision == "4bit", use_exact_model_name=True,
                dtype=form.dtype,
            )  # fmt: skip
        else:
            model = _load_with_transformers(path, precision, form.dtype)
    if precision == "16bit":
        model = _dequantized(model)
    ready = _ready(model, tokenizer, backend, config.name, form)
    if training_format is None:
        set_training(ready, False)
    return ready


def answering_format(config: ModelConfig, path: str, backend: Backend, precision: Precision) -> ComputeFormat:
    """Return what a model answers in; Unsloth, 4 bits and shards know no 32."""
    plain = backend == "transformers" and precision == "16bit" and not processes.shards_weights()
    size = {"parameters": count_parameters(path)} if plain else {}
    return devices.compute_format("answering", config.compute_dtype, **size)


def count_parameters(path: str) -> int:
    """Return the parameters of a model, from its config.json alone."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    with torch.device("meta"):
        shape = AutoConfig.from_pretrained(path, trust_remote_code=False)
        return AutoModelForCausalLM.from_config(shape, trust_remote_code=False).num_parameters()


def load_for_merging(config: ModelConfig) -> tuple[LanguageModel, torch.dtype]:
    """Load the base model on the CPU, ready to answer; return it with the number format of its files.

    Files that hold 4-bit weights are dequantized; their number format is the one that config.json names.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    path = bundled_models.resolve(config.name)
    with helpful_loading_errors(config.name), quiet_loading():
        shape = AutoConfig.from_pretrained(path, trust_remote_code=False)
        if not quantized_files(path):
            shape.dtype = None  # the format is that of the weights, whatever config.json says
        model = AutoModelForCausalLM.from_pretrained(
            path, config=shape, dtype="auto", device_map="cpu", use_safetensors=True, trust_remote_code=False
        )
        tokenizer = load_tokenizer(path)
    model, stored = _dequantized(model), model.dtype
    form, needed = devices.compute_format("merging"), devices.ANSWERING_SHARE * 4 * model.num_parameters()
    if needed > devices.free_memory("cpu"):
        reason = f"as the base model's files, since float32 would need {needed / devices.GIB:.1f} GiB"
        form = ComputeFormat(str(stored).removeprefix("torch."), reason)
    print(f"{config.name} is merged in {form}.", flush=True)
    cast_weights(model, form.dtype)
    return _ready(model, tokenizer, "transformers", config.name, form), stored


def cast_weights(model: PreTrainedModel, dtype: torch.dtype) -> None:
    """Bring the weights of a model into a number format, and nothing else: rounded rotary frequencies stay wrong."""
    for weight in model.parameters():
        weight.data = weight.data.to(dtype)


def load_tokenizer(path: str) -> PreTrainedTokenizerBase:
    """Load a tokenizer from a folder or a Hugging Face id."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(path, trust_remote_code=False)


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
    layers = {n.rsplit(".", 1)[-1] for n, m in base.model.named_modules() if isinstance(m, torch.nn.Linear)}
    unknown = [name for name in config.target_modules if name not in layers]
    if unknown:
        raise UserError(
            f"{base.name} has no layer {', '.join(unknown)} (--lora.target-modules). Its linear layers are "
            f"{', '.join(sorted(layers))}."
        )
    return replace(base, model=get_peft_model(base.model, peft_lora_config(config)))


def peft_lora_config(config: LoraConfig) -> Any:
    """Return PEFT's form of the adapter's settings."""
    from peft import LoraConfig as PeftLoraConfig

    return PeftLoraConfig(
        r=config.r, lora_alpha=config.alpha, lora_dropout=config.dropout, bias="none",
        target_modules=list(config.target_modules), task_type="CAUSAL_LM",
    )  # fmt: skip


def load_adapter(base: LanguageModel, folder: Path) -> LanguageModel:
    """Load a trained adapter onto its base model; a UserError if its weights are not a whole safetensors file."""
    from peft import PeftModel
    from safetensors import SafetensorError, safe_open

    weights = folder / "adapter_model.safetensors"
    try:
        # PEFT would read a pickle instead, if there were one.
        with safe_open(weights, "pt"):
            pass
    except (FileNotFoundError, SafetensorError) as error:
        raise UserError(f"{weights} is missing or damaged ({error}). Run fine_tuning.py again.") from error
    with quiet_loading():
        model = PeftModel.from_pretrained(base.model, str(folder))
    return _ready(model, base.tokenizer, base.backend, f"{base.name} + {folder.name}", base.compute_format)


def answer_after_training(tuned: LanguageModel, config: ModelConfig, precision: Precision) -> LanguageModel:
    """Return a model that was trained, ready to answer."""
    set_training(tuned, False)
    form = answering_format(config, bundled_models.resolve(config.name), tuned.backend, precision)
    if form.name == "float32":
        cast_weights(tuned.model, form.dtype)
        return replace(tuned, compute_format=form)
    return tuned


def set_training(language_model: LanguageModel, training: bool) -> None:
    """Make a model ready to be trained, or to answer between two steps, its weights unchanged."""
    if language_model.backend == "unsloth":
        from unsloth import FastLanguageModel

        (FastLanguageModel.for_training if training else FastLanguageModel.for_inference)(language_model.model)
    language_model.model.config.use_cache = not training
    language_model.model.train(training)


def trainable_parameters(model: PreTrainedModel) -> tuple[int, int]:
    """Return the numbers of trainable and of all parameters; 4-bit weights count as what they stand for."""
    return model.get_nb_trainable_parameters()


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
    merged = tuned.model.unload()
    cast_weights(merged, stored)
    for name, weight in merged.named_parameters():
        if not torch.isfinite(weight).all():
            raise UserError(
                f"After the merge, {name} holds numbers that are not finite in {str(stored).removeprefix('torch.')}. "
                "Train again with a lower --train.learning-rate."
            )
    return replace(tuned, model=merged)


@contextlib.contextmanager
def quiet_loading() -> Iterator[None]:
    """Hide transformers' progress bars over weights, which say nothing that a user waits for."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def loading_errors() -> tuple[type[Exception], ...]:
    """Return the errors that the libraries raise where files of a model are missing or damaged."""
    from safetensors import SafetensorError

    return OSError, ValueError, KeyError, TypeError, SafetensorError


@contextlib.contextmanager
def helpful_loading_errors(name: str) -> Iterator[None]:
    """Turn the loading errors that a user can mend into one sentence."""
    try:
        yield
    except (*loading_errors(), ImportError) as error:
        reason = " ".join(str(error).split())
        if isinstance(error, ImportError) and "bitsandbytes" not in reason:
            raise
        shown = reason[:300] + ("…" if len(reason) > 300 else "")
        raise UserError(
            f"The model {name!r} could not be loaded: {shown} Check --model.name: a folder with config.json and "
            "safetensors, or a Hugging Face id (gated models need HF_TOKEN)."
        ) from error


def _load_with_transformers(path: str, precision: Precision, dtype: torch.dtype) -> PreTrainedModel:
    from transformers import AutoConfig, AutoModelForCausalLM, BitsAndBytesConfig

    config, options = AutoConfig.from_pretrained(path, trust_remote_code=False), {}
    if quantized_files(path):
        # What the files name is what the machine that made them was fast in.
        config.quantization_config["bnb_4bit_compute_dtype"] = str(dtype).removeprefix("torch.")
    elif precision == "4bit":
        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
        )
    with quiet_loading():
        return AutoModelForCausalLM.from_pretrained(
            path,
            config=config,
            dtype=dtype,
            device_map=_device_map(),
            use_safetensors=True,
            trust_remote_code=False,
            **options,
        )


def _dequantized(model: PreTrainedModel) -> PreTrainedModel:
    """Return the model in 16 bits, whatever its files hold."""
    if getattr(model, "is_quantized", False):
        model = model.dequantize()
        # save_pretrained would want to undo the conversion from 4 bits, and cannot.
        model._weight_conversions = None
    return model


def _device_map() -> dict[str, Any] | None:
    import torch

    if processes.shards_weights():
        return None  # accelerate brings each device its part
    # Of several processes, each has a GPU of its own.
    return {"": torch.cuda.current_device() if best_device() == "cuda" else best_device()}


def quantized_files(name: str) -> bool:
    """Tell whether the files of a model hold quantized weights."""
    return "quantization_config" in model_config(name)


def _ready(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    backend: Backend,
    name: str,
    compute_format: ComputeFormat,
) -> LanguageModel:
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    model.eval()
    ends = model.generation_config.eos_token_id
    stop_ids = ends if isinstance(ends, list) else [] if ends is None else [ends]
    # Sampling defaults of a model's files (top_p, temperature) would mix with ours: --answers decides alone.
    model.generation_config.update(do_sample=False, temperature=1.0, top_p=1.0, top_k=50, max_length=None)
    return LanguageModel(model, tokenizer, backend, name, compute_format, stop_ids)
