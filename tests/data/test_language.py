"""The language that most of some texts are in is told, and none where most are in none."""

from __future__ import annotations

import itertools
import string

import pytest

from pipeline.data.language import MOST_TEXTS, language_of

PRODUCTS = {
    "en": ["Girls Ballet Tutu Neon Pink", "High quality 3 layer ballet tutu, 12 inches in length", "Wooden train set"],
    "pt": ["Tutu de balé infantil rosa neon", "Saia de balé de três camadas, 30 cm de comprimento", "Trem de madeira"],
    "es": ["Tutú de ballet para niñas rosa neón", "Falda de tres capas, 30 cm de largo", "Tren de madera con vías"],
    "de": ["Ballett-Tutu für Mädchen in Neonrosa", "Rock aus drei Lagen, 30 cm lang", "Holzeisenbahn mit Schienen"],
    "fr": ["Tutu de ballet pour filles rose fluo", "Jupe à trois couches, longueur 30 cm", "Train en bois avec rails"],
    "it": ["Tutù da ballo per bambine rosa fluo", "Gonna a tre strati, lunghezza 30 cm", "Trenino di legno con binari"],
    "ru": ["Балетная пачка для девочек, неоново-розовая", "Три слоя, длина 30 см", "Деревянная железная дорога"],
    "hi": ["लड़कियों के लिए गुलाबी बैले टूटू", "तीन परतों वाली स्कर्ट, लंबाई 30 सेमी", "लकड़ी की रेलगाड़ी का सेट"],
    "ar": ["تنورة باليه للبنات باللون الوردي", "ثلاث طبقات، الطول 30 سم", "قطار خشبي مع قضبان"],
    "zh": ["女童芭蕾舞裙 霓虹粉色", "三层高品质纱裙，长30厘米", "木制火车玩具套装"],
    "ja": ["女の子用バレエチュチュ ネオンピンク", "3層の高品質なスカート、長さ30cm", "木製の電車セット"],
    "ko": ["여아용 발레 튀튀 네온 핑크", "3겹 고급 스커트, 길이 30cm", "나무 기차 세트"],
}
QUESTIONS = {
    "en": ["How long is the skirt?", "Which trains are made of wood?"],
    "pt": ["Qual é o comprimento da saia?", "Quais trens são feitos de madeira?"],
    "es": ["¿Cuánto mide la falda?", "¿Qué trenes están hechos de madera?"],
    "de": ["Wie lang ist der Rock?", "Welche Züge sind aus Holz?"],
    "fr": ["Quelle est la longueur de la jupe ?", "Quels trains sont en bois ?"],
    "it": ["Quanto è lunga la gonna?", "Quali treni sono fatti di legno?"],
    "ru": ["Какой длины юбка?", "Какие поезда сделаны из дерева?"],
    "hi": ["स्कर्ट कितनी लंबी है?", "कौन सी रेलगाड़ियाँ लकड़ी की हैं?"],
    "ar": ["ما طول التنورة؟", "أي القطارات مصنوعة من الخشب؟"],
    "zh": ["裙子有多长？", "哪些火车是木头做的？"],
    "ja": ["スカートの長さはどのくらいですか？", "木でできた電車はどれですか？"],
    "ko": ["치마 길이가 얼마나 되나요?", "어떤 기차가 나무로 만들어졌나요?"],
}


@pytest.mark.parametrize("texts", [PRODUCTS, QUESTIONS], ids=["products", "questions"])
@pytest.mark.parametrize("language", PRODUCTS)
def test_language_of_a_few_texts(language, texts):
    assert language_of(texts[language]) == language


def test_titles_alone_are_told_together_and_in_capitals_too():
    titles = ["Tutu Neon Pink", "Label Maker Tape", "Wooden Train Set", "Shoulder Bag", "The Prophet", "Coffee Grinder",
              "Garden Hose", "Steel Screws", "Kids Lunch Box", "Blue Cotton Shirt", "Leather Wallet for Men"]  # fmt: skip
    assert language_of(titles[:1]) is None  # three words say little
    assert language_of(titles) == "en"
    assert language_of([title.upper() for title in titles]) == "en"


def test_the_majority_of_a_mixture_is_its_language():
    mixed = [*PRODUCTS["pt"] * 20, *PRODUCTS["en"] * 60, *QUESTIONS["pt"] * 30]
    assert language_of(mixed) == "en"
    assert language_of(reversed(mixed)) == "en"
    assert language_of(PRODUCTS["zh"] * 9 + PRODUCTS["en"]) == "zh"


def test_texts_without_a_majority_are_in_no_language():
    assert language_of(text for texts in PRODUCTS.values() for text in texts * 9) is None


def test_numbers_and_what_has_nearly_no_letters_are_in_no_language():
    assert language_of([]) is None
    assert language_of(["", " ", "—"]) is None
    assert language_of(f"{number} 12,99 €" for number in range(500)) is None
    assert language_of(f"XL-{number} 30 x 40 cm" for number in range(500)) is None
    assert language_of("".join(pair) for pair in itertools.product(string.ascii_uppercase, string.digits)) is None


def test_numbers_among_the_texts_change_nothing():
    assert language_of([*["4711", "12,99 €"] * 200, *PRODUCTS["de"]]) == "de"


def test_no_more_than_a_sample_is_taken():
    texts = itertools.cycle(PRODUCTS["es"])
    assert language_of(itertools.islice(texts, 10 * MOST_TEXTS)) == "es"
    assert language_of(texts) == "es"  # which has no end


def test_a_long_text_counts_no_more_than_its_beginning():
    assert language_of([" ".join(PRODUCTS["pt"] * 1000), *PRODUCTS["en"] * 20]) == "en"
