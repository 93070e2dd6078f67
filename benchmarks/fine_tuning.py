"""Training speed and memory: fine_tuning.py against the set-up that it replaces, on a GPU.

Makes a model of the architecture of a preset with random weights and records of 160 tokens on average, trains on them
with the notebooks' way (Unsloth, batch 2 x 4, no packing, checkpointing) and with fine_tuning.py, each in a process of
its own, and prints tokens/s without the first steps, ratios, and peak memory beside what was expected.

    python benchmarks/fine_tuning.py --shape llama-3-8b
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import tyro

from config import PRESETS, PROJECT_DIR, TrainConfig
from pipeline.run.run_folder import RunFolder
from pipeline.training.log import read_log

SHAPES: dict[str, tuple[str, str, dict[str, Any]]] = {
    # public config.json of meta-llama/Meta-Llama-3-8B, microsoft/Phi-3-mini-4k-instruct, unsloth/Phi-3-medium-4k-instruct
    "llama-3-8b": ("amazon-llama3", "Llama", {
        "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
        "num_key_value_heads": 8, "vocab_size": 128256, "max_position_embeddings": 8192, "rope_theta": 500000.0,
    }),
    "phi-3-mini": ("saude-phi3", "Phi3", {
        "hidden_size": 3072, "intermediate_size": 8192, "num_hidden_layers": 32, "num_attention_heads": 32,
        "num_key_value_heads": 32, "vocab_size": 32064, "max_position_embeddings": 4096, "sliding_window": 2047,
        "pad_token_id": 0,
    }),
    "phi-3-medium": ("books-phi3-medium", "Mistral", {
        "hidden_size": 5120, "intermediate_size": 17920, "num_hidden_layers": 40, "num_attention_heads": 40,
        "num_key_value_heads": 10, "vocab_size": 32064, "max_position_embeddings": 4096, "sliding_window": 2048,
    }),
}  # fmt: skip
MEAN_TOKENS = 160
FLOPS_PER_PARAMETER = 4  # and token: forward, and backward through frozen weights
Setup = Literal["before", "faithful-8.5-gib", "faithful", "packed-8.5-gib", "packed"]
SETUPS: dict[Setup, list[str]] = {
    "faithful-8.5-gib": ["--train.memory-gb", "8.5"],
    "faithful": [],
    "packed-8.5-gib": ["--train.batching", "packed", "--train.memory-gb", "8.5"],
    "packed": ["--train.batching", "packed"],
}


@dataclass(frozen=True)
class Benchmark:
    """What to measure."""

    shape: Literal["llama-3-8b", "phi-3-mini", "phi-3-medium"] = "llama-3-8b"
    """Architecture; the weights are random."""
    layers: int | None = None
    """Blocks; None takes those of the architecture."""
    setups: tuple[Setup, ...] = ("before", *SETUPS)
    """Set-ups to run; before is benchmarks/notebook_training.py."""
    backend: Literal["unsloth", "transformers"] = "unsloth"
    """What fine_tuning.py trains with."""
    files: Literal["4bit", "16bit"] = "4bit"
    """Number format of the model's files."""
    devices: int = 1
    """GPUs that fine_tuning.py trains on together."""
    compute_dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Number format that fine_tuning.py computes in."""
    shard_weights: bool = False
    """Each GPU holds a part of the weights; it needs files in 16 bits and the backend transformers."""
    steps: int = 20
    """Optimizer steps of each."""
    warm_up: int = 5
    """Steps that are not timed."""
    tokens_per_step: int = TrainConfig.tokens_per_step
    """Tokens of a step of the packed set-ups."""
    folder: Path | None = None
    """Where the model is made; for a while it takes 2.6 bytes a parameter. None takes a temporary folder."""


def write_records(path: Path, vocabulary: list[str], count: int, seed: int = 3407) -> None:
    """Write records whose prompt and answer have MEAN_TOKENS tokens on average, of words that are a token each."""
    rng = random.Random(seed)
    prompt_tokens = 60
    with path.open("w", encoding="utf-8") as file:
        for _ in range(count):
            length = 10 + round(rng.lognormvariate(4.2, 0.7) / 85 * (MEAN_TOKENS - prompt_tokens - 10))
            title, content = " ".join(rng.choices(vocabulary, k=8)), " ".join(rng.choices(vocabulary, k=length))
            file.write(json.dumps({"title": title, "content": content}) + "\n")


def make_model(folder: Path, shape: str, layers: int | None, files: str) -> None:
    """Write a model with random weights and the tokenizer of the demo's model, as a user's download is."""
    import torch
    import transformers

    from pipeline.models import bundled

    _, architecture, values = SHAPES[shape]
    values = {**values, "num_hidden_layers": layers or values["num_hidden_layers"]}
    tokenizer = transformers.AutoTokenizer.from_pretrained(bundled.resolve("bundled/SmolLM2-135M-Instruct"))
    values["vocab_size"] = max(values["vocab_size"], len(tokenizer))
    config = getattr(transformers, f"{architecture}Config")(bos_token_id=1, eos_token_id=2, **values)
    with torch.device("cuda"):
        torch.set_default_dtype(torch.bfloat16)
        model = getattr(transformers, f"{architecture}ForCausalLM")(config)
    if files == "16bit":
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return
    with tempfile.TemporaryDirectory(dir=folder.parent) as whole:
        model.save_pretrained(whole)
        del model
        torch.cuda.empty_cache()
        quantization = transformers.BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.bfloat16,
        )  # fmt: skip
        small = transformers.AutoModelForCausalLM.from_pretrained(
            whole, quantization_config=quantization, dtype=torch.bfloat16, device_map="cuda"
        )
        small.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def run_script(script: str, options: list[str], devices: int = 1) -> bool:
    """Run a script of the project in a process a device; say whether it succeeded, and what it said if not."""
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node", str(devices)] if devices > 1 else []
    command = [sys.executable, *launcher, str(PROJECT_DIR / script), *options]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        print(f"{script} {' '.join(options)}\n{done.stdout[-1500:]}\n{done.stderr[-1500:]}")
    return done.returncode == 0


def speed(lines: list[dict[str, Any]], warm_up: int) -> float:
    """Return the tokens per second after so many steps, from the lines of a log."""
    first = next(line for line in lines if line["step"] == warm_up)
    return (lines[-1]["tokens"] - first["tokens"]) / (lines[-1]["seconds"] - first["seconds"])


def make_data(model: Path, records: Path, outputs: Path, preset: str, count: int) -> None:
    """Write records of words that the model's tokenizer has, and clean them."""
    vocabulary = json.loads((model / "tokenizer.json").read_text(encoding="utf-8"))["model"]["vocab"]
    words = sorted(w[1:] for w in vocabulary if w.startswith("Ġ") and w[1:].isalpha() and w[1:].isascii())
    write_records(records, words, count)
    run_script("process_data.py", [
        "--preset", preset, "--output-dir", str(outputs), "--data.input", str(records), "--data.min-content-chars", "1",
        "--data.read-title-from", "title", "--data.read-content-from", "content",
    ])  # fmt: skip


