"""What the libraries raise and show while they load the files of a model."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

from pipeline.run.errors import UserError

if TYPE_CHECKING:
    pass


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
    """Return the errors that the libraries raise where files of a model, or a package for them, are missing or damaged."""
    from safetensors import SafetensorError

    return OSError, ValueError, KeyError, TypeError, ImportError, SafetensorError


@contextlib.contextmanager
def helpful_loading_errors(name: str) -> Iterator[None]:
    """Turn the loading errors that a user can mend into one sentence."""
    try:
        yield
    except loading_errors() as error:
        reason = " ".join(str(error).split())
        shown = reason[:300] + ("…" if len(reason) > 300 else "")
        raise UserError(
            f"The model {name!r} could not be loaded: {shown} Check --model.name: a folder with config.json and "
            "safetensors, or a Hugging Face id (gated models need HF_TOKEN)."
        ) from error
