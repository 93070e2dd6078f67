"""Show a comparison: in the terminal, in Markdown, and as one page that needs nothing else."""

from __future__ import annotations

import base64
import re
import textwrap
from itertools import groupby
from pathlib import Path
from typing import Any

from pipeline.evaluation import charts
from pipeline.evaluation.comparison import Comparison, Finding, Preference
from pipeline.evaluation.metrics import METRICS, shared_words
from pipeline.evaluation.significance import CONFIDENCE, FEWEST_FOR_INTERVAL, Figure, fewest_to_differ
from pipeline.run import files
from pipeline.run.run_folder import COMPARISON_PAGE, COMPARISON_TEXT, LOSS_CURVE, RunFolder

SHOWN_CHARS = 140
SHOWN_QUESTIONS = 6  # in the terminal


def print_report(comparison: Comparison, notes: list[str]) -> None:
    """Print the first answers, the figures, and what they say."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False)
    answers = Table(box=box.SIMPLE_HEAD, show_lines=True, expand=True)
    figures = Table(box=box.SIMPLE_HEAD)
    answers.add_column("Title", ratio=2)
    answers.add_column("Reference", ratio=3)
    figures.add_column("")
    for name in comparison.models:
        answers.add_column(name, ratio=3)
        figures.add_column(name, justify="right")
    for question in comparison.questions[:SHOWN_QUESTIONS]:
        written = [answer["answer"] for answer in question["answers"].values()]
        texts = (question["title"], question["reference"] or f"({question['split']})", *written)
        answers.add_row(*(Text(textwrap.shorten(text, SHOWN_CHARS, placeholder=" …")) for text in texts))
    for row in figure_rows(comparison):
        figures.add_row(row["label"], *(Text(text) for text in row["figures"]))
    console.print(answers)
    if len(comparison.questions) > SHOWN_QUESTIONS:
        print(f"… and {len(comparison.questions) - SHOWN_QUESTIONS} more titles in comparison.html\n")
    console.print(figures)
    for line in [*conclusions(comparison), *notes]:
        print(f"- {line}")


def write_report(run: RunFolder, comparison: Comparison, notes: list[str]) -> Path:
    """Write comparison.md and comparison.html and return the path of the page."""
    columns = list(comparison.models)
    curve = run / LOSS_CURVE
    values = {
        "run": run.path.name,
        "comparison": comparison,
        "rows": figure_rows(comparison),
        "conclusions": conclusions(comparison),
        "notes": notes,
    }
    with files.atomic_write(run / COMPARISON_TEXT) as file:
        file.write(_render("comparison.md.jinja", values))
    values |= {
        "bars": charts.metric_bars(comparison.figures, comparison.answers),
        "lengths": charts.length_histogram(comparison.questions, columns),
        "loss_curve": base64.b64encode(curve.read_bytes()).decode() if curve.exists() else None,
    }
    path = run / COMPARISON_PAGE
    with files.atomic_write(path) as file:
        file.write(_render("comparison.html.jinja", values))
    return path


def figure_rows(comparison: Comparison) -> list[dict[str, Any]]:
    """Return one row for each metric: its label, what it means, and for each column its figure with the interval."""
    return [
        {
            "label": METRICS[name].label,
            "meaning": METRICS[name].meaning,
            "figures": [_figure_text(METRICS[name].form, figure, comparison.answers[name]) for figure in row.values()],
        }
        for name, row in comparison.figures.items()
    ]


def _figure_text(form: str, figure: Figure | None, most: int) -> str:
    """Return a figure with its interval and, where it is of fewer answers than its neighbour, with their number."""
    if figure is None:
        return "–"
    text = figure.text(form)
    return text if figure.answers == most else f"{text} ({figure.answers} of {most})"


def conclusions(comparison: Comparison) -> list[str]:
    """Return sentences that say what the figures say, and what cannot be told from them."""
    with_reference = sum(bool(question["reference"]) for question in comparison.questions)
    lines = [
        f"In brackets: the interval that holds the figure with {CONFIDENCE:.0%}, of shares and, from {FEWEST_FOR_INTERVAL} varied "
        "answers on, of means."
    ]
    tests = len(comparison.findings)
    if with_reference < (fewest := fewest_to_differ(tests)):
        lines.append(
            f"{with_reference} titles with a reference are few: a difference that is alone among {tests} comparisons can be told from "
            f"{fewest} titles on, and a small one takes 100. Raise --questions.held-out in stages 2, 4 and 8."
        )
    for (ours, theirs), group in groupby(comparison.findings, lambda finding: (finding.ours, finding.theirs)):
        findings = list(group)
        parts = []
        for better, verb in ((ours, "is better in"), (theirs, "is worse in")):
            found = [_difference_text(finding) for finding in findings if finding.better == better]
            if found:
                parts.append(f"{verb} {', '.join(found)}")
        noise = [METRICS[finding.metric].label for finding in findings if finding.better is None]
        if noise:
            parts.append(f"cannot be told from noise in {', '.join(noise)}")
        lines.append(f"{ours} against {theirs}: {'; '.join(parts)}.")
    lines += [_preference_text(preference) for preference in comparison.preferences]
    return [*lines, *_forgetting(comparison)]


def _preference_text(found: Preference) -> str:
    share = Figure(found.wins / found.answers, found.answers, found.low, found.high)
    return (
        f"The judge prefers {found.ours} to {found.theirs} in {found.wins} of {found.answers} questions "
        f"({share.text('{:.0%}')}) and the reverse in {found.losses}."
    )


def _forgetting(comparison: Comparison) -> list[str]:
    """Return a sentence on what the training has made the model forget, if that was measured."""
    row = comparison.figures.get("general", {})
    base, tuned = row.get("Foundation"), row.get("Fine-tuned")
    if base is None or tuned is None:
        return []
    of_both = ("general", "Fine-tuned", "Foundation")
    certain = any(f.certain for f in comparison.findings if (f.metric, f.ours, f.theirs) == of_both)
    change = f"the perplexity of {tuned.answers} general texts went from {base.value:.1f} to {tuned.value:.1f}"
    if not certain:
        return [f"Did it forget? It cannot be told: {change}, no more than noise."]
    if tuned.value < base.value:
        return [f"Did it forget? No sign of it: {change}."]
    return [f"Did it forget? Something: {change}."]


def _difference_text(finding: Finding) -> str:
    metric, difference = METRICS[finding.metric], finding.difference
    sign = "+" if difference.value > 0 else "−"
    return f"{metric.label} ({sign}{metric.form.format(abs(difference.value))})"


def _render(template: str, values: dict[str, Any]) -> str:
    """Fill a template of pipeline/templates; in HTML everything from the data is escaped."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=jinja2.select_autoescape(["html.jinja"]),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["cell"] = markdown_cell
    environment.filters["shared_words"] = lambda answer, reference: shared_words(reference, answer)
    return environment.get_template(template).render(values)


def markdown_cell(text: str) -> str:
    """Return text that stays text in a cell of a Markdown table."""
    return re.sub(r"([\\|*_`\[\]])", r"\\\1", " ".join(text.split())).replace("<", "&lt;")
