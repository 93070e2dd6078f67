"""What is older than what it was made from is noticed by the stage that reads it, which names the stage to run again."""

from __future__ import annotations

import json
import re
import shutil

import pytest

from pipeline.models import bundled
from pipeline.run import files

FORMS = {"merged": "merged_model", "gguf": "model-f32.gguf"}


def names_rerun(sentence, stage, folder):
    """Whether a sentence names the command of a stage on a folder, with the settings that it had there, if any."""
    return re.search(rf"Run `python {stage}\.py --output-dir {re.escape(str(folder))}( -[^`]*)?` again", sentence)


def train_again(run):
    assert run.stage("fine_tuning", "--train.seed", "1").status == 0


def clean_again(run):
    assert run.stage("process_data", "--data.min-content-chars", "80").status == 0


def test_nothing_is_stale_after_a_run_of_all_stages(run):
    for form in ("adapter", "merged", "gguf"):
        assert run.stage("ft_test_trained_model", "--model", form).status == 0
    compared = run.stage("compare_models")
    assert compared.status == 0 and "changed since" not in compared.printed


def test_running_a_stage_again_alike_makes_nothing_stale(copied):
    for stage in ("process_data", "fine_tuning", "rag_indexing"):
        assert copied.stage(stage).status == 0
    for stage in ("ft_test_trained_model", "rag_model_retriever", "compare_models"):
        assert copied.stage(stage).status == 0
    assert copied.stage("ft_test_trained_model", "--model", "gguf").status == 0


def test_another_adapter_than_the_merged_one(copied):
    train_again(copied)
    for form, name in FORMS.items():
        sentence = copied.stage("ft_test_trained_model", "--model", form).sentence
        assert str(copied.path / name) in sentence and "another adapter" in sentence
        assert names_rerun(sentence, "merge_and_convert", copied.folder)
        typed = copied.stage("ft_test_trained_model", "--model", form, "--title", "A drum")
        assert typed.sentence == sentence
    assert copied.stage("merge_and_convert").status == 0
    for form in FORMS:
        assert copied.stage("ft_test_trained_model", "--model", form).status == 0


def test_answers_of_an_adapter_that_is_gone(copied):
    train_again(copied)
    sentence = copied.stage("compare_models").sentence
    assert "Fine-tuned and RAG + fine-tuned come from an adapter that has been trained anew since" in sentence
    for stage in ("ft_test_trained_model", "rag_model_retriever"):
        assert f"`python {stage}.py --output-dir {copied.folder}" in sentence
    # One of the two answered again: now they are of two adapters, and one stage is left to run.
    assert copied.stage("ft_test_trained_model").status == 0
    sentence = copied.stage("compare_models").sentence
    assert "different adapters" in sentence and names_rerun(sentence, "rag_model_retriever", copied.folder)
    assert "ft_test_trained_model.py" not in sentence
    assert copied.stage("rag_model_retriever").status == 0
    assert copied.stage("compare_models").status == 0


def test_another_embedding_model_than_the_index_has(run):
    another = bundled.resolve("bundled/all-MiniLM-L6-v2")
    for stage in ("rag_search_vs", "rag_model_retriever"):
        sentence = run.stage(stage, "--rag.embedding-model", another).sentence
        assert "chroma was indexed with the embedding model 'bundled/all-MiniLM-L6-v2'" in sentence
        assert f"run `python rag_indexing.py --output-dir {run.folder}" in sentence


@pytest.mark.parametrize("stage", ["ft_test_trained_model", "merge_and_convert", "rag_model_retriever"])
def test_another_base_model_than_the_adapter_has(run, tiny_model, stage):
    sentence = run.stage(stage, "--model.name", str(tiny_model("wide_llama"))).sentence
    assert f"lora_model was trained on {str(run.model)!r}" in sentence
    assert f"run `python fine_tuning.py --output-dir {run.folder}` with the other base model" in sentence


@pytest.mark.parametrize(
    "file", ["adapter_config.json", "adapter_model.safetensors", "prompt_format.json", "tokenizer.json"]
)
def test_an_adapter_that_was_edited(copied, file):
    path = copied.path / "lora_model" / file
    if file == "adapter_config.json":
        path.write_text(json.dumps({**json.loads(path.read_text()), "lora_alpha": 512}))
    elif file == "adapter_model.safetensors":
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        path.write_bytes(content)
    else:
        path.write_text(path.read_text().replace("}", " }", 1))
    for stage in ("ft_test_trained_model", "merge_and_convert", "rag_model_retriever"):
        sentence = copied.stage(stage).sentence
        assert f"{copied.path / 'lora_model'} is not what fine_tuning.py left" in sentence
        assert names_rerun(sentence, "fine_tuning", copied.folder)


def test_what_a_file_manager_and_a_model_card_add_is_no_change(copied):
    for name in ("lora_model", "merged_model"):
        (copied.path / name / ".DS_Store").write_bytes(b"\0")
        (copied.path / name / "README.md").write_text("My model.")
    for form in ("adapter", "merged"):
        assert copied.stage("ft_test_trained_model", "--model", form).status == 0


