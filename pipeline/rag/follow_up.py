"""Complete a question that refers to the one before it ("and in blue?"), so that it can be searched alone.

No model is asked. Questions in English, Portuguese and Spanish are told by their words; in other languages a question is taken
as it stands.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

from pipeline.data.words import search_words, words

MOST_WORDS = 4  # with a meaning of their own; a question that has more says what it is about
MOST_BEFORE = (
    1  # such words before a pronoun, or it is about them: "how long is it?", but not "a pink tutu and its hem"
)
MOST_DOUBLINGS = 2  # of the weight of a word, one for each later question

# Words without diacritics: English / Portuguese / Spanish.
_OPENINGS = "and also but or / e tambem ou / y tambien pero"
_PHRASES = ("what about", "how about", "which one", "which ones", "que tal", "qual deles", "cual de ellos")
_STAND_INS = "one ones"  # at the end of a question; elsewhere they count, as in "one hundred"
_PRONOUNS = (
    "it its they them their theirs those these this he she him his her hers / ele ela eles elas dele dela deles delas nele nela "
    "isso isto disso disto esse essa esses essas este estes desse dessa / ella ellos ellas eso esto ese esos esas estos"
)
_PREPOSITIONS = (
    "in for with without from of at on by to about made / em no na nos nas num numa para pra com sem de do da dos das "
    "por pelo pela ate / en con sin del desde hasta"
)
_QUANTITIES = "how many much / quanto quanta quantos quantas / cuanto cuanta cuantos cuantas"
_OTHERS = (
    "a an the is are was were be been am do does did have has had can could will would should may i you we us me my your our what "
    "which who whom whose where when why there any some all more most other than that as not yes one ones if so then only just "
    "please show find give tell want need available come comes / o os um uma uns umas e eh sao foi era ser estar esta estao tem ha "
    "tenho temos voces voce eu nos meu minha seu sua qual quais que quem onde quando como porque mais outro outra outros outras nao "
    "sim se so entao favor quero preciso mostre / el la los las lo un una unos unas es son fue estan hay tiene tienen tengo tenemos "
    "usted ustedes yo mi su sus cual cuales quien donde cuando mas otro otra otros otras si solo entonces quiero necesito muestra"
)


def standalone_query(question: str, history: Sequence[str]) -> str:
    """Return what to search for a question of a conversation: itself, or its words after those that it leaves out.

    A question refers to the one before it if it has few words with a meaning of their own, and begins as one that goes on
    ("and", "what about"), or with a preposition ("in blue?") or a quantity ("how much?"), or has a pronoun that nothing in
    it explains, or has no such word at all. Then the words of both are searched. Those of a later question are there twice
    as often, up to four times, so that they weigh more where the two contradict each other: a pink one that is now wanted
    in blue.

    Args:
        question: the last.
        history: the questions before it, the oldest first.
    """
    turns: list[list[str]] = []  # the words of the questions that belong together
    for asked in (*history, question):
        refers, own = _refers_back(asked), _with_meaning(asked)
        turns = [*([word for word in turn if word not in own] for turn in turns), own] if refers else [own]
    if not _refers_back(question) or not any(turns[:-1]):
        return question
    turns = [turn for turn in turns if turn]
    often = [2 ** max(0, number - max(0, len(turns) - 1 - MOST_DOUBLINGS)) for number in range(len(turns))]
    return " ".join(word for number, turn in zip(often, turns, strict=True) for word in turn * number)


def _with_meaning(question: str) -> list[str]:
    return list(dict.fromkeys(word for word in words(question) if _plain(word) not in _without_meaning()))


def _plain(word: str) -> str:
    return "".join(search_words(word))


@functools.cache
def _without_meaning() -> frozenset[str]:
    return frozenset().union(*map(str.split, (_OPENINGS, _PRONOUNS, _PREPOSITIONS, _QUANTITIES, _OTHERS)))


def _refers_back(question: str) -> bool:
    found = list(map(_plain, words(question)))
    meaning = [word not in _without_meaning() for word in found]
    if not found or sum(meaning) > MOST_WORDS:
        return False
    begins = " ".join(found) + " "
    if not any(meaning) or any(begins.startswith(f"{phrase} ") for phrase in (*_OPENINGS.split(), *_PHRASES)):
        return True
    if found[-1] in _STAND_INS.split():
        return True
    # "Do you have in blue?" begins with the preposition, too.
    first = next(word for word in found if word not in _OTHERS.split())
    if sum(meaning) <= 2 and first in (*_PREPOSITIONS.split(), *_QUANTITIES.split()):
        return True
    return any(word in _PRONOUNS.split() and sum(meaning[:place]) <= MOST_BEFORE for place, word in enumerate(found))
