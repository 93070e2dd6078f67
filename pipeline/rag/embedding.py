"""Load an embedding model and embed many texts in batches of equal length and known size."""

from __future__ import annotations

import contextlib
import importlib.util
import os
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from config import RagConfig
from pipeline.models import bundled, devices
from pipeline.models.loading_errors import loading_errors, quiet_loading
from pipeline.run.errors import UserError

if TYPE_CHECKING:
    import numpy
    from langchain_huggingface import HuggingFaceEmbeddings
    from sentence_transformers import SentenceTransformer

DocumentEncoder = Callable[[list[str], list[list[int]]], Iterator[tuple[list[int], "numpy.ndarray"]]]
BATCH_TOKENS = {"cpu": 4096, "mps": 8192, "cuda": 65_536}


def load_embeddings(config: RagConfig) -> HuggingFaceEmbeddings:
    """Load the embedding model.

    Raises:
        UserError: there is no such model, or its backend is not installed.
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
        with quiet_loading():
            embeddings = HuggingFaceEmbeddings(
                model_name=bundled.resolve(config.embedding_model),
                model_kwargs=model_kwargs,
                encode_kwargs={"normalize_embeddings": True},
            )
    except loading_errors() as error:
        raise cannot_load("embedding model", config.embedding_model, error, "--rag.embedding-model") from error
    if sentence_transformer(embeddings).prompts.get("query"):
        embeddings.query_encode_kwargs = {**embeddings.encode_kwargs, "prompt_name": "query"}
    return embeddings


def cannot_load(kind: str, name: str, error: Exception, setting: str) -> UserError:
    """Return the error that says why a model of sentence-transformers could not be loaded, and which setting names it."""
    reason = " ".join(str(error).split())[:300]
    return UserError(f"The {kind} {name!r} could not be loaded: {reason} Check {setting}.")


def sentence_transformer(embeddings: HuggingFaceEmbeddings) -> SentenceTransformer:
    """Return the model itself, which LangChain does not expose."""
    return embeddings._client


def runs_on(embeddings: HuggingFaceEmbeddings, config: RagConfig) -> dict[str, str]:
    """Return the backend, the device, the number format of an embedding model and why it is that, for the manifest."""
    model = sentence_transformer(embeddings)
    where = {"backend": model.get_backend(), "device": model.device.type}
    if model.dtype is None:
        return where
    form = devices.compute_format("embedding", config.embedding_precision)
    return where | {"precision": form.name, "precision_reason": form.reason}


def document_prompt(embeddings: HuggingFaceEmbeddings) -> str:
    """Return what the model wants before each document; most models want nothing."""
    prompts = sentence_transformer(embeddings).prompts
    return next((prompt for name in ("document", "passage", "corpus") if (prompt := prompts.get(name))), "")


def tokenize(embeddings: HuggingFaceEmbeddings, texts: list[str]) -> list[list[int]]:
    """Return the tokens of each text, those that mark its beginning and end included."""
    tokenizer = sentence_transformer(embeddings).tokenizer
    options = {"truncation": False, "verbose": False, "return_attention_mask": False, "return_token_type_ids": False}
    return tokenizer(texts, add_special_tokens=True, **options)["input_ids"]


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

    longest, padding = max(map(len, batch)), model.tokenizer.pad_token_id
    features = {
        "input_ids": torch.tensor([ids + [padding] * (longest - len(ids)) for ids in batch]),
        "attention_mask": torch.tensor([[1] * len(ids) + [0] * (longest - len(ids)) for ids in batch]),
    }
    if "token_type_ids" in model.tokenizer.model_input_names:
        features["token_type_ids"] = torch.zeros_like(features["input_ids"])
    with torch.inference_mode():
        output = model({name: values.to(model.device) for name, values in features.items()})
        return output["sentence_embedding"].float().cpu().numpy()


def _of_length_one(vectors: numpy.ndarray) -> numpy.ndarray:
    # In 32 bits, whatever the model computes in.
    import numpy

    vectors = vectors.astype("float32", copy=False)
    if not numpy.isfinite(vectors).all():
        raise UserError(
            "The embedding model gives numbers that are not finite. Give --rag.embedding-precision float32."
        )
    return vectors / numpy.linalg.norm(vectors, axis=1, keepdims=True)
