"""Stage 2: what does the base model answer, before any training?

Reads trn_processed.json. Asks the example titles and a sample of the held-out ones, in batches. Writes
foundation_answers.json.

    python foundation_model.py
"""

from __future__ import annotations

from pathlib import Path

from config import Config
from pipeline import answers, generation, language_model, manifests, memory, prompts, questions, records
from pipeline.command_line import run_stage


def run(config: Config) -> Path:
    """Answer the questions with the base model and return the path of foundation_answers.json."""
    data = records.open_processed(config.run_dir)
    settings = {name: getattr(config, name) for name in ("prompt", "model", "answers", "questions")}
    with manifests.stage_manifest(config.run_dir, "foundation_model", settings, [data.path]) as metrics:
        source = answers.made_from(config.run_dir, config.model.name, answers.DATA)
        asked = questions.choose_questions(data, config.questions)
        base = language_model.load_base(config.model, memory.precision_to_answer(config.model))
        metrics.update(base.runs_on)
        prompt_format = prompts.make_prompt_format(config.prompt, base.tokenizer)
        texts = [prompt_format.prompt(question.title) for question in asked]
        entries = questions.ask(
            asked,
            lambda advance: generation.generate(base, prompt_format, texts, config.answers, advance),
            prompt_format,
            lambda position, _: generation.reference_loss(
                base, prompt_format, texts[position], asked[position].reference
            ),
        )
        path = config.run_dir / "foundation_answers.json"
        return answers.save(path, base.name, source, config.answers, entries)


def main() -> None:
    """Run the stage from the command line."""
    run_stage("foundation_model", __doc__, run, "fine_tuning")


if __name__ == "__main__":
    main()
