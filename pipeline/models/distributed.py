"""The processes that `accelerate launch` started, one a device; without it there is one.

Each holds the whole model, or a part of its weights where they are sharded (FSDP2, which accelerate runs).
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipeline.models.devices import best_device, free_memory
from pipeline.run.errors import UserError
from pipeline.run.run_folder import shell_line


def _state() -> Any:
    from accelerate import PartialState

    return PartialState(cpu=best_device() == "cpu")


def prepare(shard_weights: bool) -> None:
    """Prepare for training on the devices there are; to be called first.

    Raises:
        UserError: weights cannot be sharded as asked for.
    """
    if shards_weights() and not shard_weights:
        raise UserError(f"Without FSDP's options, the weights are sharded by {_launch('--train.shard-weights')}.")
    if not shard_weights:
        return
    if best_device() != "cuda":  # where accelerate would train on whole models and say nothing
        raise UserError("--train.shard-weights needs several NVIDIA GPUs, and there is none here.")
    # accelerate reads these when its state is made.
    os.environ.update(
        ACCELERATE_USE_FSDP="true", FSDP_VERSION="2", FSDP_AUTO_WRAP_POLICY="TRANSFORMER_BASED_WRAP",
        FSDP_CPU_RAM_EFFICIENT_LOADING="true", FSDP_STATE_DICT_TYPE="SHARDED_STATE_DICT",
    )  # fmt: skip
    if device_count() == 1:
        raise UserError(f"--train.shard-weights needs several devices: start it with {_launch()}.")


def _launch(*options: str) -> str:
    return f"`accelerate launch {shell_line([*sys.argv, *options])}`"


def shards_weights() -> bool:
    """Tell whether each device holds only a part of the weights."""
    return os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"


def device_count() -> int:
    """Return how many devices train together."""
    return _state().num_processes


def least_free_memory() -> float:
    """Return the free bytes of the device that has the least, so that all processes make the same plan."""
    from accelerate.utils import gather_object

    state = _state()
    share = state.num_processes if state.device.type == "cpu" else 1
    return min(gather_object([free_memory(best_device()) / share]))


def broadcast_from_main(value: Any) -> Any:
    """Return the main process's value, where processes may have measured different ones."""
    from accelerate.utils import broadcast_object_list

    _state()
    return broadcast_object_list([value])[0]


def is_main() -> bool:
    """Tell whether this process is the one that writes files."""
    return _state().is_main_process


def takes_part_in_answering() -> bool:
    """Tell whether this process takes part in answering: the main one, or all where each has a part of the weights."""
    return is_main() or shards_weights()


def wait_for_all() -> None:
    """Wait until all processes are here."""
    _state().wait_for_everyone()


@contextlib.contextmanager
def only_main_prints() -> Iterator[None]:
    """Let only the main process print to standard output."""
    if is_main():
        yield
        return
    with Path(os.devnull).open("w", encoding="utf-8") as nowhere, contextlib.redirect_stdout(nowhere):
        yield
