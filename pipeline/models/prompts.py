"""The one place where a prompt is worded, rendered, tokenized and ended.

A PromptFormat holds plain text, so that training, transformers, llama.cpp and Ollama all see the same characters. It is
made once, from the settings and the tokenizer, and saved as prompt_format.json beside every model; later stages read it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from config import PromptConfig
from pipeline.run.errors import UserError
from pipeline.run.files import read_json, write_json
from pipeline.run.run_folder import PROMPT_FORMAT, remake

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TITLE, CONTEXT, SYSTEM = "{title}", "{context}", "{system}"
_PLACEHOLDER = re.compile(r"(\{title\}|\{context\})")
_IN_BRACKETS = re.compile(r"<\S+>|\[\S+\]")
_QUESTION_MARK, _ANSWER_MARK, _NEXT_MARK, _SYSTEM_MARK = "QUESTIONxMARK", "ANSWERxMARK", "NEXTxMARK", "SYSTEMxMARK"
# What chat templates take for today, so that a prompt is the same tomorrow. Llama 3's take this day where they are told none.
_TODAY = date(2024, 7, 26)
_MADE_HERE = (
    "{#- The prompt that the model was trained with, from prompt_format.json. The user's message is the title. -#}"
)

# Wording of Stanford Alpaca (Taori et al. 2023), which base models fine-tuned with Unsloth's notebooks use.
_ALPACA_INTRODUCTION = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request.\n\n### Instruction:\n"
)


@dataclass(frozen=True)
class PromptFormat:
    """Everything needed to turn a title into a prompt and to know where its answer ends."""

    name: Literal["alpaca", "chat"]
    instruction: str
    title_label: str
    content_label: str
    bos: str
    """Text of the token that the tokenizer (and llama.cpp) puts first by itself; empty if there is none."""
    before: str
    """Text from the start of the prompt to the question."""
    before_with_system: str
    """The same where the user has a system message, which stands in place of the chat template's own; holds {system}."""
    question: str
    """Template of the question; holds {title}."""
    question_with_context: str
    """Template of the question with retrieved texts; holds {title} and {context}."""
    after: str
    """Text from the question to the answer."""
    end: str
    """Text of the token that ends an answer."""
    between: str
    """Text from an answer to the next question of a conversation, the end of the answer included."""
    control_tokens: tuple[str, ...]
    """Texts that the tokenizer reads as control tokens; records must never be able to write one."""

    def prompt(self, title: str, context: str = "") -> str:
        """Return the text that a model continues with its answer, without BOS."""
        if not context:
            return self.conversation([], title)
        question = _fill(self.question_with_context, self.neutralise(title), self.neutralise(context))
        return self.before + question + self.after

    def conversation(self, turns: Sequence[tuple[str, str]], title: str) -> str:
        """Return the text that a model continues with its answer to `title`, after (title, answer) turns, without BOS.

        Each turn is worded as in the training, also where the chat template words earlier ones otherwise, as those of
        models that think do.
        """
        asked = [self._asked(earlier) + self.neutralise(answer.strip()) for earlier, answer in turns]
        return self.before + self.between.join([*asked, self._asked(title)])

    def _asked(self, title: str) -> str:
        return _fill(self.question, self.neutralise(title)) + self.after

    def around_title(self) -> list[str]:
        """Return the texts around the title, two or more, which a title joins to the question."""
        texts = [""]
        for part in _PLACEHOLDER.split(self.question):
            if part == TITLE:
                texts.append("")
            elif part != CONTEXT:
                texts[-1] += part
        return texts

    def plain(self, question: str) -> str:
        """Return the prompt of a question of any kind, without the instruction that the records are asked with."""
        return self.before + self.neutralise(question) + self.after

    def source_text(self, title: str, content: str) -> str:
        """Return a record as it is given to a model as context: in one line, so that it cannot look like another part."""
        return " ".join(f"{self.title_label}: {title} - {self.content_label}: {content}".split())

    def neutralise(self, text: str) -> str:
        """Return text in which no control token is left: `<|im_end|>` becomes `< |im_end|>`, one character a space."""
        for token in sorted(self.control_tokens, key=len):  # the space may be what a longer one lacks
            if len(token) == 1:
                text = text.replace(token, " ")
            elif token in text:
                # With all that overlap: replacing one might leave the next.
                text = re.sub(f"{re.escape(token[0])}(?={re.escape(token[1:])})", r"\g<0> ", text)
        return text

    @property
    def digest(self) -> str:
        """Return what is the same for prompts that are worded alike."""
        return hashlib.sha256(json.dumps(dataclasses.asdict(self), sort_keys=True).encode()).hexdigest()

    def save(self, folder: Path) -> None:
        """Write prompt_format.json."""
        write_json(folder / PROMPT_FORMAT, dataclasses.asdict(self))


