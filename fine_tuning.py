"""Stage 3: fine-tune a LoRA adapter on the cleaned records.

Reads trn_processed.json. Writes trn_processed_dataset.json (what was trained on), checkpoints/, lora_model/,
training_log.jsonl and loss_curve.png. `--train.resume` goes on after an interruption.

    python fine_tuning.py --train.max-steps 60
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from config import Config, TrainConfig, ranges_of
from pipeline.data import records
from pipeline.evaluation import answers, questions
from pipeline.export import gguf
from pipeline.models import (
    adapter,
    base_checks,
    bundled,
    distributed,
    generation,
    language_model,
    loading,
    loading_errors,
    prompts,
    size,
)
from pipeline.rag import distractors, training_prompts
from pipeline.run import files, manifests
from pipeline.run.command_line import run_stage, setting_arguments
from pipeline.run.errors import UserError
from pipeline.run.run_folder import ADAPTER, LOSS_CURVE, TRAINED_RECORDS, TRAINING_LOG, RunFolder, shell_line
from pipeline.training import dataset, memory, plan, report

if TYPE_CHECKING:
    pass

TEST_QUERIES = ("printed whole", "streamed")


def run(config: Config) -> Path:
    """Train the adapter and return the path of lora_model/."""
    from pipeline.training import session

    lower_rate = command_with_lower_rate(config)
    distributed.prepare(config.train.shard_weights)
    plan.check_settings(config)
    backend = loading.prepare_backend(config.model)
    folder = RunFolder.of(config)
    data = records.open_processed(folder)
    with distributed.only_main_prints(), contextlib.ExitStack() as stack:
        metrics: dict[str, Any] = {}
        if distributed.is_main():
            outputs = [ADAPTER, TRAINED_RECORDS]
            metrics = stack.enter_context(manifests.stage_manifest(config, "fine_tuning", [data.path], outputs))
        with loading_errors.helpful_loading_errors(config.model.name):
            path = bundled.resolve(config.model.name)
            base_checks.require_layers(config.model.name, size.load_shape(path), config.lora.target_modules)
            tokenizer = loading.load_tokenizer(path)
        prompt_format = prompts.make_prompt_format(config.prompt, tokenizer)
        if distributed.is_main():
            warn_if_not_convertible(config, tokenizer, prompt_format)
        limit = size.token_limit_of(config.model.name)
        config = plan.within(limit, config, metrics)
        with data.unchanged(), prompts_with_records(config, data, tokenizer, prompt_format) as word:
            train_set, validation_set = dataset.build_datasets(config, data, tokenizer, prompt_format, metrics, word)
            asked = questions.choose_questions(data, config.questions)
        require_room_to_answer(config, limit, tokenizer, prompt_format, asked)
        chosen, batching = plan.plan_training(config, backend, train_set)
        warn_of_answers_in_another_precision(folder, chosen)
        base = load_base(config, chosen)
        chosen, batching = plan.lay_out_records(config, base, train_set, chosen, batching)
        plan.note(base, chosen, batching, metrics)
        tuned = adapter.add_adapter(base, config.lora, config.train.seed, chosen.checkpointing)
        report.print_parameters(tuned, metrics)
        probe = ask_probe(config, tuned, prompt_format, asked, "before")
        with naming_remedy(lower_rate):
            weights = session.run_training(
                config.train, folder, shared_settings(config, data, chosen), tuned, chosen, batching, train_set,
                validation_set, metrics,
            )  # fmt: skip
        if distributed.is_main():
            save_adapter(folder, tuned, prompt_format, weights)
        # The adapter is saved. Whatever happens from here on is raised when the manifest tells so.
        failure = None
        try:
            if distributed.is_main():
                draw_curve(config)
            if distributed.takes_part_in_answering():
                probe |= ask_probe(config, tuned, prompt_format, asked, "after")
                metrics.update({"probe": probe} if probe else {})
                print_test_queries(config, adapter.answer_after_training(tuned), prompt_format, asked)
        except BaseException as error:
            failure = error
        distributed.wait_for_all()
    if failure is not None:
        raise failure
    if not config.train.allow_worse:
        with naming_remedy(lower_rate):
            report.require_better(metrics)
    return folder / ADAPTER


@contextlib.contextmanager
def prompts_with_records(
    config: Config, data: records.ProcessedData, tokenizer: Any, prompt_format: prompts.PromptFormat
) -> Iterator[training_prompts.TrainingPrompts | None]:
    """Yield what words the prompts of the training, of which --train.with-records is a share; None if that is 0."""
    if not config.train.with_records:
        yield None
        return
    without_right = training_prompts.answer_without_right_record(config.train, config.rag)
    print("Indexing the words of the training split, for the records that prompts carry …\n", flush=True)
    with distractors.open_distractors(data) as found:
        yield training_prompts.TrainingPrompts(
            found.near, prompt_format, tokenizer, config.train, config.rag, without_right
        )


def command_with_lower_rate(config: Config) -> str:
    """Return the command of this training with a tenth of its learning rate."""
    rate = max(config.train.learning_rate / 10, ranges_of(TrainConfig)["learning_rate"].least)
    lower = dataclasses.replace(config.train, learning_rate=float(f"{rate:.2g}"), resume=False)
    options = setting_arguments(
        "fine_tuning", dataclasses.replace(config, train=lower), ("train.learning_rate", "model.name")
    )
    return f"{RunFolder.of(config).command('fine_tuning')} {shell_line(options)}"


@contextlib.contextmanager
def naming_remedy(lower_rate: str) -> Iterator[None]:
    """Add to the message of a learning rate that was too high the command with a lower one."""
    try:
        yield
    except report.Diverged as error:
        raise UserError(f"{error} Run `{lower_rate}`, which has a lower learning rate.") from error


def require_room_to_answer(
    config: Config,
    limit: int | None,
    tokenizer: Any,
    prompt_format: prompts.PromptFormat,
    asked: Sequence[questions.Question],
) -> None:
    """Raise a UserError if what the model is asked after the training would leave no room for an answer."""
    texts = [prompt_format.prompt(question.title) for question in asked[: len(TEST_QUERIES)]]
    if config.questions.probe is not None:
        texts.append(prompt_format.plain(config.questions.probe.replace("{title}", asked[0].title)))
    longest = max(len(prompts.prompt_ids(prompt_format, tokenizer, text)) for text in texts)
    setting = "--generation.max-new-tokens"
    generation.require_room(config.model.name, limit, longest, config.generation.max_new_tokens, setting)


def shared_settings(config: Config, data: records.ProcessedData, chosen: memory.TrainingPlan) -> dict[str, Any]:
    """Return what an interrupted run must have in common with the one that goes on, as flat names and values."""
    settings = {name: dataclasses.asdict(getattr(config, name)) for name in ("prompt", "model", "lora", "train")}
    for name in ("resume", "allow_worse", "memory_gb", "gradient_checkpointing", "passes", *dataset.OF_RECORDS):
        del settings["train"][name]
    settings["model"].update(precision=chosen.precision, compute_dtype=chosen.compute_format.name)
    flat = {f"{section}.{name}": value for section, values in settings.items() for name, value in values.items()}
    return {**flat, **dataset.settings_of_records(config), "data": data.digest}


def warn_of_answers_in_another_precision(folder: RunFolder, chosen: memory.TrainingPlan) -> None:
    """Print that stage 2 must answer again where it has answered in another precision: stage 9 compares like with like."""
    if not folder.has_run("foundation_model"):
        return
    answered_in = manifests.read_manifest(folder, "foundation_model")["metrics"].get("precision")
    if answered_in not in (None, chosen.precision):
        again = folder.command_again("foundation_model", answers.CHOSEN_BY[answers.PRECISION])
        print(
            f"Stage 2 has answered in {answered_in}, and this training is in {chosen.precision}. Run `{again}` after it.\n"
        )


def warn_if_not_convertible(config: Config, tokenizer: Any, prompt_format: prompts.PromptFormat) -> None:
    """Print that stage 5 will make no GGUF, where llama.cpp's converter can tell so before the training."""
    reason = gguf.why_not_convertible(
        bundled.resolve(config.model.name), tokenizer, prompt_format, config.gguf.converter
    )
    if reason:
        print(
            f"{config.model.name} trains, but stage 5 will make no GGUF of it, by what llama.cpp's converter says: {reason}\n"
        )


