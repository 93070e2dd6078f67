"""Generate answers in batches, stream one, and tell the likeliest next tokens."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from config import GenerationConfig
from pipeline.models.devices import free_memory
from pipeline.models.language_model import LanguageModel
from pipeline.models.prompts import PromptFormat, answered_ids, end_id, prompt_ids
from pipeline.models.size import shape_of, token_limit
from pipeline.run.errors import UserError

if TYPE_CHECKING:
    import torch
    from transformers import GenerationConfig as HuggingFaceGenerationConfig
    from transformers import PreTrainedTokenizerBase


MOST_AT_A_TIME = 64
BATCH_SHARE = 0.5  # of the free memory that a batch may take
REFERENCE_TOKENS = 512  # of a reference whose likelihood is measured


@dataclass(frozen=True)
class Answer:
    """What a model wrote for one prompt."""

    text: str
    tokens: int
    """Tokens written, the end token included."""
    ended: bool
    """Whether the model ended by itself, rather than at max_new_tokens."""
    seconds: float
    """Seconds for this answer: those of its batch, shared equally."""


def generate(
    language_model: LanguageModel,
    prompt_format: PromptFormat,
    prompts: Sequence[str],
    config: GenerationConfig,
    advance: Callable[[int], object] = lambda _: None,
) -> list[Answer]:
    """Answer prompts in batches of similar length, padded on the left; return the answers in the order of the prompts.

    Args:
        prompts: texts from PromptFormat.prompt.
        advance: called with the number of answers that were finished since the last call.

    Raises:
        UserError: the longest prompt leaves no room for an answer.
    """
    import torch

    torch.manual_seed(config.seed)
    tokenizer = language_model.tokenizer
    ends = stop_ids(language_model, prompt_format)
    answers: dict[int, Answer] = {}
    ids = [prompt_ids(prompt_format, tokenizer, prompt) for prompt in prompts]
    longest = max(map(len, ids), default=0)
    require_room(language_model.name, token_limit(language_model.model), longest, config.max_new_tokens)
    batch_size = config.batch_size or fitting_batch_size(language_model, longest + config.max_new_tokens)
    order = sorted(range(len(ids)), key=lambda position: len(ids[position]), reverse=True)
    for start in range(0, len(ids), batch_size):
        batch = order[start : start + batch_size]
        encoded = {"input_ids": [ids[position] for position in batch]}
        padded = tokenizer.pad(encoded, padding_side="left", return_attention_mask=True, return_tensors="pt")
        padded = padded.to(language_model.model.device)
        started = time.perf_counter()
        with torch.inference_mode():
            arguments = _generation_arguments(config, ends, tokenizer, padded["attention_mask"])
            written = _continued(language_model, **padded, **arguments)
        seconds = (time.perf_counter() - started) / len(batch)
        for position, row in zip(batch, written[:, padded["input_ids"].shape[1] :].tolist(), strict=True):
            answers[position] = _answer(row, ends, tokenizer, seconds)
        advance(len(batch))
    return [answers[position] for position in range(len(ids))]


def require_room(
    name: str, limit: int | None, prompt_tokens: int, new_tokens: int, setting: str = "--answers.max-new-tokens"
) -> None:
    """Raise a UserError if a model does not read a prompt and its answer to the end.

    Args:
        name: of the model.
        limit: tokens that it reads, prompt and answer together; None if nothing bounds them.
        prompt_tokens: of the longest prompt.
        new_tokens: of an answer, at most.
        setting: says how many these are.
    """
    if limit is not None and prompt_tokens + new_tokens > limit:
        raise UserError(
            f"A prompt of {prompt_tokens:,} tokens and an answer of {new_tokens:,} ({setting}) are more than the {limit:,} "
            f"tokens that {name} reads. Ask with a shorter text, or lower {setting}."
        )


def fitting_batch_size(language_model: LanguageModel, tokens: int) -> int:
    """Return how many sequences of so many tokens are answered at a time, by the memory that they take."""
    shape = shape_of(language_model.model.config)
    values = shape.cached + 3 * shape.inner + 4 * shape.hidden  # kept, and within a block
    sequence = tokens * values * language_model.model.dtype.itemsize
    return max(1, min(MOST_AT_A_TIME, int(BATCH_SHARE * free_memory(language_model.model.device.type) / sequence)))


def stream(
    language_model: LanguageModel, prompt_format: PromptFormat, prompt: str, config: GenerationConfig
) -> Generator[str, None, None]:
    """Yield the pieces of one answer as they are written; whoever closes the iterator ends the writing at the next token.

    Raises:
        UserError: the prompt leaves no room for the answer.
    """
    import torch
    from transformers import StoppingCriteriaList, TextIteratorStreamer

    torch.manual_seed(config.seed)
    tokenizer = language_model.tokenizer
    ends = stop_ids(language_model, prompt_format)
    streamer = TextIteratorStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
    ids = torch.tensor([prompt_ids(prompt_format, tokenizer, prompt)], device=language_model.model.device)
    require_room(language_model.name, token_limit(language_model.model), ids.shape[1], config.max_new_tokens)
    failures: list[BaseException] = []
    closed = threading.Event()

    def is_closed(written: torch.Tensor, scores: torch.Tensor, **_: Any) -> torch.Tensor:
        return torch.full((len(written),), closed.is_set(), device=written.device)

    def write() -> None:
        try:
            attended = torch.ones_like(ids)
            arguments = _generation_arguments(config, ends, tokenizer, attended)
            arguments["stopping_criteria"] = StoppingCriteriaList([is_closed])
            _continued(language_model, ids, attention_mask=attended, streamer=streamer, **arguments)
        except BaseException as error:
            failures.append(error)
            streamer.end()

    thread = threading.Thread(target=write, daemon=True)
    thread.start()
    try:
        yield from streamer
    finally:
        closed.set()
        thread.join()
    if failures:
        raise failures[0]


@dataclass(frozen=True)
class Reading:
    """What a model makes of given text, token by token."""

    choices: list[int]
    """The token that it finds likeliest at each position, given all that stands before it."""
    losses: list[float]
    """The negative log-likelihood of the token that is there, in nats."""


def read(language_model: LanguageModel, ids: Sequence[int], start: int) -> Reading:
    """Return what a model makes of ids[start:], given all that stands before."""
    import torch

    row = torch.tensor([list(ids)], device=language_model.model.device)
    expected = row[0, start:]
    with torch.inference_mode():
        # Of what stands before, the last token alone has logits that count: it predicts the first.
        logits = language_model.model(input_ids=row, logits_to_keep=len(expected) + 1).logits[
            0, -len(expected) - 1 : -1
        ]
        losses = torch.nn.functional.cross_entropy(logits.float(), expected, reduction="none")
    return Reading(logits.argmax(-1).tolist(), losses.tolist())


def reference_loss(
    language_model: LanguageModel, prompt_format: PromptFormat, prompt: str, reference: str
) -> dict[str, float | int]:
    """Return how unlikely a model finds the reference as the answer to a prompt, for the answers file.

    Returns:
        reference_loss, the sum of the negative log-likelihoods in nats, and reference_tokens, how many they are: the
        first REFERENCE_TOKENS of the reference and its end token, as far as the model reads. Nothing if there is no reference.
    """
    if not reference:
        return {}
    [(start, ids)] = answered_ids(prompt_format, language_model.tokenizer, [prompt], [reference])
    losses = read(language_model, ids[: start + REFERENCE_TOKENS][: token_limit(language_model.model)], start).losses
    return {"reference_loss": round(sum(losses), 4), "reference_tokens": len(losses)}


def greedy_continuation(
    language_model: LanguageModel, prompt_format: PromptFormat, ids: Sequence[int], tokens: int
) -> list[int]:
    """Return ids followed by the likeliest next tokens: up to the end of the answer, or as many as asked for."""
    import torch

    prompt = torch.tensor([list(ids)], device=language_model.model.device)
    with torch.inference_mode():
        written = _continued(
            language_model, prompt, attention_mask=torch.ones_like(prompt), do_sample=False, max_new_tokens=tokens,
            eos_token_id=stop_ids(language_model, prompt_format), pad_token_id=language_model.tokenizer.pad_token_id,
            use_cache=True,
        )  # fmt: skip
    return written[0].tolist()


def plain_settings(**settings: Any) -> HuggingFaceGenerationConfig:
    """Return transformers' settings of a model that answers greedily, but for `settings`.

    What they share with other programs that read generation_config.json is named, although it is transformers' default.
    """
    from transformers import GenerationConfig as HuggingFaceGenerationConfig

    return HuggingFaceGenerationConfig(
        **{"do_sample": False, "temperature": 1.0, "top_p": 1.0, "top_k": 50, **settings}
    )


def stop_ids(language_model: LanguageModel, prompt_format: PromptFormat) -> list[int]:
    """Return the tokens that end an answer: the one that was trained, and those of the model's files."""
    return sorted({end_id(prompt_format, language_model.tokenizer), *language_model.stop_ids})


