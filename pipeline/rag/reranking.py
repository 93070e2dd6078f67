"""Read the best pieces together with the query, by a cross-encoder, to put them in a better order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.models import bundled, devices
from pipeline.models.loading_errors import complete_weights, loading_errors
from pipeline.rag import embedding

if TYPE_CHECKING:
    import torch
    from sentence_transformers import CrossEncoder

# 118 million parameters; trained to rank passages in 14 languages, among them Portuguese and Spanish (mMARCO).
AUTO = "cross-encoder/mmarco-mMiniLMv2-L12-H384-v1"


@dataclass(frozen=True)
class Reranker:
    """A cross-encoder that tells how well texts fit a query."""

    model: CrossEncoder

    def scores(self, query: str, texts: Sequence[str]) -> list[float]:
        """Return a number for each text, the greater the better it fits; of a long text the beginning is read."""
        if not texts:
            return []
        limit = self.model.max_seq_length
        pairs = [(query, text) for text in texts]
        tokens = self.model.tokenizer(pairs, truncation=limit is not None, max_length=limit, verbose=False)["input_ids"]
        scores = [0.0] * len(pairs)
        # Some read thousands of tokens: all pairs at once would need gigabytes.
        for batch in embedding.token_batches(
            [len(ids) for ids in tokens], embedding.BATCH_TOKENS[self.model.device.type]
        ):
            read = self.model.predict(
                [pairs[position] for position in batch], batch_size=len(batch), show_progress_bar=False
            )
            for position, score in zip(batch, read, strict=True):
                scores[position] = float(score)
        return scores


def load_reranker(name: str) -> Reranker:
    """Load a cross-encoder, or raise a UserError if there is none of this name, or its files are damaged.

    Args:
        name: a folder, the name of a model on the hub, or auto, which is AUTO.
    """
    from sentence_transformers import CrossEncoder

    name = AUTO if name == "auto" else name
    setting = "--rag.reranker: it names a cross-encoder, and an embedding model is none"

    def order() -> torch.Tensor:
        return model.predict([("a", "a")], convert_to_tensor=True)

    try:
        options = {"use_safetensors": True, "dtype": devices.compute_format("embedding").name}
        # An embedding model would order by a head of random weights.
        with complete_weights():
            model = CrossEncoder(bundled.resolve(name), num_labels=1, trust_remote_code=False, model_kwargs=options)
    except loading_errors() as error:
        raise embedding.cannot_load("reranker", name, error, setting) from error
    embedding.limit_tokens(model)
    embedding.require_finite(model, order, "reranker", name, setting, "Name another with --rag.reranker.")
    return Reranker(model)
