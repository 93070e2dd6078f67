"""Stage 8: answer with retrieved records at hand (RAG).

Reads chroma/ and a language model: the base model, or with --rag.answer-with finetuned the adapter of stage 3. Asks the
same titles as stages 2 and 4. Writes rag_answers.json. --title asks a title of your own.

    python rag_model_retriever.py --title "Wooden train set"
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from config import Config
from pipeline import artifacts, generation, language_model, prompts, questions, records, vector_store
from pipeline.command_line import run_stage
from pipeline.trained_models import check_base


@dataclass(frozen=True)
class RetrieverOptions:
    """Options of this stage alone."""

    title: str | None = None
    """Ask this title and write nothing."""


def run(config: Config, options: RetrieverOptions) -> Path | None:
    """Answer with retrieval; return the path of rag_answers.json, or None if only the user's title was asked."""
    folder = artifacts.require(config.run_dir / "chroma", "rag_indexing", config.preset)
    data = records.open_processed(config.run_dir, config.preset)
    if options.title is not None:
        answer_titles(config, folder, [questions.Question(data.clean(options.title), "", "")])
        return None
    settings = {name: getattr(config, name) for name in ("prompt", "model", "answers", "questions", "rag")}
    with artifacts.stage_manifest(config.run_dir, "rag_model_retriever", settings, [data.path]) as metrics:
        asked = questions.choose_questions(data, config.questions)
        name, entries = answer_titles(config, folder, asked)
        metrics.update(model=name, answers=len(entries))
        return questions.save_answers(config.run_dir / "rag_answers.json", name, config.answers, entries)


def answer_titles(config: Config, folder: Path, asked: list[questions.Question]) -> tuple[str, list[dict]]:
    """Retrieve, answer and print; return the name of the model and the entries of the answers file."""
    store = vector_store.open_store(folder, config.rag, vector_store.load_embeddings(config.rag))
    model, prompt_format = load_language_model(config)
    texts, sources = [], []
    for question in asked:
        hits = vector_store.search(store, question.title, config.rag.k)
        prompt, used = prompt_with_context(prompt_format, model, question.title, hits, config.rag.max_context_tokens)
        texts.append(prompt)
        sources.append([dataclasses.asdict(hit) for hit in used])
    entries = questions.ask(
        asked,
        lambda advance: generation.generate(model, prompt_format, texts, config.answers, advance),
        prompt_format,
        sources,
    )
    return f"{model.name} + retrieval", entries


def load_language_model(config: Config) -> tuple[language_model.LanguageModel, prompts.PromptFormat]:
    """Load the model that answers, with the prompt format that belongs to it."""
    if config.rag.answer_with == "finetuned":
        adapter = artifacts.require(config.run_dir / "lora_model", "fine_tuning", config.preset)
        check_base(config.run_dir, config.model.name)
        prompt_format = prompts.load_prompt_format(adapter)
        return language_model.load_adapter(language_model.load_base(config.model), adapter), prompt_format
    base = language_model.load_base(config.model)
    return base, prompts.make_prompt_format(config.prompt, base.tokenizer)


def prompt_with_context(
    prompt_format: prompts.PromptFormat,
    model: language_model.LanguageModel,
    title: str,
    hits: list[vector_store.Hit],
    max_tokens: int,
) -> tuple[str, list[vector_store.Hit]]:
    """Return the prompt with as much of the hits as fits, the best first, and the hits that are in it.

    The answer's tokens come on top of max_tokens, so a long context never cuts an answer off.
    """
    used: list[vector_store.Hit] = []
    prompt = prompt_format.prompt(title)

    def with_hits(chosen: list[vector_store.Hit]) -> str:
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
    run_stage("rag_model_retriever", __doc__, run, "python compare_models.py", RetrieverOptions)


if __name__ == "__main__":
    main()
