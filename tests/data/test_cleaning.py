"""Cleaning keeps the meaning, legacy cleaning does what the original did, and every rejection has a reason."""

from __future__ import annotations

import html

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.data.cleaning import CLEANERS, clean, clean_legacy, join_list, normalise_title, rejection


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
    ("ptr = &param; &notit; &copy; &amp;lt; &para;", "ptr = &param; &notit; © < ¶"),
])  # fmt: skip
def test_clean(raw, cleaned):
    assert clean(raw) == cleaned


CODE = [
    "How do I centre a `<div>`?", "`vector<a>`; send `&param;` and ``<b>`x`</b>``", "```html\n<p>One</p>\n\n  <br>\n```",
    "`a &amp;  b`", "Run ```x = `ls <b>` ```", "```` ```<p>``` ````",
]  # fmt: skip


@pytest.mark.parametrize("code", CODE)
@pytest.mark.parametrize("mode", ["default", "light", "verbatim"])
def test_code_in_backticks_is_kept(code, mode):
    assert CLEANERS[mode](code) == code
    assert CLEANERS[mode](f"\n{code}\n") == code


@pytest.mark.parametrize(("raw", "cleaned"), [
    ("<p>Use `<b>` <!-- `not` --> &amp; <i>`</i>`</i>", "Use `<b>` & `</i>`"),
    ("<script>f(`<p>${x}</p>`)</script>Safe", "Safe"),
    ("it`s <b>bold</b>, isn`t <i>it</i>", "it`s bold, isn`t it"),
    ("5` <b>x</b> 6``", "5` x 6``"),
    ("a ` <b>b</b> ` c", "a ` b ` c"),
    ("```not <b>closed</b>", "```not closed"),
    ("['Use `<b>`.', 'It`s <i>fine</i>.']", "Use `<b>`. It`s fine."),
    ("`a\u200b\x00`", "`a`"),
    ("\ufdd00\ufdd1 `<p>`", "0 `<p>`"),
])  # fmt: skip
def test_what_is_around_code_is_cleaned(raw, cleaned):
    assert clean(raw) == cleaned


def test_verbatim_keeps_everything_within():
    text = "How do I  centre a <div>?\n\tptr = &param; ['a', 'b'] cafe\u0301\u00ad"
    assert CLEANERS["verbatim"](f" {text}\r\n") == text


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
    assert "`" in text or cleaned == " ".join(cleaned.split())
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
