"""Stage 8: answer with retrieved records at hand (RAG).

Reads chroma/, lexical.sqlite and the language models: the base model and, once stage 3 has trained one, the adapter
(--rag.answer-with chooses). Asks the same titles as stages 2 and 4. Writes rag_answers.json and rag_finetuned_answers.json.
--title asks a title of your own. Where no record has --rag.min-score, no model is asked: the answer is that this is not in
the data. --rag.where retrieves only records that meet conditions on their metadata (--data.metadata of stage 1).

    python rag_model_retriever.py --title "Wooden train set"
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from config import Config, RagConfig
from pipeline import (
    answers,
    artifacts,
    citations,
    generation,
    language_model,
    manifests,
    memory,
    prompts,
    questions,
    rag_prompt,
    records,
    retrieval,
)
from pipeline.command_line import run_stage
from pipeline.lexical import LexicalIndex
from pipeline.trained_models import adapter_folder, trained_precision

Role = Literal["foundation", "finetuned"]
ANSWERS: dict[Role, str] = {"foundation": "rag_answers.json", "finetuned": "rag_finetuned_answers.json"}


@dataclass(frozen=True)
class RetrieverOptions:
    """Options of this stage alone."""

    title: str | None = None
    """Ask this title and write nothing."""


@dataclass(frozen=True)
class AnsweringModel:
    """A language model that answers with retrieved records at hand."""

    role: Role
    loaded: language_model.LanguageModel
    prompt_format: prompts.PromptFormat


def run(config: Config, options: RetrieverOptions) -> Path | None:
    """Answer with retrieval; return the path of the last answers, or None if only the user's title was asked."""
    data = records.open_processed(config.run_dir)
    index = manifests.require_current(config.run_dir, "rag_indexing", data.path)

    def reading() -> AbstractContextManager[None]:
        return manifests.unchanged(config.run_dir, "rag_indexing", index)

    with reading():
        retriever = retrieval.open_retriever(config.run_dir, config.rag)
    if options.title is not None:
        asked = [questions.Question(data.clean(options.title), "", "")]
        with reading():
            found = retrieve(config.rag, retriever, asked)
        for model in load_models(config, data):
            print(f"\n{model.loaded.name}:")
            answer_titles(config, retriever.lexical, model, asked, found)
        return None
    settings = {name: getattr(config, name) for name in ("prompt", "model", "answers", "questions", "rag")}
    with manifests.stage_manifest(config.run_dir, "rag_model_retriever", settings, [data.path]) as metrics:
        asked = questions.choose_questions(data, config.questions)
        with reading():
            found = retrieve(config.rag, retriever, asked)
        written = []
        for model in load_models(config, data):
            print(f"\nAnswering with {model.loaded.name} and retrieval")
            parts = [answers.DATA, answers.INDEX, *([answers.ADAPTER] if model.role == "finetuned" else [])]
            source = answers.made_from(config.run_dir, config.model.name, *parts)
            with reading():
                entries = answer_titles(config, retriever.lexical, model, asked, found)
            name = f"{model.loaded.name} + retrieval"
            metrics[model.role] = {"model": name, **model.loaded.runs_on}
            path = config.run_dir / ANSWERS[model.role]
            written.append(answers.save(path, name, source, config.answers, entries))
        print("\nAnswers: " + ", ".join(map(str, written)))
        return written[-1]


def load_models(config: Config, data: records.ProcessedData) -> Iterator[AnsweringModel]:
    """Yield the models that answer, each with the prompt format that belongs to it; the base model's weights are loaded once.

    With --rag.answer-with auto these are the base model and, once stage 3 has trained one, the fine-tuned model.
    """
    roles = [config.rag.answer_with]
    if config.rag.answer_with == "auto":
        manifest = manifests.manifest_path(config.run_dir, "fine_tuning")
        trained = manifest.exists() or (config.run_dir / "lora_model").exists()
        roles = ["foundation", "finetuned"] if trained else ["foundation"]
    # Checked before a model is loaded.
    adapter = adapter_folder(config.run_dir, config.model.name, data.path) if "finetuned" in roles else None
    max_length = config.rag.max_context_tokens + config.answers.max_new_tokens
    precision = memory.precision_to_answer(config.model)
    if adapter is not None:
        precision = trained_precision(config.run_dir, config.model)
    base = language_model.load_base(config.model, precision, max_length)
    if "foundation" in roles:
        yield AnsweringModel("foundation", base, prompts.make_prompt_format(config.prompt, base.tokenizer))
    if adapter is not None:
        tuned = language_model.load_adapter(base, adapter)
        yield AnsweringModel("finetuned", tuned, prompts.load_prompt_format(adapter))


def retrieve(
    rag: RagConfig, retriever: retrieval.Retriever, asked: Sequence[questions.Question]
) -> list[list[retrieval.Hit]]:
    """Return what fits each title best, or say that no record meets the conditions."""
    found = [retriever.search(question.title, rag.k, rag.conditions) for question in asked]
    if rag.where and not any(found):
        raise artifacts.UserError(retrieval.none_meets(rag.where))
    return found


def answer_titles(
    config: Config,
    lexical: LexicalIndex,
    model: AnsweringModel,
    asked: list[questions.Question],
    found: list[list[retrieval.Hit]],
) -> list[dict[str, Any]]:
    """Answer with what was found for each title, and print; return the entries of the answers file."""
    texts: dict[int, str] = {}
    sources: dict[int, list[retrieval.Hit]] = {}
    for position, (question, hits) in enumerate(zip(asked, found, strict=True)):
        if retrieval.answerable(hits, config.rag):
            texts[position], sources[position] = rag_prompt.prompt_with_context(
                model.prompt_format, model.loaded, question.title, hits, config.rag.max_context_tokens
            )

    def answer_all(advance: Callable[[int], object]) -> list[generation.Answer]:
        written = iter(
            generation.generate(model.loaded, model.prompt_format, list(texts.values()), config.answers, advance)
        )
        advance(len(asked) - len(texts))
        not_found = generation.Answer(config.rag.not_found, tokens=0, ended=True, seconds=0.0)
        return [next(written) if position in texts else not_found for position in range(len(asked))]

    def explain(position: int, answer: str) -> dict[str, Any]:
        used = sources.get(position, [])
        explained = {
            "cited": citations.cite(answer, used, lexical),
            "support": round(citations.support(answer, used, lexical), 4) if used else None,
            "sources": [{**dataclasses.asdict(hit), "score": hit.score} for hit in used],
        }
        if position in texts:
            reference = asked[position].reference
            explained |= generation.reference_loss(model.loaded, model.prompt_format, texts[position], reference)
        return explained

    return questions.ask(asked, answer_all, model.prompt_format, explain)


def main() -> None:
    """Run the stage from the command line."""
    run_stage("rag_model_retriever", __doc__, run, "compare_models", RetrieverOptions)


if __name__ == "__main__":
    main()