def load_prompt_format(folder: Path) -> PromptFormat:
    """Read the prompt format that a model was trained with."""
    path = folder / PROMPT_FORMAT
    if not path.exists():
        raise remake(path, f"{path} is missing, so nobody knows how {folder} was prompted.")
    values = read_json(path)
    known = {field.name for field in dataclasses.fields(PromptFormat)}
    if set(values) != known:
        raise remake(path, f"{path} was written by another version.")
    return PromptFormat(**{**values, "control_tokens": tuple(values["control_tokens"])})


def make_prompt_format(config: PromptConfig, tokenizer: PreTrainedTokenizerBase) -> PromptFormat:
    """Make the prompt format of a model from the settings and its tokenizer."""
    bos = automatic_bos(tokenizer)
    if config.format == "alpaca":
        if not tokenizer.eos_token:
            raise UserError("The tokenizer has no EOS token, so an Alpaca answer could not end.")
        frame = _Frame(
            before=_ALPACA_INTRODUCTION,
            before_with_system=_without_place_for_system(_ALPACA_INTRODUCTION),
            after="\n\n### Response:\n",
            end=tokenizer.eos_token,
            between=tokenizer.eos_token + _ALPACA_INTRODUCTION,
        )
        question = f"{config.instruction}\n\n### Input:\n{TITLE}"
        told = f"\n{config.context_instruction}" if config.context_instruction else ""
        with_context = f"{_asked(config.instruction)}{told}\n\n### Input:\n{CONTEXT}"
    else:
        frame = _chat_frame(tokenizer, bos)
        question = _asked(config.instruction)
        told = f"{config.context_instruction}\n" if config.context_instruction else ""
        with_context = f"{question}\n\n{told}{CONTEXT}"
    return PromptFormat(
        name=config.format,
        instruction=config.instruction,
        title_label=config.title_label,
        content_label=config.content_label,
        bos=bos,
        question=question,
        question_with_context=with_context,
        control_tokens=control_tokens(tokenizer),
        **frame._asdict(),
    )


def chat_template(prompt_format: PromptFormat) -> str:
    """Return a chat template in Jinja that words a conversation as PromptFormat.conversation does, BOS first.

    The content of a user's message is a title. What the model was not trained with, such as a system message, is refused
    with a sentence.
    """
    question = " + message['content'] + ".join(map(_jinja_literal, prompt_format.around_title()))
    refusal = (
        "This model was trained on titles and answers in turn. Send user and assistant messages in turn, and no others."
    )
    return "\n".join(
        [
            _MADE_HERE,
            f"{{{{- {_jinja_literal(prompt_format.bos + prompt_format.before)} -}}}}",
            "{%- for message in messages -%}",
            "  {%- if message['role'] == 'user' and loop.index0 % 2 == 0 -%}",
            f"    {{%- if not loop.first -%}}{{{{- {_jinja_literal(prompt_format.between)} -}}}}{{%- endif -%}}",
            f"    {{{{- {question} -}}}}",
            "    {%- if add_generation_prompt or not loop.last -%}",
            f"      {{{{- {_jinja_literal(prompt_format.after)} -}}}}",
            "    {%- endif -%}",
            "  {%- elif message['role'] == 'assistant' and loop.index0 % 2 == 1 -%}",
            "    {{- message['content'] | trim -}}",
            f"    {{%- if loop.last -%}}{{{{- {_jinja_literal(prompt_format.end)} -}}}}{{%- endif -%}}",
            "  {%- else -%}",
            f"    {{{{- raise_exception({_jinja_literal(refusal)}) -}}}}",
            "  {%- endif -%}",
            "{%- endfor -%}",
        ]
    )


