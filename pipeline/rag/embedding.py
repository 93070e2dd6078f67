"""Load an embedding model and embed many texts in batches of equal length and known size."""

from __future__ import annotations

import contextlib
import importlib.util
import itertools
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from config import RagConfig
from pipeline.models import bundled, devices, finite
from pipeline.models.loading_errors import complete_weights, loading_errors, quiet_loading
from pipeline.models.size import token_limit
from pipeline.run.errors import UserError
from pipeline.run.run_folder import RunFolder, shell_line

if TYPE_CHECKING:
    import numpy
    import torch
    from langchain_huggingface import HuggingFaceEmbeddings
    from sentence_transformers import CrossEncoder, SentenceTransformer

DocumentEncoder = Callable[[list[str], list[list[int]]], Iterator[tuple[list[int], "numpy.ndarray"]]]
IN_32_BITS = "Give --rag.embedding-precision float32."
# Models trained with a prefix that their configuration does not state, though they find less without it. Those of E5 that
# follow instructions want one before a query that says what is searched for.
FAMILIES = {
    r"(?<![a-z0-9])e5(?![a-z0-9])(?!.*instruct)": ("query: ", "passage: "),
    r"nomic-embed-text": ("search_query: ", "search_document: "),
}
BATCH_TOKENS = {"cpu": 4096, "mps": 8192, "cuda": 65_536}


def load_embeddings(config: RagConfig) -> HuggingFaceEmbeddings:
    """Load the embedding model.

    Raises:
        UserError: there is no such model, its files are damaged, or its backend is not installed.
    """
    # Tokenizing millions of texts is worth all cores. What would fork after that does not in this project.
    os.environ["TOKENIZERS_PARALLELISM"] = "true"
    # oneDNN keeps code for each shape of a batch; by default for so many that memory grows by hundreds of megabytes.
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "64")
    from langchain_huggingface import HuggingFaceEmbeddings

    if config.embedding_backend == "openvino" and importlib.util.find_spec("optimum") is None:
        raise UserError(
            "--rag.embedding-backend openvino needs optimum-intel, which does not go with this version of transformers: "
            "requirements/openvino.txt says how to run the stages of the index in an environment of their own."
        )
    device = devices.best_device() if config.embedding_backend == "torch" else "cpu"
    model_kwargs: dict[str, Any] = {"device": device, "backend": config.embedding_backend, "trust_remote_code": False}
    if config.embedding_backend == "torch":
        form = devices.compute_format("embedding", config.embedding_precision)
        model_kwargs["model_kwargs"] = {"dtype": form.name, "use_safetensors": True}
    try:
        # Models that were trained to fill in words have no pooler, which sentence-transformers does not use.
        with quiet_loading(), complete_weights(unused="pooler"):
            embeddings = HuggingFaceEmbeddings(
                model_name=bundled.resolve(config.embedding_model),
                model_kwargs=model_kwargs,
                encode_kwargs={"normalize_embeddings": True},
            )
    except loading_errors() as error:
        raise cannot_load("embedding model", config.embedding_model, error, "--rag.embedding-model") from error
    model = sentence_transformer(embeddings)
    limit_tokens(model)
    if is_static(model):
        model.tokenizer.no_truncation()  # records are cut into pieces, which are read to the end

    def embed() -> torch.Tensor:
        return model.encode("a", convert_to_tensor=True)

    require_finite(model, embed, "embedding model", config.embedding_model, "--rag.embedding-model", IN_32_BITS)
    model.prompts |= dict(zip(("query", "document"), chosen_prefixes(model.prompts, config), strict=True))
    embeddings.query_encode_kwargs = {**embeddings.encode_kwargs, "prompt_name": "query"}
    return embeddings


def chosen_prefixes(stated: Mapping[str, str | None], config: RagConfig) -> tuple[str, str]:
    """Return what an embedding model reads before a query and before a document: as set, as it states, or as its name tells.

    Args:
        stated: the prompts of its configuration of sentence-transformers; most models have none.
        config: the name of the model, and what is set.
    """
    query = stated.get("query") or ""
    document = next((prompt for name in ("document", "passage", "corpus") if (prompt := stated.get(name))), "")
    if not query and not document:
        name = re.split(r"[/\\]", config.embedding_model.rstrip("/\\"))[-1].lower()
        query, document = next((wanted for family, wanted in FAMILIES.items() if re.search(family, name)), ("", ""))
    return (
        query if config.query_prefix is None else config.query_prefix,
        document if config.document_prefix is None else config.document_prefix,
    )


