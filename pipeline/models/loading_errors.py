"""What the libraries raise and show while they load the files of a model."""

from __future__ import annotations

import contextlib
import re
import threading
from collections.abc import Collection, Iterator
from typing import TYPE_CHECKING, Any

from pipeline.run.errors import UserError

if TYPE_CHECKING:
    import torch

# Masks and rotary frequencies, which older versions of transformers saved, and which are computed today.
_COMPUTED = re.compile(r"\.(attn|attention|self_attn)\.(masked_)?bias$|rotary_emb\.(inv_freq|cos_cached|sin_cached)$")
_SHOWN = 3  # names of weights in a message
_one_at_a_time = threading.RLock()


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


@contextlib.contextmanager
def complete_weights(unused: str | None = None) -> Iterator[None]:
    """Be the block that loads a model, whose files must have each of its weights in its shape, and no other.

    transformers takes random weights for missing ones, and says so in a warning alone.

    Args:
        unused: a part of the model, such as pooler, whose weights may be missing.

    Raises:
        ValueError: the files do not fit the model; the text names the weights.
    """
    from transformers import modeling_utils

    def require_complete(*_: Any, model: torch.nn.Module, loading_info: Any, **__: Any) -> None:
        problems = _misfits(model, loading_info, unused)
        if problems:
            raise ValueError(f"Its files do not fit its config.json: {'; '.join(problems)}.")

    # Each loader ends in this function. sentence-transformers, unlike transformers, does not hand out what it is told.
    with _one_at_a_time:
        report = modeling_utils.log_state_dict_report
        modeling_utils.log_state_dict_report = require_complete  # type: ignore[assignment]  # it is called by names
        try:
            yield
        finally:
            modeling_utils.log_state_dict_report = report


def _misfits(model: torch.nn.Module, found: Any, unused: str | None) -> list[str]:
    """Return what is wrong with the files of a model, by what transformers found in them."""
    # Weights of a part that the model has not, such as the head of another task, change nothing.
    parts = {name.partition(".")[0] for name in model.state_dict()}
    missing = {name for name in found.missing_keys if name.partition(".")[0] != unused}
    unexpected = {
        name for name in found.unexpected_keys if name.partition(".")[0] in parts and not _COMPUTED.search(name)
    }
    shapes = [f"{name} {list(theirs)} instead of {list(ours)}" for name, theirs, ours in sorted(found.mismatched_keys)]
    problems = {
        "missing": missing,
        "not in the model": unexpected,
        "of another shape": shapes,
        "not to be converted": found.conversion_errors,
    }
    return [f"{problem}: {_some(names)}" for problem, names in problems.items() if names]


def _some(names: Collection[str]) -> str:
    shown, more = sorted(names)[:_SHOWN], len(names) - _SHOWN
    return ", ".join(shown) + (f" and {more} more" if more > 0 else "")


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