def automatic_bos(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return the text of the BOS token if the tokenizer adds it to every text by itself, else an empty string."""
    ids = tokenizer("a")["input_ids"]
    return tokenizer.bos_token if tokenizer.bos_token and ids and ids[0] == tokenizer.bos_token_id else ""


def prompt_ids(prompt_format: PromptFormat, tokenizer: PreTrainedTokenizerBase, prompt: str) -> list[int]:
    """Tokenize a prompt with its BOS, as llama.cpp does."""
    return tokenizer(prompt_format.bos + prompt, add_special_tokens=False)["input_ids"]


def end_id(prompt_format: PromptFormat, tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the id of the token that ends an answer."""
    return tokenizer.convert_tokens_to_ids(prompt_format.end)  # type: ignore[return-value]  # one token has one id


@dataclass(frozen=True)
class TrainingExample:
    """One tokenized record."""

    input_ids: list[int]
    labels: list[int]
    """The same ids, with -100 where nothing is to be learned."""
    cut: bool
    """Whether the answer was longer than max_length allows, so that its end is missing."""
    at_hand: AtHand | None = None
    """Which records its prompt carries; None if it was to carry none."""


class AtHand(NamedTuple):
    """Which records a training prompt carries."""

    records: int
    """How many; 0 where none fitted or none was found."""
    right: bool
    """Whether the record that is asked for is among them."""
    fewer: bool = False
    """Whether not all of them fitted."""
    cut: bool = False
    """Whether the only one that fitted was cut."""


@dataclass(frozen=True)
class TrainingPrompt:
    """A prompt, and the answer that is learned for it."""

    text: str
    answer: str
    at_hand: AtHand | None = None
    """Which records the prompt carries; None if it was to carry none."""


def training_examples(
    prompt_format: PromptFormat,
    tokenizer: PreTrainedTokenizerBase,
    records: Sequence[tuple[str, str]],
    max_length: int,
    loss_on: Literal["answer", "all"] = "answer",
) -> list[TrainingExample | None]:
    """Tokenize (title, answer) records for training; None where the prompt leaves no room in max_length tokens."""
    asked = [TrainingPrompt(prompt_format.prompt(title), answer) for title, answer in records]
    return tokenized(prompt_format, tokenizer, asked, max_length, loss_on)


def tokenized(
    prompt_format: PromptFormat,
    tokenizer: PreTrainedTokenizerBase,
    asked: Sequence[TrainingPrompt],
    max_length: int,
    loss_on: Literal["answer", "all"] = "answer",
) -> list[TrainingExample | None]:
    """Tokenize prompts and their answers for training; None where the prompt leaves no room in max_length tokens."""
    texts, answers = [prompt.text for prompt in asked], [prompt.answer for prompt in asked]
    examples: list[TrainingExample | None] = []
    for prompt, (start, ids) in zip(asked, answered_ids(prompt_format, tokenizer, texts, answers), strict=True):
        labels = ids if loss_on == "all" else [-100] * start + ids[start:]
        example = TrainingExample(ids[:max_length], labels[:max_length], len(ids) > max_length, prompt.at_hand)
        examples.append(example if start < max_length else None)
    return examples


def answered_ids(
    prompt_format: PromptFormat, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], answers: Sequence[str]
) -> list[tuple[int, list[int]]]:
    """Tokenize prompts with an answer each; return where the answer starts, and the ids up to the end token.

    The ids of the prompt are those of the generation prompt, token for token.
    """
    if not prompts:
        return []
    prompts = [prompt_format.bos + prompt for prompt in prompts]
    texts = [prompt + prompt_format.neutralise(answer.strip()) for prompt, answer in zip(prompts, answers, strict=True)]
    starts = tokenizer(prompts, add_special_tokens=False)["input_ids"]
    wholes = tokenizer(texts, add_special_tokens=False)["input_ids"]
    for prompt, start, whole in zip(prompts, starts, wholes, strict=True):
        if whole[: len(start)] != start:
            raise UserError(
                f"The tokenizer joins the end of the prompt {prompt[-20:]!r} with the answer, so a model trained on it "
                "would not know its own prompt. Use --prompt.format alpaca, or a model with another chat template."
            )
    end = end_id(prompt_format, tokenizer)
    return [(len(start), [*whole, end]) for start, whole in zip(starts, wholes, strict=True)]


def _asked(instruction: str) -> str:
    return f"{instruction}: {TITLE}" if instruction else TITLE


def _fill(template: str, title: str, context: str = "") -> str:
    # One pass, so that a title that holds "{context}" is text and not a placeholder.
    values = {TITLE: title, CONTEXT: context}
    return _PLACEHOLDER.sub(lambda match: values[match[0]], template)


class _Frame(NamedTuple):
    """What stands around questions and answers: the fields of PromptFormat of these names."""

    before: str
    before_with_system: str
    after: str
    end: str
    between: str


