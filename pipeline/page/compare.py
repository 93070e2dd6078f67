"""The tab with the report of stage 9."""

from __future__ import annotations

import gradio as gr

from config import Config
from pipeline import manifests
from pipeline.artifacts import StageNeeded
from pipeline.page import views
from pipeline.page.texts import language_of

NEEDED = (
    "process_data", "foundation_model", "fine_tuning", "ft_test_trained_model", "rag_indexing", "rag_model_retriever",
    "compare_models",
)  # fmt: skip


class CompareTab:
    """comparison.html, as stage 9 wrote it."""

    def __init__(self, config: Config, tab: gr.Tab) -> None:
        """Lay out the tab, which is open as a block."""
        self.config = config
        report = gr.HTML(elem_id="report")
        tab.select(self.show, None, report, show_progress="hidden", api_visibility="private")

    def show(self, request: gr.Request) -> str:
        """Return the report in a frame of its own, or the stage that makes it."""
        language = language_of(request.headers)
        path = self.config.run_dir / "comparison.html"
        if not path.exists():
            return views.needed(self._first_stage(), "no_comparison", language, self.config)
        return views.render("frame", language, page=path.read_text(encoding="utf-8"))

    def _first_stage(self) -> StageNeeded:
        """Return the error that names the first stage which has to be run before there is a report."""
        run_dir = self.config.run_dir
        stages = (stage for stage in NEEDED if not manifests.manifest_path(run_dir, stage).exists())
        return StageNeeded("There is no report.", next(stages, NEEDED[-1]), run_dir)
