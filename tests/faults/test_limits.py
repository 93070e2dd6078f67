"""What is longer than a model reads is cut and counted, or refused, before anything is computed."""

from __future__ import annotations

from dataclasses import replace

import pytest
from tiny_models import build_encoder, build_llama, build_opt, tiny_config

import fine_tuning
import foundation_model
import ft_test_trained_model
import merge_and_convert
import process_data
from config import GenerationConfig, GgufConfig, LoraConfig, QuestionsConfig, RagConfig
from pipeline.evaluation.answering import Retrieved, answer_questions
from pipeline.evaluation.questions import Question
from pipeline.models import generation, loading, prompts
from pipeline.models.answerer import TransformersModel
from pipeline.models.llama_cpp import GgufModel
from pipeline.rag import chunking, embedding, indexing, reranking, retrieval, vector_store
from pipeline.rag.lexical import LexicalIndex
from pipeline.rag.retrieval import Hit, Match
from pipeline.run import manifests
from pipeline.run.errors import UserError
from pipeline.run.files import read_json
from pipeline.run.run_folder import RunFolder
from pipeline.training import plan

LIMIT = 128
PROBE = "What is {title} made of?"


def run_with(folder, *modules):
    """Settings of a run with the model in a folder, and its cleaned records."""
    config = tiny_config(folder, folder / "outputs")
    config = replace(
        config, prompt=replace(config.prompt, format="alpaca"), lora=LoraConfig(r=2, alpha=4, target_modules=modules),
        train=replace(config.train, max_length=2048, max_steps=2, validation_size=2, eval_steps=None),
        generation=GenerationConfig(4, 0.0), questions=QuestionsConfig(held_out=2, general=40, probe=PROBE),
        answers=GenerationConfig(4, 0.0),
    )  # fmt: skip
    process_data.run(config)
    return config


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run with a model that has a table of positions."""
    folder = tmp_path_factory.mktemp("opt")
    build_opt(folder, LIMIT)
    return run_with(folder, "q_proj", "v_proj")


@pytest.fixture(scope="module")
def trained(run):
    """The same, trained on records that are longer than the table."""
    fine_tuning.run(run)
    return run


def test_records_are_cut_at_what_the_model_reads(trained, capsys):
    figures = manifests.read_manifest(RunFolder.of(trained), "fine_tuning")["metrics"]
    assert figures["max_length"] == LIMIT and figures["training_cut"] > 0
    for limit, max_length in ((LIMIT, LIMIT), (4096, 2048), (None, 2048)):
        assert plan.within(limit, trained, {}).train.max_length == max_length
        said = f"reads {limit} tokens: records are cut at these, not at --train.max-length 2048."
        assert (said in capsys.readouterr().out) == (limit == LIMIT)


def too_long(limit, setting):
    return rf"A prompt of [\d,]+ tokens and an answer of [\d,]+ \({setting}\) are more than the {limit} tokens that .* reads"


def test_a_training_that_would_fail_at_its_test_queries_does_not_begin(run):
    with pytest.raises(UserError, match=too_long(LIMIT, "--generation.max-new-tokens")):
        fine_tuning.run(replace(run, generation=GenerationConfig(LIMIT, 0.0)))
    long = replace(run, questions=replace(run.questions, probe=PROBE * 20))
    with pytest.raises(UserError, match=too_long(LIMIT, "--generation.max-new-tokens")):
        fine_tuning.run(long)


def test_answers_for_which_there_is_no_room(run):
    with pytest.raises(UserError, match=too_long(LIMIT, "--answers.max-new-tokens")):
        foundation_model.run(replace(run, answers=GenerationConfig(LIMIT, 0.0)))


def test_answers_and_general_texts_are_read_as_far_as_the_model_reads(trained, capsys):
    ft_test_trained_model.run(trained, ft_test_trained_model.TestOptions())
    written = read_json(trained.run_dir / "finetuned_answers.json")
    assert 0 < len(written["general"]) < 40
    left_out = 40 - len(written["general"])
    assert f"{left_out} of them are left out: they have more than the {LIMIT} tokens" in capsys.readouterr().out
    longest = max(written["answers"], key=lambda answer: answer["reference_tokens"])
    asked = loading.load_tokenizer(trained.model.name)(longest["prompt"])["input_ids"]
    assert len(asked) + longest["reference_tokens"] == LIMIT, "the longest reference is cut"


def test_retrieved_texts_leave_room_for_the_answer(run, tmp_path, capsys):
    loaded = loading.load_base(run.model, "16bit")
    model = TransformersModel(loaded, prompts.make_prompt_format(run.prompt, loaded.tokenizer))
    hits = [Hit("1", "Tutu", "Tulle in four layers. " * 200, 0.9, Match(1.0, 1.0))]
    retrieved = Retrieved([hits], [0.0], LexicalIndex.make(RunFolder(tmp_path)), run.rag)
    [entry] = answer_questions(model, [Question("Tutu", "test", "")], run.answers, retrieved)
    said = f"reads {LIMIT} tokens: prompt and retrieved texts have {LIMIT - 4} at most (--rag.max-context-tokens 2048)."
    assert said in capsys.readouterr().out
    assert LIMIT - 12 < len(loaded.tokenizer(entry["prompt"])["input_ids"]) <= LIMIT - 4


def test_a_model_of_rotary_positions_and_its_gguf(tmp_path):
    build_llama(tmp_path, max_position_embeddings=LIMIT)
    config = run_with(tmp_path, "q_proj", "v_proj")
    fine_tuning.run(config)
    gguf = GgufConfig(type="f32", parity_prompts=1, parity_tokens=LIMIT)
    with pytest.raises(UserError, match=too_long(LIMIT, "--gguf.parity-tokens")):
        merge_and_convert.run(replace(config, gguf=gguf))
    config = replace(config, merge=replace(config.merge, validation_size=1, validation_tokens=1000))
    path = merge_and_convert.run(replace(config, gguf=replace(gguf, parity_tokens=2, min_agreement=0.5)))
    prompt_format = prompts.load_prompt_format(config.run_dir)
    served = GgufModel(path, prompt_format)
    assert served.token_limit == LIMIT
    prompt = prompt_format.prompt("Tea")
    for ask in (lambda room: served.generate([prompt], room), lambda room: list(served.stream(prompt, room))):
        with pytest.raises(UserError, match=too_long(LIMIT, "--answers.max-new-tokens")):
            ask(GenerationConfig(LIMIT, 0.0))
        assert ask(GenerationConfig(2, 0.0))
    served.close()


def test_the_prompt_of_a_stream_and_of_a_batch(run):
    model = loading.load_base(run.model, "16bit")
    prompt_format = prompts.make_prompt_format(run.prompt, model.tokenizer)
    prompt = prompt_format.prompt("Tea")
    room = LIMIT - len(prompts.prompt_ids(prompt_format, model.tokenizer, prompt))
    for ask in (
        lambda tokens: generation.generate(model, prompt_format, [prompt], GenerationConfig(tokens, 0.0)),
        lambda tokens: list(generation.stream(model, prompt_format, prompt, GenerationConfig(tokens, 0.0))),
    ):
        assert ask(room)
        with pytest.raises(UserError, match=too_long(LIMIT, "--answers.max-new-tokens")):
            ask(room + 1)


# RoBERTa counts positions from one after the number of its padding token, MPNet from two.
@pytest.mark.parametrize(("kind", "limit"), [("RobertaModel", 39), ("BertModel", 40), ("MPNetModel", 38)])
def test_an_embedding_model_whose_tokenizer_states_no_limit(tmp_path, kind, limit):
    build_encoder(tmp_path, kind, max_position_embeddings=40)
    config = RagConfig(embedding_model=str(tmp_path), chunk_overlap_tokens=4)
    loaded = embedding.load_embeddings(config)
    assert chunking.chunk_size(config, loaded).tokens == limit
    with pytest.raises(UserError, match=f"more than the {limit} tokens"):
        chunking.chunk_size(replace(config, chunk_tokens=limit + 1), loaded)
    assert len(loaded.embed_query("ballet " * 100)) == 16
    size = chunking.chunk_size(config, loaded)
    [pieces] = chunking.chunk_records([("Tutu", "ballet " * 100)], size, loaded)
    assert max(len(piece.tokens) for piece in pieces) <= limit
    with embedding.document_encoder(loaded, config) as encode:
        batches = encode([piece.embedded_text for piece in pieces], [piece.tokens for piece in pieces])
        assert sum(len(positions) for positions, _ in batches) == len(pieces) > 1


def test_a_reranker_whose_tokenizer_states_no_limit(tmp_path):
    build_encoder(tmp_path, "RobertaForSequenceClassification", max_position_embeddings=40, num_labels=1)
    hits = [Hit(str(n), "Tutu", "ballet " * length, 0.5, Match(1.0, 1.0)) for n, length in enumerate((100, 2))]
    assert len(retrieval.rerank(reranking.load_reranker(str(tmp_path)), "ballet tutu", hits)) == 2


@pytest.fixture
def static(tmp_path):
    """The folder of a table of vectors, as Model2Vec makes them; its tokenizer would cut texts at 8 tokens."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import StaticEmbedding
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers

    words = ["[UNK]", "ballet", "tutu", "tulle", "cold", "chisel", "steel", "Tutu", "Chisel"]
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("[^A-Za-z]+"), "removed")
    tokenizer.enable_truncation(8)
    SentenceTransformer(modules=[StaticEmbedding(tokenizer, embedding_dim=32)], device="cpu").save(
        str(tmp_path / "static")
    )
    return str(tmp_path / "static")


