"""Stage 2: what does the base model answer, before any training?

Reads trn_processed.json. Asks the example titles and a sample of the held-out ones, in batches. Writes
foundation_answers.json.

    python foundation_model.py
"""

from __future__ import annotations

from pathlib import Path

from config import Config
from pipeline.data import records
from pipeline.evaluation import answering, answers, questions
from pipeline.models.answerer import open_models
from pipeline.run import manifests
from pipeline.run.command_line import run_stage
from pipeline.run.run_folder import FOUNDATION_ANSWERS, RunFolder


def run(config: Config) -> Path:
    """Answer the questions with the base model and return the path of foundation_answers.json."""
    folder = RunFolder.of(config)
    data = records.open_processed(folder)
    with manifests.stage_manifest(config, "foundation_model", [data.path]) as metrics:
        asked = questions.choose_questions(data, config.questions)
        base = open_models(config, ["foundation"], data.path)["foundation"]
        source = answers.made_from(folder, config.model.name, base, answers.DATA)
        metrics.update(base.runs_on)
        entries = answering.answer_questions(base, asked, config.answers)
        return answers.save(folder / FOUNDATION_ANSWERS, base, base.name, source, config.answers, entries)


def main() -> None:
    """Run the stage from the command line."""
    run_stage("foundation_model", __doc__, run)


if __name__ == "__main__":
    main()
