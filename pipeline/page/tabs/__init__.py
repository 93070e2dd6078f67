"""The tabs of the page. Each module here is one: it defines a subclass of pipeline.page.tab.Tab, which is found by itself."""

from __future__ import annotations

import importlib
import pkgutil

from pipeline.page.tab import Tab


def all_tabs() -> list[type[Tab]]:
    """Return the tabs, from left to right."""
    for module in pkgutil.iter_modules(__path__):
        importlib.import_module(f"{__name__}.{module.name}")
    return sorted(Tab.__subclasses__(), key=lambda tab: tab.position)
