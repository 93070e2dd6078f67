"""The models of a run: loaded once, and again only after a stage has made other ones."""

from __future__ import annotations

import functools
import gc
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Generic, TypeVar

from config import Config
from pipeline.data.records import ProcessedData
from pipeline.models.answerer import AnsweringModel, Form, find_form, open_models
from pipeline.run.errors import UserError
from pipeline.run.run_folder import RunFolder

Made = TypeVar("Made")
STAGE_5: tuple[Form, ...] = ("merged", "gguf")
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

    def _current(self) -> Made | None:
        return self._made if self._seen == self._stamps() else None

    @property
    def is_current(self) -> bool:
        """Tell whether it is there, so that get() takes no time."""
        return self._current() is not None

    def get(self) -> Made:
        """Return it, loaded if need be."""
        made = self._current()
        if made is None:
            with _LOADING:
                made = self._current()
                if made is None:
                    # First the old one goes: memory need not hold two.
                    self._made = None
                    gc.collect()
                    stamps = self._stamps()
                    made = self._load()
                    self._made, self._seen = made, stamps
        return made


class Models:
    """The models of a run, each loaded when it is first asked."""

    def __init__(self, config: Config, data: Callable[[], ProcessedData], max_length: int) -> None:
        """Prepare to load.

        Args:
            config: of the run.
            data: returns the records that the models must have been trained on.
            max_length: tokens of prompt and answer together, at most.
        """
        self._config, self._data, self._max_length = config, data, max_length
        run = RunFolder.of(config)
        records, trained = run.manifest_path("process_data"), run.manifest_path("fine_tuning")
        merged = run.manifest_path("merge_and_convert")
        self._on_one_base = Loaded(self._load_base_and_adapter, [records, trained])
        self._of_stage_5 = {
            form: Loaded(functools.partial(self._open, form), [records, trained, merged]) for form in STAGE_5
        }

    @property
    def are_current(self) -> bool:
        """Tell whether the base model need not be loaded first."""
        return self._on_one_base.is_current

    def get(self, form: Form) -> AnsweringModel:
        """Return a model, loaded if need be; a UserError if there is none."""
        if form in STAGE_5:
            return self._of_stage_5[form].get()[form]
        models, problem = self._on_one_base.get()
        if form not in models and problem is not None:
            raise problem
        return models[form]

    def _load_base_and_adapter(self) -> tuple[dict[Form, AnsweringModel], UserError | None]:
        try:
            find_form(self._config, "finetuned", self._data().path)
        except UserError as error:
            return self._open("foundation"), error
        return self._open("foundation", "finetuned"), None

    def _open(self, *forms: Form) -> dict[Form, AnsweringModel]:
        return open_models(self._config, forms, self._data().path, self._max_length)
