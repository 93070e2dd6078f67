"""What a hyperparameter search prints and draws at its end."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any


def settings_text(settings: dict[str, Any]) -> str:
    """Return the settings of a trial as they are printed."""
    words = f"learning rate {settings['learning_rate']:.3g}, rank {settings['r']}, alpha {settings['alpha']}"
    return words + (f", {settings['epochs']:g} epochs" if "epochs" in settings else "")


def print_result(result: dict[str, Any]) -> None:
    """Print all trials, the lowest loss first, what the best one gains, and the command that trains like it."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    best, start = result["best"], result["start"]
    searched = ["learning_rate", "r", "alpha", *(["epochs"] if "epochs" in best else [])]
    table = Table(box=box.SIMPLE_HEAD)
    for name in ("trial", *searched, "loss", "seconds"):
        table.add_column(name.replace("_", " "), justify="right")
    table.add_column("", no_wrap=True)
    for row in sorted(result["trials"], key=lambda row: (row["validation_loss"] or math.inf, row["trial"])):
        loss = "–" if row["validation_loss"] is None else f"{row['validation_loss']:.4f}"
        settings = [f"{row[name]:.3g}" for name in searched]
        table.add_row(str(row["trial"]), *settings, loss, f"{row['seconds']:.0f}", remark(row, best, start))
    print()
    Console(highlight=False).print(table)
    print(f"Validation loss before the training {result['validation_loss_before']:.4f}; {gain(best, start)}")
    print(f"Best: {settings_text(best)}. This trains with it:\n\n    {result['command']}\n")
    print(f"The adapter of trial {best['trial']} is kept in {result['adapter']}")


def remark(row: dict[str, Any], best: dict[str, Any], start: dict[str, Any]) -> str:
    """Return what there is to say of a trial in the table."""
    said = ["best"] if row is best else []
    said += ["as given"] if row is start else []
    said += [f"pruned at {max(row['validation_losses']):.0%}"] if row["state"] == "pruned" else []
    said += ["failed"] if row["error"] else []
    return ", ".join(said)


def gain(best: dict[str, Any], start: dict[str, Any]) -> str:
    """Return how much better the best trial is than the settings that were given, as the end of a sentence."""
    new, old = best["validation_loss"], start["validation_loss"]
    if best is start:
        return f"with the settings as given {old:.4f}, and no trial was better."
    if old is None:
        return f"best {new:.4f}; with the settings as given it did not stay a number."
    perplexities = f"perplexity {math.exp(min(new, 100)):.2f} instead of {math.exp(min(old, 100)):.2f}"
    return f"with the settings as given {old:.4f}, best {new:.4f}: lower by {old - new:.4f} ({perplexities})."


def draw_trials(result: dict[str, Any], picture: Path, title: str) -> None:
    """Draw the last loss of each trial over its learning rate, and the losses on the way.

    A loss above that of the base model is drawn at its height: one training gone wrong would flatten all others.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    before, ranks = result["validation_loss_before"], sorted({row["r"] for row in result["trials"]})
    colours = {rank: pyplot.get_cmap("viridis")(0.9 * n / max(len(ranks) - 1, 1)) for n, rank in enumerate(ranks)}
    figure, (ends, ways) = pyplot.subplots(1, 2, figsize=(11, 4.5), layout="constrained", sharey=True)
    for row in result["trials"]:
        losses = {share: min(loss or before, before) for share, loss in row["validation_losses"].items()}
        if not losses:
            continue
        pruned, colour, last = row["state"] == "pruned", colours[row["r"]], losses[max(losses)]
        ends.scatter(row["learning_rate"], last, color=colour, marker="x" if pruned else "o", s=45, zorder=3)
        if "epochs" in row:
            ends.annotate(
                f"{row['epochs']:g}",
                (row["learning_rate"], last),
                textcoords="offset points",
                xytext=(6, 4),
                fontsize=8,
            )
        width = 3 if row is result["best"] else 1
        ways.plot(
            [0, *losses], [before, *losses.values()], color=colour, linewidth=width, linestyle=":" if pruned else "-"
        )
    for name, marker, label in (("start", "s", "as given"), ("best", "*", "best")):
        row = result[name]
        if row["validation_loss"] is not None:
            ends.scatter(
                row["learning_rate"], min(row["validation_loss"], before), marker=marker, s=230, facecolors="none",
                edgecolors="#e45756", linewidths=1.5, zorder=4, label=label,
            )  # fmt: skip
    for rank in ranks:
        ends.scatter([], [], color=colours[rank], label=f"rank {rank}")
    ends.scatter([], [], color="grey", marker="x", label="pruned, last loss")
    numbers = " (numbers: epochs)" if "epochs" in result["best"] else ""
    ends.set(xscale="log", xlabel=f"learning rate{numbers}", ylabel="validation loss per token (nats)", title=title)
    ways.set(xlabel="share of the training", title="on the way; thick: the best, dotted: pruned")
    ends.legend(fontsize="small", markerscale=0.7)
    for axes in (ends, ways):
        axes.axhline(before, color="grey", linewidth=0.8, linestyle="--")
        axes.grid(alpha=0.3)
    figure.savefig(picture, dpi=120, format="png")
    pyplot.close(figure)
