"""Do base + adapter, merged model and GGUF find validation records equally likely?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from pipeline.evaluation.metrics import Metric
from pipeline.evaluation.significance import Measures, difference, figure, significant
from pipeline.models.generation import Reading

LOSS = Metric("validation loss", "{:.3f}", "nats per token", "loss", "tokens", better=-1)
TRAINED = "base + adapter"


def compare_losses(readings: dict[str, Sequence[Reading]]) -> tuple[list[str], dict[str, Any]]:
    """Return lines that show the loss of each form of the model beside that of TRAINED, and the same for the manifest."""
    measures: dict[str, list[Measures]] = {
        form: [{"loss": sum(reading.losses), "tokens": len(reading.losses)} for reading in read]
        for form, read in readings.items()
    }
    figures = {form: figure(LOSS, rows) for form, rows in measures.items()}
    others = [form for form in readings if form != TRAINED]
    differences = {form: difference(LOSS, measures[form], measures[TRAINED]) for form in others}
    found = {form: change for form, change in differences.items() if change is not None}
    certain = dict(zip(found, significant([change.p for change in found.values()]), strict=True))
    lines, noted = [], {}
    for form, value in figures.items():
        if value is None:
            continue
        line = f"{form}: {value.text(LOSS.form)}"
        noted[form] = asdict(value)
        if form in found:
            noted[form] |= {"against_trained": asdict(found[form]), "more_than_noise": certain[form]}
            line += f", {found[form].value:+.4f}, {'more' if certain[form] else 'no more'} than noise"
        lines.append(line)
    return lines, noted
