"""TRL's trainer, over forward passes of records that lie end to end or are padded."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import transformers
from torch.distributed.fsdp import MixedPrecisionPolicy
from torch.utils.data import DataLoader
from transformers.trainer_callback import PrinterCallback
from transformers.trainer_utils import EvalLoopOutput
from trl import SFTConfig, SFTTrainer
from trl.trainer import sft_trainer

from config import TrainConfig
from pipeline.models.devices import best_device
from pipeline.models.language_model import Backend, LanguageModel
from pipeline.training.batching import (
    EVALUATION_TOKENS,
    IGNORED_LABEL,
    Batching,
    ForwardPasses,
    Layout,
    fill_passes,
    lay_out,
    token_counts,
)
from pipeline.training.flat_optimizer import flat_optimizer
from pipeline.training.loss import chunked_cross_entropy

if TYPE_CHECKING:
    from peft import PeftModel

if best_device() == "cpu":
    # TRL's own computes the logits twice, and the entropy and accuracy of all tokens, a sixth of a step of the demo. An H100
    # does that while it waits for Python: with ours, steps of 2,358 tokens took a fifth longer.
    sft_trainer._chunked_cross_entropy_loss = chunked_cross_entropy


def make_trainer(
    tuned: LanguageModel,
    arguments: SFTConfig,
    batching: Batching,
    train_set: Any,
    validation_set: Any,
    callbacks: Sequence[transformers.TrainerCallback],
) -> RecordsTrainer:
    """Return a trainer of an adapter.

    Args:
        tuned: the base model with a new adapter.
        arguments: from sft_arguments.
        batching: how the training records are divided into forward passes.
        train_set: a datasets.Dataset with the columns input_ids and labels.
        validation_set: the same; it may be empty.
        callbacks: told of what happens.
    """
    # cuDNN's attention prepares itself anew, for a sixth of a second, for each length of a record that it has not seen.
    torch.backends.cuda.enable_cudnn_sdp(False)
    transformers.set_seed(arguments.seed)
    trainer = RecordsTrainer(
        model=tuned.model,
        args=arguments,
        train_dataset=train_set,
        eval_dataset=validation_set if len(validation_set) else None,
        processing_class=tuned.tokenizer,
        callbacks=list(callbacks),
    )
    if not arguments.bf16:
        # TRL rounds the adapter of a quantized model to bfloat16, whatever is computed in; gradients are scaled in float32 alone.
        for weight in tuned.model.parameters():
            if weight.requires_grad:
                weight.data = weight.data.float()
    if trainer.is_fsdp_enabled:
        # accelerate's policy rounds the loss to 16 bits.
        policy = MixedPrecisionPolicy(param_dtype=tuned.model.dtype, reduce_dtype=torch.float32)
        trainer.accelerator.state.fsdp_plugin.mixed_precision_policy = policy
    trainer.remove_callback(PrinterCallback)
    trainer.batching, trainer.backend, trainer.pad_id = batching, tuned.backend, tuned.tokenizer.pad_token_id
    return trainer


def sft_arguments(
    train: TrainConfig,
    folder: Path,
    passes: int,
    layout: Layout,
    checkpointing: bool,
    has_validation: bool,
    resumes: bool,
    dtype: Any,
) -> SFTConfig:
    """Return TRL's form of the training settings. The records come tokenized, with their labels.

    Args:
        train: the settings.
        folder: of the checkpoints.
        passes: forward passes of an optimizer step on this device; each is an item of the data.
        layout: of the records of a forward pass.
        checkpointing: whether activations are computed again in the backward pass.
        has_validation: whether there are validation records.
        resumes: whether an interrupted training goes on, so that the loss before the training was measured.
        dtype: of the base model.
    """
    evaluates = train.eval_steps is not None and has_validation
    arguments = SFTConfig(
        output_dir=str(folder),
        per_device_train_batch_size=1,
        per_device_eval_batch_size=1,
        gradient_accumulation_steps=passes,
        num_train_epochs=train.epochs,
        max_steps=train.max_steps or -1,
        learning_rate=train.learning_rate,
        lr_scheduler_type=train.scheduler,
        warmup_steps=train.warmup_steps,
        weight_decay=train.weight_decay,
        optim=train.optimizer,
        max_grad_norm=train.max_grad_norm,
        use_cpu=best_device() == "cpu",
        gradient_checkpointing=checkpointing,
        gradient_checkpointing_kwargs={"use_reentrant": False},
        bf16=torch.cuda.is_available() and dtype == torch.bfloat16,
        fp16=torch.cuda.is_available() and dtype == torch.float16,
        seed=train.seed,
        logging_steps=train.logging_steps,
        logging_first_step=True,
        logging_nan_inf_filter=False,  # which tells a loss that is no number as 0
        eval_strategy="steps" if evaluates else "no",
        eval_steps=train.eval_steps if evaluates else None,
        eval_on_start=has_validation and not resumes,
        save_steps=train.save_steps,
        save_total_limit=2,
        include_num_input_tokens_seen="all" if layout == "end_to_end" else "non_padding",
        max_length=None,
        padding_free=False,  # the rows are ours
        dataset_kwargs={"skip_prepare_dataset": True},
        ddp_find_unused_parameters=False,
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=torch.cuda.is_available(),
    )
    if arguments.n_gpu > 1:
        # transformers would cut the rows of one process into a part for each GPU; `accelerate launch` uses all of them.
        arguments._n_gpu = 1
    return arguments


def gathered_adapter(trainer: RecordsTrainer) -> dict[str, torch.Tensor] | None:
    """Return the adapter's weights, gathered by all processes for the main one; None where each process has them all."""
    if not trainer.is_fsdp_enabled:
        return None
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

    options = StateDictOptions(full_state_dict=True, cpu_offload=True, ignore_frozen_params=True)
    return get_model_state_dict(trainer.model, options=options)  # type: ignore[return-value]  # no optimizer's values


