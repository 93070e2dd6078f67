"""Weights that could run code when they are read are refused, and no code is run."""

from __future__ import annotations

import pickle
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import fine_tuning
import process_data
from config import ModelConfig, RagConfig
from pipeline.models import adapter, loading
from pipeline.rag import embedding, reranking, vector_store
from pipeline.run.errors import UserError
from pipeline.run.run_folder import RunFolder
from pipeline.training import checkpoints


class Code:
    """Creates a file when it is read from a pickle."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


@pytest.fixture
def proof(tmp_path):
    """The file that planted code would create."""
    path = tmp_path / "code_was_run"
    pickle.loads(pickle.dumps(Code(path)))
    assert path.exists()  # it would
    path.unlink()
    yield path
    assert not path.exists()


@pytest.fixture
def trained(make_config):
    config = make_config("llama")
    process_data.run(config)
    fine_tuning.run(config)
    return config


def test_adapter(trained, proof):
    folder = trained.run_dir / "lora_model"
    weights = folder / "adapter_model.safetensors"
    base = loading.load_base(trained.model, "16bit")
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(
        UserError, match=r"adapter_model\.safetensors is missing or damaged .*Run `python fine_tuning\.py .*` again"
    ):
        adapter.load_adapter(base, folder)
    weights.unlink()
    torch.save({"weights": Code(proof)}, folder / "adapter_model.bin")
    with pytest.raises(UserError, match=r"adapter_model\.safetensors is missing or damaged"):
        adapter.load_adapter(base, folder)


def test_checkpoint(trained, proof):
    checkpoint = trained.run_dir / "checkpoints" / "checkpoint-2"
    shutil.rmtree(trained.run_dir / "checkpoints" / "checkpoint-4")
    torch.save({"state": Code(proof), "param_groups": []}, checkpoint / "optimizer.pt")
    with pytest.raises(UserError, match=r"optimizer\.pt is missing or damaged"):
        fine_tuning.run(replace(trained, train=replace(trained.train, resume=True)))
    checkpoints.seal(checkpoint)  # as one who plants code would
    with pytest.raises(UserError, match=r"checkpoint-2 is damaged\. Run without --train\.resume"):
        fine_tuning.run(replace(trained, train=replace(trained.train, resume=True)))


@pytest.mark.parametrize("file", ["scheduler.pt", "rng_state.pth", "training_args.bin"])
def test_other_files_of_a_checkpoint(trained, proof, file):
    checkpoint = trained.run_dir / "checkpoints" / "checkpoint-2"
    shutil.rmtree(trained.run_dir / "checkpoints" / "checkpoint-4")
    torch.save({"state": Code(proof)}, checkpoint / file)
    checkpoints.seal(checkpoint)
    resumed = replace(trained, train=replace(trained.train, resume=True))
    if file == "training_args.bin":  # nobody reads it
        fine_tuning.run(resumed)
        return
    with pytest.raises(UserError, match=r"checkpoint-2 is damaged\. Run without --train\.resume"):
        fine_tuning.run(resumed)


def test_vector_store(tmp_path, proof):
    import chromadb
    import numpy

    def search(folder):
        collection = vector_store.connect(RunFolder(folder), RagConfig()).get_collection(
            "demo", embedding_function=None
        )
        return collection.query(numpy.eye(1, 8), n_results=2)

    client = vector_store.connect(RunFolder(tmp_path / "run"), RagConfig())
    rng = numpy.random.default_rng(7)
    client.create_collection("demo", embedding_function=None).add(
        ids=[str(n) for n in range(1200)], embeddings=rng.normal(size=(1200, 8)).astype("f4")
    )
    shutil.copytree(tmp_path / "run", tmp_path / "copy")
    (metadata,) = (tmp_path / "copy").rglob("*.pickle")  # Chroma's reader of it knows no code
    metadata.write_bytes(pickle.dumps(Code(proof)))
    assert search(tmp_path / "run")
    with pytest.raises(chromadb.errors.InternalError):
        search(tmp_path / "copy")


def test_base_model(tiny_model, tmp_path, proof):
    folder = tmp_path / "model"
    shutil.copytree(tiny_model("llama"), folder)
    (folder / "model.safetensors").unlink()
    torch.save({"weights": Code(proof)}, folder / "pytorch_model.bin")
    with pytest.raises(UserError, match="safetensors"):
        loading.load_base(ModelConfig(name=str(folder)), "16bit")


def test_embedding_model_and_reranker(tmp_path, proof):
    from pipeline.models import bundled

    folder = tmp_path / "embedder"
    shutil.copytree(bundled.resolve("bundled/all-MiniLM-L6-v2"), folder)
    for weights in folder.glob("*.safetensors"):
        weights.unlink()
    torch.save({"weights": Code(proof)}, folder / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"safetensors.*--rag\.embedding-model"):
        embedding.load_embeddings(RagConfig(embedding_model=str(folder)))
    with pytest.raises(UserError, match=r"safetensors.*--rag\.reranker"):
        reranking.load_reranker(str(folder))
