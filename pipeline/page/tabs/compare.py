"""The tab with the report of stage 9."""

from __future__ import annotations

from typing import ClassVar

import gradio as gr

from config import StageName
from pipeline.page import views
from pipeline.page.assistant import Assistant
from pipeline.page.tab import Tab
from pipeline.page.texts import language_of
from pipeline.run.run_folder import COMPARISON_PAGE, RunFolder, StageNeeded

NEEDED: tuple[StageName, ...] = (
    "process_data", "foundation_model", "fine_tuning", "ft_test_trained_model", "rag_indexing", "rag_model_retriever",
    "compare_models",
)  # fmt: skip


class CompareTab(Tab):
    """comparison.html, as stage 9 wrote it."""

    name, position = "compare", 3
    texts: ClassVar = {
        "compare": ("Compare", "Comparar"),
    }

    def __init__(self, assistant: Assistant, i18n: gr.I18n, block: gr.Tab) -> None:
        """Lay out the tab in its block, which is open."""
        self.config = assistant.config
        report = gr.HTML(elem_id="report")
        block.select(self.show, None, report, show_progress="hidden", api_visibility="private")

    def show(self, request: gr.Request) -> str:
        """Return the report in a frame of its own, or the stage that makes it."""
        language = language_of(request.headers)
        path = self.config.run_dir / COMPARISON_PAGE
        if not path.exists():
            return views.needed(self._first_stage(), "no_comparison", language, self.config)
        return views.render("frame", language, page=path.read_text(encoding="utf-8"))

    def _first_stage(self) -> StageNeeded:
        """Return the error that names the first stage which has to be run before there is a report."""
        folder = RunFolder.of(self.config)
        stages = (stage for stage in NEEDED if not folder.has_run(stage))
        return folder.stage_needed("There is no report.", next(stages, NEEDED[-1]))
