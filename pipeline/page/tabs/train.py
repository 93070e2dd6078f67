"""The tab that follows a training, live."""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import gradio as gr
import pandas

from config import StageName
from pipeline.page import views
from pipeline.page.assistant import Assistant
from pipeline.page.tab import Tab
from pipeline.page.texts import LANGUAGES, language_of
from pipeline.run.command_line import next_command
from pipeline.run.manifests import read_manifest
from pipeline.run.run_folder import TRAINING_LOG, RunFolder, StageNeeded
from pipeline.training.log import read_log, running_mean

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


class TrainTab(Tab):
    """Figures and the loss curve of training_log.jsonl."""

    name, position = "train", 4
    texts: ClassVar = {
        "train": ("Train", "Treino"),
        "step": ("Step", "Passo"),
        "of_steps": ("{0} of {1}", "{0} de {1}"),
        "training_loss": ("Training loss", "Loss de treino"),
        "running_mean": ("Training loss, running mean", "Loss de treino, média móvel"),
        "validation_loss": ("Validation loss", "Loss de validação"),
        "perplexity": ("Perplexity", "Perplexidade"),
        "learning_rate": ("Learning rate", "Taxa de aprendizado"),
        "speed": ("Tokens per second", "Tokens por segundo"),
        "optimizer_step": ("optimizer step", "passo do otimizador"),
        "loss": ("loss per token (nats)", "loss por token (nats)"),
        "running": ("Training in progress", "Treino em andamento"),
        "finished": ("Training finished", "Treino terminado"),
        "left": ("about {0} min left", "faltam cerca de {0} min"),
        "at_start": ("{0} at the start", "{0} no início"),
        "last_line": ("last written {0}", "última escrita {0}"),
        "interrupted": (
            "Nothing has been written for {0} minutes. If the training was interrupted, go on with:",
            "Nada foi escrito há {0} minutos. Se o treino foi interrompido, continue com:",
        ),
    }

    def __init__(self, assistant: Assistant, i18n: gr.I18n, block: gr.Tab) -> None:
        """Lay out the tab in its block, which is open; the log is read while it is in front of the others."""
        self.config = assistant.config
        self.figures = gr.HTML(elem_id="training")
        self.curve = gr.LinePlot(
            x="step", y="loss", color="series", visible=False, show_label=False, height=360, elem_id="curve"
        )
        self.seen = gr.State(None)
        self.timer = gr.Timer(EVERY_SECONDS, active=False)
        quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
        outputs = [self.figures, self.curve, self.seen]
        block.select(lambda: gr.Timer(active=True), None, self.timer, **quiet)
        block.select(self.show, None, outputs, **quiet)
        self.timer.tick(self.show_news, self.seen, outputs, queue=False, **quiet)

    def know_others(self, others: Sequence[gr.Tab]) -> None:
        """Read the log no longer once another tab is in front."""
        quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
        gr.on([other.select for other in others], lambda: gr.Timer(active=False), None, self.timer, **quiet)

    @property
    def log(self) -> Path:
        """Return the log of the run."""
        return self.config.run_dir / TRAINING_LOG

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
        folder = RunFolder.of(self.config)
        stage: StageName = "fine_tuning" if folder.has_run("process_data") else "process_data"
        return folder.stage_needed("There is no training log.", stage)

    def _state(self) -> LogState:
        written, ended = map(modified, (self.log, RunFolder.of(self.config).manifest_path("fine_tuning")))
        minutes = int(time.time() - written) // 60
        return LogState(written, ended, minutes if minutes >= IDLE_MINUTES else 0)

    def _figures(self, lines: list[dict[str, Any]], state: LogState, language: str) -> str:
        finished = is_finished(RunFolder.of(self.config), lines)
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


def is_finished(run: RunFolder, lines: list[dict[str, Any]]) -> bool:
    """Tell whether a log is that of the training that last ended."""
    if not run.has_run("fine_tuning"):
        return False
    ended, losses = read_manifest(run, "fine_tuning")["metrics"], points(lines, "loss")
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
