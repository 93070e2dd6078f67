"""A model that answers: one protocol, whatever form the model has and whatever runs it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Generator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Protocol

from config import Config
from pipeline.models import adapter, generation, loading, prompts
from pipeline.models.generation import Answer
from pipeline.models.language_model import LanguageModel
from pipeline.models.llama_cpp import CONTEXT_TOKENS, GgufModel
from pipeline.models.precision import precision_to_answer
from pipeline.models.prompts import PromptFormat
from pipeline.models.size import token_limit
from pipeline.models.trained import adapter_folder, base_model, gguf_path, merged_folder, trained_precision
from pipeline.run.run_folder import RunFolder

Form = Literal["foundation", "finetuned", "merged", "gguf"]
"""The base model, the base model with the adapter, and what stage 5 made of the two."""


class AnsweringModel(Protocol):
    """A model with the prompt format that belongs to it."""

    @property
    def name(self) -> str:
        """Return what the answers are shown under."""

    @property
    def prompt_format(self) -> PromptFormat:
        """Return how the model is asked."""

    @property
    def runs_on(self) -> dict[str, str]:
        """Return what runs the model, and where, for the manifest."""

    @property
    def token_limit(self) -> int | None:
        """Return how many tokens it reads, prompt and answer together; None if nothing bounds them."""

    def count_tokens(self, prompt: str) -> int:
        """Return the tokens of a prompt, BOS included."""

    def generate(
        self, prompts: Sequence[str], settings: generation.GenerationConfig, advance: Callable[[int], object]
    ) -> list[Answer]:
        """Answer prompts; `advance` is told how many answers were finished since it was last called."""

    def stream(self, prompt: str, settings: generation.GenerationConfig) -> Generator[str, None, None]:
        """Yield the pieces of one answer; whoever closes the iterator ends the writing."""

    def reference_loss(self, prompt: str, reference: str) -> dict[str, float | int]:
        """Return how unlikely the model finds a reference; nothing if what runs it cannot tell."""

    def close(self) -> None:
        """Release the model."""


@dataclass(frozen=True)
class TransformersModel:
    """A model that transformers or Unsloth runs."""

    loaded: LanguageModel
    prompt_format: PromptFormat
    without_adapter: bool = False
    """The adapter on the weights is switched off while this model answers."""

    @property
    def name(self) -> str:
        """Return what the answers are shown under."""
        return self.loaded.name

    @property
    def runs_on(self) -> dict[str, str]:
        """Return what runs the model, and where, for the manifest."""
        return self.loaded.runs_on

    @property
    def token_limit(self) -> int | None:
        """Return how many tokens it reads, prompt and answer together; None if nothing bounds them."""
        return token_limit(self.loaded.model)

    @property
    def has_adapter(self) -> bool:
        """Return whether the model is a base model with an adapter."""
        return hasattr(self.loaded.model, "disable_adapter")

    def count_tokens(self, prompt: str) -> int:
        """Return the tokens of a prompt, BOS included."""
        return len(prompts.prompt_ids(self.prompt_format, self.loaded.tokenizer, prompt))

    def generate(
        self,
        prompts: Sequence[str],
        settings: generation.GenerationConfig,
        advance: Callable[[int], object] = lambda _: None,
    ) -> list[Answer]:
        """Answer prompts in batches."""
        with self._switched():
            return generation.generate(self.loaded, self.prompt_format, prompts, settings, advance)

    def stream(self, prompt: str, settings: generation.GenerationConfig) -> Generator[str, None, None]:
        """Yield the pieces of one answer."""
        with (
            self._switched(),
            contextlib.closing(generation.stream(self.loaded, self.prompt_format, prompt, settings)) as pieces,
        ):
            yield from pieces

    def reference_loss(self, prompt: str, reference: str) -> dict[str, float | int]:
        """Return how unlikely the model finds a reference as the answer to a prompt."""
        with self._switched():
            return generation.reference_loss(self.loaded, self.prompt_format, prompt, reference)

    def close(self) -> None:
        """Leave the weights to the garbage collector: another form may use the same."""

    def _switched(self) -> contextlib.AbstractContextManager[Any]:
        return self.loaded.peft_model.disable_adapter() if self.without_adapter else contextlib.nullcontext()


def find_form(config: Config, form: Form, data: Path) -> Path:
    """Return the file or folder of a form of the trained model, or raise a UserError that names the stage that makes it."""
    run = RunFolder.of(config)
    if form == "finetuned":
        return adapter_folder(run, config.model.name, data)
    return (merged_folder if form == "merged" else gguf_path)(run, data)


def open_models(
    config: Config, forms: Collection[Form], data: Path, max_length: int = 2048
) -> dict[Form, AnsweringModel]:
    """Load the trained model, in one or several forms, ready to answer; the weights of the base model are loaded once.

    Args:
        config: of the run.
        forms: which.
        data: the cleaned records, on which what is loaded must have been trained.
        max_length: tokens of prompt and answer together, at most.

    Raises:
        UserError: a form does not exist, or is older than what it is made from; the stage is named.
    """
    # All are looked for before any is loaded.
    found = {form: find_form(config, form, data) for form in forms if form != "foundation"}
    opened: dict[Form, AnsweringModel] = {}
    if {"foundation", "finetuned"} & set(forms):
        trained, run = found.get("finetuned"), RunFolder.of(config)
        as_trained = run.has_run("fine_tuning") and base_model(run) == config.model.name
        precision = trained_precision(run, config.model) if as_trained else precision_to_answer(config.model)
        base = loading.load_base(config.model, precision, max_length)
        tuned = adapter.load_adapter(base, trained) if trained else None
        if "foundation" in forms:
            # With the adapter on the weights, the base model is what is left when it is off.
            loaded = base if tuned is None else replace(tuned, name=base.name)
            prompt_format = prompts.make_prompt_format(config.prompt, base.tokenizer)
            opened["foundation"] = TransformersModel(loaded, prompt_format, without_adapter=tuned is not None)
        if tuned is not None and trained is not None:
            opened["finetuned"] = TransformersModel(tuned, prompts.load_prompt_format(trained))
    if (merged := found.get("merged")) is not None:
        loaded = loading.load_base(replace(config.model, name=str(merged)), "16bit", max_length)
        opened["merged"] = TransformersModel(loaded, prompts.load_prompt_format(merged))
    if (gguf := found.get("gguf")) is not None:
        opened["gguf"] = GgufModel(gguf, prompts.load_prompt_format(gguf.parent), max(max_length, CONTEXT_TOKENS))
    return opened
