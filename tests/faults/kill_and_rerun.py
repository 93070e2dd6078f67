"""Kill every stage at random moments, run it again, and compare with what an undisturbed run made.

With --signal SIGINT, which is Ctrl-C, a stage must also end in one sentence and exit status 130, and leave no temporary file.

Half of the moments are drawn over the whole run, half from its first write to its end. A run is a process that has imported
the libraries already, with a tiny model and some thousand records; it reads what undisturbed runs of the stages before made,
which is kept in --work.

    python tests/faults/kill_and_rerun.py --work /tmp/kills --stages process_data rag_indexing --kills 20
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import tyro
from outputs import differences, incomplete, result
from tiny_models import build_llama, sample_lines
from warm_start import Starter

MODEL = ["--model.name", "{work}/model"]
ANSWERS = ["--questions.held-out", "2", "--answers.max-new-tokens", "8", "--answers.batch-size", "2"]
EMBEDDINGS = ["--rag.embedding-model", "{work}/embedder", "--rag.embedding-batch-tokens", "2048"]
ADAPTER = ["--prompt.format", "alpaca", "--lora.r", "4", "--lora.alpha", "8"]
STEPS = [
    "--train.max-steps", "8", "--train.batch-size", "2", "--train.gradient-accumulation-steps", "1", "--train.max-length",
    "128", "--train.validation-size", "8", "--train.logging-steps", "1",
]  # fmt: skip
TRAINING = [
    *MODEL, *ADAPTER, *STEPS, "--train.eval-steps", "4", "--train.save-steps", "2", "--generation.max-new-tokens", "4",
]  # fmt: skip
IGNORED = 3.0  # seconds to the end after which Ctrl-C was not heard
# Stores after each batch, so that there is something to interrupt.
STORE_OFTEN = "import pipeline.rag.indexing; pipeline.rag.indexing.SECONDS_BETWEEN_ADDS = 0; "


@dataclass(frozen=True)
class Stage:
    """A script, run small."""

    reads: str | None
    """The stage of whose outputs it makes its own."""
    options: list[str]
    before: str = ""
    """Code that is run before its main()."""
    resumes: bool = False
    """Whether a rerun goes on from a checkpoint, if there is one."""
    script: str = ""
    """Its name, if that is not the name here."""


STAGES = {
    "process_data": Stage(None, ["--data.input", "{work}/raw.jsonl", "--data.processes", "2"]),
    "foundation_model": Stage("process_data", [*MODEL, "--prompt.format", "alpaca", *ANSWERS]),
    "fine_tuning": Stage("foundation_model", TRAINING),
    "fine_tuning_resumed": Stage("foundation_model", TRAINING, resumes=True, script="fine_tuning"),
    "ft_test_trained_model": Stage("fine_tuning", [*MODEL, *ANSWERS]),
    "merge_and_convert": Stage(
        "ft_test_trained_model",
        [*MODEL, "--questions.held-out", "2", "--gguf.parity-tokens", "4", "--generation.max-new-tokens", "4"],
    ),
    "rag_indexing": Stage("ft_test_trained_model", EMBEDDINGS, STORE_OFTEN),
    "rag_search_vs": Stage("rag_indexing", [*EMBEDDINGS, "--query", "ballet skirt for girls"]),
    "rag_model_retriever": Stage("rag_indexing", [*MODEL, "--prompt.format", "alpaca", *ANSWERS, *EMBEDDINGS]),
    "compare_models": Stage("rag_model_retriever", EMBEDDINGS),
    "search_hyperparameters": Stage(
        "process_data", [*MODEL, *ADAPTER, *STEPS, "--study.trials", "2", "--study.ranks", "4", "8"]
    ),
}


@dataclass(frozen=True)
class Trial:
    """What is killed, and how often."""

    work: Path
    """Folder for all that is made; what undisturbed runs made is used again."""
    stages: tuple[str, ...] = tuple(STAGES)
    """The stages."""
    kills: int = 20
    """How often each is killed."""
    kills_per_rerun: int = 4
    """How often in a row, before it may finish."""
    seed: int = 3407
    """Seed of the moments."""
    signal: Literal["SIGKILL", "SIGINT"] = "SIGKILL"
    """What is sent to the stage and all processes that it started."""


@dataclass
class Run:
    """A run of a stage, finished or killed."""

    finished: bool
    seconds: float
    first_write: float | None
    """Seconds after which it changed something in its outputs."""
    printed: str
    status: int
    to_end: float
    """Seconds from the signal to its end."""


def build_inputs(work: Path) -> None:
    """Make the records, the language model and the embedding model."""
    if (work / "embedder").exists():
        return
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
    from transformers import AutoTokenizer, BertConfig, BertModel

    from pipeline.models import bundled

    work.mkdir(parents=True, exist_ok=True)
    records = [json.loads(line) for line in sample_lines() if line.endswith("}")] * 6
    # Above 1,000 pieces, after which Chroma writes the graph of its vectors to the disk.
    numbered = [{**record, "title": f"{record['title']} No. {n}"} for n, record in enumerate(records)]
    lines = "".join(json.dumps(record) + "\n" for record in numbered)
    (work / "raw.jsonl").write_text(lines + "{damaged\n", encoding="utf-8")
    torch.manual_seed(7)
    build_llama(work / "model")
    tokenizer = AutoTokenizer.from_pretrained(bundled.resolve("bundled/all-MiniLM-L6-v2"))
    shape = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    bert = work / "bert"
    BertModel(BertConfig(vocab_size=len(tokenizer), **shape)).save_pretrained(bert)
    tokenizer.save_pretrained(bert)
    transformer = Transformer(str(bert), max_seq_length=256)
    SentenceTransformer(modules=[transformer, Pooling(32)]).save(str(work / "embedder"))


def run(
    starter: Starter,
    work: Path,
    name: str,
    moment: Callable[[float | None], float | None] = lambda _: None,
    resume: bool = False,
    number: signal.Signals = signal.SIGKILL,
) -> Run:
    """Run a stage.

    Args:
        starter: starts it.
        work: the folder of all.
        name: of the stage.
        moment: takes the seconds of the first write, if there was one, and returns those at which to kill; None is never.
        resume: whether to go on from a checkpoint.
        number: the signal that kills.
    """
    stage = STAGES[name]
    options = [option.replace("{work}", str(work)) for option in stage.options] + ["--train.resume"] * resume
    printed = work / "printed.txt"
    before, began, first_write, killed = state(work), time.monotonic(), None, None
    arguments = ["--output-dir", str(work / "outputs"), *options]
    process = starter.start(stage.script or name, stage.before, arguments, printed)
    while (status := starter.status()) is None:
        seconds = time.monotonic() - began
        if first_write is None and state(work) != before:
            first_write = seconds
        until = moment(first_write)
        if killed is None and until is not None and seconds >= until:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process, number)
            killed = seconds
        time.sleep(0.002)
    text = printed.read_text(encoding="utf-8")
    if killed is None and status:
        raise SystemExit(f"{name} failed by itself:\n{text}")
    ended = time.monotonic() - began
    seconds = ended if killed is None else killed
    return Run(status == 0, seconds, first_write, text, status, ended - seconds)


def complaints(done: Run, left: list[str]) -> list[str]:
    """Return what is wrong with the end of a run that got Ctrl-C."""
    last = done.printed.strip().rpartition("\n")[2]
    good = done.status == 130 and ".py: interrupted; " in last and "Traceback" not in done.printed
    if done.finished:
        good = done.to_end < IGNORED  # as it ended anyway
    elif done.status == -signal.SIGINT:
        good = not done.printed  # before the first line of ours
    return [f"{name} is left" for name in left] + [f"exit status {done.status}: {done.printed[-2000:]}"] * (not good)


def state(work: Path) -> set[tuple[str, int]]:
    """Return the names of all outputs, with the times of their last changes; those of locks are left out."""
    found = set()
    for folder, _, files in os.walk(work / "outputs"):
        for file in files:
            if not file.endswith(".lock"):
                try:
                    found.add((f"{folder}/{file}", os.stat(f"{folder}/{file}").st_mtime_ns))  # noqa: PTH116 -- fast
                except FileNotFoundError:  # gone since it was listed
                    found.add((f"{folder}/{file}", 0))
    return found


def bring(source: Path | None, target: Path) -> None:
    """Make a folder equal to another, or remove it."""
    shutil.rmtree(target, ignore_errors=True)
    if source is not None:
        shutil.copytree(source, target)


def start(starter: Starter, work: Path, name: str) -> None:
    """Leave in outputs/ what a stage reads, made by undisturbed runs."""
    before = STAGES[name].reads
    if before is not None and not (work / "after" / before).exists():
        start(starter, work, before)
        run(starter, work, before)
        bring(work / "outputs", work / "after" / before)
    bring(work / "after" / before if before else None, work / "outputs")


class Disturbed:
    """A stage that is killed and run again, and what went wrong with it."""

    def __init__(self, starter: Starter, work: Path, name: str, number: signal.Signals) -> None:
        """Run it undisturbed."""
        self.starter, self.work, self.name, self.signal = starter, work, name, number
        self.run_dir = work / "outputs" / "demo"
        self.kills = self.after_write = self.reruns = self.left = 0
        self.wrong: list[str] = []
        start(starter, work, name)
        self.last = run(starter, work, name)
        self.expected = self.outcome(self.last)
        wrote = "" if self.last.first_write is None else f", first write after {self.last.first_write:.1f} s"
        print(f"{name}: {self.last.seconds:.1f} s undisturbed{wrote}", flush=True)

    def outcome(self, done: Run) -> dict[str, object]:
        """Return all that a run left."""
        found = result(self.run_dir)
        return {**found, "printed": done.printed} if self.name == "rag_search_vs" else found

    def go(self, kill: bool, rng: random.Random) -> bool:
        """Run the stage, or kill it at a random moment; check what it leaves and return whether it finished."""
        last, share = self.last, rng.random()
        whole = last.first_write is None or rng.random() < 0.5

        def moment(first_write: float | None) -> float | None:
            if not kill or (not whole and first_write is None):
                return None
            return share * last.seconds if whole else first_write + share * (last.seconds - last.first_write)

        checkpoints = self.run_dir.glob("checkpoints/*/hashes.json")
        resume = STAGES[self.name].resumes and any(checkpoints)
        done = run(self.starter, self.work, self.name, moment, resume, self.signal)
        left = sorted(path.name for path in self.run_dir.rglob("*.tmp"))
        found = complaints(done, left) if self.signal == signal.SIGINT else []
        if done.finished:
            self.last, self.reruns = done, self.reruns + 1  # other programs may slow a machine for a while
            found += differences(self.expected, self.outcome(done)) + [f"{name} is left" for name in left]
            print(f"  finished{' with --train.resume' * resume}: {'; '.join(found) or 'equal'}", flush=True)
        else:
            self.kills += 1
            self.after_write += done.first_write is not None
            self.left += bool(left)
            found += [f"{path} is incomplete" for path in incomplete(self.run_dir, self.expected)]
            print(f"  killed after {done.seconds:.2f} s{': ' * bool(found)}{'; '.join(found)}", flush=True)
        self.wrong += [f"after {self.kills} kills: {text}" for text in found]
        return done.finished

    def summary(self) -> str:
        """Return the figures in a line."""
        return (
            f"{self.name}: {self.kills} kills, {self.after_write} after its first write, {self.left} left temporary files; "
            f"{self.reruns} reruns: " + ("\n  ".join(["NOT EQUAL", *self.wrong]) if self.wrong else "EQUAL")
        )


def main(trial: Trial) -> None:
    """Disturb each stage and tell what went wrong."""
    build_inputs(trial.work)
    starter = Starter()
    disturbed = []
    for name in trial.stages:
        rng = random.Random(f"{trial.seed}/{name}")
        stage = Disturbed(starter, trial.work, name, signal.Signals[trial.signal])
        disturbed.append(stage)
        for turn in range(0, trial.kills, trial.kills_per_rerun):
            if turn % (2 * trial.kills_per_rerun) == 0 or STAGES[name].resumes:
                start(starter, trial.work, name)  # otherwise it finds the outputs of a finished run
            goal = stage.kills + min(trial.kills_per_rerun, trial.kills - turn)
            while stage.kills < goal:
                if stage.go(True, rng):
                    start(starter, trial.work, name)
            stage.go(False, rng)
    print("\n".join(stage.summary() for stage in disturbed))
    raise SystemExit(any(stage.wrong for stage in disturbed))


if __name__ == "__main__":
    main(tyro.cli(Trial, description=__doc__))
