"""The whole chain on tiny random models of the presets' architectures: clean, train, merge, GGUF, llama.cpp answers."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

import compare_models
import fine_tuning
import foundation_model
import ft_test_trained_model
import merge_and_convert
import process_data
import rag_indexing
import rag_model_retriever
import rag_search_vs
from config import GgufConfig, LoraConfig, ModelConfig
from pipeline.export import gguf
from pipeline.models import adapter, loading, prompts
from pipeline.models.llama_cpp import GgufModel
from pipeline.models.trained import adapter_folder
from pipeline.run import files, manifests
from pipeline.run.errors import UserError
from pipeline.run.run_folder import RunFolder
from pipeline.training.log import read_log

PHI3_LAYERS = ("qkv_proj", "o_proj", "gate_up_proj", "down_proj")
ADAPTER_FILES = {
    "README.md", "adapter_config.json", "adapter_model.safetensors", "prompt_format.json", "tokenizer.json",
    "tokenizer_config.json",
}  # fmt: skip
MERGED_FILES = {
    "chat_template.jinja", "config.json", "generation_config.json", "model.safetensors", "prompt_format.json",
    "tokenizer.json", "tokenizer_config.json",
}  # fmt: skip
EXTRA_FILES = {"llama": set(), "phi3": {"chat_template.jinja"}, "mistral": {"chat_template.jinja"}}

RUN_FILES = {
    "Modelfile", "checkpoints", "chroma", "comparison.html", "comparison.json", "comparison.md", "finetuned_answers.json",
    "foundation_answers.json", "lexical.sqlite", "lora_model", "loss_curve.png", "manifests", "merged_model", "model-f32.gguf",
    "prompt_format.json", "rag_answers.json", "recipe.toml", "rag_finetuned_answers.json", "rejected.jsonl", "training_log.jsonl", "trn_processed.json",
    "trn_processed_dataset.json",
}  # fmt: skip


def names(folder):
    return {path.name for path in folder.iterdir()}


@pytest.fixture
def config(request, make_config):
    architecture = getattr(request, "param", "llama")
    lora = LoraConfig(r=4, alpha=8, target_modules=PHI3_LAYERS) if architecture == "phi3" else LoraConfig(r=4, alpha=8)
    # Random weights leave near ties that 16-bit arithmetic tips; another model would agree on nothing at all.
    gguf_config = GgufConfig(type="f32", parity_prompts=2, parity_tokens=8, min_agreement=0.6)
    return make_config(architecture, lora=lora, gguf=gguf_config)


@pytest.mark.parametrize("config", ["llama", "phi3", "mistral"], indirect=True)
def test_the_whole_chain(config, request, capsys):
    architecture = request.node.callspec.params["config"]
    process_data.run(config)
    foundation = json.loads(foundation_model.run(config).read_text(encoding="utf-8"))
    adapter = fine_tuning.run(config)
    assert names(adapter) == ADAPTER_FILES | EXTRA_FILES[architecture]
    options = ft_test_trained_model.TestOptions()
    tuned = json.loads(ft_test_trained_model.run(config, options).read_text(encoding="utf-8"))
    assert [a["title"] for a in tuned["answers"]] == [a["title"] for a in foundation["answers"]]
    assert tuned["generation"] == foundation["generation"]

    gguf_file = merge_and_convert.run(config)
    merged_extra = {"tokenizer.model"} if architecture != "llama" else set()
    assert names(config.run_dir / "merged_model") == MERGED_FILES | merged_extra
    assert gguf_file.name == "model-f32.gguf"
    metrics = manifests.read_manifest(RunFolder.of(config), "merge_and_convert")["metrics"]
    assert metrics["tokenization"] == "identical"
    assert metrics["agreement_adapter_merged"] >= 0.6 and metrics["agreement_merged_gguf"] >= 0.6
    trained, merged, converted = metrics["validation_loss"].values()
    for form in (merged, converted):
        assert form["answers"] == trained["answers"] > 10
        assert abs(form["against_trained"]["value"]) < 0.05, "of a loss of 8 and more: the weights are random"

    prompt_format = prompts.load_prompt_format(config.run_dir)
    served = GgufModel(gguf_file, prompt_format)
    prompt = prompt_format.prompt("Mog's Kittens, 28 years — café")
    streamed = "".join(served.stream(prompt, config.answers)).strip()
    assert streamed and streamed == served.generate([prompt], config.answers)[0].text
    served.close()
    for form in ("merged", "gguf"):
        asked = ft_test_trained_model.run(config, ft_test_trained_model.TestOptions(model_form=form))
        assert len(json.loads(asked.read_text(encoding="utf-8"))["answers"]) == len(foundation["answers"])
    capsys.readouterr()
    assert ft_test_trained_model.run(config, ft_test_trained_model.TestOptions(title="Tea &amp; cake")) is None
    assert "Product: Tea &amp; cake" in capsys.readouterr().out

    modelfile = (config.run_dir / "Modelfile").read_text(encoding="utf-8")
    assert modelfile.startswith("FROM ./model-f32.gguf\n")
    assert f'PARAMETER stop """{prompt_format.end}"""\n' in modelfile
    assert "PARAMETER num_ctx 2048\n" in modelfile, "the model has no more positions"
    tokenizer = loading.load_tokenizer(str(config.run_dir / "merged_model"))
    asked = [{"role": "user", "content": "Tea"}]
    worded = tokenizer.apply_chat_template(asked, tokenize=False, add_generation_prompt=True)
    assert worded == prompt_format.bos + prompt_format.prompt("Tea")


def test_a_base_with_4_bit_files_becomes_a_16_bit_model(config, tmp_path):
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
    quantization = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True)
    whole = config.model.name
    small = AutoModelForCausalLM.from_pretrained(whole, quantization_config=quantization, dtype=torch.bfloat16)
    small.save_pretrained(tmp_path / "small")
    loading.load_tokenizer(whole).save_pretrained(tmp_path / "small")
    config = replace(config, model=ModelConfig(name=str(tmp_path / "small")))
    process_data.run(config)
    fine_tuning.run(config)
    merge_and_convert.run(config)
    merged = load_file(config.run_dir / "merged_model" / "model.safetensors")
    assert {weight.dtype for weight in merged.values()} == {torch.bfloat16}
    assert not loading.quantized_files(str(config.run_dir / "merged_model"))


def test_what_fails_after_the_adapter_was_saved_is_raised_and_the_training_counts(config, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(fine_tuning, "print_test_queries", interrupted)
    process_data.run(config)
    with pytest.raises(KeyboardInterrupt):
        fine_tuning.run(config)
    folder = RunFolder.of(config)
    assert adapter_folder(folder, config.model.name, folder / "trn_processed.json").is_dir()


def test_training_leaves_a_log_a_picture_a_dataset_and_figures(config, capsys):
    from PIL import Image

    process_data.run(config)
    fine_tuning.run(config)
    printed = capsys.readouterr().out
    for shown in (
        "Environment:",
        "Trainable parameters:",
        "instruction:",
        "perplexity",
        "Test query, streamed",
        "samples/s",
    ):
        assert shown in printed
    log = read_log(config.run_dir / "training_log.jsonl")
    assert [line["step"] for line in log if "loss" in line] == [1, 2, 3, 4]
    assert [line["step"] for line in log if "validation_loss" in line] == [0, 2, 4]
    metrics = manifests.read_manifest(RunFolder.of(config), "fine_tuning")["metrics"]
    assert metrics["validation_loss_after"] < metrics["validation_loss_before"]
    assert metrics["steps"] == 4 and metrics["training_records"] == 8
    with Image.open(config.run_dir / "loss_curve.png") as picture:
        assert picture.size == (960, 540)
    dataset = json.loads((config.run_dir / "trn_processed_dataset.json").read_text(encoding="utf-8"))
    assert len(dataset) == 8 and set(dataset[0]) == {"instruction", "input", "output"}
    from pipeline.data.records import open_processed

    data = open_processed(RunFolder.of(config))
    assert {data.split_of(record["input"]) for record in dataset} == {"train"}


def test_packed_steps_take_tokens_and_the_probe_is_asked_before_and_after(config, capsys):
    packed = replace(config.train, batching="packed", tokens_per_step=600, max_steps=3, learning_rate=2e-2)
    probe = replace(config.questions, probe="Who is {title} for?")
    packed_config = replace(config, train=packed, questions=probe)
    process_data.run(packed_config)
    fine_tuning.run(packed_config)
    metrics = manifests.read_manifest(RunFolder.of(config), "fine_tuning")["metrics"]
    assert metrics["steps"] == 3 and 1800 <= metrics["training_tokens"] <= 1800 + config.train.max_length
    assert 1 < metrics["tokens_of_largest_pass"] <= 600
    assert metrics["probe"]["question"] == "Who is Nothing of this name for?"
    assert set(metrics["probe"]) == {"question", "before", "after"}
    assert metrics["probe"]["before"] != metrics["probe"]["after"]
    assert capsys.readouterr().out.count("Probe question") == 2
    dataset = files.read_json(config.run_dir / "trn_processed_dataset.json")
    assert len(dataset) == metrics["training_records"]
    packed_config = replace(packed_config, train=replace(packed, passes=2, tokens_per_step=600))
    fine_tuning.run(packed_config)
    metrics = manifests.read_manifest(RunFolder.of(config), "fine_tuning")["metrics"]
    assert metrics["passes"] == 2 and 300 <= metrics["tokens_of_largest_pass"] < 500


def test_an_interrupted_training_goes_on_as_if_it_had_not_been(config, monkeypatch):
    from transformers import TrainerCallback

    from pipeline.training import session

    config = replace(config, train=replace(config.train, with_records=0.5, max_length=256))
    process_data.run(config)
    fine_tuning.run(config)
    undisturbed = read_log(config.run_dir / "training_log.jsonl")
    carried = manifests.read_manifest(RunFolder.of(config), "fine_tuning")["metrics"]["with_records"]
    assert 1 < carried["prompts"] < 8

    class Stop(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == 3:
                raise KeyboardInterrupt

    original = session.make_trainer

    def stopping(*arguments):
        trainer = original(*arguments)
        trainer.add_callback(Stop())
        return trainer

    monkeypatch.setattr(session, "make_trainer", stopping)
    with pytest.raises(KeyboardInterrupt):
        fine_tuning.run(config)
    monkeypatch.setattr(session, "make_trainer", original)
    resumed = replace(config, train=replace(config.train, resume=True))
    fine_tuning.run(resumed)
    again = read_log(config.run_dir / "training_log.jsonl")
    assert [line["step"] for line in again] == [line["step"] for line in undisturbed]
    for one, other in zip(again, undisturbed, strict=True):
        for key in ("loss", "validation_loss"):
            assert one.get(key) == pytest.approx(other.get(key), abs=1e-3)

    assert manifests.read_manifest(RunFolder.of(config), "fine_tuning")["metrics"]["with_records"] == carried

    fine_tuning.run(resumed)  # nothing is left to do
    assert read_log(config.run_dir / "training_log.jsonl") == again
    other_rank = replace(resumed, lora=replace(config.lora, r=8))
    with pytest.raises(UserError, match=r"other settings or data \(lora\.r\)"):
        fine_tuning.run(other_rank)
    with pytest.raises(UserError, match=r"other settings or data \(rag\.k\)"):
        fine_tuning.run(replace(resumed, rag=replace(config.rag, k=1)))


def test_resuming_without_a_checkpoint_is_an_error(config):
    process_data.run(config)
    with pytest.raises(UserError, match="no checkpoint"):
        fine_tuning.run(replace(config, train=replace(config.train, resume=True)))


def test_an_adapter_of_another_base_model_is_refused(config, tiny_model):
    process_data.run(config)
    fine_tuning.run(config)
    other = replace(config, model=replace(config.model, name=str(tiny_model("mistral"))))
    for run in (merge_and_convert.run, lambda c: ft_test_trained_model.run(c, ft_test_trained_model.TestOptions())):
        with pytest.raises(UserError, match="was trained on"):
            run(other)


@pytest.mark.parametrize("config", ["phi3"], indirect=True)
@pytest.mark.parametrize("missing", ["complete_tokenizer_config", "gguf_model_name"])
def test_a_gguf_that_tokenizes_otherwise_is_never_kept(config, monkeypatch, missing):

    process_data.run(config)
    fine_tuning.run(config)
    # Without these, llama.cpp adds a BOS to Phi-3's prompts, or keeps the line ends that Phi-3's tokens swallow.
    monkeypatch.setattr(gguf, missing, lambda *_: "model")
    with pytest.raises(UserError, match="tokenizes a prompt otherwise"):
        merge_and_convert.run(config)
    assert not list(config.run_dir.glob("*.gguf")) and not (config.run_dir / "Modelfile").exists()
    assert not RunFolder.of(config).manifest_path("merge_and_convert").exists()


@pytest.mark.parametrize("number_format", ["f16", "bf16", "q8_0"])
def test_every_number_format_converts(config, number_format):
    process_data.run(config)
    fine_tuning.run(config)
    chosen = replace(config, gguf=replace(config.gguf, type=number_format, file_name="novo_modelo.gguf"))
    assert merge_and_convert.run(chosen).name == "novo_modelo.gguf"
    assert "FROM ./novo_modelo.gguf" in (config.run_dir / "Modelfile").read_text(encoding="utf-8")


def test_a_merge_that_changes_the_model_is_never_kept(config, monkeypatch):

    process_data.run(config)
    fine_tuning.run(config)
    merge = adapter.merge

    def merge_badly(tuned, stored):
        import torch

        merged = merge(tuned, stored)
        with torch.no_grad():
            for weight in merged.model.parameters():
                weight.copy_(weight.roll(1, 0))
        return merged

    monkeypatch.setattr(adapter, "merge", merge_badly)
    with pytest.raises(UserError, match=r"The merged model differs from base \+ adapter"):
        merge_and_convert.run(config)
    assert not (config.run_dir / "merged_model").exists()


def test_a_run_that_fails_keeps_what_the_run_before_made(config):
    process_data.run(config)
    adapter = fine_tuning.run(config)
    before = files.file_hash(adapter)
    with pytest.raises(UserError, match="could not be loaded"):
        fine_tuning.run(replace(config, model=replace(config.model, name="./typo")))
    assert files.file_hash(adapter) == before and list((config.run_dir / "checkpoints").glob("checkpoint-*"))
    ft_test_trained_model.run(config, ft_test_trained_model.TestOptions())


def test_other_data_makes_adapter_and_index_stale(config):
    process_data.run(config)
    fine_tuning.run(config)
    rag_indexing.run(config)
    process_data.run(replace(config, data=replace(config.data, min_content_chars=80)))
    for run in (
        lambda: ft_test_trained_model.run(config, ft_test_trained_model.TestOptions()),
        lambda: merge_and_convert.run(config),
        lambda: rag_search_vs.run(config, rag_search_vs.SearchOptions(query="x")),
        lambda: rag_model_retriever.run(config, rag_model_retriever.RetrieverOptions()),
    ):
        with pytest.raises(UserError, match="has changed since"):
            run()


def test_a_gguf_with_other_weights_is_never_kept(config, monkeypatch):
    process_data.run(config)
    fine_tuning.run(config)
    convert = gguf.convert

    def convert_other(merged, target, *rest):
        import torch
        from transformers import AutoModelForCausalLM

        model = AutoModelForCausalLM.from_pretrained(merged)
        with torch.no_grad():
            for weight in model.parameters():
                weight.copy_(weight.roll(1, 0))
        model.save_pretrained(merged)
        convert(merged, target, *rest)

    earlier = merge_and_convert.run(config)
    monkeypatch.setattr(gguf, "convert", convert_other)
    with pytest.raises(UserError, match="The GGUF differs from the merged model"):
        merge_and_convert.run(config)
    assert list(config.run_dir.glob("*.gguf")) == [earlier]
    with pytest.raises(UserError, match="has not finished"):  # it belongs to another merged model
        ft_test_trained_model.run(config, ft_test_trained_model.TestOptions(model_form="gguf"))


def test_a_converter_that_fails_is_told_with_its_last_words(config, tmp_path):
    process_data.run(config)
    fine_tuning.run(config)
    (tmp_path / "convert_hf_to_gguf.py").write_text("raise SystemExit('unknown architecture')", encoding="utf-8")
    broken = replace(config, gguf=replace(config.gguf, converter=tmp_path))
    with pytest.raises(UserError, match="unknown architecture"):
        merge_and_convert.run(broken)
    with pytest.raises(UserError, match=r"llama\.cpp checkout"):
        merge_and_convert.run(replace(config, gguf=replace(config.gguf, converter=tmp_path / "nowhere")))


def test_a_file_that_is_no_gguf_is_one_sentence(tmp_path):
    path = tmp_path / "broken.gguf"
    path.write_bytes(b"GGUF" + b"\0" * 100)
    with pytest.raises(UserError, match=r"llama\.cpp cannot load"):
        GgufModel(path, prompt_format=None)


def test_retrieval_and_comparison(config, capsys):
    process_data.run(config)
    foundation_model.run(config)
    fine_tuning.run(config)
    ft_test_trained_model.run(config, ft_test_trained_model.TestOptions())
    rag_indexing.run(config)
    rag_search_vs.run(config, rag_search_vs.SearchOptions(query="dance skirt for small girls"))
    rag_model_retriever.run(config, rag_model_retriever.RetrieverOptions())
    rag, tuned_rag = (
        files.read_json(config.run_dir / name) for name in ("rag_answers.json", "rag_finetuned_answers.json")
    )
    assert tuned_rag["model"] == rag["model"].replace(" +", " + lora_model +")
    held_out = [answer for answer in rag["answers"] if answer["split"] == "test"]
    assert held_out and all(answer["sources"][0]["title"] == answer["title"] for answer in held_out)
    assert f"Sources: [1] {held_out[0]['title']} (" in capsys.readouterr().out
    tuned = replace(config, rag=replace(config.rag, answer_with="finetuned"))
    assert rag_model_retriever.run(tuned, rag_model_retriever.RetrieverOptions(title="Tea")) is None
    page = compare_models.run(config).read_text(encoding="utf-8")
    comparison = files.read_json(config.run_dir / "comparison.json")
    assert list(comparison["models"]) == ["Foundation", "Fine-tuned", "RAG", "RAG + fine-tuned"]
    assert all(comparison["figures"]["perplexity"].values()) and "Leakage: none" in comparison["notes"][0]
    assert len(comparison["questions"]) == 3 and not re.search(r"""(src|href)=["']?http|url\(["']?http""", page)
    assert (config.run_dir / "comparison.md").read_text(encoding="utf-8").count("\n| ") >= 9
    gguf_file = merge_and_convert.run(config)
    assert names(config.run_dir) == RUN_FILES
    for form, model in (("merged", "merged_model"), ("gguf", gguf_file.name)):
        answered = rag_model_retriever.run(
            replace(config, rag=replace(config.rag, answer_with=form)), rag_model_retriever.RetrieverOptions()
        )
        content = files.read_json(answered)
        assert answered.name == "rag_finetuned_answers.json" and content["model"].endswith(f"{model} + retrieval")
        assert [answer["title"] for answer in content["answers"]] == [answer["title"] for answer in rag["answers"]]
        assert content["answers"][0].keys() >= {"cited", "support", "sources"}

    other = replace(config, questions=replace(config.questions, held_out=1))
    foundation_model.run(other)
    with pytest.raises(UserError, match="answered different titles"):
        compare_models.run(config)
    foundation_model.run(replace(config, answers=replace(config.answers, max_new_tokens=5)))
    with pytest.raises(UserError, match="different --answers settings"):
        compare_models.run(config)
