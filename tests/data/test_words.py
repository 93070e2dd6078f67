"""Text of any script is divided into words that keep apart what is different and hold together what is the same."""

from __future__ import annotations

import pytest
from hypothesis import given, seed, settings
from hypothesis import strategies as st

from pipeline.data.cleaning import normalise_title
from pipeline.data.words import cut, cut_where_lines_end, indexed_words, search_words, words

# Hindi, Bengali, Tamil, Telugu, Malayalam, Thai, Burmese, Khmer, Japanese.
OTHER_LETTERS = [
    ("दान", "दिन"), ("मोर", "मूर"), ("কাল", "কিল"), ("கல்", "கால்"), ("పాట", "పిట"), ("കലം", "കാലം"), ("กิน", "กัน"), ("ကို", "ကူ"),
    ("កា", "កី"), ("かき", "がぎ"),
]  # fmt: skip
# Which a search does not tell apart.
OTHER_DIACRITICS = [("عِلْم", "عَلَم"), ("avo", "avó"), ("❤️", "✈️")]


@pytest.mark.parametrize(("one", "other"), OTHER_LETTERS + OTHER_DIACRITICS)
def test_words_with_other_marks_are_other_titles(one, other):
    assert normalise_title(one) != normalise_title(other)


@pytest.mark.parametrize(("one", "other"), OTHER_LETTERS)
def test_words_with_other_letters_are_searched_for_apart(one, other):
    assert search_words(one) and not set(search_words(one)) & set(search_words(other))


@pytest.mark.parametrize("text", ["दिन", "कि", "हिन्दी", "কাল", "தமிழ்", "العَرَبِيَّة", "Größe", "naïve", "한국어"])
def test_a_word_with_marks_is_one_word(text):
    assert words(text) == [text.casefold()]


@pytest.mark.parametrize(("one", "other"), [
    ("ＡＢＣ １２", "abc 12"), ("ｶﾞｲﾄﾞ", "ガイド"), ("ﬁne", "fine"), ("\ufe8e\ufedf", "\u0627\u0644"), ("می\u200cخواهم", "میخواهم"),
    ("Straße", "STRASSE"), ("e\u0301", "É"), ("\u0958", "\u0915\u093c"), ("กำ", "ก\u0e4d\u0e32"), ("İzmir", "i\u0307zmir"),
])  # fmt: skip
def test_forms_of_the_same_words(one, other):
    assert words(one) == words(other) and search_words(one) == search_words(other)


def test_a_blank_means_nothing_where_none_is_needed():
    assert normalise_title("折叠 自行车") == normalise_title("折叠自行车") and normalise_title(
        "a b"
    ) != normalise_title("ab")


def test_signs_are_no_part_of_a_word_and_numbers_stay_numbers():
    assert words("Velcro™ 10² 1½ m² 12V_DC don't") == ["velcro", "10²", "1½", "m²", "12v", "dc", "don", "t"]


def test_diacritics_do_not_matter_in_a_search():
    assert search_words("Café Чёрный ΛΌΓΟΣ ÅNGSTRÖM") == ["cafe", "черный", "λογοσ", "angstrom"]
    assert search_words("كِتَابٌ مـــدرسة") == ["كتاب", "مدرسة"] and search_words("שָׁלוֹם") == ["שלום"]
    assert words("Café") == ["café"]


def test_scripts_without_blanks_are_searched_by_pairs_of_letters():
    assert words("USB充电器，红") == ["usb", "充", "电", "器", "红"]
    assert search_words("USB充电器，红") == ["usb", "充电", "电器", "红"]
    assert indexed_words("USB充电器，红") == ["usb", "充电", "电器", "红", "充", "电", "器"]
    assert search_words("กาแฟเย็น") == ["กา", "าแ", "แฟ", "ฟเ", "เย็", "ย็น"]
    assert search_words("コーヒー豆") == ["コー", "ーヒ", "ヒー", "ー豆"]


texts = st.lists(
    st.one_of(
        st.text(max_size=4),
        st.sampled_from([text for pair in OTHER_LETTERS + OTHER_DIACRITICS for text in pair]),
        st.sampled_from(" .-_"),
    )
).map("".join)


@seed(3407)
@settings(max_examples=300, deadline=None, database=None)
@given(text=texts)
def test_any_text_is_cut_without_loss_into_the_words_of_the_whole(text):
    assert "".join(cut(text)) == text and "".join(cut_where_lines_end(text)) == text
    assert normalise_title(normalise_title(text)) == normalise_title(text)
    assert set(search_words(text)) <= set(indexed_words(text))