def train_now(model: Path, outputs: Path, preset: str, options: list[str], work: Benchmark) -> dict[str, Any] | None:
    """Run fine_tuning.py and return what its log and its manifest say, or None if it failed."""
    options = [*options, "--train.shard-weights", "--train.optimizer", "adamw_torch"] if work.shard_weights else options
    succeeded = run_script("fine_tuning.py", [
        "--preset", preset, "--output-dir", str(outputs), "--model.name", str(model), "--model.backend", work.backend,
        "--model.compute-dtype", work.compute_dtype,
        "--train.max-steps", str(work.steps), "--train.tokens-per-step", str(work.tokens_per_step),
        "--train.logging-steps", "1", "--train.validation-size", "8", "--train.save-steps", "100000",
        "--generation.max-new-tokens", "1", *options,
    ], work.devices)  # fmt: skip
    if not succeeded:
        return None
    run_dir = outputs / preset
    lines = [line for line in read_log(run_dir / "training_log.jsonl") if "loss" in line]
    metrics = json.loads((run_dir / "manifests" / "fine_tuning.json").read_text())["metrics"]
    return {
        "tokens_per_second": speed(lines, work.warm_up),
        "peak": metrics["peak_memory_gib"],
        "expected": metrics["memory_estimate_gib"],
        "how": f"{metrics['precision']}, {metrics['compute_dtype']}, {'' if metrics['checkpointing'] else 'no '}checkpointing, {metrics['passes']} x "
        f"{metrics['tokens_of_largest_pass']:,} tokens; loss {lines[0]['loss']:.3f} to {lines[-1]['loss']:.3f}",
    }


