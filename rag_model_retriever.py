"""Stage 8: answer with retrieved records at hand (RAG).

Reads chroma/, lexical.sqlite and the language models: the base model and, once stage 3 has trained one, the fine-tuned one;
--rag.answer-with chooses, the GGUF of stage 5 among others. Asks the same titles as stages 2 and 4. Writes rag_answers.json
and rag_finetuned_answers.json. --title asks a title of your own. Where no record fits, no model is asked: the answer is
that this is not in the data. --rag.where retrieves only records that meet conditions on their metadata (--data.metadata
of stage 1).

    python rag_model_retriever.py --title "Wooden train set"
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass
from pathlib import Path

from config import Config
from pipeline.data import records
from pipeline.evaluation import answering, answers, questions
from pipeline.evaluation.answering import Retrieved
from pipeline.models.answerer import Form, open_models
from pipeline.rag import retrieval
from pipeline.run import manifests
from pipeline.run.command_line import run_stage
from pipeline.run.errors import UserError
from pipeline.run.run_folder import ADAPTER, RAG_ANSWERS, RAG_FINETUNED_ANSWERS, RunFolder


@dataclass(frozen=True)
class RetrieverOptions:
    """Options of this stage alone."""

    title: str | None = None
    """Ask this title and write nothing."""


def run(config: Config, options: RetrieverOptions) -> Path | None:
    """Answer with retrieval; return the path of the last answers, or None if only the user's title was asked."""
    folder = RunFolder.of(config)
    data = records.open_processed(folder)
    index = manifests.require_current(folder, "rag_indexing", data.path)

    def reading() -> AbstractContextManager[None]:
        return manifests.guard_against_rerun(folder, "rag_indexing", index)

    with reading():
        retriever = retrieval.open_retriever(folder, config.rag)
    forms, max_length = chosen_forms(config), config.rag.max_context_tokens + config.answers.max_new_tokens
    if options.title is not None:
        asked = [questions.Question(data.clean(options.title), "", "")]
        with reading():
            retrieved = retrieve(config, retriever, asked)
        for model in open_models(config, forms, data.path, max_length).values():
            with closing(model):
                print(f"\n{model.name}:")
                answering.answer_questions(model, asked, config.answers, retrieved)
        return None
    with manifests.stage_manifest(config, "rag_model_retriever", [data.path]) as metrics:
        asked = questions.choose_questions(data, config.questions)
        with reading():
            retrieved = retrieve(config, retriever, asked)
        written = []
        for form, model in open_models(config, forms, data.path, max_length).items():
            print(f"\nAnswering with {model.name} and retrieval")
            parts = [answers.DATA, answers.INDEX, *([] if form == "foundation" else [ADAPTER])]
            source = answers.made_from(folder, config.model.name, model, *parts)
            with reading(), closing(model):
                entries = answering.answer_questions(model, asked, config.answers, retrieved)
            name = f"{model.name} + retrieval"
            metrics[form] = {"model": name, **model.runs_on}
            path = folder / (RAG_ANSWERS if form == "foundation" else RAG_FINETUNED_ANSWERS)
            written.append(answers.save(path, model, name, source, config.answers, entries))
        print("\nAnswers: " + ", ".join(map(str, written)))
        return written[-1]


def chosen_forms(config: Config) -> list[Form]:
    """Return the models that --rag.answer-with names; auto is the base model and, once there is one, the fine-tuned one."""
    if config.rag.answer_with != "auto":
        return [config.rag.answer_with]
    folder = RunFolder.of(config)
    trained = folder.has_run("fine_tuning") or (folder / ADAPTER).exists()
    return ["foundation", "finetuned"] if trained else ["foundation"]


def retrieve(config: Config, retriever: retrieval.Retriever, asked: Sequence[questions.Question]) -> Retrieved:
    """Return what fits each title best, or say that no record meets the conditions."""
    rag, seconds = config.rag, []
    found = []
    for question in asked:
        started = time.perf_counter()
        found.append(retriever.search(question.title, rag.k, rag.conditions))
        seconds.append(time.perf_counter() - started)
    if rag.where and not any(found):
        raise UserError(retrieval.none_meets(rag.where))
    return Retrieved(found, seconds, retriever.lexical, rag)


def main() -> None:
    """Run the stage from the command line."""
    run_stage("rag_model_retriever", __doc__, run, RetrieverOptions)


if __name__ == "__main__":
    main()
