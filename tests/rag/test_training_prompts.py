"""Training prompts carry records as the prompts of stage 8 do, near ones, and never one that is held out."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
from tiny_models import TOKENIZERS, tiny_config

import fine_tuning
import process_data
from config import PRESETS, DataConfig, GenerationConfig, PromptConfig, RagConfig, TrainConfig
from pipeline.data import records
from pipeline.evaluation.answering import Retrieved, answer_questions
from pipeline.evaluation.questions import Question
from pipeline.models import prompts
from pipeline.models.answerer import TransformersModel
from pipeline.models.generation import Answer
from pipeline.rag import distractors
from pipeline.rag.context import Record
from pipeline.rag.lexical import LexicalIndex
from pipeline.rag.retrieval import Hit, Match
from pipeline.rag.training_prompts import WITH_RIGHT_RECORD, TrainingPrompts, answer_without_right_record
from pipeline.run.errors import UserError
from pipeline.run.run_folder import RunFolder
from pipeline.training import batching, dataset

NEAR = [
    Record('Ring 1/2" (2-pack)', "Steel.\n\nTwo lines."),
    Record("Café & Más — 28°", "“Quoted” <|im_end|> first."),
    Record("O que é o SISREG?", "É uma estratégia. {title} {context}"),
]
ALWAYS = TrainConfig(with_records=1, max_length=2048)
NEVER = TrainConfig()


def near(title, content, most):
    """Distractors for whatever record."""
    return NEAR[:most]


@pytest.fixture(scope="module")
def demo_format(smollm2_tokenizer):
    """The prompt format of the demo."""
    return prompts.make_prompt_format(PRESETS["demo"].prompt, smollm2_tokenizer)


@pytest.fixture(scope="module")
def word(smollm2_tokenizer, demo_format):
    """A function that words the prompts of records, with settings of `train` and `rag`."""

    def prompts_of(pairs, train=ALWAYS, near=near, **rag):
        settings = train, RagConfig(**rag)
        otherwise = answer_without_right_record(*settings)
        return TrainingPrompts(near, demo_format, smollm2_tokenizer, *settings, otherwise)(pairs)

    return prompts_of


@pytest.fixture(scope="module")
def cleaned(tmp_path_factory):
    """The settings of a run of the demo, whose records are cleaned, a third of them held out, and the records."""
    config = tiny_config("bundled/SmolLM2-135M-Instruct", tmp_path_factory.mktemp("outputs"))
    config = replace(config, data=replace(config.data, validation_fraction=0.15, test_fraction=0.15))
    process_data.run(config)
    return config, records.open_processed(RunFolder.of(config))


class Asked(TransformersModel):
    """A model that is asked, and says nothing."""

    token_limit = None
    name = "A model"

    def generate(self, prompts, settings, advance):
        """Answer nothing."""
        return [Answer("", 0, True, 0.0) for _ in prompts]

    def reference_loss(self, prompt, reference):
        """Tell nothing."""
        return {}


def at_hand(prompt_format, text):
    """Which of NEAR and the right record are in a prompt, in their order."""
    given = {record: prompt_format.neutralise(prompt_format.source_text(record.title, record.text)) for record in NEAR}
    given[RIGHT] = prompt_format.source_text(RIGHT.title, RIGHT.text)
    return sorted((record for record in given if given[record] in text), key=lambda record: text.index(given[record]))


RIGHT = Record("Mog's Kittens", "A book for ages 2-8.")


@pytest.mark.parametrize("tokenizer", TOKENIZERS, indirect=True)
@pytest.mark.parametrize("name", ["alpaca", "chat"])
@pytest.mark.parametrize("instruction", ["GET THE DESCRIPTION OF THIS PRODUCT", ""])
def test_a_prompt_with_records_is_that_of_stage_8_token_for_token(tokenizer, name, instruction, tmp_path):
    prompt_format = prompts.make_prompt_format(PromptConfig(format=name, instruction=instruction), tokenizer)
    model = Asked(SimpleNamespace(tokenizer=tokenizer), prompt_format)
    lexical, rag, orders = LexicalIndex.make(RunFolder(tmp_path)), RagConfig(), set()
    for seed in range(12):
        train = replace(ALWAYS, seed=seed)
        asked = TrainingPrompts(near, prompt_format, tokenizer, train, rag)([(RIGHT.title, RIGHT.text)])
        [example] = prompts.tokenized(prompt_format, tokenizer, asked, train.max_length)
        given = at_hand(prompt_format, asked[0].text)
        assert len(given) == rag.k and (RIGHT in given) == example.at_hand.right
        orders.add(tuple(record.title for record in given))
        hits = [Hit(record.title, record.title, record.text, 0.9, Match(1.0, 1.0)) for record in given]
        retrieved = Retrieved([hits], [0.0], lexical, rag)
        [entry] = answer_questions(model, [Question(RIGHT.title, "train", "")], GenerationConfig(), retrieved)
        sent = tokenizer(entry["prompt"], add_special_tokens=False)["input_ids"]
        assert example.input_ids[: len(sent)] == sent and example.labels[: len(sent)] == [-100] * len(sent)
        text = entry["prompt"] + RIGHT.text + prompt_format.end
        assert example.input_ids == tokenizer(text, add_special_tokens=False)["input_ids"]
        assert example.labels[len(sent) :] == example.input_ids[len(sent) :]
    assert len(orders) > 5, "in any order"


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_the_shares_of_prompts_with_records_and_with_the_right_one(word, share):
    count = 1500
    made = word([(f"title {n}", f"text {n}") for n in range(count)], replace(ALWAYS, with_records=share))
    carrying = [prompt.at_hand for prompt in made if prompt.at_hand]
    assert abs(len(carrying) - share * count) <= 4 * math.sqrt(count * share * (1 - share))
    right = sum(each.right for each in carrying)
    spread = math.sqrt(len(carrying) * WITH_RIGHT_RECORD * (1 - WITH_RIGHT_RECORD))
    assert abs(right - WITH_RIGHT_RECORD * len(carrying)) <= 4 * spread
    assert {each.records for each in carrying} <= {3}


def test_what_a_prompt_carries_follows_from_seed_and_record_alone(word):
    pairs = [(f"title {n}", f"text {n}") for n in range(60)]
    half = replace(ALWAYS, with_records=0.5)
    made = word(pairs, half)
    assert word(pairs[::-1], half)[::-1] == made == [*word(pairs[:7], half), *word(pairs[7:], half)]
    more = word(pairs, replace(half, with_records=0.7))
    assert all(one == other for one, other in zip(made, more, strict=True) if one.at_hand) and made != more
    others = word(pairs, replace(half, seed=1))
    assert [prompt.at_hand for prompt in made] != [prompt.at_hand for prompt in others]


def test_as_many_records_as_rag_k(word):
    pairs = [(f"title {n}", f"text {n}") for n in range(20)]
    for k, right, alone in ((1, 1, 1), (2, 2, 2), (4, 4, 3)):  # there are three distractors
        for prompt in word(pairs, k=k):
            assert prompt.at_hand.records == (right if prompt.at_hand.right else alone) and not prompt.at_hand.fewer


def tokens_of(demo_format, tokenizer, prompt):
    """The tokens of a prompt and of its answer."""
    [(start, ids)] = prompts.answered_ids(demo_format, tokenizer, [prompt.text], [prompt.answer])
    return start, len(ids) - start


def test_an_answer_is_never_cut_for_records(word, demo_format, smollm2_tokenizer):
    texts = [f"{n} " + "words of an answer, " * (n % 20) for n in range(100)]
    pairs = [(f"title {n}", text) for n, text in enumerate(texts)]
    far = [Record(f"other {n}", "of something else " * 20) for n in range(2)]
    seen = set()
    for room in (80, 140, 200, 300):
        train = replace(ALWAYS, max_length=room)
        made = word(pairs, train, lambda title, content, most: far[:most])
        for (title, content), prompt in zip(pairs, made, strict=True):
            question, answer = tokens_of(demo_format, smollm2_tokenizer, prompt)
            at_hand = prompt.at_hand
            seen.add(at_hand)
            assert prompt.answer == content
            plain = demo_format.prompt(title)
            if at_hand.records == 0:
                assert prompt.text == plain and not at_hand.right and not at_hand.cut
                continue
            assert question + answer <= room
            own = demo_format.source_text(title, content)
            if at_hand.cut:
                assert at_hand.records == 1 and at_hand.fewer
                source = own if at_hand.right else demo_format.source_text(far[0].title, far[0].text)
                context = prompt.text.removeprefix(plain.removesuffix(demo_format.after)).removesuffix(
                    demo_format.after
                )
                assert source.startswith(context.strip()) and len(context.strip()) < len(source)
            else:
                assert (own in prompt.text) == at_hand.right, "distractors are left out first"
    wanted = {(records, right, cut) for records, right, cut in ((0, False, False), (1, True, True), (1, True, False),
              (1, False, True), (1, False, False), (2, True, False), (3, True, False))}  # fmt: skip
    assert {(each.records, each.right, each.cut) for each in seen} >= wanted


def test_a_prompt_is_no_longer_than_stage_8_would_make_it(word, demo_format, smollm2_tokenizer):
    [whole] = word([(RIGHT.title, RIGHT.text)])
    size, _ = tokens_of(demo_format, smollm2_tokenizer, whole)
    [same], [less] = (word([(RIGHT.title, RIGHT.text)], max_context_tokens=most) for most in (size, size - 1))
    assert same == whole and less.at_hand.fewer and less.at_hand.records < 3


@pytest.mark.parametrize(("said", "learned"), [
    (RagConfig().not_found, "This is not in the data."),
    (PRESETS["saude-phi3"].rag.not_found, "Isso não está nos dados."),
    ("Nearest: {titles}. Not here! Ask again.", "Not here! Ask again."),
])  # fmt: skip
def test_without_the_right_record_a_model_may_learn_that_it_is_not_in_the_data(word, said, learned):
    pairs = [(f"title {n}", f"text {n}") for n in range(40)]
    train = replace(ALWAYS, without_right_record="not_found")
    made = word(pairs, train, not_found=said)
    assert {prompt.answer if not prompt.at_hand.right else None for prompt in made} == {None, learned}
    for (_, content), prompt in zip(pairs, made, strict=True):
        assert prompt.answer == (content if prompt.at_hand.right else learned)
    # Where no record is at hand after all, a prompt is a plain one.
    for made in (word(pairs, replace(train, max_length=8)), word(pairs, train, lambda *_: [], k=1)):
        for (_, content), prompt in zip(pairs, made, strict=True):
            assert prompt.answer == content
    with pytest.raises(UserError, match=r"Put \{titles\} into a sentence of its own"):
        word(pairs, train, not_found="Nearest are {titles}.")


def test_distractors_are_near_and_none_is_held_out(cleaned):
    _, data = cleaned
    everything = list(data)
    held_out = [title for title, _ in everything if data.split_of(title) != "train"]
    assert len(held_out) > 80
    with distractors.open_distractors(data) as found:
        assert len(found.words) == len(everything) - len(held_out)
        for title, content in everything:
            given = found.near(title, content, 8)
            assert len(set(given)) == len(given) == 8
            assert {data.split_of(record.title) for record in given} == {"train"}
            assert all(record.title != title and record.text != content for record in given)
        given = found.near("Lullabies for Insomniac Parents [CD]", "Thirteen songs.", 2)
        assert all(record.title.endswith("CD]") for record in given)
        assert found.near("Zzzz", "qqqq", 3) == []
    assert not list(data.run.path.glob(".*.tmp"))


def test_the_right_record_under_another_name_is_no_distractor(tmp_path):
    rows = [("Tea", "Green leaves."), ("TEA!", "Black leaves."), ("Sencha tea", "Green leaves"), ("Tea cup", "Porcelain."),
            ("Tea cup", "Porcelain."), ("Leaves", "Of paper, green.")]  # fmt: skip
    source = tmp_path / "rows.json"
    source.write_text("\n".join(json.dumps({"title": t, "content": c}) for t, c in rows), encoding="utf-8")
    settings = DataConfig(
        source, min_content_chars=1, deduplicate=False, validation_fraction=0, test_fraction=0, cleaning="verbatim"
    )
    config = replace(PRESETS["demo"], output_dir=tmp_path / "outputs", data=settings)
    process_data.run(config)
    with distractors.open_distractors(records.open_processed(RunFolder.of(config))) as found:
        assert found.near("Tea", "Green leaves.", 5) == [
            Record("Tea cup", "Porcelain."),
            Record("Leaves", "Of paper, green."),
        ]


def built(cleaned, demo_format, tokenizer, **train):
    """The datasets of a training, and the figures that it notes."""
    config, data = cleaned
    config = replace(config, train=replace(config.train, max_steps=None, validation_size=8, **train))
    metrics = {}
    with fine_tuning.prompts_with_records(config, data, tokenizer, demo_format) as word:
        return *dataset.build_datasets(config, data, tokenizer, demo_format, metrics, word), metrics


def test_what_is_trained_on_is_counted_and_its_length_is_known(cleaned, demo_format, smollm2_tokenizer, capsys):
    plain, validation, figures = built(cleaned, demo_format, smollm2_tokenizer, max_length=300)
    assert "with_records" not in figures and "carry records" not in capsys.readouterr().out
    train, same, metrics = built(cleaned, demo_format, smollm2_tokenizer, max_length=300, with_records=0.5)
    assert same.to_dict() == validation.to_dict(), "its loss can be compared with that of any other training"
    changed = [one for one, other in zip(train["input_ids"], plain["input_ids"], strict=True) if one != other]
    counts = metrics["with_records"]
    assert counts["prompts"] == len(changed) and counts["tokens"] == sum(map(len, changed))
    assert 0 < counts["distractors_alone"] < counts["prompts"] / 2 and 0 < counts["cut"] < counts["fewer"]
    assert metrics["training_tokens"] == sum(map(len, train["input_ids"])) > figures["training_tokens"]
    assert (metrics["training_cut"], metrics["training_dropped"]) == (
        figures["training_cut"],
        figures["training_dropped"],
    )
    said = f"{counts['prompts']:,} carry records"
    assert said in capsys.readouterr().out
    steps = batching.Batching(1, 1, 4)
    sizes = [steps.largest_pass(batching.token_counts(each), 1).tokens for each in (plain, train)]
    assert sizes[0] < sizes[1]
    again, _, _ = built(cleaned, demo_format, smollm2_tokenizer, max_length=300, with_records=0.5)
    assert again.to_dict() == train.to_dict()


def test_without_records_the_examples_are_those_of_the_records(cleaned, demo_format, smollm2_tokenizer):
    config, data = cleaned
    train, _, _ = built(cleaned, demo_format, smollm2_tokenizer, sample_size=50)
    drawn = data.sample("train", 50, config.train.seed)
    examples = prompts.training_examples(demo_format, smollm2_tokenizer, drawn, config.train.max_length)
    expected = [(example.input_ids, example.labels) for example in examples if example]
    assert list(zip(train["input_ids"], train["labels"], strict=True)) == expected


def test_a_training_goes_on_only_with_the_same_records(cleaned):
    config, data = cleaned
    chosen = SimpleNamespace(precision="16bit", compute_format=SimpleNamespace(name="float32"))

    def shared(train=NEVER, **rag):
        return fine_tuning.shared_settings(replace(config, train=train, rag=RagConfig(**rag)), data, chosen)

    assert shared() == shared(k=9) and not any("record" in name or "rag" in name for name in shared()), (
        "as it was before"
    )
    for other in (shared(ALWAYS, k=9), shared(ALWAYS, not_found="No."), shared(replace(ALWAYS, with_records=0.5)),
                  shared(ALWAYS, max_context_tokens=99), shared(replace(ALWAYS, without_right_record="not_found"))):  # fmt: skip
        assert other != shared(ALWAYS)
    assert shared(ALWAYS, where=("brand=x",)) == shared(ALWAYS)
