"""Stage 3: fine-tune a LoRA adapter on the cleaned records.

Reads trn_processed.json. Writes trn_processed_dataset.json (what was trained on), checkpoints/, lora_model/,
training_log.jsonl and loss_curve.png. `--train.resume` goes on after an interruption.

    python fine_tuning.py --train.max-steps 60
"""

from __future__ import annotations

import dataclasses
import math
import time
from pathlib import Path
from typing import Any

from config import Config, TrainConfig
from pipeline import artifacts, checkpoints, generation, language_model, prompts, questions, records, training_report
from pipeline.command_line import run_stage


def run(config: Config) -> Path:
    """Train the adapter and return the path of lora_model/."""
    import torch

    data = records.open_processed(config.run_dir)
    log = config.run_dir / "training_log.jsonl"
    settings = {name: getattr(config, name) for name in ("prompt", "model", "lora", "train", "generation", "questions")}
    check_optimizer(config.train)
    with artifacts.stage_manifest(config.run_dir, "fine_tuning", settings, [data.path]) as metrics:
        max_length = config.train.max_length + config.generation.max_new_tokens
        base = language_model.load_base(config.model, max_length, training=True)
        metrics.update(backend=base.backend, device=base.device)
        training_report.print_environment(base)
        prompt_format = prompts.make_prompt_format(config.prompt, base.tokenizer)
        train_set, validation_set = build_datasets(config, data, base, prompt_format, metrics)
        tuned = language_model.add_adapter(base, config.lora, config.train.seed, config.train.gradient_checkpointing)
        training_report.print_parameters(tuned, metrics)
        # Only now: a model that cannot be loaded must not cost the checkpoints of the run before.
        folder = config.run_dir / "checkpoints"
        checkpoint = checkpoints.prepare(folder, resume_settings(config, data), config.train.resume)
        trainer = make_trainer(config, tuned, train_set, validation_set, log, checkpoint)
        has_validation = len(validation_set) > 0
        metrics.update(train(trainer, config.train.records_per_step, log, checkpoint, has_validation))
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
    base: language_model.LanguageModel,
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
    with records.array_writer(config.run_dir / "trn_processed_dataset.json") as write:
        for title, content in drawn:
            write(msgspec.json.encode({"instruction": prompt_format.instruction, "input": title, "output": content}))

    print("Dataset (trn_processed_dataset.json holds the training records):")
    train_set = tokenize(drawn, "training", base, prompt_format, train, metrics)
    validation_set = tokenize(validation, "validation", base, prompt_format, train, metrics)
    if len(train_set) == 0:
        raise artifacts.UserError("Every prompt fills --train.max-length. Raise it.")
    first = drawn[0]
    print(f"  instruction: {prompt_format.instruction}\n  input: {first[0]}\n  output: {first[1][:300]}\n")
    return train_set, validation_set


def tokenize(
    pairs: list[tuple[str, str]], name: str, base: language_model.LanguageModel, prompt_format: prompts.PromptFormat,
    train: TrainConfig, metrics: dict[str, Any],
) -> Any:  # fmt: skip
    """Return the dataset of tokenized (title, content) pairs; print and note what was cut and what was dropped."""
    from datasets import Dataset

    examples = [
        prompts.training_example(prompt_format, base.tokenizer, title, content, train.max_length, train.loss_on)
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


def make_trainer(
    config: Config, tuned: language_model.LanguageModel, train_set: Any, validation_set: Any, log: Path,
    checkpoint: Path | None,
) -> Any:  # fmt: skip
    """Return TRL's SFTTrainer over the tokenized records."""
    import transformers
    from transformers.trainer_callback import PrinterCallback
    from trl import SFTTrainer

    from pipeline.batching import LengthGroupedSampler
    from pipeline.training_log import TrainingLog, start_log

    lengths = [len(ids) for ids in train_set["input_ids"]]
    sampler = LengthGroupedSampler(lengths, config.train.records_per_step, config.train.seed)

    class LengthGroupedTrainer(SFTTrainer):
        def _get_train_sampler(self, train_dataset: Any = None) -> LengthGroupedSampler:
            return sampler

    start_log(log, checkpoints.step_of(checkpoint) if checkpoint else None)
    transformers.set_seed(config.train.seed)
    trainer = LengthGroupedTrainer(
        model=tuned.model,
        args=sft_arguments(
            config.train,
            config.run_dir / "checkpoints",
            has_validation=len(validation_set) > 0,
            dtype=tuned.model.dtype,
        ),
        train_dataset=train_set,
        eval_dataset=validation_set if len(validation_set) else None,
        processing_class=tuned.tokenizer,
        callbacks=[TrainingLog(log)],
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def sft_arguments(train: TrainConfig, folder: Path, has_validation: bool, dtype: Any) -> Any:
    """Return TRL's form of the training settings. The records come tokenized, with their labels."""
    import torch
    from trl import SFTConfig

    evaluates = train.eval_steps is not None and has_validation
    return SFTConfig(
        output_dir=str(folder),
        per_device_train_batch_size=train.batch_size,
        per_device_eval_batch_size=train.batch_size,
        gradient_accumulation_steps=train.gradient_accumulation_steps,
        num_train_epochs=train.epochs,
        max_steps=train.max_steps or -1,
        learning_rate=train.learning_rate,
        lr_scheduler_type=train.scheduler,
        warmup_steps=train.warmup_steps,
        weight_decay=train.weight_decay,
        optim=train.optimizer,
        max_grad_norm=train.max_grad_norm,
        gradient_checkpointing=train.gradient_checkpointing,
        gradient_checkpointing_kwargs={"use_reentrant": False},
        bf16=torch.cuda.is_available() and dtype == torch.bfloat16,
        fp16=torch.cuda.is_available() and dtype == torch.float16,
        seed=train.seed,
        logging_steps=train.logging_steps,
        logging_first_step=True,
        eval_strategy="steps" if evaluates else "no",
        eval_steps=train.eval_steps if evaluates else None,
        save_steps=train.save_steps,
        save_total_limit=2,
        include_num_input_tokens_seen="non_padding",
        max_length=None,
        dataset_kwargs={"skip_prepare_dataset": True},
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=torch.cuda.is_available(),
    )


def train(
    trainer: Any, records_per_step: int, log: Path, checkpoint: Path | None, has_validation: bool
) -> dict[str, Any]:
    """Evaluate, train, evaluate, and return the figures of the run."""
    from pipeline.training_log import validation_losses

    if has_validation and checkpoint is None:
        print("Measuring the validation loss before training …", flush=True)
        before = trainer.evaluate()["eval_loss"]
        print(f"step 0: validation loss {before:.4f}, perplexity {math.exp(min(before, 100)):.2f}")
    first_step, first_tokens = 0, 0
    if checkpoint is not None:
        state = artifacts.read_json(checkpoint / "trainer_state.json")
        first_step, first_tokens = state["global_step"], state["num_input_tokens_seen"]
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
    samples = min(steps * records_per_step, state.num_train_epochs * len(trainer.train_dataset))
    figures: dict[str, Any] = {
        "steps": state.global_step,
        "epochs": round(state.epoch or 0, 3),
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