def test_a_table_of_vectors_embeds(tmp_path, static):
    config = RagConfig(embedding_model=static, chunk_tokens=16, chunk_overlap_tokens=0)
    loaded = embedding.load_embeddings(config)
    with pytest.raises(UserError, match=r"does not say how many tokens it reads\. Give --rag\.chunk-tokens"):
        chunking.chunk_size(replace(config, chunk_tokens=None), loaded)
    assert embedding.runs_on(loaded, config)["precision"] == "float32"
    store = vector_store.open_store(RunFolder(tmp_path), config, loaded, create=True)
    records = [("Tutu", "ballet tutu tulle " * 20), ("Chisel", "cold steel chisel"), ("?", "28 - 14: ?")]
    report = indexing.index(store, records, chunking.chunk_size(config, loaded), config, lambda: loaded)
    assert report.added == 4 + 1 + 1, "60 tokens in pieces of 16, with the title in each"
    found = store.nearest(store.embed("cold chisel steel"), 6)
    assert found[0].title == "Chisel" and found[0].similarity > 0.8 > found[1].similarity
    texts = [record[1] for record in records]
    with embedding.document_encoder(loaded, config) as encode:
        for positions, vectors in encode(texts, embedding.tokenize(loaded, texts)):
            ours = dict(zip(positions, vectors.tolist(), strict=True))
    theirs = loaded.embed_documents(texts)
    assert [ours[position] for position in range(3)] == [pytest.approx(row, abs=1e-6) for row in theirs]
