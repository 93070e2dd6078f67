"""What the page's templates are filled with."""

from __future__ import annotations

import pytest

from pipeline.data.words import search_words
from pipeline.page.views import marked


@pytest.mark.parametrize(("text", "query", "hits"), [
    ("Crème brûlée, or a creme", "creme", ["Crème", "creme"]),
    ("दान और दिन", "दिन", ["दिन"]),
    ("这款电动自行车可以折叠", "自行车", ["自行车"]),
    ("细口咖啡壶，壶嘴", "壶", ["壶", "壶"]),
    ("USB充电器", "usb 充电", ["USB充电"]),
])  # fmt: skip
def test_the_words_of_a_query_are_marked(text, query, hits):
    parts = list(marked(text, set(search_words(query))))
    assert "".join(part for part, _ in parts) == text and [part for part, hit in parts if hit] == hits
