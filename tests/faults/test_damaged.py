"""An input that is missing, damaged or no file at all is one sentence that names it, and nothing is written."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.models import bundled

DAMAGES = ("missing", "half", "empty", "garbage", "other JSON", "other kind")
# What each stage reads, and the stage that makes it. A folder stands for what its files are to its reader.
READ = {
    "trn_processed.json": (
        "process_data",
        # The other stages open it in the same way.
        ("foundation_model", "fine_tuning", "rag_indexing", "compare_models"),
    ),
    "trn_processed_dataset.json": ("fine_tuning", ("compare_models",)),
    "lora_model": ("fine_tuning", ("ft_test_trained_model", "merge_and_convert", "rag_model_retriever")),
    "lora_model/adapter_model.safetensors": ("fine_tuning", ("ft_test_trained_model", "merge_and_convert")),
    "lora_model/adapter_config.json": ("fine_tuning", ("ft_test_trained_model", "rag_model_retriever")),
    "lora_model/prompt_format.json": ("fine_tuning", ("ft_test_trained_model", "rag_model_retriever")),
    "merged_model": ("merge_and_convert", ("ft_test_trained_model --model merged",)),
    "merged_model/model.safetensors": ("merge_and_convert", ("ft_test_trained_model --model merged",)),
    "merged_model/config.json": ("merge_and_convert", ("ft_test_trained_model --model merged",)),
    "model-f32.gguf": ("merge_and_convert", ("ft_test_trained_model --model gguf",)),
    "prompt_format.json": ("merge_and_convert", ("ft_test_trained_model --model gguf",)),
    "chroma": ("rag_indexing", ("rag_search_vs", "rag_model_retriever")),
    "chroma/chroma.sqlite3": ("rag_indexing", ("rag_indexing", "rag_search_vs", "rag_model_retriever")),
    "lexical.sqlite": ("rag_indexing", ("rag_indexing", "rag_search_vs", "rag_model_retriever")),
    "foundation_answers.json": ("foundation_model", ("compare_models",)),
    "finetuned_answers.json": ("ft_test_trained_model", ("compare_models",)),
    "rag_answers.json": ("rag_model_retriever", ("compare_models",)),
    "rag_finetuned_answers.json": ("rag_model_retriever", ("compare_models",)),
    "manifests/process_data.json": (
        "process_data", ("foundation_model", "fine_tuning", "rag_indexing", "rag_search_vs", "compare_models"),
    ),
    "manifests/fine_tuning.json": (
        "fine_tuning", ("ft_test_trained_model", "merge_and_convert", "rag_model_retriever", "compare_models"),
    ),
    "manifests/rag_indexing.json": ("rag_indexing", ("rag_indexing", "rag_search_vs", "rag_model_retriever")),
    "manifests/merge_and_convert.json": (
        "merge_and_convert", ("ft_test_trained_model --model merged", "ft_test_trained_model --model gguf"),
    ),
}  # fmt: skip
# Not an error: two columns are enough, what stage 6 makes it makes again, and what is not compared needs no training.
MENDED = {
    *((file, "compare_models", "missing") for file in READ if file.endswith("_answers.json")),
    *(
        (file, "rag_indexing", damage)
        for file in ("lexical.sqlite", "chroma/chroma.sqlite3")
        for damage in ("missing", "empty")
    ),
    *(("manifests/rag_indexing.json", "rag_indexing", damage) for damage in DAMAGES if damage != "other kind"),
}
CASES = [
    (file, maker, stage, damage)
    for file, (maker, stages) in READ.items()
    for stage in stages
    for damage in DAMAGES
    if (file, stage, damage) not in MENDED
]


def harm(path: Path, damage: str) -> None:
    """Do to a file or a folder what a crash, a full disk or a slip of the hand would do."""
    content = path.read_bytes() if path.is_file() else None
    if content is None:
        shutil.rmtree(path)
    else:
        path.unlink()
    if damage == "other kind":
        path.mkdir() if content is not None else path.touch()
    elif content is None:
        if damage != "missing":
            path.mkdir()
            if damage != "empty":
                (path / "config.json").write_text('{"a": ' if damage != "other JSON" else "[1]")
    elif damage != "missing":
        damaged = {"half": content[: len(content) // 2], "empty": b"", "garbage": b"\x80\x04garbage" * 99}
        path.write_bytes(damaged.get(damage, b'{"other": [1, {"title": 2}]}'))


def state(folder: Path) -> dict[str, int]:
    """The files of a run with their sizes, without locks and what Chroma notes for itself."""
    found = (p for p in folder.rglob("*") if p.is_file() and p.suffix not in (".lock",) and "chroma" not in p.parts)
    return {str(path.relative_to(folder)): path.stat().st_size for path in found}


@pytest.mark.parametrize(("file", "maker", "stage", "damage"), CASES)
def test_one_sentence_and_nothing_written(copied, file, maker, stage, damage):
    path = copied.path / file
    harm(path, damage)
    name, *options = stage.split()
    before = state(copied.path)
    sentence = copied.stage(name, *options).sentence
    assert str(copied.path) in sentence
    if maker != stage or file != "manifests/rag_indexing.json":  # its own manifest it would write
        assert f"`python {maker}.py --output-dir {copied.folder}" in sentence
    if not file.startswith("manifests/"):
        assert str(copied.path / file.partition("/")[0]) in sentence
    assert damage != "missing" or maker == name or not path.exists()  # Chroma would make an empty one
    # While stage 6 changes the index, its manifest is gone.
    own = {f"manifests/{name}.json"}
    assert {**state(copied.path), **dict.fromkeys(own)} == {**before, **dict.fromkeys(own)}
    assert not list(copied.path.rglob("*.tmp"))


@pytest.mark.parametrize(("file", "stage", "damage"), sorted(MENDED))
def test_what_can_be_done_without_or_made_again(copied, file, stage, damage):
    harm(copied.path / file, damage)
    assert copied.stage(stage).status == 0
    assert copied.stage("rag_search_vs").status == 0


@pytest.mark.parametrize("damage", ["missing", "half", "empty"])
@pytest.mark.parametrize("file", ["data_level0.bin", "link_lists.bin", "index_metadata.pickle", None])
def test_a_graph_of_the_index_of_which_chroma_itself_would_not_notice(graph, file, damage):
    (folder,) = (path for path in (graph.path / "chroma").iterdir() if path.is_dir())
    harm(folder / file if file else folder, damage)
    for stage, options in (("rag_search_vs", ()), ("rag_model_retriever", ()), ("rag_indexing", MANY_PIECES)):
        sentence = graph.stage(stage, *options).sentence
        assert f"{graph.path / 'chroma'} has lost a part" in sentence
        assert (
            f"Delete it and run `python rag_indexing.py --output-dir {graph.folder} --rag.chunk-tokens 20" in sentence
        )


def test_an_index_that_was_deleted_as_advised_is_made_again(graph):
    shutil.rmtree(graph.path / "chroma")
    assert graph.stage("rag_indexing", *MANY_PIECES).status == 0
    assert graph.stage("rag_search_vs").status == 0


MANY_PIECES = ("--rag.chunk-tokens", "20", "--rag.chunk-overlap-tokens", "0")


@pytest.fixture(scope="module")
def made_graph(made, tmp_path_factory):
    """An index with so many pieces that Chroma writes its graph to the disk."""
    made = made.copy(tmp_path_factory.mktemp("graph"), "trn_processed.json")
    assert made.stage("rag_indexing", *MANY_PIECES).status == 0
    return made


@pytest.fixture
def graph(made_graph, tmp_path, capsys):
    return replace(made_graph, capsys=capsys).copy(tmp_path / "copy", "trn_processed.json", "chroma", "lexical.sqlite")


@pytest.fixture
def interrupted(run, tmp_path):
    """A training that was interrupted after its second step."""
    copied = run.copy(tmp_path / "copy", "trn_processed.json", "checkpoints", "training_log.jsonl", "lora_model")
    shutil.rmtree(copied.path / "checkpoints" / "checkpoint-4")
    return copied


def test_an_interrupted_training_goes_on(interrupted):
    assert interrupted.stage("fine_tuning", "--train.resume").status == 0


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("file", [
    "checkpoints/settings.json", "training_log.jsonl", *(f"checkpoints/checkpoint-2/{name}" for name in (
        "adapter_model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json", "hashes.json"
    )),
])  # fmt: skip
def test_an_interrupted_training_with_a_damaged_file(interrupted, file, damage):
    path = interrupted.path / file
    harm(path, damage)
    if (file, damage) == ("training_log.jsonl", "half"):  # what a crash leaves; the first line is what is needed
        assert interrupted.stage("fine_tuning", "--train.resume").status == 0
        return
    sentence = interrupted.stage("fine_tuning", "--train.resume").sentence
    without = {"hashes.json": "There is no checkpoint", "settings.json": "other settings or data"}.get(path.name)
    named = path.parent if path.name == "hashes.json" else path
    assert str(named) in sentence or (without and without in sentence)
    assert "un without --train.resume to start anew." in sentence
    assert not list(interrupted.path.rglob("*.tmp"))


def model_damages(optional: dict[str, tuple[str, ...]]) -> list[tuple[str, str]]:
    """Each file of a model with each damage, but those without which, or so damaged, it can still be loaded."""
    files = {"config.json", "model.safetensors", "tokenizer.json", *optional}
    return [(file, damage) for file in sorted(files) for damage in DAMAGES if damage not in optional.get(file, ())]


@pytest.mark.parametrize(
    ("file", "damage"), model_damages({"tokenizer_config.json": ("missing", "other JSON", "other kind")})
)
def test_a_base_model_that_is_damaged(run, tmp_path, file, damage):
    shutil.copytree(run.model, tmp_path / "model")
    harm(tmp_path / "model" / file, damage)
    before = state(run.path)
    sentence = run.stage("foundation_model", "--model.name", str(tmp_path / "model")).sentence
    assert f"The model {str(tmp_path / 'model')!r} could not be loaded" in sentence and "--model.name" in sentence
    assert state(run.path) == before


@pytest.mark.parametrize(
    ("file", "damage"), model_damages({"modules.json": ("missing",), "tokenizer.json": ("missing", "other kind")})
)
def test_an_embedding_model_that_is_damaged(run, tmp_path, file, damage):
    shutil.copytree(bundled.resolve("bundled/all-MiniLM-L6-v2"), tmp_path / "model")
    harm(tmp_path / "model" / file, damage)
    without_index = run.copy(tmp_path / "copy", "trn_processed.json")
    sentence = without_index.stage("rag_indexing", "--rag.embedding-model", str(tmp_path / "model")).sentence
    assert f"The embedding model {str(tmp_path / 'model')!r} could not be loaded" in sentence
    assert "--rag.embedding-model" in sentence
