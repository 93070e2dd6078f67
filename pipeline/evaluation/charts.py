"""The charts of a comparison, as SVG that a page can hold."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pipeline.evaluation.metrics import METRICS
from pipeline.evaluation.significance import Figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Drawing

COLOURS = ("#b8b8b8", "#4c78a8", "#e9963a", "#54a24b")
INK = "#808080"  # can be read on white and on black
CHARTED = ("rouge_l", "chrf", "similarity", "perplexity", "exact", "judge", "retrieved", "support", "looping", "ended")


def metric_bars(figures: dict[str, dict[str, Figure | None]], answers: dict[str, int]) -> str:
    """Draw a small chart of each metric: a bar for each column, with its interval, and with the number of its answers where
    that is less than the one in `answers`.
    """
    shown = [name for name in CHARTED if name in figures]
    across = 4
    down = -(-len(shown) // across)
    drawing = _drawing(width=12, height=2.1 * down)
    for place, name in enumerate(shown):
        axes = drawing.add_subplot(down, across, place + 1)
        for row, figure in enumerate(figures[name].values()):
            if figure is None:
                continue
            axes.barh(row, figure.value, color=COLOURS[row % len(COLOURS)], height=0.65)
            if figure.low is not None and figure.high is not None:
                axes.plot([figure.low, figure.high], [row, row], color=INK, linewidth=2, solid_capstyle="butt")
            end = max(figure.value, figure.high or 0)
            fewer = "" if figure.answers == answers[name] else f" (of {figure.answers})"
            axes.text(
                end, row, f"  {METRICS[name].form.format(figure.value)}{fewer}", va="center", color=INK, fontsize=8
            )
        columns = list(figures[name])
        axes.set_yticks(range(len(columns)), columns if place % across == 0 else [""] * len(columns))
        axes.set_ylim(len(columns) - 0.5, -0.5)
        axes.set_title(METRICS[name].label, fontsize=10, color=INK)
        highest = max(max(figure.value, figure.high or 0) for figure in figures[name].values() if figure)
        axes.set_xlim(0, 1.35 * highest or 1)
        axes.set_xticks([])
        _bare(axes)
    drawing.tight_layout()
    return _svg(drawing)


def length_histogram(questions: Sequence[dict[str, Any]], columns: Sequence[str]) -> str:
    """Draw how many tokens the answers of each column have."""
    import numpy

    lengths = {column: [question["answers"][column]["tokens"] for question in questions] for column in columns}
    edges = numpy.linspace(0, max(map(max, lengths.values())) or 1, 17).tolist()
    most = max(numpy.histogram(values, edges)[0].max() for values in lengths.values())
    drawing = _drawing(width=12, height=2.1)
    for place, (column, values) in enumerate(lengths.items()):
        axes = drawing.add_subplot(1, len(lengths), place + 1)
        axes.hist(values, bins=edges, color=COLOURS[place % len(COLOURS)])
        axes.set_title(column, fontsize=10, color=INK)
        axes.set_xlabel("tokens of the answer", fontsize=8, color=INK)
        axes.set_ylim(0, 1.05 * most)
        _bare(axes)
    drawing.tight_layout()
    return _svg(drawing)


def _drawing(width: float, height: float) -> Drawing:
    from matplotlib.figure import Figure as Drawing

    return Drawing(figsize=(width, height))


def _bare(axes: Any) -> None:
    axes.tick_params(colors=INK, labelsize=8, length=0)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(INK)


def _svg(drawing: Drawing) -> str:
    """Return a drawing as an svg element, transparent, of the width of the page."""
    import matplotlib

    file = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": "comparison"}):  # without it, ids are random
        drawing.savefig(file, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = file.getvalue()
    return svg[svg.index("<svg") :]
