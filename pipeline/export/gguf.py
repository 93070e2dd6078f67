"""Convert a merged model to GGUF with llama.cpp's converter, and write the Modelfile that Ollama reads."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from config import PROJECT_DIR
from pipeline.models.prompts import PromptFormat
from pipeline.run.errors import UserError
from pipeline.run.files import read_json, write_json

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


SCRIPT = "convert_hf_to_gguf.py"
SHOWN_OUTPUT_LINES = 12


def converter_script(folder: Path | None) -> Path:
    """Return llama.cpp's converter: in the checkout that was named, or as packaged in the project's environment."""
    if folder is not None:
        script = folder / SCRIPT
        if not script.exists():
            raise UserError(f"{script} does not exist. --gguf.converter names the folder of a llama.cpp checkout.")
        return script
    # In a folder of its own: the package brings a `gguf` package newer than the one that the rest of us imports.
    places = [Path(sys.prefix) / "llama-cpp-converter", PROJECT_DIR / ".venv" / "llama-cpp-converter"]
    for place in places:
        if (place / SCRIPT).exists():
            return place / SCRIPT
    raise UserError(
        f"llama.cpp's converter is not installed. Run `pip install --no-deps --target {places[0]} "
        "-r requirements/converter.txt`, or name a llama.cpp checkout with --gguf.converter."
    )


def bytes_per_weight(number_format: str) -> float:
    """Return what a weight takes in a GGUF of a type."""
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    weights, size = GGML_QUANT_SIZES[GGMLQuantizationType[number_format.upper()]]
    return size / weights


def convert(merged: Path, target: Path, name: str, number_format: str, converter: Path | None) -> None:
    """Write `target` in a number format of config.GgufConfig from the merged model, with `name` in it.

    Raises:
        UserError: the converter failed; its last lines are in the text.
    """
    script = converter_script(converter)
    command = [sys.executable, str(script), str(merged), "--outfile", str(target)]
    command += ["--outtype", number_format, "--model-name", name]
    local = [str(script.parent), str(script.parent / "gguf-py")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(local), "PYTHONUTF8": "1"}
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", errors="replace", env=environment)
    if done.returncode != 0 or not target.exists():
        last = "\n".join((done.stdout + done.stderr).strip().splitlines()[-SHOWN_OUTPUT_LINES:])
        raise UserError(f"llama.cpp's converter failed on {merged}:\n{last}")


def keep_sentencepiece_model(base: str, merged: Path) -> None:
    """Copy tokenizer.model from the base, where there is one.

    transformers 5 saves tokenizer.json alone, and the converter needs the SentencePiece file for Phi-3 and Llama 2.
    """
    local = Path(base) / "tokenizer.model"
    if local.exists():
        shutil.copyfile(local, merged / "tokenizer.model")
    elif not Path(base).exists():
        from transformers.utils import cached_file

        found = cached_file(base, "tokenizer.model", _raise_exceptions_for_missing_entries=False)
        if found:
            shutil.copyfile(found, merged / "tokenizer.model")


def complete_tokenizer_config(merged: Path, tokenizer: PreTrainedTokenizerBase, prompt_format: PromptFormat) -> None:
    """Write into tokenizer_config.json what the converter reads there and transformers 5 no longer saves.

    Without add_bos_token, llama.cpp adds BOS for every SentencePiece model, Phi-3 included. Without
    added_tokens_decoder, the chat tokens of a Mistral with a SentencePiece tokenizer are lost.
    """
    added = {
        str(number): {
            "content": token.content,
            "lstrip": token.lstrip,
            "rstrip": token.rstrip,
            "normalized": token.normalized,
            "single_word": token.single_word,
            "special": token.special,
        }
        for number, token in sorted(tokenizer.added_tokens_decoder.items())
    }
    path = merged / "tokenizer_config.json"
    stated = {"add_bos_token": bool(prompt_format.bos), "added_tokens_decoder": added}
    write_json(path, {**read_json(path), **stated})


def gguf_model_name(base: str, tokenizer: PreTrainedTokenizerBase) -> str:
    """Return the name to put into the GGUF.

    Phi-3's control tokens swallow the white space after them. llama.cpp does so only if the model's name says Phi-3.
    """
    name = f"{Path(base).name} fine-tuned"
    swallows = any(token.rstrip for token in tokenizer.added_tokens_decoder.values())
    if swallows and not any(mark in name.lower() for mark in ("phi-3", "phi3")):
        name += " (Phi-3 tokens)"
    return name