def limit_tokens(model: SentenceTransformer | CrossEncoder) -> None:
    """Let a model read no more tokens than it has positions for: its tokenizer may state more, or nothing."""
    from transformers import PreTrainedModel

    transformer = getattr(model[0], "auto_model", None)
    limit = token_limit(transformer) if isinstance(transformer, PreTrainedModel) else None
    if limit is not None and (model.max_seq_length is None or model.max_seq_length > limit):
        model.max_seq_length = limit


def require_finite(
    model: torch.nn.Module, compute: Callable[[], torch.Tensor], kind: str, name: str, setting: str, remedy: str
) -> None:
    """Raise a UserError if what a model of sentence-transformers computes is not finite.

    Args:
        model: whose weights and layers are looked at.
        compute: runs it on a short text.
        kind, name, setting: as for cannot_load.
        remedy: what to do where the number format is too narrow.
    """
    if compute().isfinite().all():
        return
    place, damaged = finite.where_not(model, compute)
    if damaged:
        raise cannot_load(kind, name, ValueError(f"{place} in its files holds numbers that are not finite."), setting)
    raise UserError(f"The {kind} {name!r} leaves the range of its number format in {place}. {remedy}")


def cannot_load(kind: str, name: str, error: Exception, setting: str) -> UserError:
    """Return the error that says why a model of sentence-transformers could not be loaded, and which setting names it."""
    reason = " ".join(str(error).split())[:300]
    return UserError(f"The {kind} {name!r} could not be loaded: {reason} Check {setting}.")


def sentence_transformer(embeddings: HuggingFaceEmbeddings) -> SentenceTransformer:
    """Return the model itself, which LangChain does not expose."""
    return embeddings._client


def embed_queries(embeddings: HuggingFaceEmbeddings, queries: list[str]) -> numpy.ndarray:
    """Return the embeddings of queries, each of length 1, of shape (queries, dimensions)."""
    options = embeddings.query_encode_kwargs or embeddings.encode_kwargs
    vectors = sentence_transformer(embeddings).encode(queries, show_progress_bar=False, **options)
    return _of_length_one(vectors)


def runs_on(embeddings: HuggingFaceEmbeddings, config: RagConfig) -> dict[str, str]:
    """Return the backend, the device, the number format of an embedding model and why it is that, for the manifest."""
    model = sentence_transformer(embeddings)
    where = {"backend": model.get_backend(), "device": model.device.type}
    if model.dtype is None:
        return where
    if is_static(model):
        return where | {"precision": str(model.dtype).removeprefix("torch."), "precision_reason": "as its files"}
    form = devices.compute_format("embedding", config.embedding_precision)
    return where | {"precision": form.name, "precision_reason": form.reason}


def prefixes(embeddings: HuggingFaceEmbeddings) -> tuple[str, str]:
    """Return what the model reads before each query and before each document; most models read nothing."""
    read = sentence_transformer(embeddings).prompts
    return read["query"] or "", read["document"] or ""


def require_prefix(run: RunFolder, indexed: str, embeddings: HuggingFaceEmbeddings) -> None:
    """Raise a UserError if the pieces of an index were embedded behind another prefix than the model reads now."""
    _, now = prefixes(embeddings)
    if indexed != now:
        as_now, as_indexed = (shell_line(["--rag.document-prefix", prefix]) for prefix in (now, indexed))
        raise UserError(
            f"The records were embedded with {indexed!r} before each, and the embedding model is to read {now!r}. "
            f"Run `{run.command_again('rag_indexing')} {as_now}`, or give {as_indexed}."
        )


def tokenize(embeddings: HuggingFaceEmbeddings, texts: list[str]) -> list[list[int]]:
    """Return the tokens of each text, those that mark its beginning and end included."""
    model = sentence_transformer(embeddings)
    tokenizer = model.tokenizer
    if is_static(model):
        return [encoding.ids for encoding in tokenizer.encode_batch(texts, add_special_tokens=False)]
    options = {"truncation": False, "verbose": False, "return_attention_mask": False, "return_token_type_ids": False}
    return tokenizer(texts, add_special_tokens=True, **options)["input_ids"]


