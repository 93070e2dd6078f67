"""Threads that wait for each other: spinning (OpenMP's default) against sleeping (OMP_WAIT_POLICY=passive, the stages').

Times a training step's matrix products, the embedding of a query and the writing of an answer under both policies, each
in processes of its own, in turns, while the machine is quiet and while another process holds one core. Prints the median
of the rounds and the ratio.

    python benchmarks/wait_policy.py
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import tyro
from first_run import HELD_TO_AVX2, held_core, processor

POLICIES: dict[str, dict[str, str]] = {"default": {}, "passive": {"OMP_WAIT_POLICY": "passive"}}


@dataclass(frozen=True)
class Benchmark:
    """What to measure."""

    rounds: int = 5
    """Processes under each policy."""
    avx2: bool = False
    """Hold PyTorch's libraries to AVX2."""


def seconds(work: Callable[[], object], times: int) -> float:
    """Return the median of the seconds that some work takes, the first time left out."""
    took = []
    for _ in range(times + 1):
        started = time.perf_counter()
        work()
        took.append(time.perf_counter() - started)
    return statistics.median(took[1:])


def measure() -> dict[str, float]:
    """Return the seconds of each kind of work under the policy of this process."""
    import torch

    from config import ModelConfig, RagConfig
    from pipeline.models import loading
    from pipeline.models.devices import products
    from pipeline.rag import embedding

    inputs, weights, gradient = torch.randn(1024, 576), torch.randn(1536, 576), torch.randn(1024, 1536)

    def step() -> None:
        for left, right in products(inputs, weights, gradient).values():
            left @ right

    embeddings = embedding.load_embeddings(RagConfig(embedding_precision="float32"))
    model = loading.load_base(ModelConfig(), "16bit")
    ids = model.tokenizer("A wooden train set", return_tensors="pt")["input_ids"]
    return {
        "matrix products of a layer": seconds(step, 50),
        "embedding of a query": seconds(lambda: embeddings.embed_query("a wooden train set"), 30),
        "answer of 16 tokens": seconds(lambda: model.model.generate(ids, max_new_tokens=16, do_sample=False), 5),
    }


def main() -> None:
    """Print the table."""
    work = tyro.cli(Benchmark, description=__doc__)
    environment = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    environment |= HELD_TO_AVX2 if work.avx2 else {}
    print(f"{processor()}, {os.cpu_count()} cores{', held to AVX2' if work.avx2 else ''}; {work.rounds} rounds")
    print(f"| {'work':<28} | machine | spinning, ms | sleeping, ms | ratio |\n|---|---|---:|---:|---:|")
    for busy in (False, True):
        found: dict[str, list[dict[str, float]]] = {policy: [] for policy in POLICIES}
        with held_core(busy):
            for _ in range(work.rounds):
                for policy, setting in POLICIES.items():
                    done = subprocess.run(
                        [sys.executable, __file__, "measure"], env={**environment, **setting},
                        stdout=subprocess.PIPE, text=True, check=True,
                    )  # fmt: skip
                    found[policy].append(json.loads(done.stdout.splitlines()[-1]))
        for name in found["passive"][0]:
            spinning, sleeping = (1000 * statistics.median(one[name] for one in found[policy]) for policy in POLICIES)
            state = "one core held" if busy else "quiet"
            print(f"| {name:<28} | {state} | {spinning:.1f} | {sleeping:.1f} | {spinning / sleeping:.2f} |", flush=True)


if __name__ == "__main__":
    if sys.argv[1:] == ["measure"]:
        print(json.dumps(measure()))
    else:
        main()