def test_records_that_were_cleaned_anew(copied):
    clean_again(copied)
    for form in ("adapter", "merged", "gguf"):
        sentence = copied.stage("ft_test_trained_model", "--model", form).sentence
        assert "trn_processed.json has changed since fine_tuning.py read it" in sentence
        assert names_rerun(sentence, "fine_tuning", copied.folder)
    for stage in ("rag_search_vs", "rag_model_retriever"):
        sentence = copied.stage(stage).sentence
        assert "trn_processed.json has changed since rag_indexing.py read it" in sentence
        assert names_rerun(sentence, "rag_indexing", copied.folder)
    # Answers that are all older than the records can be compared, with a warning.
    compared = copied.stage("compare_models")
    warning = (
        "Foundation and Fine-tuned and RAG and RAG + fine-tuned come from cleaned records that have changed since."
    )
    assert compared.status == 0 and warning in " ".join(compared.printed.split())
    assert (
        warning in (copied.path / "comparison.md").read_text()
        and warning in (json.loads((copied.path / "comparison.json").read_text())["notes"][0])
    )
    # Answers of which some are older cannot.
    assert copied.stage("foundation_model").status == 0
    sentence = copied.stage("compare_models").sentence
    assert "come from different cleaned records" in sentence and "foundation_model.py" not in sentence
    for stage in ("ft_test_trained_model", "rag_model_retriever"):
        assert f"`python {stage}.py --output-dir {copied.folder}" in sentence


def test_records_that_were_edited_by_hand(copied):
    path = copied.path / "trn_processed.json"
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    path.write_text("".join(lines[:5] + lines[6:]), encoding="utf-8")  # one record less, and valid
    for stage in ("foundation_model", "fine_tuning", "rag_indexing", "rag_search_vs", "search_hyperparameters"):
        sentence = copied.stage(stage).sentence
        assert f"{path} is not what process_data.py left" in sentence
        assert names_rerun(sentence, "process_data", copied.folder)


def test_answers_of_another_base_model(copied, tiny_model):
    assert copied.stage("foundation_model", "--model.name", str(tiny_model("wide_llama"))).status == 0
    sentence = copied.stage("compare_models").sentence
    assert "come from different base models (--model.name)" in sentence
    assert str(tiny_model("wide_llama")) in sentence and str(copied.model) in sentence
    assert names_rerun(sentence, "foundation_model", copied.folder)


def test_answers_to_other_questions(copied):
    assert copied.stage("foundation_model", "--questions.held-out", "3").status == 0
    sentence = copied.stage("compare_models").sentence
    assert "Foundation and Fine-tuned answered different titles" in sentence
    assert f"Run `python ft_test_trained_model.py --output-dir {copied.folder}" in sentence
    assert sentence.rstrip().endswith("--questions.held-out 3` again.")


def test_an_index_that_was_cut_otherwise(copied):
    assert copied.stage("rag_indexing", "--rag.chunk-tokens", "64").status == 0
    compared = copied.stage("compare_models")
    warning = "RAG and RAG + fine-tuned come from pieces in the index that have changed since."
    assert compared.status == 0 and warning in " ".join(compared.printed.split())
    assert copied.stage("rag_model_retriever", "--rag.answer-with", "foundation").status == 0
    sentence = copied.stage("compare_models").sentence
    assert "RAG and RAG + fine-tuned come from different pieces in the index" in sentence
    assert names_rerun(sentence, "rag_model_retriever", copied.folder)


def test_a_training_that_was_interrupted_leaves_its_records_unused(copied):
    # Stage 3 writes what it trains on first; killed after that, the adapter is still the one before.
    path = copied.path / "trn_processed_dataset.json"
    records = json.loads(path.read_text(encoding="utf-8"))
    files.write_json(path, records[1:])
    sentence = copied.stage("compare_models").sentence
    assert f"{path} is not what fine_tuning.py left" in sentence
    assert names_rerun(sentence, "fine_tuning", copied.folder)


def test_a_file_of_another_run(copied, made):
    shutil.copyfile(made.path / "lexical.sqlite", copied.path / "lexical.sqlite")
    assert copied.stage("rag_search_vs").status == 0  # the same
    clean_again(copied)
    assert copied.stage("rag_indexing").status == 0
    shutil.copyfile(made.path / "lexical.sqlite", copied.path / "lexical.sqlite")
    for stage in ("rag_search_vs", "rag_model_retriever"):
        sentence = copied.stage(stage).sentence
        assert f"{copied.path / 'lexical.sqlite'} holds" in sentence
        assert f"Run `python rag_indexing.py --output-dir {copied.folder}" in sentence
    assert copied.stage("rag_indexing").status == 0
    assert copied.stage("rag_search_vs").status == 0