def is_static(model: SentenceTransformer) -> bool:
    """Tell whether a model is a table of vectors (StaticEmbedding, Model2Vec), the mean of which is that of a text."""
    from sentence_transformers.sentence_transformer.modules import StaticEmbedding

    return isinstance(model[0], StaticEmbedding)


def token_batches(counts: Sequence[int], most_tokens: int) -> Iterator[list[int]]:
    """Yield the positions of the texts in batches of similar length, the longest first.

    Args:
        counts: tokens of each text.
        most_tokens: of a batch, padding included; a text that has more is a batch of its own.
    """
    batch: list[int] = []
    for position in sorted(range(len(counts)), key=counts.__getitem__, reverse=True):
        if batch and (len(batch) + 1) * counts[batch[0]] > most_tokens:
            yield batch
            batch = []
        batch.append(position)
    if batch:
        yield batch


@contextlib.contextmanager
def document_encoder(embeddings: HuggingFaceEmbeddings, config: RagConfig) -> Iterator[DocumentEncoder]:
    """Yield a function from texts and their tokens to (positions, vectors), a batch at a time.

    Vectors are float32 of length 1. Where there are several GPUs, all of them encode.
    """
    import torch

    model = sentence_transformer(embeddings)
    budget = config.embedding_batch_tokens or BATCH_TOKENS[model.device.type]
    gpus = torch.cuda.device_count() if model.device.type == "cuda" else 0
    pool = model.start_multi_process_pool([f"cuda:{number}" for number in range(gpus)]) if gpus > 1 else None

    def encode(texts: list[str], tokens: list[list[int]]) -> Iterator[tuple[list[int], numpy.ndarray]]:
        if pool:
            # Each process tokenizes its part again and sorts it.
            batch_size = max(1, budget // max(map(len, tokens)))
            vectors = model.encode(texts, pool=pool, batch_size=batch_size, prompt="", show_progress_bar=False)
            yield list(range(len(texts))), _of_length_one(vectors)
            return
        for batch in token_batches([len(ids) for ids in tokens], budget):
            yield batch, _of_length_one(_vectors(model, [tokens[position] for position in batch]))

    try:
        yield encode
    finally:
        if pool:
            model.stop_multi_process_pool(pool)


def _vectors(model: SentenceTransformer, batch: list[list[int]]) -> numpy.ndarray:
    # sentence-transformers' encode() would tokenize again, which takes seven times as long as a GPU computes.
    import torch

    features = _end_to_end(batch) if is_static(model) else _padded(model.tokenizer, batch)
    with torch.inference_mode():
        output = model({name: values.to(model.device) for name, values in features.items()})
        return output["sentence_embedding"].float().cpu().numpy()


def _end_to_end(batch: list[list[int]]) -> dict[str, torch.Tensor]:
    import torch

    starts = itertools.accumulate([len(ids) for ids in batch[:-1]], initial=0)
    return {"input_ids": torch.tensor([token for ids in batch for token in ids]), "offsets": torch.tensor([*starts])}


def _padded(tokenizer: Any, batch: list[list[int]]) -> dict[str, torch.Tensor]:
    import torch

    longest, padding = max(map(len, batch)), tokenizer.pad_token_id
    features = {
        "input_ids": torch.tensor([ids + [padding] * (longest - len(ids)) for ids in batch]),
        "attention_mask": torch.tensor([[1] * len(ids) + [0] * (longest - len(ids)) for ids in batch]),
    }
    if "token_type_ids" in tokenizer.model_input_names:
        features["token_type_ids"] = torch.zeros_like(features["input_ids"])
    return features


def _of_length_one(vectors: numpy.ndarray) -> numpy.ndarray:
    # In 32 bits, whatever the model computes in.
    import numpy

    vectors = vectors.astype("float32", copy=False)
    if not numpy.isfinite(vectors).all():
        raise UserError(f"The embedding model gives numbers that are not finite. {IN_32_BITS}")
    lengths = numpy.linalg.norm(vectors, axis=1, keepdims=True)
    # A text of which a table of vectors knows no word has none.
    return numpy.divide(vectors, lengths, out=numpy.zeros_like(vectors), where=lengths > 0)
