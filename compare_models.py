"""Stage 9: put the answers of the foundation model, the fine-tuned model and RAG side by side, and measure them.

Reads foundation_answers.json, finetuned_answers.json and rag_answers.json. Writes comparison.json, comparison.md and
comparison.html (one file, nothing else needed to read it).

    python compare_models.py
"""

from __future__ import annotations

import re
import textwrap
from pathlib import Path
from typing import Any

from config import Config
from pipeline import artifacts, metrics
from pipeline.command_line import run_stage

SOURCES = {
    "Foundation": ("foundation_answers.json", "foundation_model"),
    "Fine-tuned": ("finetuned_answers.json", "ft_test_trained_model"),
    "RAG": ("rag_answers.json", "rag_model_retriever"),
}
SHOWN_CHARS = 140
METRICS = {
    "rouge_l": ("ROUGE-L", "{:.1f}", "words in the reference's order, 0 to 100; more is closer"),
    "chrf": ("chrF", "{:.1f}", "character sequences shared with the reference, 0 to 100; more is closer"),
    "distinct_2": ("distinct-2", "{:.2f}", "share of distinct word pairs; less is more repetitive"),
    "ended": ("ended by itself", "{:.0%}", "answers that were not cut off at the limit of new tokens"),
    "tokens": ("tokens per answer", "{:.0f}", ""),
    "seconds": ("seconds per answer", "{:.2f}", "the seconds of a batch, shared equally"),
}


def run(config: Config) -> Path:
    """Compare the answers and return the path of comparison.html."""
    paths = {name: artifacts.require(config.run_dir / file, stage) for name, (file, stage) in SOURCES.items()}
    with artifacts.stage_manifest(config.run_dir, "compare_models", {}, list(paths.values())) as figures:
        comparison = compare({name: artifacts.read_json(path) for name, path in paths.items()})
        figures.update(comparison["metrics"])
        print_comparison(comparison)
        artifacts.write_json(config.run_dir / "comparison.json", comparison)
        with artifacts.atomic_write(config.run_dir / "comparison.md") as file:
            file.write(render("comparison.md.jinja", config, comparison))
        path = config.run_dir / "comparison.html"
        with artifacts.atomic_write(path) as file:
            file.write(render("comparison.html.jinja", config, comparison))
        return path


def compare(answers: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Join the answers of several models by title.

    Returns:
        metrics: for each model, its figures; models: the name of what answered; questions: title, split, reference and
        the answer of each model.
    """
    by_title = {name: {entry["title"]: entry for entry in file["answers"]} for name, file in answers.items()}
    first, *others = by_title
    for other in others:
        again = f"Run {SOURCES[first][1]}.py and {SOURCES[other][1]}.py again, alike."
        if by_title[other].keys() != by_title[first].keys():
            raise artifacts.UserError(f"{first} and {other} answered different titles. {again}")
        if answers[other]["generation"] != answers[first]["generation"]:
            raise artifacts.UserError(f"{first} and {other} had different --answers settings. {again}")
    rows = []
    for title, entry in by_title[first].items():
        row = {key: entry[key] for key in ("title", "split", "reference")}
        rows.append({**row, "answers": {name: entries[title]["answer"] for name, entries in by_title.items()}})
    return {
        "models": {name: file["model"] for name, file in answers.items()},
        "metrics": {name: metrics.summarise(file["answers"]) for name, file in answers.items()},
        "questions": rows,
    }


def metric_rows(comparison: dict[str, Any]) -> list[dict[str, Any]]:
    """Return one row for each metric: its label, what it means, and a formatted figure for each model."""
    rows = []
    for key, (label, form, meaning) in METRICS.items():
        figures = [values[key] for values in comparison["metrics"].values()]
        shown = ["–" if figure is None else form.format(figure) for figure in figures]
        rows.append({"label": label, "meaning": meaning, "figures": shown})
    return rows


def print_comparison(comparison: dict[str, Any]) -> None:
    """Print the beginnings of the answers, and the metrics, as tables."""
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
    for name in comparison["models"]:
        answers.add_column(name, ratio=3)
        figures.add_column(name, justify="right")
    for row in comparison["questions"]:
        texts = (row["title"], row["reference"] or f"({row['split']})", *row["answers"].values())
        answers.add_row(*(Text(textwrap.shorten(text, SHOWN_CHARS, placeholder=" …")) for text in texts))
    for row in metric_rows(comparison):
        figures.add_row(row["label"], *row["figures"])
    console.print(answers)
    console.print(figures)


def render(template: str, config: Config, comparison: dict[str, Any]) -> str:
    """Fill a template of pipeline/templates; in HTML everything from the data is escaped."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "pipeline" / "templates"),
        autoescape=jinja2.select_autoescape(["html.jinja"]),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["cell"] = markdown_cell
    return environment.get_template(template).render(
        preset=config.preset, comparison=comparison, metric_rows=metric_rows(comparison)
    )


def markdown_cell(text: str) -> str:
    """Return text that stays text in a cell of a Markdown table."""
    return re.sub(r"([\\|*_`\[\]])", r"\\\1", " ".join(text.split())).replace("<", "&lt;")


def main() -> None:
    """Run the stage from the command line."""
    run_stage("compare_models", __doc__, run, None)


if __name__ == "__main__":
    main()
