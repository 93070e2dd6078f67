"""Stage 3: fine-tune a LoRA adapter on the cleaned records.

Reads trn_processed.json. Writes trn_processed_dataset.json (what was trained on), checkpoints/, lora_model/,
training_log.jsonl and loss_curve.png. `--train.resume` goes on after an interruption.

    python fine_tuning.py --train.max-steps 60
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import pickle
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from config import Config, TrainConfig
from pipeline import (
    artifacts,
    bundled_models,
    checkpoints,
    devices,
    generation,
    language_model,
    manifests,
    memory,
    processes,
    prompts,
    questions,
    records,
    training_data,
    training_report,
    training_time,
)
from pipeline.command_line import run_stage

if TYPE_CHECKING:
    from pipeline.batching import Batching


def run(config: Config) -> Path:
    """Train the adapter and return the path of lora_model/."""
    processes.start(config.train.shard_weights)
    check_optimizer(config.train)
    backend = language_model.prepare_backend(config.model)
    form = training_format(config)
    data = records.open_processed(config.run_dir)
    settings = {name: getattr(config, name) for name in ("prompt", "model", "lora", "train", "generation", "questions")}
    with processes.one_speaks(), contextlib.ExitStack() as stack:
        metrics: dict[str, Any] = {}
        if processes.is_main():
            metrics = stack.enter_context(
                manifests.stage_manifest(
                    config.run_dir, "fine_tuning", settings, [data.path], ["lora_model", "trn_processed_dataset.json"]
                )
            )
        with language_model.helpful_loading_errors(config.model.name):
            tokenizer = language_model.load_tokenizer(bundled_models.resolve(config.model.name))
        prompt_format = prompts.make_prompt_format(config.prompt, tokenizer)
        with data.unchanged():
            train_set, validation_set = training_data.build_datasets(config, data, tokenizer, prompt_format, metrics)
            asked = questions.choose_questions(data, config.questions)
        plan, batching = plan_training(config, backend, form, train_set)
        base = load_base(config, plan, metrics)
        tuned = language_model.add_adapter(base, config.lora, config.train.seed, plan.checkpointing)
        training_report.print_parameters(tuned, metrics)
        question = probe_question(config, asked)
        if question is not None and processes.shards_weights():
            print("The probe question is asked after the training alone: before it, no GPU has any weights.\n")
            probe = {}
        else:
            probe = ask_probe(config, tuned, prompt_format, question, "before")
        adapter = train(config, data, tuned, plan, batching, train_set, validation_set, metrics)
        if processes.is_main():
            save_adapter(config, tuned, prompt_format, adapter)
            draw_curve(config)
        if processes.answers():
            probe |= ask_probe(config, tuned, prompt_format, question, "after")
            metrics.update({"probe": probe} if probe else {})
            tuned = language_model.answer_after_training(tuned, config.model, plan.precision)
            test_queries(config, asked, tuned, prompt_format)
        processes.wait_for_all()
    return config.run_dir / "lora_model"


def check_optimizer(train: TrainConfig) -> None:
    """Raise a UserError for an optimizer that this machine cannot run."""
    if train.optimizer != "adamw_torch" and train.shard_weights:
        raise artifacts.UserError("--train.shard-weights needs --train.optimizer adamw_torch.")
    if train.optimizer != "adamw_torch" and devices.best_device() != "cuda":
        raise artifacts.UserError(
            f"--train.optimizer {train.optimizer} needs an NVIDIA GPU with CUDA. Use --train.optimizer adamw_torch."
        )


def resume_settings(config: Config, data: records.ProcessedData, plan: memory.TrainingPlan) -> dict[str, Any]:
    """Return what an interrupted run must have in common with the one that goes on."""
    settings = {name: dataclasses.asdict(getattr(config, name)) for name in ("prompt", "model", "lora", "train")}
    for name in ("resume", "memory_gb", "gradient_checkpointing", "passes"):
        del settings["train"][name]
    settings["model"].update(precision=plan.precision, compute_dtype=plan.compute_format.name)
    flat = {f"{section}.{name}": value for section, values in settings.items() for name, value in values.items()}
    return {**flat, "data": data.digest}


def probe_question(config: Config, asked: Sequence[questions.Question]) -> str | None:
    """Return the question of --questions.probe about the first title, for the processes that answer it."""
    if config.questions.probe is None or not processes.answers():
        return None
    return config.questions.probe.replace("{title}", asked[0].title)


def ask_probe(
    config: Config,
    tuned: language_model.LanguageModel,
    prompt_format: prompts.PromptFormat,
    question: str | None,
    when: str,
) -> dict[str, str]:
    """Ask the probe question, print and return it with the answer, under the name of when it was asked."""
    if question is None:
        return {}
    language_model.set_training(tuned, False)
    answer = generation.generate(tuned, prompt_format, [prompt_format.plain(question)], config.generation)[0].text
    language_model.set_training(tuned, True)
    print(f"Probe question, {when} the training: {question}\n{answer}\n", flush=True)
    return {"question": question, when: answer}


def training_format(config: Config) -> devices.ComputeFormat:
    """Return the number format to train in, that of the interrupted run if one goes on.

    Raises:
        UserError: it is float16, in which small gradients vanish unless they are scaled, and there is no GPU that does so.
    """
    form = devices.compute_format("training", config.model.compute_dtype)
    if config.train.resume and config.model.compute_dtype == "auto":
        before = checkpoints.recorded(config.run_dir / "checkpoints", "model.compute_dtype")
        form = form if before in ("auto", form.name) else devices.ComputeFormat(before, "as the run that goes on")
    if form.name == "float16" and devices.best_device() != "cuda":
        raise artifacts.UserError(
            "A training in float16 needs an NVIDIA GPU with CUDA. Give --model.compute-dtype float32."
        )
    return processes.agreed(form)


def plan_training(
    config: Config, backend: language_model.Backend, form: devices.ComputeFormat, train_set: Any
) -> tuple[memory.TrainingPlan, Batching]:
    """Fit the training into memory; return how it is done, and how the records are divided into forward passes."""
    from pipeline.batching import Batching, token_counts

    train, count, lengths = config.train, processes.device_count(), token_counts(train_set)

    def batching(passes: int) -> Batching:
        packed = train.tokens_per_step if train.batching == "packed" else None
        return Batching(passes, train.seed, train.records_per_step, packed)

    size = memory.model_size(config.model, config.lora)
    if train.batching == "packed":
        epochs = 1  # all have the same steps
    else:
        epochs = math.ceil(train.max_steps * train.records_per_step / len(lengths) if train.max_steps else train.epochs)
    model = config.model
    if train.resume and model.precision == "auto":
        model = dataclasses.replace(
            model, precision=checkpoints.recorded(config.run_dir / "checkpoints", "model.precision")
        )
    plan = memory.plan_training(
        size, model, train, backend, form, count, processes.least_free_memory(),
        lambda passes: batching(passes).most_tokens(lengths, epochs),
    )  # fmt: skip
    print(f"{plan}\n", flush=True)
    if not train.resume:
        training_time.tell_if_long(size, plan, train, lengths, devices.machine(devices.best_device()), count)
    return plan, batching(plan.passes * count)


def load_base(config: Config, plan: memory.TrainingPlan, metrics: dict[str, Any]) -> language_model.LanguageModel:
    """Load the base model as planned, and tell what the training runs on."""
    base = language_model.load_base(config.model, plan.precision, config.train.max_length, plan.compute_format)
    metrics.update(**base.runs_on, precision=plan.precision)
    metrics.update(checkpointing=plan.checkpointing, passes=plan.passes, tokens_of_largest_pass=plan.tokens)
    metrics["memory_estimate_gib"] = round(plan.estimate.total / memory.GIB, 2)
    training_report.print_environment(base)
    return base


def train(
    config: Config,
    data: records.ProcessedData,
    tuned: language_model.LanguageModel,
    plan: memory.TrainingPlan,
    batching: Batching,
    train_set: Any,
    validation_set: Any,
    metrics: dict[str, Any],
) -> dict[str, Any] | None:
    """Evaluate, train, evaluate; print the figures of the run and note them in `metrics`.

    Returns:
        the weights of the adapter if the devices had a part of them each, else None.
    """
    from pipeline.attention import end_to_end_attention
    from pipeline.trainer import gathered_adapter, make_trainer, sft_arguments
    from pipeline.training_log import start_log
    from pipeline.training_progress import TrainingLog

    folder, log = config.run_dir / "checkpoints", config.run_dir / "training_log.jsonl"
    # Only now: a model that cannot be loaded must not cost the checkpoints of the run before.
    settings = resume_settings(config, data, plan)
    checkpoint = checkpoints.find(folder, settings) if config.train.resume else None
    processes.wait_for_all()
    if processes.is_main():
        if checkpoint is None:
            checkpoints.start(folder, settings)
        start_log(log, checkpoints.step_of(checkpoint) if checkpoint else None)
    arguments = sft_arguments(
        config.train, folder, plan.passes, plan.checkpointing, len(validation_set) > 0, checkpoint is not None,
        tuned.model.dtype,
    )  # fmt: skip
    callbacks = [TrainingLog(log)] if processes.is_main() else []
    trainer = make_trainer(tuned, arguments, batching, train_set, validation_set, callbacks)
    with end_to_end_attention(tuned.model) if tuned.backend == "transformers" else contextlib.nullcontext():
        figures = run_trainer(trainer, checkpoint)
    if processes.is_main():
        metrics.update(figures, **validation_figures(log))
        training_report.print_statistics(metrics)
    return gathered_adapter(trainer)


def run_trainer(trainer: Any, checkpoint: Path | None) -> dict[str, Any]:
    """Evaluate, train, evaluate, and return the figures of the training."""
    if trainer.args.eval_on_start:
        print("Measuring the validation loss before training …", flush=True)
    first_step, first_epoch, first_tokens = 0, 0, 0
    if checkpoint is not None:
        state = artifacts.read_json(checkpoint / "trainer_state.json")
        first_step, first_epoch, first_tokens = state["global_step"], state["epoch"], state["num_input_tokens_seen"]
    started = time.perf_counter()
    try:
        result = trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    except pickle.UnpicklingError as error:  # torch reads numbers alone from it, and no code
        raise artifacts.UserError(f"{checkpoint} is damaged. {checkpoints.START_ANEW}") from error
    state = trainer.state
    session = [line for line in state.log_history if line["step"] > first_step or checkpoint is None]
    seconds = time.perf_counter() - started - sum(line.get("eval_runtime", 0) for line in session)
    if trainer.eval_dataset is not None and not any(
        "eval_loss" in line for line in state.log_history if line["step"] == state.global_step
    ):
        trainer.evaluate()
    steps = state.global_step - first_step
    samples = (state.epoch - first_epoch) * len(trainer.train_dataset)
    return {
        "steps": state.global_step,
        "epochs": round(state.epoch, 3),
        "seconds": round(seconds, 1),
        "samples_per_second": round(samples / seconds, 3),
        "tokens_per_second": round((state.num_input_tokens_seen - first_tokens) / seconds, 1),
        "final_training_loss": next((line["loss"] for line in reversed(state.log_history) if "loss" in line), math.nan),
        # transformers divides the losses of this session by the steps of all sessions.
        "mean_training_loss": round(result.training_loss * state.global_step / max(steps, 1), 4),
        "peak_memory_gib": round(training_report.peak_memory_gib(), 2),
    }


def validation_figures(log: Path) -> dict[str, float]:
    """Return the first and the last validation loss in a training log, and the perplexities that they stand for."""
    from pipeline.training_log import validation_losses

    losses = validation_losses(log)
    if not losses:
        return {}
    first, last = losses[min(losses)], losses[max(losses)]
    return {
        "validation_loss_before": first,
        "validation_loss_after": last,
        "perplexity_before": math.exp(min(first, 100)),
        "perplexity_after": math.exp(min(last, 100)),
    }


def save_adapter(
    config: Config,
    tuned: language_model.LanguageModel,
    prompt_format: prompts.PromptFormat,
    adapter: dict[str, Any] | None,
) -> None:
    """Write lora_model/: the adapter, whose weights may have been gathered, the tokenizer and the prompt format."""
    folder = config.run_dir / "lora_model"
    for settings in tuned.model.peft_config.values():
        if isinstance(settings.target_modules, set):  # whose order is another in each process
            settings.target_modules = sorted(settings.target_modules)
    with artifacts.atomic_path(folder) as temporary:
        tuned.model.save_pretrained(temporary, state_dict=adapter)
        tuned.tokenizer.save_pretrained(temporary)
        prompt_format.save(temporary)
        # The manifest tells which base model an adapter belongs to.
        manifests.withdraw_manifest(config.run_dir, "fine_tuning")


def draw_curve(config: Config) -> None:
    """Write loss_curve.png."""
    from pipeline.training_log import draw_loss_curve

    log = config.run_dir / "training_log.jsonl"
    with artifacts.atomic_path(config.run_dir / "loss_curve.png") as picture:
        draw_loss_curve(log, picture, f"{config.model.name}, preset {config.preset}")


def test_queries(
    config: Config,
    asked: Sequence[questions.Question],
    tuned: language_model.LanguageModel,
    prompt_format: prompts.PromptFormat,
) -> None:
    """Ask the trained model twice: one answer printed whole, one as it is written."""
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