def load_base(config: Config, chosen: memory.TrainingPlan) -> language_model.LanguageModel:
    """Load the base model as planned, and tell what the training runs on."""
    base = loading.load_base(config.model, chosen.precision, config.train.max_length, chosen.compute_format)
    report.print_environment(base)
    return base


def ask_probe(
    config: Config,
    tuned: language_model.LanguageModel,
    prompt_format: prompts.PromptFormat,
    asked: Sequence[questions.Question],
    when: str,
) -> dict[str, str]:
    """Ask the question of --questions.probe about the first title, and print the answer.

    Returns:
        the question, and the answer under the name of when it was asked; nothing if it was not asked.
    """
    if config.questions.probe is None or not distributed.takes_part_in_answering():
        return {}
    if when == "before" and distributed.shards_weights():
        print("The probe question is asked after the training alone: before it, no GPU has any weights.\n")
        return {}
    question = config.questions.probe.replace("{title}", asked[0].title)
    language_model.set_training(tuned, False)
    answer = "".join(pieces_of_answer(config, tuned, prompt_format, prompt_format.plain(question))).strip()
    language_model.set_training(tuned, True)
    print(f"Probe question, {when} the training: {question}\n{answer}\n", flush=True)
    return {"question": question, when: answer}


def pieces_of_answer(
    config: Config, tuned: language_model.LanguageModel, prompt_format: prompts.PromptFormat, prompt: str
) -> Iterator[str]:
    """Return the pieces of an answer as they are written."""
    return generation.stream(tuned, prompt_format, prompt, config.generation)


