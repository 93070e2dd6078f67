"""Run a GGUF with llama.cpp (xllamacpp): tokenize, generate, stream, and tell the likeliest next token."""

from __future__ import annotations

import json
import math
import queue
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import Any

from config import GenerationConfig
from pipeline.models.generation import Answer, Reading, require_room
from pipeline.models.prompts import PromptFormat
from pipeline.run.errors import UserError
from pipeline.run.run_folder import remake

CONTEXT_TOKENS = 4096  # of prompt and answer together, unless more are needed
NOT_QUANTIZED = ("all F32", "F16", "BF16")  # as llama.cpp calls them
# In transformers' order. llama.cpp's own has the temperature last, so top_p and min_p would leave other tokens.
SAMPLERS = ("penalties", "temperature", "top_k", "top_p", "min_p")
FORCING = 1e6  # added to a logit, it leaves no other token a chance
_DONE = object()


class GgufModel:
    """A GGUF file in llama.cpp. Prompts are texts without BOS: llama.cpp adds it where the file says so."""

    def __init__(self, path: Path, prompt_format: PromptFormat, context_tokens: int = CONTEXT_TOKENS) -> None:
        """Load the file.

        Args:
            path: the GGUF file.
            prompt_format: how the model is asked.
            context_tokens: tokens of prompt and answer together, at most.

        Raises:
            UserError: llama.cpp cannot load the file.
        """
        import xllamacpp

        parameters = xllamacpp.CommonParams()
        parameters.model.path = str(path)
        parameters.n_ctx = context_tokens
        parameters.n_parallel = 1
        parameters.verbosity = -1
        parameters.warmup = False
        self.name, self.prompt_format, self._context_tokens = path.name, prompt_format, context_tokens
        # A proxy of the company network must not be asked for an address of this machine.
        self._open = urllib.request.build_opener(urllib.request.ProxyHandler({})).open
        try:
            self._server = xllamacpp.Server(parameters)
        except RuntimeError as error:
            raise remake(path, f"llama.cpp cannot load {path} ({error}).") from error
        # A server that is closed before its loop has begun never ends. This request is answered by the loop.
        self._answer("/slots")
        model = self._answer("/v1/models")["data"][0]["meta"]
        number_format = model["ftype"]
        self.token_limit = min(context_tokens, model["n_ctx_train"])
        self._vocabulary, self._letter = model["n_vocab"], self.tokenize("a")[-1]
        precision = "16bit" if number_format in NOT_QUANTIZED else number_format
        self.runs_on = {"backend": "llama.cpp", "device": device(), "precision": precision}

    def tokenize(self, text: str) -> list[int]:
        """Return the ids of a prompt, with BOS where the model has one, control tokens read as such."""
        return self._post("/tokenize", {"content": text, "add_special": True, "parse_special": True})["tokens"]

    def close(self) -> None:
        """Release the file, which Windows does not let go of otherwise."""
        del self._server

    def _post(self, path: str, values: dict[str, Any]) -> dict[str, Any]:
        return self._answer(path, json.dumps(values).encode())

    def _answer(self, path: str, body: bytes | None = None) -> Any:
        """Return what the server answers; a UserError with its message if it refuses.

        Nothing bounds the time: the server is a thread of this process, and a long prompt takes a slow processor minutes.
        """
        request = urllib.request.Request(
            self._server.listening_address + path, body, {"Content-Type": "application/json"}
        )
        try:
            with self._open(request) as response:
                return json.load(response)
        except urllib.error.HTTPError as error:
            return _checked(json.load(error))

    def count_tokens(self, prompt: str) -> int:
        """Return the tokens of a prompt, BOS included."""
        return len(self.tokenize(prompt))

    def reference_loss(self, prompt: str, reference: str) -> dict[str, float | int]:
        """Return nothing: llama.cpp's server tells no likelihood of a given text."""
        return {}

    def generate(
        self,
        prompts: Sequence[str],
        settings: GenerationConfig,
        advance: Callable[[int], object] = lambda _: None,
    ) -> list[Answer]:
        """Answer prompts one after another; a UserError if the longest leaves no room for an answer."""
        longest = max(map(self.count_tokens, prompts), default=0)
        require_room(self.name, self.token_limit, longest, settings.max_new_tokens)
        answers = []
        for prompt in prompts:
            started = time.perf_counter()
            result = self._complete(_request(self.prompt_format, prompt, settings, self._context_tokens))
            choice, tokens = result["choices"][0], result["usage"]["completion_tokens"]
            seconds = time.perf_counter() - started
            answers.append(Answer(choice["text"].strip(), tokens, choice["finish_reason"] == "stop", seconds))
            advance(1)
        return answers

    def stream(self, prompt: str, settings: GenerationConfig) -> Generator[str, None, None]:
        """Yield the pieces of one answer as they are written; a UserError if the prompt leaves no room for it."""
        require_room(self.name, self.token_limit, self.count_tokens(prompt), settings.max_new_tokens)
        pieces: queue.Queue[Any] = queue.Queue()
        request = {**_request(self.prompt_format, prompt, settings, self._context_tokens), "stream": True}

        def work() -> None:
            try:
                self._server.handle_completions(request, pieces.put)
            except BaseException as error:
                pieces.put(error)
            pieces.put(_DONE)

        threading.Thread(target=work, daemon=True).start()
        while (piece := pieces.get()) is not _DONE:
            if isinstance(piece, BaseException):
                raise piece
            for part in piece if isinstance(piece, list) else [piece]:
                yield _checked(part)["choices"][0]["text"]

    def read(self, ids: Sequence[int], start: int) -> Reading:
        """Return what the model makes of ids[start:], given all that stands before; losses are NaN where it computes no numbers."""
        choices, losses = [], []
        for position in range(start, len(ids)):
            before, token = ids[:position], ids[position]
            found = self._forced(before, token, told=1)
            if found is not None:
                choices.append(found["top_logprobs"][0]["id"])
                losses.append(-_number(found["logprob"]))
            else:  # the token is a part of a character, which the server holds back, with all it would tell
                likelihoods = self.likeliest(before, self._vocabulary)
                choices.append(next(iter(likelihoods)))
                losses.append(-likelihoods[token])
        return Reading(choices, losses)

    def likeliest(self, ids: Sequence[int], number: int) -> dict[int, float]:
        """Return the likeliest next tokens, the likeliest first, with their log-likelihoods."""
        found = self._forced(ids, self._letter, told=number)
        assert found is not None  # a letter is a whole character
        return {token["id"]: _number(token["logprob"]) for token in found["top_logprobs"]}

    def _forced(self, ids: Sequence[int], token: int, told: int) -> dict[str, Any] | None:
        """Force the next token; return its log-likelihood and those of the likeliest ones, as they were before that."""
        request = {"prompt": list(ids), "n_predict": 1, "temperature": 0.0, "n_probs": told}
        reply = self._post("/completion", {**request, "logit_bias": [[token, FORCING]]})
        return next(iter(reply.get("completion_probabilities", [])), None)

    def _complete(self, request: dict[str, Any]) -> dict[str, Any]:
        return _checked(self._server.handle_completions(request))


