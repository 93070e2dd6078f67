"""The models of a run: loaded once, and again only after a stage has made other ones."""

from __future__ import annotations

import contextlib
import gc
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, Literal, TypeVar

from config import Config
from pipeline import language_model, memory, prompts
from pipeline.artifacts import UserError
from pipeline.language_model import LanguageModel
from pipeline.prompts import PromptFormat
from pipeline.records import ProcessedData
from pipeline.trained_models import adapter_folder, trained_precision

Made = TypeVar("Made")
ModelName = Literal["foundation", "finetuned"]
_LOADING = threading.RLock()  # libraries are not imported by two threads at once without harm


class Loaded(Generic[Made]):
    """Something that is loaded from what stages made, when it is first wanted and after one of them was run again."""

    def __init__(self, load: Callable[[], Made], manifests: Sequence[Path]) -> None:
        """Remember how it is loaded, and the manifests that its stages write when they end."""
        self._load, self._manifests = load, manifests
        self._made: Made | None = None
        self._seen: list[int] = []

    def _stamps(self) -> list[int]:
        return [path.stat().st_mtime_ns if path.exists() else 0 for path in self._manifests]

    @property
    def is_current(self) -> bool:
        """Tell whether it is there, so that get() takes no time."""
        return self._made is not None and self._seen == self._stamps()

    def get(self) -> Made:
        """Return it, loaded if need be."""
        made = self._made
        if made is not None and self.is_current:
            return made
        with _LOADING:
            if not self.is_current:
                # First the old one goes: memory need not hold two.
                self._made = None
                gc.collect()
                stamps = self._stamps()
                self._made, self._seen = self._load(), stamps
        return self._made


@dataclass(frozen=True)
class Models:
    """The base model and, on the same weights, the fine-tuned one."""

    base: LanguageModel
    base_format: PromptFormat
    tuned: tuple[LanguageModel, PromptFormat] | UserError
    """Why there is none, if there is none."""

    @contextlib.contextmanager
    def use(self, name: ModelName) -> Iterator[tuple[LanguageModel, PromptFormat]]:
        """Switch the adapter on or off, and yield the model with the prompt format that belongs to it."""
        if isinstance(self.tuned, UserError):
            if name == "finetuned":
                raise self.tuned
            yield self.base, self.base_format
        elif name == "finetuned":
            yield self.tuned
        else:
            with self.tuned[0].model.disable_adapter():
                yield self.base, self.base_format


def load_models(config: Config, data: ProcessedData, max_length: int) -> Models:
    """Load the base model and, where stage 3 has made one for it, the adapter.

    Args:
        config: of the run.
        data: which the adapter must have been trained on.
        max_length: tokens of prompt and answer together, at most.
    """
    try:
        adapter: Path | UserError = adapter_folder(config.run_dir, config.model.name, data.path)
        precision = trained_precision(config.run_dir, config.model)
    except UserError as error:
        adapter, precision = error, memory.precision_to_answer(config.model)
    base = language_model.load_base(config.model, precision, max_length)
    base_format = prompts.make_prompt_format(config.prompt, base.tokenizer)
    if isinstance(adapter, UserError):
        return Models(base, base_format, adapter)
    tuned = language_model.load_adapter(base, adapter)
    return Models(base, base_format, (tuned, prompts.load_prompt_format(adapter)))
