"""The first run: how long each stage of the demo takes on this processor, and what its matrix products say.

Runs the nine stages on an empty folder, as `python run.py` does after the installation. `--instructions avx2` holds
PyTorch's libraries to what most laptops have, on a processor that has more; `--busy` lets another process hold one core.

    python benchmarks/first_run.py --instructions avx2 --busy
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import tyro

import run
from config import STAGES
from pipeline.models import devices
from pipeline.run.run_folder import RunFolder

HELD_TO_AVX2 = {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"}
SHOWN_INSTRUCTIONS = ("avx2", "avx512_f", "avx512_bf16", "amx_bf16", "asimd", "sve", "bf16")


@dataclass(frozen=True)
class Benchmark:
    """What to measure."""

    instructions: Literal["all", "avx2"] = "all"
    """Instructions that PyTorch's libraries may use."""
    busy: bool = False
    """Another process holds one core all the while."""
    output_dir: Path | None = None
    """Where the outputs are left; None takes a temporary folder."""


def processor() -> str:
    """Return the name of the processor."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def print_machine(work: Benchmark) -> None:
    """Print the processor, its instruction sets, the speed of the three products and the format that follows from it."""
    import torch

    found = torch.cpu.get_capabilities()
    names = [name for name in SHOWN_INSTRUCTIONS if found.get(name)]
    held = ", held to AVX2" if work.instructions == "avx2" else ""
    print(f"{processor()}, {os.cpu_count()} cores, {', '.join(names)}{held}; torch {torch.__version__}")
    cpu = devices.machine("cpu")
    for product in get_args(devices.Product):
        rates = [1e-9 / cpu.seconds_per_operation(form, product) for form in ("float32", "bfloat16")]
        print(
            f"  {product:<26}float32 {rates[0]:>5.0f} GFLOP/s, bfloat16 {rates[1]:>5.0f}, ratio {rates[0] / rates[1]:.1f}"
        )
    print(f"  a training computes in {devices.compute_format('training', on=cpu)}")


@contextlib.contextmanager
def held_core(wanted: bool) -> Iterator[None]:
    """Let another process compute without end while the block runs."""
    process = subprocess.Popen([sys.executable, "-c", "while True: pass"]) if wanted else None
    try:
        yield
    finally:
        if process is not None:
            process.kill()
            process.wait()


def main() -> None:
    """Run the stages and print the table."""
    work = tyro.cli(Benchmark, description=__doc__)
    if work.instructions == "avx2":
        os.environ.update(HELD_TO_AVX2)
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    with tempfile.TemporaryDirectory() as temporary, held_core(work.busy):
        folder = work.output_dir or Path(temporary)
        seconds = run.run_stages("demo", RunFolder(folder / "demo"), list(STAGES), {})
        manifest = json.loads((folder / "demo" / "manifests" / "fine_tuning.json").read_text(encoding="utf-8"))
    print()
    print_machine(work)
    print(
        f"  the training computed in {manifest['metrics']['compute_dtype']}; {'one core was held' if work.busy else 'quiet'}\n"
    )
    print("| stage | seconds |\n|---|---:|")
    for stage, took in [*seconds.items(), ("together", sum(seconds.values()))]:
        print(f"| {stage} | {took:.0f} |")


if __name__ == "__main__":
    main()
