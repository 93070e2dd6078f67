"""Stage 3: fine-tune a LoRA adapter on the cleaned records.

Reads trn_processed.json. Writes trn_processed_dataset.json (what was trained on), checkpoints/, lora_model/,
training_log.jsonl and loss_curve.png. `--train.resume` goes on after an interruption.

    python fine_tuning.py --train.max-steps 60
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import random
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from config import Config, TrainConfig
from pipeline import (
    artifacts,
    bundled_models,
    checkpoints,
    generation,
    language_model,
    memory,
    prompts,
    questions,
    records,
    training_report,
)  # fmt: skip
from pipeline.command_line import run_stage

if TYPE_CHECKING:
    from pipeline.batching import Batching


def run(config: Config) -> Path:
    """Train the adapter and return the path of lora_model/."""
    check_optimizer(config.train)
    backend = language_model.prepare_backend(config.model)
    import torch

    from pipeline.attention import end_to_end_attention
    from pipeline.trainer import make_trainer, sft_arguments
    from pipeline.training_log import TrainingLog, start_log

    data = records.open_processed(config.run_dir)
    log = config.run_dir / "training_log.jsonl"
    settings = {name: getattr(config, name) for name in ("prompt", "model", "lora", "train", "generation", "questions")}
    with artifacts.stage_manifest(config.run_dir, "fine_tuning", settings, [data.path]) as metrics:
        with language_model.helpful_loading_errors(config.model.name):
            tokenizer = language_model.load_tokenizer(bundled_models.resolve(config.model.name))
        prompt_format = prompts.make_prompt_format(config.prompt, tokenizer)
        train_set, validation_set = build_datasets(config, data, tokenizer, prompt_format, metrics)
        plan, batching = plan_training(config, backend, train_set)
        base = load_base(config, plan, metrics)
        tuned = language_model.add_adapter(base, config.lora, config.train.seed, plan.checkpointing)
        training_report.print_parameters(tuned, metrics)
        # Only now: a model that cannot be loaded must not cost the checkpoints of the run before.
        folder = config.run_dir / "checkpoints"
        checkpoint = checkpoints.prepare(folder, resume_settings(config, data), config.train.resume)
        start_log(log, checkpoints.step_of(checkpoint) if checkpoint else None)
        arguments = sft_arguments(
            config.train, folder, plan.passes, plan.checkpointing, len(validation_set) > 0, base.model.dtype
        )
        trainer = make_trainer(tuned, arguments, batching, train_set, validation_set, [TrainingLog(log)])
        with end_to_end_attention(tuned.model) if backend == "transformers" else contextlib.nullcontext():
            metrics.update(train(trainer, log, checkpoint))
        training_report.print_statistics(metrics)
        draw_curve(config, log)
        folder = save_adapter(config, tuned, prompt_format)
        with torch.no_grad():
            test_queries(config, data, tuned, prompt_format)
    return folder


def check_optimizer(train: TrainConfig) -> None:
    """Raise a UserError for an optimizer that this machine cannot run."""
    if train.optimizer != "adamw_torch" and language_model.best_device() != "cuda":
        raise artifacts.UserError(
            f"--train.optimizer {train.optimizer} needs an NVIDIA GPU with CUDA. Use --train.optimizer adamw_torch."
        )


def resume_settings(config: Config, data: records.ProcessedData) -> dict[str, Any]:
    """Return what an interrupted run must have in common with the one that goes on."""
    settings = {name: dataclasses.asdict(getattr(config, name)) for name in ("prompt", "model", "lora", "train")}
    del settings["train"]["resume"]
    flat = {f"{section}.{name}": value for section, values in settings.items() for name, value in values.items()}
    return {**flat, "data": artifacts.file_hash(data.path)}


def build_datasets(
    config: Config,
    data: records.ProcessedData,
    tokenizer: Any,
    prompt_format: prompts.PromptFormat,
    metrics: dict[str, Any],
) -> tuple[Any, Any]:
    """Draw and tokenize training and validation records; write the training records to trn_processed_dataset.json."""
    import msgspec

    train = config.train
    drawn = data.sample("train", train.records_wanted, train.seed)
    validation = data.sample("validation", train.validation_size, train.seed)
    if not drawn:
        raise artifacts.UserError(f"No record of {data.path} is in the training split. Bring more data.")
    if train.batching == "packed" and train.max_steps is not None:
        drawn = enough_records(drawn, train, tokenizer, prompt_format)
    with records.array_writer(config.run_dir / "trn_processed_dataset.json") as write:
        for title, content in drawn:
            write(msgspec.json.encode({"instruction": prompt_format.instruction, "input": title, "output": content}))

    print("Dataset (trn_processed_dataset.json holds the training records):")
    train_set = tokenize(drawn, "training", tokenizer, prompt_format, train, metrics)
    validation_set = tokenize(validation, "validation", tokenizer, prompt_format, train, metrics)
    if len(train_set) == 0:
        raise artifacts.UserError("Every prompt fills --train.max-length. Raise it.")
    first = drawn[0]
    print(f"  instruction: {prompt_format.instruction}\n  input: {first[0]}\n  output: {first[1][:300]}\n")
    return train_set, validation_set


def enough_records(
    drawn: list[tuple[str, str]], train: TrainConfig, tokenizer: Any, prompt_format: prompts.PromptFormat
) -> list[tuple[str, str]]:
    """Return as many of the records, at random, as the steps of a packed training can hold."""
    drawn = random.Random(train.seed).sample(drawn, len(drawn))
    room = train.max_steps * train.tokens_per_step
    for count, (title, content) in enumerate(drawn):
        if room <= 0:
            return drawn[:count]
        example = prompts.training_example(prompt_format, tokenizer, title, content, train.max_length)
        room -= len(example.input_ids) if example else 0
    return drawn


def tokenize(
    pairs: list[tuple[str, str]], name: str, tokenizer: Any, prompt_format: prompts.PromptFormat,
    train: TrainConfig, metrics: dict[str, Any],
) -> Any:  # fmt: skip
    """Return the dataset of tokenized (title, content) pairs; print and note what was cut and what was dropped."""
    from datasets import Dataset

    examples = [
        prompts.training_example(prompt_format, tokenizer, title, content, train.max_length, train.loss_on)
        for title, content in pairs
    ]
    kept = [example for example in examples if example is not None]
    cut, dropped = sum(example.cut for example in kept), len(examples) - len(kept)
    tokens = sum(len(example.input_ids) for example in kept)
    print(f"  {name:<11}{len(kept):>8,} records {tokens:>11,} tokens; {cut:,} answers cut at "
          f"{train.max_length} tokens, {dropped:,} dropped because the prompt fills them")  # fmt: skip
    metrics[f"{name}_records"], metrics[f"{name}_tokens"] = len(kept), tokens
    metrics[f"{name}_cut"], metrics[f"{name}_dropped"] = cut, dropped
    columns = {"input_ids": [e.input_ids for e in kept], "labels": [e.labels for e in kept]}
    return Dataset.from_dict(columns)


def plan_training(
    config: Config, backend: language_model.Backend, train_set: Any
) -> tuple[memory.TrainingPlan, Batching]:
    """Fit the training into memory; return how it is done, and how the records are divided into forward passes."""
    from pipeline.batching import Batching, token_counts

    train, devices, lengths = config.train, memory.device_count(), token_counts(train_set)

    def batching(passes: int) -> Batching:
        packed = train.tokens_per_step if train.batching == "packed" else None
        return Batching(passes, train.seed, train.records_per_step, packed)

    size = memory.model_size(config.model, config.lora)
    epochs = math.ceil(train.max_steps * train.records_per_step / len(lengths) if train.max_steps else train.epochs)
    plan = memory.plan_training(
        size, config.model, train, backend, devices, lambda passes: batching(passes).most_tokens(lengths, epochs)
    )
    print(f"{plan}\n", flush=True)
    return plan, batching(plan.passes * devices)


def load_base(config: Config, plan: memory.TrainingPlan, metrics: dict[str, Any]) -> language_model.LanguageModel:
    """Load the base model as planned, and tell what the training runs on."""
    base = language_model.load_base(
        config.model, plan.precision, max(plan.tokens, config.train.max_length), training=True
    )
    metrics.update(backend=base.backend, device=base.device, precision=plan.precision)
    metrics.update(checkpointing=plan.checkpointing, passes=plan.passes, tokens_of_largest_pass=plan.tokens)
    metrics["memory_estimate_gib"] = round(plan.estimate.total / memory.GIB, 2)
    training_report.print_environment(base)
    return base


def train(trainer: Any, log: Path, checkpoint: Path | None) -> dict[str, Any]:
    """Evaluate, train, evaluate, and return the figures of the run."""
    from pipeline.training_log import validation_losses

    has_validation = trainer.eval_dataset is not None
    if has_validation and checkpoint is None:
        print("Measuring the validation loss before training …", flush=True)
        before = trainer.evaluate()["eval_loss"]
        print(f"step 0: validation loss {before:.4f}, perplexity {math.exp(min(before, 100)):.2f}")
    first_step, first_epoch, first_tokens = 0, 0, 0
    if checkpoint is not None:
        state = artifacts.read_json(checkpoint / "trainer_state.json")
        first_step, first_epoch, first_tokens = state["global_step"], state["epoch"], state["num_input_tokens_seen"]
    started = time.perf_counter()
    result = trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    seconds = time.perf_counter() - started
    state = trainer.state
    session = [line for line in state.log_history if line["step"] > first_step]
    training_seconds = seconds - sum(line.get("eval_runtime", 0) for line in session)
    if has_validation and state.global_step not in validation_losses(log):
        trainer.evaluate()
    losses = validation_losses(log)
    steps = state.global_step - first_step
    samples = (state.epoch - first_epoch) * len(trainer.train_dataset)
    figures: dict[str, Any] = {
        "steps": state.global_step,
        "epochs": round(state.epoch, 3),
        "seconds": round(seconds, 1),
        "samples_per_second": round(samples / training_seconds, 3),
        "tokens_per_second": round((state.num_input_tokens_seen - first_tokens) / training_seconds, 1),
        "final_training_loss": next((line["loss"] for line in reversed(state.log_history) if "loss" in line), math.nan),
        # transformers divides the losses of this session by the steps of all sessions.
        "mean_training_loss": round(result.training_loss * state.global_step / max(steps, 1), 4),
        "peak_memory_gib": round(training_report.peak_memory_gib(), 2),
    }
    if losses:
        first, last = losses[min(losses)], losses[max(losses)]
        figures |= {"validation_loss_before": first, "validation_loss_after": last}
        figures |= {"perplexity_before": math.exp(min(first, 100)), "perplexity_after": math.exp(min(last, 100))}
    return figures


def save_adapter(config: Config, tuned: language_model.LanguageModel, prompt_format: prompts.PromptFormat) -> Path:
    """Write lora_model/: the adapter, the tokenizer and the prompt format."""
    folder = config.run_dir / "lora_model"
    with artifacts.atomic_path(folder) as temporary:
        tuned.model.save_pretrained(temporary)
        tuned.tokenizer.save_pretrained(temporary)
        prompt_format.save(temporary)
    return folder


def draw_curve(config: Config, log: Path) -> None:
    """Write loss_curve.png."""
    from pipeline.training_log import draw_loss_curve

    with artifacts.atomic_path(config.run_dir / "loss_curve.png") as picture:
        draw_loss_curve(log, picture, f"{config.model.name}, preset {config.preset}")


def test_queries(
    config: Config,
    data: records.ProcessedData,
    tuned: language_model.LanguageModel,
    prompt_format: prompts.PromptFormat,
) -> None:
    """Ask the trained model twice: one answer printed whole, one as it is written."""
    asked = questions.choose_questions(data, config.questions)
    tuned = language_model.for_inference(tuned)
    whole, streamed = asked[0], asked[1 % len(asked)]
    answer = generation.generate(tuned, prompt_format, [prompt_format.prompt(whole.title)], config.generation)[0]
    print(f"\nTest query, printed whole\n{prompt_format.title_label}: {whole.title}")
    print(f"{prompt_format.content_label}: {answer.text}")
    print(f"\nTest query, streamed\n{prompt_format.title_label}: {streamed.title}")
    print(f"{prompt_format.content_label}: ", end="")
    for piece in generation.stream(tuned, prompt_format, prompt_format.prompt(streamed.title), config.generation):
        print(piece, end="", flush=True)
    print()


def main() -> None:
    """Run the stage from the command line."""
    run_stage("fine_tuning", __doc__, run, "ft_test_trained_model")


if __name__ == "__main__":
    main()