def sampling(config: GenerationConfig, context_tokens: int) -> dict[str, float]:
    """Return how tokens are chosen, under names that llama.cpp and Ollama share.

    All is named, what has no effect too: either has defaults of its own.

    Args:
        config: how an answer is written.
        context_tokens: tokens of prompt and answer together, at most: the repetition penalty looks at them all, as transformers' does.
    """
    return {
        "temperature": config.temperature,
        "seed": config.seed,
        "top_k": config.top_k,
        "top_p": config.top_p,
        "min_p": config.min_p,
        "repeat_penalty": config.repetition_penalty,
        "repeat_last_n": context_tokens,
    }


def device() -> str:
    """Return what llama.cpp puts the layers of a model on: its GPUs, as many layers as they have memory for, or cpu."""
    import xllamacpp

    kinds, devices = xllamacpp.ggml_backend_dev_type, xllamacpp.get_device_info()
    for kind in (kinds.GGML_BACKEND_DEVICE_TYPE_GPU, kinds.GGML_BACKEND_DEVICE_TYPE_IGPU):
        # Those that share the memory of the machine are used where there is no other.
        if found := [f"{each['name']} ({each['description']})" for each in devices if each["type"] == kind]:
            return ", ".join(found)
    return "cpu"


def _request(prompt_format: PromptFormat, prompt: str, config: GenerationConfig, context_tokens: int) -> dict[str, Any]:
    return {
        "prompt": prompt,
        "n_predict": config.max_new_tokens,
        **sampling(config, context_tokens),
        "samplers": list(SAMPLERS),
        "stop": [prompt_format.end],
    }


def _number(logprob: float | None) -> float:
    return math.nan if logprob is None else logprob  # JSON has no NaN


def _checked(result: Any) -> dict[str, Any]:
    if "error" in result:
        problem = result["error"]
        remedy = " Ask with a shorter text." if problem.get("type") == "exceed_context_size_error" else ""
        raise UserError(f"llama.cpp: {problem['message'].rstrip('.')}.{remedy}")
    return result
