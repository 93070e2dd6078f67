"""What every tab of the page is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import gradio as gr

from pipeline.page.assistant import Assistant


class Tab:
    """A tab of the page. A subclass lays itself out when it is made."""

    name: ClassVar[str]
    """Of its text, and of its place in the page."""
    position: ClassVar[int]
    """Its place among the others, ascending from the left."""
    texts: ClassVar[dict[str, tuple[str, str]]] = {}
    """What it alone says, in English and in Portuguese; its name is one of them."""

    def __init__(self, assistant: Assistant, i18n: gr.I18n, block: gr.Tab) -> None:
        """Lay out the tab in its block, which is open."""

    @property
    def filled_on_load(self) -> list[Any]:
        """Return the components that `load` fills when somebody opens the page."""
        return []

    def load(self, request: gr.Request) -> list[Any]:
        """Return what the components of filled_on_load show."""
        return []

    def know_others(self, others: Sequence[gr.Tab]) -> None:
        """Be told of the blocks of all other tabs, once they are laid out."""
