"""The command line of a stage: the sections of the configuration it uses, its own options, errors as one sentence."""

from __future__ import annotations

import argparse
import atexit
import contextlib
import dataclasses
import itertools
import os
import signal
import sys
import warnings
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Annotated, Any, TypeVar

from config import PRESETS, SECTIONS, Config, PromptConfig, StageName
from pipeline.run import manifests, recipe
from pipeline.run.errors import UsageError, UserError
from pipeline.run.files import told_if_full
from pipeline.run.run_folder import RunFolder, next_stage, shell_line

Options = TypeVar("Options")
MAKES_MODEL = ("foundation_model", "fine_tuning", "search_hyperparameters")
"""Stages that choose a base model; the others use what these have used."""
OF_THE_MODEL = {"model": ("name",), "prompt": [field.name for field in dataclasses.fields(PromptConfig)]}
"""Settings, by section, that whoever asks a model must share with what has trained it."""
OF_THE_INDEX = ("embedding_model", "query_prefix", "document_prefix", "chroma_host", "collection")
"""Settings of `rag` that whoever searches must share with stage 6."""
OUT_OF_MEMORY_REMEDY = (
    "Use more --train.passes, a smaller --train.max-length or --answers.batch-size, or --model.precision 4bit."
)


def starting_point(arguments: list[str]) -> Config:
    """Return the settings that --preset names, with --output-dir."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--preset", default="demo", nargs="?", const="")
    parser.add_argument("--output-dir", "--output_dir", type=Path, nargs="?")
    given, _ = parser.parse_known_args(arguments)
    config = recipe.starting_config(given.preset)
    return recipe.with_outputs_in(given.output_dir, config) if given.output_dir else config


def parse(stage: StageName, description: str, options: type[Options], arguments: list[str]) -> tuple[Config, Options]:
    """Parse the command line of a stage into its configuration and its own options.

    Args:
        stage: name of the script without .py; decides which sections of Config are offered.
        description: shown at the top of --help.
        options: dataclass of the options that only this stage has.
        arguments: the command line without the program's name.
    """
    import tyro  # here, so that the processes of process_data.py do without

    start = starting_point(arguments)
    inherited = inherit(stage, start)
    preset_argument = tyro.conf.arg(
        help=f"{', '.join(PRESETS)}, or the path of a recipe (a TOML file).", metavar="NAME"
    )
    path_argument = tyro.conf.arg(help="Folder of all outputs; each run writes to a folder of its name in it.")
    entries: list[tuple[str, Any, Any]] = [
        ("preset", Annotated[str, preset_argument], start.started_from),
        ("output_dir", Annotated[Path, path_argument], start.output_dir),
        ("options", Annotated[options, tyro.conf.arg(name="")], options()),
    ]
    for section in SECTIONS[stage]:
        default = getattr(inherited, section)
        refuse_repeated(section, default, arguments)
        entries.append((section, type(default), default))
    command = dataclasses.make_dataclass(
        "Command", [(name, kind, dataclasses.field(default=default)) for name, kind, default in entries], frozen=True
    )
    parsed: Any = tyro.cli(
        command,
        prog=f"{stage}.py",
        description=description,
        args=arguments,
        config=(tyro.conf.HelptextFromCommentsOff,),
    )
    sections = {name: getattr(parsed, name) for name in ("output_dir", *SECTIONS[stage])}
    config = dataclasses.replace(inherited, **sections)
    if config.data.input.resolve() != start.data.input.resolve() and start.started_from in PRESETS:
        config = recipe.claim_name_of(config.data.input, config)
    return config, parsed.options


def refuse_repeated(section: str, settings: Any, arguments: list[str]) -> None:
    """Raise a UsageError if what seems to add up, such as files or names, is given twice: the last alone would be read."""
    given = [argument.partition("=")[0].replace("_", "-") for argument in arguments]
    for field in dataclasses.fields(settings):
        option = f"--{section}.{field.name}".replace("_", "-")
        if given.count(option) > 1 and isinstance(getattr(settings, field.name), tuple):
            raise UsageError(f"{option} is given twice. Give it once, with all its values: {option} A B.")
    if section == "data" and "--data.input" in given:
        following = arguments[given.index("--data.input") + 1 :]
        files = list(itertools.takewhile(lambda argument: not argument.startswith("--"), following))
        if given.count("--data.input") > 1 or len(files) > 1:
            raise UsageError("--data.input names several files. Stage 1 reads one: join them, and name the result.")


def inherit(stage: StageName, config: Config) -> Config:
    """Return the settings with what a later stage must share with earlier ones, as their manifests tell.

    These are the base model and the prompt of the training, or else those of stage 2, and the embedding model, its prefixes,
    the server and the collection of the index. The command line may name others; where that cannot be meant, the stage says so.
    """
    folder = RunFolder.of(config)

    def recorded(maker: StageName, section: str, names: Collection[str]) -> dict[str, Any]:
        with contextlib.suppress(UserError, LookupError, TypeError):  # the stage itself says what is damaged
            settings = manifests.read_manifest(folder, maker)["settings"][section]
            return {name: settings[name] for name in names if name in settings}  # manifests of old have fewer
        return {}

    for section, names in OF_THE_MODEL.items():
        if section in SECTIONS[stage] and stage not in MAKES_MODEL:
            used = recorded("fine_tuning", section, names) or recorded("foundation_model", section, names)
            config = dataclasses.replace(config, **{section: dataclasses.replace(getattr(config, section), **used)})
    if "rag" in SECTIONS[stage] and stage != "rag_indexing":
        indexed = recorded("rag_indexing", "rag", OF_THE_INDEX)
        config = dataclasses.replace(config, rag=dataclasses.replace(config.rag, **indexed))
    return config


@dataclasses.dataclass(frozen=True)
class NoOptions:
    """A stage without options of its own."""


def run_stage(
    stage: StageName,
    description: str | None,
    run: Callable[..., Path | None],
    options: type[Any] = NoOptions,
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
            if (following := next_stage(stage)) is not None:
                print(f"Next:    {next_command(following, config)}")
    except UserError as error:
        print(f"\n{stage}.py: {error}", file=sys.stderr)
        raise SystemExit(2 if isinstance(error, UsageError) else 1) from None
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


def next_command(stage: StageName, config: Config) -> str:
    """Return the command of the next stage, with what it needs to find the outputs and the model of this one."""
    line, name = RunFolder.of(config).command(stage), config.model.name
    if stage in MAKES_MODEL and name != recipe.starting_config(config.started_from).model.name:
        line += " " + shell_line(["--model.name", name])
    return line


def setting_arguments(stage: StageName, config: Config, named: Collection[str] = ()) -> list[str]:
    """Return the settings of a stage as `parse` reads them: those that differ from what --preset names, and those in `named`.

    Args:
        stage: name of the script without .py; settings that it does not offer are left out.
        config: the settings.
        named: settings to return in any case, as section.name.
    """
    arguments: list[str] = []
    start = recipe.starting_config(config.started_from)
    for section in SECTIONS[stage]:
        values, defaults = getattr(config, section), getattr(start, section)
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


def print_settings(stage: StageName, config: Config) -> None:
    """Print the settings that a stage was started with."""
    print(f"{stage}.py, run {config.name}, outputs in {config.run_dir}")
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
