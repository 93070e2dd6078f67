"""Did it forget? What the fine-tuned model makes of texts that have nothing to do with its data, beside the base model."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from config import PROJECT_DIR
from pipeline.models.language_model import LanguageModel
from pipeline.models.prompts import PromptFormat, answered_ids
from pipeline.models.size import token_limit

TEXTS = PROJECT_DIR / "data" / "general.jsonl"


@dataclass(frozen=True)
class GeneralText:
    """A prompt with a good answer to it."""

    kind: str
    """As explanation, arithmetic, code."""
    language: str
    """en or pt."""
    prompt: str
    text: str


def load_texts(number: int, seed: int, path: Path = TEXTS) -> list[GeneralText]:
    """Return some of the texts that come with the project, drawn at random."""
    texts = [GeneralText(**json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]
    return random.Random(seed).sample(texts, min(number, len(texts)))


def compare_with_base(
    tuned: LanguageModel, prompt_format: PromptFormat, texts: Sequence[GeneralText]
) -> list[dict[str, float]]:
    """Read every text with the fine-tuned model and, its adapter switched off, with the base model.

    Texts that are longer than the model reads are left out, and their number is printed.

    Returns:
        of each text: tokens; base_loss and tuned_loss, the sums of the negative log-likelihoods in nats; kl, the sum over the tokens
        of the Kullback-Leibler divergence from the base model's distribution of the next token to the fine-tuned one's.
    """
    import torch

    # Without the instruction that the records are asked with: these are other tasks.
    prompts = [prompt_format.plain(text.prompt) for text in texts]
    rows = answered_ids(prompt_format, tuned.tokenizer, prompts, [text.text for text in texts])
    limit = token_limit(tuned.model)
    if limit is not None and any(len(ids) > limit for _, ids in rows):
        rows, whole = [(start, ids) for start, ids in rows if len(ids) <= limit], len(rows)
        print(f"{whole - len(rows)} of them are left out: they have more than the {limit:,} tokens that it reads.")
    measured = []
    for start, ids in tqdm(rows, desc="Reading general texts", unit="text", dynamic_ncols=True):
        row = torch.tensor([ids[:-1]], device=tuned.model.device)  # whether it ends here is not asked
        expected = row[0, start:]

        def log_probabilities(row: torch.Tensor = row, number: int = len(expected)) -> torch.Tensor:
            logits = tuned.model(input_ids=row, logits_to_keep=number + 1).logits[0, -number - 1 : -1]
            return logits.float().log_softmax(-1)

        with torch.inference_mode():
            ours = log_probabilities()
            with tuned.peft_model.disable_adapter():
                base = log_probabilities()
            loss = torch.nn.functional.nll_loss
            divergence = torch.nn.functional.kl_div(ours, base, reduction="sum", log_target=True)
            measured.append(
                {
                    "tokens": len(expected),
                    "base_loss": round(loss(base, expected, reduction="sum").item(), 4),
                    "tuned_loss": round(loss(ours, expected, reduction="sum").item(), 4),
                    "kl": round(divergence.item(), 5),
                }
            )
    return measured
