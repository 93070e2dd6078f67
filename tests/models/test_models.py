"""The demo's models, the choice of the backend, and generation."""

from __future__ import annotations

from dataclasses import replace

import pytest

from config import PRESETS, GenerationConfig, ModelConfig
from pipeline.models import base_checks, bundled, generation, loading, prompts, size
from pipeline.run.errors import UserError

# What llama.cpp gives for the original file of SmolLM2.
TEXT = "Mog's Kittens: 28 years — café 123,456! <|im_end|>"
IDS = [61, 435, 506, 659, 7832, 581, 42, 216, 34, 40, 929, 1841, 37366, 216, 33, 34, 35, 28, 36, 37, 38, 17, 216, 2]


def test_smollm2_is_tokenized_as_in_llama_cpp(smollm2_tokenizer):
    assert smollm2_tokenizer(TEXT)["input_ids"] == IDS
    assert smollm2_tokenizer.decode(IDS) == TEXT
    assert (smollm2_tokenizer.bos_token, smollm2_tokenizer.eos_token) == ("<|im_start|>", "<|im_end|>")


def test_unknown_bundled_model():
    with pytest.raises(UserError, match="bundled/SmolLM2-135M-Instruct"):
        bundled.resolve("bundled/GPT-7")
    assert bundled.resolve("some/hub-model") == "some/hub-model"


def test_a_missing_package_names_the_remedy(monkeypatch, tmp_path):
    monkeypatch.setattr(bundled, "UNPACKED", tmp_path)
    monkeypatch.setitem(bundled.PACKAGES, "SmolLM2-135M-Instruct", "package_that_is_not_there")
    with pytest.raises(UserError, match=r"requirements/models\.txt"):
        bundled.resolve("bundled/SmolLM2-135M-Instruct")


@pytest.mark.parametrize(("requested", "cuda", "unsloth", "chosen"), [
    ("auto", True, True, "unsloth"), ("auto", True, False, "transformers"), ("auto", False, True, "transformers"),
    ("transformers", True, True, "transformers"), ("unsloth", True, True, "unsloth"),
])  # fmt: skip
def test_backend(requested, cuda, unsloth, chosen):
    assert loading.choose_backend(requested, cuda=cuda, unsloth=unsloth) == chosen


@pytest.mark.parametrize(("architecture", "chosen"), [("mistral", "unsloth"), ("phi3", "transformers")])
def test_auto_takes_unsloth_for_architectures_it_has_kernels_for(tiny_model, monkeypatch, architecture, chosen):
    import importlib.machinery
    import sys
    import types

    import torch

    model = ModelConfig(name=str(tiny_model(architecture)))
    unsloth = types.ModuleType("unsloth")
    unsloth.__spec__ = importlib.machinery.ModuleSpec("unsloth", None)
    monkeypatch.setitem(sys.modules, "unsloth", unsloth)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert loading.prepare_backend(model) == chosen


@pytest.mark.parametrize(
    ("cuda", "unsloth", "missing"), [(False, True, "NVIDIA GPU"), (True, False, "requirements/gpu.txt")]
)
def test_a_backend_that_was_asked_for_and_is_absent_is_an_error(cuda, unsloth, missing):
    with pytest.raises(UserError, match=missing):
        loading.choose_backend("unsloth", cuda=cuda, unsloth=unsloth)


def test_4_bits_without_a_gpu_is_an_error_with_the_remedy():
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(UserError, match=r"--model\.precision 16bit"):
        loading.load_base(ModelConfig(precision="4bit"), "4bit")


@pytest.mark.parametrize("name", ["./no-such-folder", "no/such-model"])
def test_a_model_that_is_not_there_is_one_sentence(name):
    with pytest.raises(UserError, match=r"could not be loaded.*--model\.name"):
        loading.load_base(ModelConfig(name=name), "16bit")


def test_pickled_weights_are_never_loaded(tmp_path, tiny_model):
    import shutil

    import torch

    folder = tmp_path / "pickled"
    shutil.copytree(tiny_model("llama"), folder)
    (folder / "model.safetensors").unlink()
    torch.save({}, folder / "pytorch_model.bin")
    with pytest.raises(UserError, match="pickles are never read here"):
        loading.load_base(ModelConfig(name=str(folder)), "16bit")


@pytest.fixture(scope="module")
def smollm2():
    return loading.load_base(ModelConfig(), "16bit")


@pytest.fixture(scope="module")
def prompt_format(smollm2):
    return prompts.make_prompt_format(PRESETS["demo"].prompt, smollm2.tokenizer)


def test_batched_streamed_and_single_answers_agree(smollm2, prompt_format):
    texts = [
        prompt_format.prompt(title) for title in ("Cat", "A wooden train set with twelve wagons, for ages 3-6", "Tea")
    ]
    greedy = GenerationConfig(max_new_tokens=8, temperature=0.0, batch_size=3)
    advanced = []
    batched = generation.generate(smollm2, prompt_format, texts, greedy, advanced.append)
    single = generation.generate(smollm2, prompt_format, texts, replace(greedy, batch_size=1))
    # In bfloat16 padding may tip a tie, so the first words must agree and nothing more is asked of the rest.
    assert [a.text.split()[:3] for a in batched] == [a.text.split()[:3] for a in single]
    assert sum(advanced) == 3 and all(0 < a.tokens <= 8 and a.seconds > 0 for a in batched)
    assert "".join(generation.stream(smollm2, prompt_format, texts[0], greedy)).strip() == single[0].text


