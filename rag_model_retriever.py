"""Stage 8: answer with retrieved records at hand (RAG).

Reads chroma/, lexical.sqlite and a language model: the base model, or with --rag.answer-with finetuned the adapter of
stage 3. Asks the same titles as stages 2 and 4. Writes rag_answers.json. --title asks a title of your own. Where no record
has --rag.min-score, no model is asked: the answer is that this is not in the data.

    python rag_model_retriever.py --title "Wooden train set"
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from config import Config
from pipeline import (
    artifacts,
    citations,
    generation,
    language_model,
    memory,
    prompts,
    questions,
    records,
    retrieval,
)
from pipeline.command_line import run_stage
from pipeline.trained_models import adapter_folder, trained_precision


@dataclass(frozen=True)
class RetrieverOptions:
    """Options of this stage alone."""

    title: str | None = None
    """Ask this title and write nothing."""


def run(config: Config, options: RetrieverOptions) -> Path | None:
    """Answer with retrieval; return the path of rag_answers.json, or None if only the user's title was asked."""
    data = records.open_processed(config.run_dir)
    artifacts.require_current(config.run_dir, "rag_indexing", data.path)
    if options.title is not None:
        answer_titles(config, data, [questions.Question(data.clean(options.title), "", "")])
        return None
    settings = {name: getattr(config, name) for name in ("prompt", "model", "answers", "questions", "rag")}
    with artifacts.stage_manifest(config.run_dir, "rag_model_retriever", settings, [data.path]) as metrics:
        asked = questions.choose_questions(data, config.questions)
        model, entries = answer_titles(config, data, asked)
        name = f"{model.name} + retrieval"
        metrics.update(model=name, backend=model.backend, device=model.device)
        return questions.save_answers(config.run_dir / "rag_answers.json", name, config.answers, entries)


def answer_titles(
    config: Config, data: records.ProcessedData, asked: list[questions.Question]
) -> tuple[language_model.LanguageModel, list[dict]]:
    """Retrieve, answer and print; return the model and the entries of the answers file."""
    retriever = retrieval.open_retriever(config.run_dir, config.rag)
    model, prompt_format = load_language_model(config, data)
    texts: dict[int, str] = {}
    sources: dict[int, list[retrieval.Hit]] = {}
    for position, question in enumerate(asked):
        hits = retriever.search(question.title, config.rag.k)
        if retrieval.answerable(hits, config.rag):
            texts[position], sources[position] = prompt_with_context(
                prompt_format, model, question.title, hits, config.rag.max_context_tokens
            )

    def answer_all(advance: Callable[[int], object]) -> list[generation.Answer]:
        written = iter(generation.generate(model, prompt_format, list(texts.values()), config.answers, advance))
        advance(len(asked) - len(texts))
        not_found = generation.Answer(config.rag.not_found, tokens=0, ended=True, seconds=0.0)
        return [next(written) if position in texts else not_found for position in range(len(asked))]

    def explain(position: int, answer: str) -> dict[str, Any]:
        used = sources.get(position, [])
        return {
            "cited": citations.cite(answer, used, retriever.lexical),
            "support": round(citations.support(answer, used, retriever.lexical), 4) if used else None,
            "sources": [{**dataclasses.asdict(hit), "score": hit.score} for hit in used],
        }

    return model, questions.ask(asked, answer_all, prompt_format, explain)


def load_language_model(
    config: Config, data: records.ProcessedData
) -> tuple[language_model.LanguageModel, prompts.PromptFormat]:
    """Load the model that answers, with the prompt format that belongs to it."""
    max_length = config.rag.max_context_tokens + config.answers.max_new_tokens
    if config.rag.answer_with == "finetuned":
        adapter = adapter_folder(config.run_dir, config.model.name, data.path)
        base = language_model.load_base(config.model, trained_precision(config.run_dir, config.model), max_length)
        return language_model.load_adapter(base, adapter), prompts.load_prompt_format(adapter)
    base = language_model.load_base(config.model, memory.precision_to_answer(config.model), max_length)
    return base, prompts.make_prompt_format(config.prompt, base.tokenizer)


def prompt_with_context(
    prompt_format: prompts.PromptFormat,
    model: language_model.LanguageModel,
    title: str,
    hits: list[retrieval.Hit],
    max_tokens: int,
) -> tuple[str, list[retrieval.Hit]]:
    """Return the prompt with as much of the hits as fits, the best first, and the hits that are in it.

    The answer's tokens come on top of max_tokens, so a long context never cuts an answer off.
    """
    used: list[retrieval.Hit] = []
    prompt = prompt_format.prompt(title)

    def with_hits(chosen: list[retrieval.Hit]) -> str:
        return prompt_format.prompt(title, "\n".join(prompt_format.source_text(h.title, h.text) for h in chosen))

    def fits(text: str) -> bool:
        return len(prompts.prompt_ids(prompt_format, model.tokenizer, text)) <= max_tokens

    for hit in hits:
        words = hit.text.split(" ")
        # The last text that does not fit whole is cut at a word, by bisection.
        fewest, most = 0, len(words)
        if not fits(with_hits([*used, hit])):
            while fewest < most:
                middle = (fewest + most + 1) // 2
                shorter = dataclasses.replace(hit, text=" ".join(words[:middle]))
                fewest, most = (middle, most) if fits(with_hits([*used, shorter])) else (fewest, middle - 1)
            if most == 0:
                break
            hit = dataclasses.replace(hit, text=" ".join(words[:most]))
        used.append(hit)
        prompt = with_hits(used)
        if most < len(words):
            break
    return prompt, used


def main() -> None:
    """Run the stage from the command line."""
    run_stage("rag_model_retriever", __doc__, run, "compare_models", RetrieverOptions)


if __name__ == "__main__":
    main()
