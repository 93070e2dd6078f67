"""A model's card tells the languages that it is made for, wherever it lies, and says nothing where it cannot be read."""

from __future__ import annotations

import huggingface_hub
import pytest

from pipeline.models import card


@pytest.mark.parametrize(("stated", "expected"), [
    ("---\nlanguage: en\nlicense: mit\n---\n# A model", {"en"}),
    ("---\nlanguage:\n- en\n- pt-BR\n- zh_TW\n---\n", {"en", "pt", "zh"}),
    ("---\nlanguage:\n- multilingual\n- en\n- pt\n---\n", set()),
    ("---\nlanguage: eng\n---\n", set()),
    ("---\nlanguage: no\n---\n", set()),  # which YAML reads as false
    ("---\nlicense: mit\n---\n", set()),
    ("# No metadata\n", set()),
    ("---\nlanguage: [en\n---\n", set()),
    ("---\n- a list\n---\n", set()),
    ("", set()),
])  # fmt: skip
def test_the_card_of_a_folder(tmp_path, stated, expected):
    (tmp_path / "README.md").write_text(stated, encoding="utf-8")
    assert card.languages(str(tmp_path)) == expected


def test_a_folder_without_a_card_and_a_card_of_another_encoding_say_nothing(tmp_path):
    assert card.languages(str(tmp_path)) == set()
    (tmp_path / "README.md").write_bytes(b"---\nlanguage: en # \xe9\n---\n")
    assert card.languages(str(tmp_path)) == set()


def test_the_bundled_model_has_its_card():
    assert card.languages("bundled/all-MiniLM-L6-v2") == {"en"}


def test_a_card_in_the_cache_of_the_hub_is_read_without_a_request(tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    snapshot = tmp_path / "models--someone--embedder" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text("abc")
    (snapshot / "README.md").write_text("---\nlanguage: de\n---\n")
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda *_: pytest.fail("a request"))
    assert card.languages("someone/embedder") == {"de"}


def test_a_model_of_the_hub_whose_card_cannot_be_had_says_nothing():
    assert card.languages("someone/no-such-embedder") == set()  # tests are offline
    assert card.languages("not/a/name") == set()
