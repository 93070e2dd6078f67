"""Cleaning keeps the meaning, legacy cleaning does what the original did, and every rejection has a reason."""

from __future__ import annotations

import html

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.data.cleaning import clean, clean_legacy, join_list, normalise_title, rejection


@pytest.mark.parametrize(("raw", "cleaned"), [
    ("Dance tutu for girls ages 2-8 years.", "Dance tutu for girls ages 2-8 years."),
    ("Judith Kerr&#8217;s best&#8211;selling", "Judith Kerr’s best–selling"),
    ("Tom &amp; Jerry &amp;amp; friends", "Tom & Jerry & friends"),
    ("caf&eacute; &#233 &#xe9;", "café é é"),
    ("AT&T, R&D, ?a=1&para=2", "AT&T, R&D, ?a=1&para=2"),
    ("a&nbsp;b", "a b"),
    ("<p>One</p><p>Two<br/>three</p>", "One Two three"),
    ("<b>Bold</b>ly <a href='x.html'>go</a>", "Boldly go"),
    ("<ul><li>12 x 12</li><li>black</li></ul>", "12 x 12 black"),
    ("&lt;b&gt;Bold&lt;/b&gt;", "Bold"),
    ("holds < 5 kg and > 2 kg, 10 <> 5", "holds < 5 kg and > 2 kg, 10 <> 5"),
    ("if a<b and c>d", "if a<b and c>d"),
    ("<script>alert('x')</script>Safe<!-- note -->", "Safe"),
    ("['First one.', \"It's second.\"]", "First one. It's second."),
    ("['Made for it's long life', 'Easy', '']", "Made for it's long life Easy"),
    ("['a\\n', '\\n']", "a"),
    ("  two \t spaces\r\nand a line  ", "two spaces and a line"),
    ("cafe\u0301", "café"),
    ("zero\u200bwidth\u00ad\ufeff\x00", "zerowidth"),
    ("½ inch ™ 25 °C", "½ inch ™ 25 °C"),
    ("[sic] a list", "[sic] a list"),
])  # fmt: skip
def test_clean(raw, cleaned):
    assert clean(raw) == cleaned


def test_legacy_reproduces_the_original_filter():
    raw = "Dance tutu for girls ages 2-8 years. Perfect for dance practice, recitals and performances, costumes or just for fun!"
    original = "Dance tutu for girls ages 28 years Perfect for dance practice recitals and performances costumes or just for fun"
    assert clean_legacy(raw) == original
    assert clean_legacy("Kerr&#8217;s") == "Kerr8217s"


@given(st.text())
def test_cleaning_twice_changes_nothing_in_text_without_markup(text):
    once = clean(html.escape(text.replace("<", "").replace("&", "").replace("[", "")))
    assert clean(html.escape(once)) == once


@given(st.text())
def test_clean_never_fails_and_leaves_no_stray_white_space(text):
    cleaned = clean(text)
    assert cleaned == " ".join(cleaned.split())
    cleaned.encode()


@pytest.mark.parametrize(("one", "other"), [
    ("Mog's Kittens", "mogs  KITTENS".replace("mogs", "mog s")), ("A&B (2)", "a b 2"), ("Café", "CAFE\u0301"),
])  # fmt: skip
def test_titles_that_are_the_same_title(one, other):
    assert normalise_title(one) == normalise_title(other)


def test_titles_without_letters_stay_apart():
    assert normalise_title("!!!") != normalise_title("???")


def test_join_list_leaves_other_text_alone():
    assert join_list("['not closed'") == "['not closed'"


@pytest.mark.parametrize(("title", "content", "reason"), [
    ("", "x" * 50, "empty title"), ("t", "", "empty content"), ("t", "x" * 39, "too short"), ("t", "x" * 40, None),
])  # fmt: skip
def test_rejection(title, content, reason):
    assert rejection(title, content, 40) == reason
