"""The tab that follows a training, live."""

from __future__ import annotations

import functools
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr
import pandas

from config import Config
from pipeline.artifacts import StageNeeded
from pipeline.command_line import next_command
from pipeline.manifests import manifest_path, read_manifest
from pipeline.page import views
from pipeline.page.texts import LANGUAGES, language_of
from pipeline.training_log import read_log, running_mean

EVERY_SECONDS = 2
IDLE_MINUTES = 10  # without a line after which a training may have been interrupted
COLORS = ("#9bb8d8", "#3b6fb6", "#e45756")


@dataclass(frozen=True)
class LogState:
    """What a training log looks like from outside."""

    written: float
    """Time of the last line, in seconds since 1970; 0 if there is none."""
    ended: float
    """Time at which the stage last ended; 0 if it never has."""
    idle_minutes: int
    """Minutes since the last line, if they are so many that the training may have been interrupted; else 0."""


class TrainTab:
    """Figures and the loss curve of training_log.jsonl."""

    def __init__(self, config: Config, tab: gr.Tab, others: list[gr.Tab]) -> None:
        """Lay out the tab, which is open as a block; the log is read while it is in front of the others."""
        self.config = config
        self.figures = gr.HTML(elem_id="training")
        self.curve = gr.LinePlot(
            x="step", y="loss", color="series", visible=False, show_label=False, height=360, elem_id="curve"
        )
        self.seen = gr.State(None)
        timer = gr.Timer(EVERY_SECONDS, active=False)
        quiet = {"show_progress": "hidden", "api_visibility": "private"}
        outputs = [self.figures, self.curve, self.seen]
        tab.select(lambda: gr.Timer(active=True), None, timer, **quiet)
        tab.select(self.show, None, outputs, **quiet)
        timer.tick(self.show_news, self.seen, outputs, queue=False, **quiet)
        gr.on([other.select for other in others], lambda: gr.Timer(active=False), None, timer, **quiet)

    @property
    def log(self) -> Path:
        """Return the log of the run."""
        return self.config.run_dir / "training_log.jsonl"

    def show_news(self, seen: Any, request: gr.Request) -> tuple[Any, ...]:
        """Return what `show` does if it is not what this person sees already."""
        return (gr.skip(),) * 3 if seen == self._state() else self.show(request)

    def show(self, request: gr.Request) -> tuple[Any, ...]:
        """Return the figures, the curve, and the state of the files that they come from."""
        language, state = language_of(request.headers), self._state()
        lines = read_log(self.log)
        if not any("loss" in line or "validation_loss" in line for line in lines):
            return (
                views.needed(self._first_stage(), "no_training", language, self.config),
                gr.LinePlot(visible=False),
                state,
            )
        return self._figures(lines, state, language), curve(lines, language), state

    def _first_stage(self) -> StageNeeded:
        run_dir = self.config.run_dir
        stage = "fine_tuning" if manifest_path(run_dir, "process_data").exists() else "process_data"
        return StageNeeded("There is no training log.", stage, run_dir)

    def _state(self) -> LogState:
        written, ended = map(modified, (self.log, manifest_path(self.config.run_dir, "fine_tuning")))
        minutes = int(time.time() - written) // 60
        return LogState(written, ended, minutes if minutes >= IDLE_MINUTES else 0)

    def _figures(self, lines: list[dict[str, Any]], state: LogState, language: str) -> str:
        finished = is_finished(self.config.run_dir, lines)
        return views.render(
            "training",
            language,
            finished=finished,
            written_at=time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(state.written)),
            figures=figures(lines, finished, language),
            idle_minutes=0 if finished else state.idle_minutes,
            resume=next_command("fine_tuning", self.config) + " --train.resume",
        )


def modified(path: Path) -> float:
    """Return when a file was last written, in seconds since 1970; 0 if there is none."""
    return path.stat().st_mtime if path.exists() else 0.0


def is_finished(run_dir: Path, lines: list[dict[str, Any]]) -> bool:
    """Tell whether a log is that of the training that last ended."""
    if not manifest_path(run_dir, "fine_tuning").exists():
        return False
    ended, losses = read_manifest(run_dir, "fine_tuning")["metrics"], points(lines, "loss")
    return bool(losses) and losses[-1][1] == ended.get("final_training_loss") and lines[-1]["step"] == ended["steps"]


def figures(lines: list[dict[str, Any]], finished: bool, language: str) -> list[tuple[str, str, str]]:
    """Return label, value and remark of each figure of a training log."""
    texts = LANGUAGES[language]
    number = functools.partial(views.number, language=language)
    steps = [line for line in lines if "loss" in line]
    measured = [loss for _, loss in points(lines, "validation_loss")]
    step, total = lines[-1]["step"], lines[-1].get("of")
    rows = [(texts.step, texts.of_steps.format(step, total) if total else str(step), "")]
    if measured:
        first, last = measured[0], measured[-1]
        for label, start, now, digits in (
            (texts.validation_loss, first, last, 3),
            (texts.perplexity, math.exp(first), math.exp(last), 1),
        ):
            remark = texts.at_start.format(number(start, digits)) if len(measured) > 1 else ""
            rows.append((label, number(now, digits), remark))
    if steps:
        rows.append((texts.training_loss, number(steps[-1]["loss"], 3), ""))
        rows.append((texts.learning_rate, f"{steps[-1]['learning_rate']:.2e}", ""))
    if (
        len(steps) > 1 and (seconds := steps[-1]["seconds"] - steps[-2]["seconds"]) > 0
    ):  # it starts anew with --train.resume
        rows.append((texts.speed, number((steps[-1]["tokens"] - steps[-2]["tokens"]) / seconds, 0), ""))
        if total and not finished:
            minutes = (total - step) * seconds / (steps[-1]["step"] - steps[-2]["step"]) / 60
            rows[0] = (*rows[0][:2], texts.left.format(number(math.ceil(minutes), 0)))
    return rows


def curve(lines: list[dict[str, Any]], language: str) -> gr.LinePlot:
    """Return the plot of training and validation loss over the steps."""
    texts = LANGUAGES[language]
    training = points(lines, "loss")
    means = running_mean([loss for _, loss in training])
    rows = [(texts.training_loss, *point) for point in training]
    rows += [(texts.running_mean, step, mean) for (step, _), mean in zip(training, means, strict=True)]
    rows += [(texts.validation_loss, *point) for point in points(lines, "validation_loss")]
    names = (texts.training_loss, texts.running_mean, texts.validation_loss)
    return gr.LinePlot(
        pandas.DataFrame(rows, columns=["series", "step", "loss"]),
        visible=True,
        x_title=texts.optimizer_step,
        y_title=texts.loss,
        color_title=" ",
        color_map=dict(zip(names, COLORS, strict=True)),
        x_lim=[0, lines[-1].get("of") or lines[-1]["step"]],
    )


def points(lines: list[dict[str, Any]], name: str) -> list[tuple[int, float]]:
    """Return the steps at which a value was logged, and the value."""
    return [(line["step"], line[name]) for line in lines if name in line]
