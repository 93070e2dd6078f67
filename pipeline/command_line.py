"""The command line of a stage: the sections of the configuration it uses, its own options, errors as one sentence."""

from __future__ import annotations

import atexit
import dataclasses
import difflib
import os
import signal
import sys
import warnings
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Annotated, Any, TypeVar

from config import PRESETS, SECTIONS, Config
from pipeline.artifacts import UserError, command, shell_line, told_if_full

Options = TypeVar("Options")
OUT_OF_MEMORY_REMEDY = (
    "Use more --train.passes, a smaller --train.max-length or --answers.batch-size, or --model.precision 4bit."
)


def chosen_preset(arguments: list[str]) -> str:
    """Return the value of --preset, or the default preset; an unknown one ends the program with status 2."""
    preset = "demo"
    for index, argument in enumerate(arguments):
        if argument == "--preset":
            preset = arguments[index + 1] if index + 1 < len(arguments) else ""
        elif argument.startswith("--preset="):
            preset = argument.removeprefix("--preset=")
    if preset not in PRESETS:
        close = difflib.get_close_matches(preset, PRESETS, n=1)
        hint = f" Did you mean {close[0]}?" if close else ""
        print(f"There is no preset {preset!r}; choose from {', '.join(PRESETS)}.{hint}", file=sys.stderr)
        raise SystemExit(2)
    return preset


def parse(stage: str, description: str, options: type[Options], arguments: list[str]) -> tuple[Config, Options]:
    """Parse the command line of a stage into its configuration and its own options.

    Args:
        stage: name of the script without .py; decides which sections of Config are offered.
        description: shown at the top of --help.
        options: dataclass of the options that only this stage has.
        arguments: the command line without the program's name.
    """
    import tyro  # here, so that the processes of process_data.py do without

    preset = PRESETS[chosen_preset(arguments)]
    preset_argument = tyro.conf.arg(help=f"One of {', '.join(PRESETS)}.", metavar="NAME")
    path_argument = tyro.conf.arg(help="Folder of all outputs; this preset writes to a folder of its name in it.")
    entries: list[tuple[str, Any, Any]] = [
        ("preset", Annotated[str, preset_argument], preset.preset),
        ("output_dir", Annotated[Path, path_argument], preset.output_dir),
        ("options", Annotated[options, tyro.conf.arg(name="")], options()),
    ]
    for section in SECTIONS[stage]:
        default = getattr(preset, section)
        entries.append((section, type(default), default))
    command = dataclasses.make_dataclass(
        "Command", [(name, kind, dataclasses.field(default=default)) for name, kind, default in entries], frozen=True
    )
    parsed = tyro.cli(
        command,
        prog=f"{stage}.py",
        description=description,
        args=arguments,
        config=(tyro.conf.HelptextFromCommentsOff,),
    )
    sections = {name: getattr(parsed, name) for name in ("output_dir", *SECTIONS[stage])}
    return dataclasses.replace(preset, **sections), parsed.options


@dataclasses.dataclass(frozen=True)
class NoOptions:
    """A stage without options of its own."""