class RecordsTrainer(SFTTrainer):
    """Trains on forward passes of any number of records, and measures the validation loss per token."""

    model: PeftModel
    batching: Batching
    backend: Backend
    pad_id: int

    # TRL's own also computes the entropy and accuracy of all tokens, which nothing here shows.
    compute_loss = transformers.Trainer.compute_loss

    def create_optimizer(self, model: torch.nn.Module | None = None) -> torch.optim.Optimizer:
        """Return the optimizer; one of 8 bits updates all weights of the adapter at once."""
        # With fp16, gradients are scaled in the weights that the optimizer knows, before it gathers them.
        if "8bit" not in self.args.optim or self.args.fp16:
            return super().create_optimizer()
        weights = [weight for weight in self.model.parameters() if weight.requires_grad]
        # Only LOMO and Apollo ask for a model, which may be any.
        kind, options = self.get_optimizer_cls_and_kwargs(self.args, self.model)  # type: ignore[arg-type]
        options["weight_decay"] = self.args.weight_decay
        self.optimizer = flat_optimizer(weights, lambda vector: kind(vector, **options))
        return self.optimizer

    def create_model_card(self, *_: Any, **__: Any) -> None:
        """Write none into the checkpoints: TRL reads its template in the locale's encoding, which it may not be in."""

    def get_train_dataloader(self) -> DataLoader[dict[str, Any]]:
        """Return the forward passes of the training."""
        lengths = token_counts(self.train_dataset)
        passes = self._passes(self.train_dataset, lambda epoch: self.batching.epoch(lengths, epoch))
        return self.accelerator.prepare(self._loader(passes))

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader[dict[str, Any]]:
        """Return the forward passes of an evaluation that are this process's to do."""
        records = self.eval_dataset if eval_dataset is None else eval_dataset
        lengths = token_counts(records)
        order = sorted(range(len(lengths)), key=lengths.__getitem__, reverse=True)  # for less padding
        batches = fill_passes(order, lengths, EVALUATION_TOKENS, self.batching.layout)
        processes = self.accelerator.num_processes
        batches += [[]] * (-len(batches) % processes)  # sharded weights must be asked for by all equally often
        mine = batches[self.accelerator.process_index :: processes]
        return self._loader(self._passes(records, lambda _: mine))

    def evaluation_loop(
        self, dataloader: DataLoader[Any], description: str, *_: Any, metric_key_prefix: str = "eval", **__: Any
    ) -> EvalLoopOutput:
        """Return the mean loss of all tokens with a label, however they are divided into passes."""
        self.model.eval()
        sums = torch.zeros(2, device=self.args.device)  # loss, tokens
        for inputs in dataloader:
            inputs = self._prepare_inputs(inputs)
            tokens = inputs["labels"][:, 1:].ne(IGNORED_LABEL).sum()
            with torch.no_grad(), self.compute_loss_context_manager():
                loss = self.model(**inputs, num_items_in_batch=torch.ones_like(tokens))["loss"]  # a sum
            sums += torch.stack([loss.float(), tokens])
        loss, tokens = self.accelerator.reduce(sums).tolist()
        self.model.train()
        metrics = {f"{metric_key_prefix}_loss": loss / tokens}
        # Where only the loss is wanted, transformers' own loop has no predictions either.
        return EvalLoopOutput(None, None, metrics, len(dataloader))  # type: ignore[arg-type]

    def _track_num_input_tokens(self, inputs: dict[str, Any]) -> None:
        if self.accelerator.num_processes > 1 or "attention_mask" in inputs:
            super()._track_num_input_tokens(inputs)
        else:  # which would wait for the GPU in each pass
            self.state.num_input_tokens_seen += inputs["input_ids"].numel()

    def _passes(self, records: Any, batches_of: Callable[[int], list[list[int]]]) -> ForwardPasses:
        def inputs_of(batch: Sequence[dict[str, list[int]]]) -> dict[str, Any]:
            return lay_out(batch, self.backend, self.batching.layout, self.pad_id)

        return ForwardPasses(records, inputs_of, batches_of)

    def _loader(self, passes: ForwardPasses) -> DataLoader[dict[str, Any]]:
        return DataLoader(
            passes, batch_size=1, collate_fn=lambda items: items[0], pin_memory=self.args.dataloader_pin_memory
        )