def test_answers_come_in_the_order_of_the_prompts_however_they_are_batched(smollm2, prompt_format):
    titles = [
        "Tea",
        "A wooden train set with twelve wagons, for ages 3-6",
        "Cat",
        "A long story about two sisters",
        "Ink",
    ]
    texts = [prompt_format.prompt(title) for title in titles]
    greedy = GenerationConfig(max_new_tokens=6, temperature=0.0)
    alone = [generation.generate(smollm2, prompt_format, [text], greedy)[0].text for text in texts]
    for batch_size in (None, 2):
        batched = generation.generate(smollm2, prompt_format, texts, replace(greedy, batch_size=batch_size))
        assert [answer.text for answer in batched] == alone


def test_a_batch_fits_into_the_free_memory(smollm2, monkeypatch):
    shape = smollm2.model.config
    sequence = 100 * 4 * (2 * 30 * 3 * 64 + 3 * shape.intermediate_size + 4 * shape.hidden_size)
    for free, most in ((20 * sequence, 10), (10**12, 64), (0, 1)):
        monkeypatch.setattr(generation, "free_memory", lambda _, free=free: free)
        assert generation.fitting_batch_size(smollm2, 100) == most


def test_a_model_without_grouped_heads_is_answered_with_in_batches(smollm2, prompt_format):
    from transformers import GPT2Config, GPT2LMHeadModel

    model = GPT2LMHeadModel(GPT2Config(vocab_size=49152, n_embd=32, n_layer=2, n_head=2, n_positions=256)).eval()
    answers = generation.generate(
        replace(smollm2, model=model), prompt_format, [prompt_format.prompt("Tea")] * 3, GenerationConfig(4, 0.0)
    )
    assert len({answer.text for answer in answers}) == 1


def test_the_loss_of_a_reference_is_that_of_its_tokens_after_the_prompt(smollm2, prompt_format):
    import torch

    prompt, reference = prompt_format.prompt("Tea"), "Green tea from the hills, in small bags."
    found = generation.reference_loss(smollm2, prompt_format, prompt, reference)
    ids = smollm2.tokenizer(prompt + reference + prompt_format.end, add_special_tokens=False)["input_ids"]
    start = len(smollm2.tokenizer(prompt, add_special_tokens=False)["input_ids"])
    labels = torch.tensor([[-100] * start + ids[start:]])
    with torch.inference_mode():
        loss = smollm2.model(input_ids=torch.tensor([ids]), labels=labels).loss.item()
    assert found["reference_tokens"] == len(ids) - start
    assert found["reference_loss"] == pytest.approx(loss * (len(ids) - start), rel=1e-4)


def test_answers_end_at_the_end_token_or_at_the_limit(smollm2, prompt_format):
    short = GenerationConfig(max_new_tokens=3, temperature=0.0)
    cut = generation.generate(smollm2, prompt_format, [prompt_format.prompt("A long story")], short)[0]
    assert (cut.tokens, cut.ended) == (3, False)
    question = replace(prompt_format, question="Answer with the single word: yes. {title}")
    ended = generation.generate(smollm2, question, [question.prompt("")], GenerationConfig(64, 0.0))[0]
    assert ended.ended and ended.tokens < 64 and prompt_format.end not in ended.text


def test_sampling_is_seeded(smollm2, prompt_format):
    text, hot = prompt_format.prompt("Tea"), GenerationConfig(max_new_tokens=8, temperature=1.5, seed=5)
    one, same = (generation.generate(smollm2, prompt_format, [text], hot)[0].text for _ in range(2))
    other = generation.generate(smollm2, prompt_format, [text], replace(hot, seed=6))[0].text
    assert one == same != other


def test_whoever_closes_a_stream_ends_the_writing(smollm2, prompt_format):
    written = []
    watched = smollm2.model.register_forward_hook(lambda *_: written.append(1))
    try:
        endless = GenerationConfig(max_new_tokens=200, temperature=0.0)
        stream = generation.stream(smollm2, prompt_format, prompt_format.prompt("A long story"), endless)
        next(stream)
        stream.close()
        count = len(written)
        assert 0 < count < 100
        next(generation.stream(smollm2, prompt_format, prompt_format.prompt("Tea"), GenerationConfig(1, 0.0)))
        assert len(written) == count + 1, "the thread has ended, and the next stream is not stopped"
    finally:
        watched.remove()


def test_an_error_while_streaming_reaches_the_caller(smollm2, prompt_format, monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(smollm2.model, "generate", fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        list(generation.stream(smollm2, prompt_format, "x", GenerationConfig()))


def test_wrong_target_modules_name_the_right_ones(tiny_model):
    shape = size.load_shape(str(tiny_model("phi3")))
    with pytest.raises(UserError, match=r"no layer q_proj.*--lora\.target-modules.*down_proj.*qkv_proj"):
        base_checks.require_layers("phi3", shape, ("q_proj",))