def _chat_frame(tokenizer: PreTrainedTokenizerBase, bos: str) -> _Frame:
    """Return what a chat template writes around questions and answers, without BOS."""
    template = tokenizer.chat_template
    if not template:
        raise UserError("The tokenizer has no chat template: it belongs to a base model. Use --prompt.format alpaca.")
    if isinstance(template, dict) and "default" not in template:
        raise UserError(
            f"The tokenizer has several chat templates ({', '.join(sorted(template))}), and none is named default. Save the "
            "one to use as chat_template.jinja in the folder of the model, or use --prompt.format alpaca."
        )
    if _MADE_HERE in template:
        return _trained_frame(Path(tokenizer.name_or_path))
    # The content of a message is a text; templates of models that see images may know a list of parts alone.
    refusal = UserError("The chat template of this tokenizer leaves messages out. Use --prompt.format alpaca.")
    for content in (_as_text, _as_parts):
        question, answer = _message("user", content(_QUESTION_MARK)), _message("assistant", content(_ANSWER_MARK))
        try:
            prompt = _rendered(tokenizer, [question])
            closed = _rendered(tokenizer, [question], add_generation_prompt=False)
            whole = _rendered(tokenizer, [question, answer], add_generation_prompt=False)
            conversation = _rendered(tokenizer, [question, answer, _message("user", content(_NEXT_MARK))])
        except UserError as error:
            refusal = error
            continue
        before, found, after = prompt.partition(_QUESTION_MARK)
        opening, answer_found, tail = whole.removeprefix(before + _QUESTION_MARK).partition(_ANSWER_MARK)
        between, next_found, _ = conversation.partition(_ANSWER_MARK)[2].partition(_NEXT_MARK)
        if found and answer_found and next_found and whole.startswith(before):
            break
    else:
        raise refusal
    if prompt == closed and opening.startswith(after) and opening.rstrip() != after.rstrip():
        after = opening  # the template ignores add_generation_prompt
    tail = tail.lstrip()
    ends = [token for token in control_tokens(tokenizer) if tail.startswith(token)]
    end = max(ends, key=len) if ends else tokenizer.eos_token
    if not end:
        raise UserError("The chat template ends an answer with no control token. Use --prompt.format alpaca.")
    with_system = _before_with_system(tokenizer, content) or _without_place_for_system(before)
    return _Frame(before.removeprefix(bos), with_system.removeprefix(bos), after, end, between)


def _trained_frame(merged: Path) -> _Frame:
    """Return the frame of a model of stage 5: its chat template words the instruction of its training too."""
    trained = load_prompt_format(merged)
    if trained.name != "chat":
        raise UserError(f"The model in {merged} was trained with Alpaca prompts. Use --prompt.format {trained.name}.")
    return _Frame(*(getattr(trained, name) for name in _Frame._fields))


def _before_with_system(tokenizer: PreTrainedTokenizerBase, content: Callable[[str], Content]) -> str:
    """Return the text to the question with {system} where the template writes a system message; empty if it has no place."""
    messages = [_message("system", content(_SYSTEM_MARK)), _message("user", content(_QUESTION_MARK))]
    try:
        prompt = _rendered(tokenizer, messages)
    except UserError:  # Gemma's refuses it
        return ""
    before, _, _ = prompt.partition(_QUESTION_MARK)
    return before.replace(_SYSTEM_MARK, SYSTEM) if _SYSTEM_MARK in before else ""


def _without_place_for_system(before: str) -> str:
    # Ahead of the instruction, as one that the model is asked to follow.
    return f"{before}{SYSTEM}\n\n"


Content = str | list[dict[str, str]]


def _as_text(text: str) -> Content:
    return text


def _as_parts(text: str) -> Content:
    return [{"type": "text", "text": text}]


def _message(role: str, content: Content) -> dict[str, Any]:
    return {"role": role, "content": content}


def _rendered(
    tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, Any]], add_generation_prompt: bool = True
) -> str:
    options: dict[str, Any] = {"tokenize": False, "strftime_now": _TODAY.strftime}
    try:
        # What is not tokenized is a text.
        return tokenizer.apply_chat_template(messages, add_generation_prompt=add_generation_prompt, **options)  # type: ignore[return-value]
    except Exception as error:  # a template is a program, whose faults are of any kind
        raise UserError(
            f"The chat template of this tokenizer cannot word a question ({error}). Use --prompt.format alpaca."
        ) from error


def _jinja_literal(text: str) -> str:
    """Return text as a string literal, with escapes that Jinja and llama.cpp share."""
    for character, escape in (("\\", "\\\\"), ("'", "\\'"), ("\n", "\\n"), ("\r", "\\r")):
        text = text.replace(character, escape)
    return f"'{text}'"


def control_tokens(tokenizer: PreTrainedTokenizerBase) -> tuple[str, ...]:
    """Return the texts that a tokenizer reads as control tokens."""
    added = tokenizer.added_tokens_decoder.values()
    # Phi-3's </s> is one, and is not marked as special.
    control = {token.content for token in added if token.special or _IN_BRACKETS.fullmatch(token.content)}
    return tuple(sorted({*control, *tokenizer.all_special_tokens}))
