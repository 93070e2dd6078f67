"""Time to the same validation loss: fine_tuning.py against the set-up that it replaces, on real records, on a GPU.

Trains the demo's model once for each run that is named, with its learning rate and epochs, and notes the validation loss
of the answers on the way. The goal is the lowest loss at the end of a run of `before`, benchmarks/notebook_training.py.
The table shows after how many seconds of training each run is there first. Runs that the folder holds are not repeated.

    python benchmarks/time_to_loss.py --data my_products.jsonl --runs before:2e-4:1 faithful:1e-3:1 packed:2e-3:2
"""

from __future__ import annotations

import json
import math
import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import tyro

from benchmarks.fine_tuning import run_script
from config import PRESETS
from pipeline.run.run_folder import RunFolder
from pipeline.training.log import read_log

PRESET = "demo"
EVALUATIONS = 20  # of a run


@dataclass(frozen=True)
class Benchmark:
    """What to measure."""

    runs: tuple[str, ...]
    """Each is before, faithful or packed, a learning rate and epochs, with colons between."""
    data: Path
    """Records with title and content."""
    records: int = 5000
    """Training records, drawn at random."""
    validation_records: int = 256
    folder: Path = Path("outputs") / "time_to_loss"

    @property
    def cleaned(self) -> Path:
        """Return the folder of the run that cleans the records, which is named after their file."""
        return self.folder / self.data.name.partition(".")[0]


def main(work: Benchmark) -> None:
    """Do the runs and print the table."""
    if not (work.cleaned / "trn_processed.json").exists():
        run_script("process_data.py", ["--output-dir", str(work.folder), "--data.input", str(work.data)])
    for run in work.runs:
        log = work.folder / f"{run.replace(':', '_')}.jsonl"
        if not log.exists():
            mode, learning_rate, epochs = run.split(":")
            if mode == "before":
                train_as_before(work, float(learning_rate), float(epochs), log)
            else:
                train_now(work, mode, learning_rate, float(epochs), log)
    print_table({path.stem.replace("_", ":"): read_log(path) for path in sorted(work.folder.glob("*_*_*.jsonl"))})


def train_as_before(work: Benchmark, learning_rate: float, epochs: float, log: Path) -> None:
    """Train as the notebooks do, on the records that fine_tuning.py draws."""
    from pipeline.data import records
    from pipeline.models import bundled, loading, prompts

    preset = PRESETS[PRESET]
    model = bundled.resolve(preset.model.name)
    tokenizer = loading.load_tokenizer(model)
    data = records.open_processed(RunFolder(work.cleaned))
    made = prompts.make_prompt_format(preset.prompt, tokenizer)
    seed = preset.train.seed
    texts = [made.prompt(title) + content + made.end for title, content in data.sample("train", work.records, seed)]
    held_out = data.sample("validation", work.validation_records, seed)
    examples = prompts.training_examples(made, tokenizer, held_out, preset.train.max_length, "answer")
    validation = [{"input_ids": e.input_ids, "labels": e.labels} for e in examples if e is not None]
    steps = math.ceil(epochs * math.ceil(len(texts) / 8))  # of 4 times 2 records
    records_file = log.with_suffix(".json")
    records_file.write_text(json.dumps({"texts": texts, "validation": validation}), encoding="utf-8")
    run_script("benchmarks/notebook_training.py", [
        model, str(records_file), str(log), "--max-length", str(preset.train.max_length), "--steps", str(steps),
        "--lora.r", str(preset.lora.r), "--lora.alpha", str(preset.lora.alpha), "--learning-rate", str(learning_rate),
        "--evaluate-every", str(math.ceil(steps / EVALUATIONS)),
    ])  # fmt: skip


def train_now(work: Benchmark, mode: str, learning_rate: str, epochs: float, log: Path) -> None:
    """Train with fine_tuning.py."""
    train = PRESETS[PRESET].train
    folder = work.folder / log.stem
    run_dir = folder / PRESET
    (run_dir / "manifests").mkdir(parents=True, exist_ok=True)
    for name in ("trn_processed.json", "manifests/process_data.json"):
        (run_dir / name).write_bytes((work.cleaned / name).read_bytes())
    steps = epochs * work.records / (train.records_per_step if mode == "faithful" else 50)
    succeeded = run_script("fine_tuning.py", [
        "--output-dir", str(folder), "--train.sample-size", str(work.records), "--train.max-steps", "None",
        "--train.epochs", str(epochs), "--train.batching", mode, "--train.learning-rate", learning_rate,
        "--train.validation-size", str(work.validation_records), "--train.save-steps", "100000",
        "--train.eval-steps", str(math.ceil(steps / EVALUATIONS)), "--generation.max-new-tokens", "1",
    ])  # fmt: skip
    if succeeded:
        log.write_bytes((run_dir / "training_log.jsonl").read_bytes())


def print_table(logs: dict[str, list[dict[str, float]]]) -> None:
    """Print when each run reaches the loss that the best run of `before` ends with."""
    losses = {run: [line for line in log if "validation_loss" in line] for run, log in logs.items()}
    ends = {run: lines[-1]["validation_loss"] for run, lines in losses.items() if run.startswith("before")}
    if not ends:
        sys.exit("No run of `before` has succeeded, so there is no loss to reach.")
    best = min(ends, key=ends.get)
    goal, seconds = ends[best], losses[best][-1]["seconds"]
    print(f"validation loss of the answers: {losses[best][0]['validation_loss']:.4f} before training, goal {goal:.4f}")
    print(
        f"{'run (learning rate, epochs)':<28}{'steps':>7}{'loss at the end':>17}{'seconds':>9}{'at the goal':>13}{'ratio':>7}"
    )
    for run, lines in losses.items():
        last = lines[-1]
        there = next((line["seconds"] for line in lines if line["validation_loss"] <= goal), None)
        reached = f"{there:>11.1f} s{seconds / there:>7.1f}" if there else f"{'never':>13}"
        print(f"{run:<28}{last['step']:>7}{last['validation_loss']:>17.4f}{last['seconds']:>9.1f}{reached}")


if __name__ == "__main__":
    main(tyro.cli(Benchmark, description=__doc__))