def _continued(language_model: LanguageModel, *ids: torch.Tensor, **options: Any) -> torch.Tensor:
    # transformers' own type of a model that generates is not what its generate() asks for.
    write: Callable[..., torch.Tensor] = language_model.model.generate  # type: ignore[misc, assignment]
    return write(*ids, **options)


def sampling(config: GenerationConfig) -> dict[str, Any]:
    """Return how tokens are drawn, under transformers' names; what has no effect is left out, but for top_k."""
    if config.temperature == 0:
        return {"do_sample": False}
    limits = {"top_p": (config.top_p, 1.0), "min_p": (config.min_p, 0.0)}
    return {
        "do_sample": True,
        "temperature": config.temperature,
        "top_k": config.top_k,  # transformers' own default is 50
        **{name: value for name, (value, neutral) in limits.items() if value != neutral},
    }


def _generation_arguments(
    config: GenerationConfig, ends: list[int], tokenizer: PreTrainedTokenizerBase, attended: torch.Tensor
) -> dict[str, Any]:
    """Return the arguments of transformers' generate(); `attended` is 0 where a prompt is padded, of shape (prompts, tokens)."""
    arguments = {
        "max_new_tokens": config.max_new_tokens,
        "eos_token_id": ends,
        "pad_token_id": tokenizer.pad_token_id,
        **sampling(config),
    }
    if config.repetition_penalty != 1:
        arguments["logits_processor"] = [_repetition_penalty(config.repetition_penalty, attended)]
    return arguments


def _repetition_penalty(
    penalty: float, attended: torch.Tensor
) -> Callable[[torch.LongTensor, torch.FloatTensor], torch.FloatTensor]:
    """Return transformers' penalty on the tokens of prompt and answer, without the padding.

    Padding is often the token that ends an answer: penalised, the shorter prompts of a batch would get longer answers.
    """
    from transformers import RepetitionPenaltyLogitsProcessor

    penalise, width = RepetitionPenaltyLogitsProcessor(float(penalty)), attended.shape[1]

    def penalise_what_was_read(ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        read = ids.clone()
        # A token that is there anyway: how often it occurs does not count.
        read[:, :width] = ids[:, :width].where(attended == 1, ids[:, width - 1 : width])
        return penalise(read, scores)

    return penalise_what_was_read


def _answer(row: list[int], stop_ids: list[int], tokenizer: PreTrainedTokenizerBase, seconds: float) -> Answer:
    ends = [position for position, token in enumerate(row) if token in stop_ids]
    tokens = row[: ends[0] + 1] if ends else row
    text: str = tokenizer.decode(tokens[:-1] if ends else tokens, skip_special_tokens=True)  # type: ignore[assignment]  # of one row
    return Answer(text.strip(), len(tokens), bool(ends), seconds)