def run_stage(
    stage: str,
    description: str | None,
    run: Callable[..., Path | None],
    next_stage: str | None,
    options: type = NoOptions,
) -> None:
    """Be the main() of a stage: parse, print the settings, run, print what was written and what comes next.

    What a user can cause ends in one sentence on stderr and exit status 1, Ctrl-C in exit status 130.
    """
    quiet_libraries()
    try:
        config, own = parse(stage, description or "", options, sys.argv[1:])
        speaks = os.environ.get("RANK", "0") == "0"  # of several processes that train, one
        if speaks:
            print_settings(stage, config)
        with told_if_full(config.run_dir):
            written = run(config) if options is NoOptions else run(config, own)
        if written is not None and speaks:
            print(f"\nWritten: {written}")
            if next_stage:
                print(f"Next:    {next_command(next_stage, config)}")
    except UserError as error:
        print(f"\n{stage}.py: {error}", file=sys.stderr)
        raise SystemExit(1) from None
    except OSError as error:
        if error.filename is None and error.errno is None:
            raise
        print(f"\n{stage}.py: {error.filename or 'A file'}: {error.strerror}.", file=sys.stderr)
        raise SystemExit(1) from None
    except KeyboardInterrupt:
        advice = "go on with --train.resume" if stage == "fine_tuning" else "run it again to go on"
        print(f"\n{stage}.py: interrupted; {advice}.", file=sys.stderr)
        raise SystemExit(130) from None
    except RuntimeError as error:
        # torch.OutOfMemoryError, by name, since torch is imported only by the stages that need it.
        if type(error).__name__ != "OutOfMemoryError":
            raise
        print(f"\n{stage}.py: the GPU has not enough memory. {OUT_OF_MEMORY_REMEDY}", file=sys.stderr)
        raise SystemExit(1) from None
    finally:
        # All is done and said; libraries take a second to end, in which Ctrl-C would kill without a word.
        atexit.register(signal.signal, signal.SIGINT, signal.SIG_IGN)


def next_command(stage: str, config: Config) -> str:
    """Return the command of the next stage, with what it needs to find the outputs and the model of this one."""
    line = command(stage, config.run_dir)
    name = config.model.name
    if "model" in SECTIONS[stage] and name != PRESETS[config.preset].model.name:
        line += " " + shell_line(["--model.name", name])
    return line


def setting_arguments(stage: str, config: Config, named: Collection[str] = ()) -> list[str]:
    """Return the settings of a stage as `parse` reads them: those that differ from the preset's, and those in `named`.

    Args:
        stage: name of the script without .py; settings that it does not offer are left out.
        config: the settings.
        named: settings to return in any case, as section.name.
    """
    arguments: list[str] = []
    for section in SECTIONS[stage]:
        values, defaults = getattr(config, section), getattr(PRESETS[config.preset], section)
        for field in dataclasses.fields(values):
            value, name = getattr(values, field.name), f"{section}.{field.name}"
            if value == getattr(defaults, field.name) and name not in named:
                continue
            option = "--" + name.replace("_", "-")
            if isinstance(value, bool):
                arguments.append(option if value else f"--{section}.no-{field.name.replace('_', '-')}")
            elif isinstance(value, tuple):
                arguments += [option, *map(str, value)]
            elif str(value).startswith("-"):
                arguments.append(f"{option}={value}")
            else:
                arguments += [option, str(value)]
    return arguments


def prompt_lines(label: str) -> Iterator[str]:
    """Yield the lines that a user types until an empty one or the end of the input."""
    print(f"{label}? An empty line ends.")
    while True:
        try:
            line = input("> ").strip()
        except EOFError:
            return
        if not line:
            return
        yield line


def print_settings(stage: str, config: Config) -> None:
    """Print the settings that a stage was started with."""
    print(f"{stage}.py, preset {config.preset}, outputs in {config.run_dir}")
    for section in SECTIONS[stage]:
        values = dataclasses.asdict(getattr(config, section))
        print(f"  {section}: " + ", ".join(f"{name}={_short(value)}" for name, value in values.items()))
    print(flush=True)


def _short(value: object) -> str:
    if isinstance(value, Path):
        return str(value.relative_to(Path.cwd())) if value.is_relative_to(Path.cwd()) else str(value)
    if isinstance(value, (tuple, list)):
        return "[" + ", ".join(map(str, value)) + "]"
    return repr(value) if isinstance(value, str) else str(value)


def quiet_libraries() -> None:
    """Turn off telemetry, and the chatter of libraries that says nothing to a user; set what must precede imports."""
    os.environ.setdefault("ANONYMIZED_TELEMETRY", "False")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("UNSLOTH_DISABLE_STATISTICS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
    # Threads that wait for each other do not spin: on a machine that does something else, too, they would take its time.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(encoding="utf-8", errors="replace")