def save_adapter(
    folder: RunFolder,
    tuned: language_model.LanguageModel,
    prompt_format: prompts.PromptFormat,
    weights: dict[str, Any] | None,
) -> None:
    """Write lora_model/: the adapter, whose weights may have been gathered, the tokenizer and the prompt format."""
    for settings in tuned.peft_model.peft_config.values():
        if isinstance(settings.target_modules, set):  # whose order is another in each process
            settings.target_modules = sorted(settings.target_modules)
    with files.atomic_path(folder / ADAPTER) as temporary:
        tuned.peft_model.save_pretrained(temporary, state_dict=weights)
        tuned.tokenizer.save_pretrained(temporary)
        prompt_format.save(temporary)
        # The manifest tells which base model an adapter belongs to.
        manifests.withdraw_manifest(folder, "fine_tuning")


def draw_curve(config: Config) -> None:
    """Write loss_curve.png."""
    from pipeline.training.log import draw_loss_curve

    log = config.run_dir / TRAINING_LOG
    with files.atomic_path(config.run_dir / LOSS_CURVE) as picture:
        draw_loss_curve(log, picture, f"{config.model.name}, {config.name}")


def print_test_queries(
    config: Config,
    tuned: language_model.LanguageModel,
    prompt_format: prompts.PromptFormat,
    asked: Sequence[questions.Question],
) -> None:
    """Ask the trained model twice: one answer printed whole, one as it is written."""
    title_label, content_label = prompt_format.title_label, prompt_format.content_label
    for number, how in enumerate(TEST_QUERIES):
        title = asked[number % len(asked)].title
        pieces = pieces_of_answer(config, tuned, prompt_format, prompt_format.prompt(title))
        print(f"\nTest query, {how}\n{title_label}: {title}\n{content_label}: ", end="", flush=True)
        for piece in ["".join(pieces).strip()] if how == "printed whole" else pieces:
            print(piece, end="", flush=True)
        print()


def main() -> None:
    """Run the stage from the command line."""
    run_stage("fine_tuning", __doc__, run)


if __name__ == "__main__":
    main()
