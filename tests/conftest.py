"""What tests share: tiny models of the presets' architectures, settings for them, the demo's tokenizer and embeddings."""

from __future__ import annotations

import copy
import os
from dataclasses import replace
from pathlib import Path

os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false", TRANSFORMERS_VERBOSITY="error")

import pytest
from tiny_models import BUILDERS, CHAT_TEMPLATES, tiny_config

from config import PRESETS, Config, RagConfig

# What trains, starts stages, or takes long otherwise: `python run.py tests --fast` leaves it out.
SLOW = (
    "faults", "page", "tuning", "data/test_metadata.py", "evaluation/test_significance.py", "export/test_chat_template.py",
    "export/test_gguf.py", "models/test_devices.py", "models/test_models.py", "models/test_size.py", "test_gpu.py", "test_pipeline.py",
    "test_several_devices.py", "training/test_peak_memory.py",
)  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests of SLOW."""
    folder = Path(__file__).parent
    for item in items:
        if item.path.relative_to(folder).as_posix().startswith(SLOW):
            item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory):
    """A function that returns the folder of a tiny model: llama, phi3 or mistral."""
    import torch

    built: dict[str, Path] = {}

    def get(name: str) -> Path:
        if name not in built:
            torch.manual_seed(7)
            folder = tmp_path_factory.mktemp(f"tiny-{name}")
            BUILDERS[name](folder)
            built[name] = folder
        return built[name]

    return get


@pytest.fixture(scope="session")
def smollm2_tokenizer():
    """The tokenizer of the demo's model."""
    from pipeline.models import bundled, loading

    return loading.load_tokenizer(bundled.resolve("bundled/SmolLM2-135M-Instruct"))


@pytest.fixture(scope="session")
def smollm2_with_bos(smollm2_tokenizer):
    """The same with an automatic BOS, as Llama 3 has one."""
    from tokenizers.processors import TemplateProcessing

    tokenizer = copy.deepcopy(smollm2_tokenizer)
    tokenizer.bos_token = "<|endoftext|>"
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", tokenizer.bos_token_id)]
    )
    return tokenizer


@pytest.fixture
def tokenizer(request, smollm2_tokenizer, smollm2_with_bos, tiny_model):
    """One of TOKENIZERS."""
    from transformers import AutoTokenizer

    if request.param in ("phi3", "mistral"):
        return AutoTokenizer.from_pretrained(tiny_model(request.param))
    tokenizer = copy.copy(smollm2_tokenizer if request.param == "smollm2" else smollm2_with_bos)
    tokenizer.chat_template = CHAT_TEMPLATES.get(request.param, tokenizer.chat_template)
    return tokenizer


@pytest.fixture(scope="session")
def embeddings():
    """The demo's embedding model."""
    from pipeline.rag import embedding

    return embedding.load_embeddings(RagConfig())


@pytest.fixture
def make_config(tmp_path, tiny_model):
    """A function that returns settings for a tiny model, with outputs in a folder of the test."""

    def make(architecture: str = "llama", **sections: object) -> Config:
        prompt = replace(PRESETS["demo"].prompt, format="alpaca" if architecture == "llama" else "chat")
        return tiny_config(tiny_model(architecture), tmp_path / "outputs", **{"prompt": prompt, **sections})

    return make