def matrix_rate() -> float:
    """Return the floating point operations per second of a large bfloat16 matrix product on random data."""
    import torch

    left, right = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    for _ in range(3):
        left @ right
    torch.cuda.synchronize()
    started = time.perf_counter()
    for _ in range(20):
        left @ right
    torch.cuda.synchronize()
    return 20 * 2 * 8192**3 / (time.perf_counter() - started)


def run(work: Benchmark) -> None:
    """Print the table."""
    import torch

    rate = matrix_rate()
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, matrix products at {rate / 1e12:.0f} TFLOP/s")
    preset = SHAPES[work.shape][0]
    with tempfile.TemporaryDirectory() as temporary:
        folder = work.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        model, outputs, records = (
            folder / f"{work.shape}-{work.layers or 'all'}-{work.files}",
            folder / "outputs",
            folder / f"{preset}.json",  # the run is named after it
        )
        if not model.exists():
            subprocess.run(
                [sys.executable, __file__, "make-model", str(model), work.shape, str(work.layers or 0), work.files],
                check=True,
            )
        make_data(model, records, outputs, preset, work.tokens_per_step // 200 * work.steps + 4000)
        parameters = parameter_count(model)
        print(
            f"{work.shape}, {parameters / 1e9:.2f} billion parameters in blocks and head; {work.steps} steps, {work.warm_up} not timed; {work.devices} GPUs"
        )
        print(f"{'set-up':<24}{'tokens/s':>9}{'ratio':>7}{'peak GiB':>10}{'expected':>10}{'of matrix rate':>16}   how")
        before = None
        for name in work.setups:
            if name == "before":
                result = measure_before(model, outputs, preset, work)
                before = result["tokens_per_second"] if result else None
            else:
                result = train_now(model, outputs, preset, SETUPS[name], work)
            if result is None:
                print(f"{name:<24}   failed")
                continue
            now = result["tokens_per_second"]
            share = now * FLOPS_PER_PARAMETER * parameters / (rate * (1 if name == "before" else work.devices))
            print(
                f"{name:<24}{now:>9,.0f}{now / before if before else float('nan'):>7.1f}{result['peak']:>10.2f}"
                f"{result.get('expected', float('nan')):>10.2f}{share:>15.1%}    {result.get('how', 'Unsloth, 4bit, 2 x 4, checkpointing')}",
                flush=True,
            )


def measure_before(model: Path, outputs: Path, preset: str, work: Benchmark) -> dict[str, Any] | None:
    """Train as before on the texts that fine_tuning.py makes of the same records, or return None if it failed."""
    from pipeline.data import records
    from pipeline.models import loading, prompts

    data = records.open_processed(RunFolder(outputs / preset))
    tokenizer = loading.load_tokenizer(str(model))
    made = prompts.make_prompt_format(PRESETS[preset].prompt, tokenizer)
    texts = [made.prompt(title) + content + made.end for title, content in data.sample("train", 8 * work.steps + 64, 1)]
    records_file, log = outputs / "texts.json", outputs / "before.jsonl"
    records_file.write_text(json.dumps({"texts": texts}), encoding="utf-8")
    lora, max_length = PRESETS["amazon-llama3"].lora, PRESETS["amazon-llama3"].train.max_length
    succeeded = run_script("benchmarks/notebook_training.py", [
        str(model), str(records_file), str(log), "--lora.r", str(lora.r), "--lora.alpha", str(lora.alpha),
        "--max-length", str(max_length), "--steps", str(work.steps),
    ])  # fmt: skip
    if not succeeded:
        return None
    lines = read_log(log)
    return {"tokens_per_second": speed(lines, work.warm_up), "peak": lines[-1]["peak"]}


def parameter_count(model: Path) -> int:
    """Return the weights that every token is multiplied with."""
    from config import LoraConfig, ModelConfig
    from pipeline.models.size import model_size

    size = model_size(ModelConfig(name=str(model)), LoraConfig())
    return size.linear + size.hidden * size.vocabulary


if __name__ == "__main__":
    os.environ.update(HF_HUB_OFFLINE="1", UNSLOTH_DISABLE_STATISTICS="1")
    if sys.argv[1:2] == ["make-model"]:
        make_model(Path(sys.argv[2]), sys.argv[3], int(sys.argv[4]) or None, sys.argv[5])
    else:
        run(tyro.cli(Benchmark, description=__doc__))
