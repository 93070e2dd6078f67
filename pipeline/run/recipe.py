"""Recipes: the settings of a run as a TOML file, read from a user and written beside the outputs.

    base = "demo"          # the preset that it starts from; without one, the defaults of config.py

    [train]                # a section of config.py
    max_steps = 100        # "None" unsets what the preset has set

Standard library only until values are checked, since run.py reads recipes before anything is installed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import os
import re
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, get_args, get_type_hints

from config import PRESETS, SECTIONS, Config, StageName, require_place
from pipeline.run.errors import UsageError, UserError
from pipeline.run.files import atomic_write
from pipeline.run.run_folder import MANIFESTS, RECIPE, shell_line

Tables = dict[str, dict[str, Any]]
HEADER = "The settings of this run, which `python run.py --preset {}` repeats."


@dataclasses.dataclass(frozen=True)
class Recipe:
    """What a TOML file says, its names checked and its values not."""

    path: Path
    text: str
    start: Config
    """The settings that it changes, under the name of its run."""
    tables: Tables
    """The changed settings, by section."""

    def config(self) -> Config:
        """Return the settings; a value that cannot be is a UsageError that names its line."""
        changed = {name: self._section(name, values) for name, values in self.tables.items()}
        return dataclasses.replace(self.start, **changed)

    def _section(self, name: str, values: dict[str, Any]) -> Any:
        import msgspec

        default = getattr(self.start, name)
        hints = get_type_hints(type(default))
        unset = {key for key, value in values.items() if value == "None" and type(None) in get_args(hints[key])}
        given = {key: None if key in unset else value for key, value in values.items()}
        try:
            return msgspec.convert({**dataclasses.asdict(default), **given}, type(default), dec_hook=_as_path)
        except msgspec.ValidationError as error:
            problem, _, place = str(error).partition(" - at `$")
            named = re.findall(r"\w+", place) + re.findall(r"\w+", problem)
            key = next((word for word in named if word in values), next(iter(values), ""))
            where = "" if re.search(rf"\b{key}\b", problem) else f"{name}.{key}: "
            raise _wrong(self.path, self.text, where + problem, name, key) from error


def starting_config(name: str) -> Config:
    """Return the settings that --preset names: those of a preset, or of a recipe.

    Raises:
        UsageError: there is no such preset, or something is wrong with the recipe.
    """
    return PRESETS[name] if name in PRESETS else read_recipe(name).config()


def unchecked_start(name: str) -> Config:
    """Return what --preset names, where the values of a recipe are neither checked nor taken: the run is known by it."""
    return PRESETS[name] if name in PRESETS else read_recipe(name).start


def with_outputs_in(folder: Path, config: Config) -> Config:
    """Return the settings with another --output-dir, or raise a UsageError if that can be none."""
    try:
        return dataclasses.replace(config, output_dir=folder)
    except ValueError as error:
        raise UsageError(str(error)) from error


def read_recipe(name: str) -> Recipe:
    """Read a recipe and check its names.

    Raises:
        UsageError: it cannot be read, or names what does not exist.
    """
    path = Path(name)
    try:
        require_place("preset", name)
    except ValueError as error:
        raise UsageError(str(error)) from error
    if path.suffix != ".toml":
        raise UsageError(
            f"There is no preset {name!r}; choose from {', '.join(PRESETS)}, or name a recipe, a file that ends in .toml."
            + _hint(name, PRESETS)
        )
    try:
        text = path.read_text(encoding="utf-8-sig")
        values = tomllib.loads(text)
    except OSError as error:
        raise UsageError(f"{path} cannot be read ({error.strerror}).") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} is not TOML: {error}.") from error
    base, run = values.pop("base", None), values.pop("run", None)
    if base is not None and (not isinstance(base, str) or base not in PRESETS):
        problem = f"there is no preset {base!r}; the presets are {', '.join(PRESETS)}." + _hint(str(base), PRESETS)
        raise _wrong(path, text, problem, "", "base")
    start = PRESETS[base] if base is not None else Config(name="")
    for section, settings in values.items():
        if section not in _sections():
            problem = f"there is no section {section!r}." + _hint(section, [*_sections(), "base"])
            raise _wrong(path, text, problem, "", section)
        if not isinstance(settings, dict):
            raise _wrong(path, text, f"{section} is a section: write [{section}].", "", section)
        known = [setting.name for setting in dataclasses.fields(getattr(start, section))]
        for key in settings:
            if key not in known:
                raise _wrong(path, text, f"{section} has no setting {key!r}." + _hint(key, known), section, key)
    named = _named(path, text, start, run)
    return Recipe(path, text, dataclasses.replace(named, started_from=name), values)


def _named(path: Path, text: str, start: Config, run: object) -> Config:
    """Return the settings under the name of the run: that of the file, or of the folder in which a run has left it."""
    if run is None:
        name = path.stem
    elif isinstance(run, str) and _is_name(run):
        name = os.fsdecode(run.encode())
    else:
        raise _wrong(path, text, "run must be the name of a folder.", "", "run")
    if run is not None and path.name == RECIPE and (path.parent / MANIFESTS).is_dir():
        # As it lies now: a run may have been copied or renamed.
        folder = path.parent if path.parent.name not in ("", "..") else path.resolve().parent
        return dataclasses.replace(start, name=folder.name, output_dir=folder.parent)
    if name.casefold() in PRESETS or not _is_name(name):
        raise UsageError(f"{path} has the name of a preset, whose outputs its own would replace, or none. Rename it.")
    return dataclasses.replace(start, name=name)


def _is_name(text: str) -> bool:
    return text not in ("", ".", "..") and "\0" not in text and Path(text).name == text


def claim_name_of(source: Path, config: Config) -> Config:
    """Return the settings under the name of the user's own data, so that no run of a preset is replaced.

    Raises:
        UserError: there is a run of this name already, of another file.
    """
    named = named_after(config, source)
    recipe = named.run_dir / RECIPE
    if recipe.exists():
        with contextlib.suppress(UsageError):  # damaged, and written anew
            other = read_recipe(str(recipe)).config().data.input
            if other.resolve() != source.resolve():
                raise UserError(
                    f"{named.run_dir} holds a run over {other}. Give another --output-dir, or name a recipe with --preset."
                )
    return named


def named_after(config: Config, source: Path) -> Config:
    """Return the settings under the name of a file, which later stages start from the recipe of the run."""
    plain = source.with_suffix("") if source.suffix.lower() == ".gz" else source
    name = plain.stem if _is_name(plain.stem) else "own"
    name = f"{name}-data" if name.casefold() in PRESETS else name
    named = dataclasses.replace(config, name=name)
    return dataclasses.replace(named, started_from=str(named.run_dir / RECIPE))


def save(config: Config, stage: StageName) -> None:
    """Write the settings of a stage into recipe.toml in the folder of the run; those of other stages stay.

    Stage 1 begins a run, and so writes the settings of all stages.
    """
    import tomlkit

    path, settings = config.run_dir / RECIPE, config
    if stage != "process_data":
        with contextlib.suppress(UsageError):  # there is none, or it is damaged
            present = read_recipe(str(path)).config()
            settings = dataclasses.replace(present, **{name: getattr(config, name) for name in SECTIONS[stage]})
    settings = dataclasses.replace(settings, train=dataclasses.replace(settings.train, resume=False))
    document = tomlkit.document()
    document.add(tomlkit.comment(HEADER.format(_printable(shell_line([_name_text(path)])))))
    document.add("run", tomlkit.item(_name_text(config.name)))
    for section in _sections():
        values = dataclasses.asdict(getattr(settings, section))
        table = tomlkit.item({key: _as_toml(value) for key, value in values.items() if value is not None})
        document.add(section, table)
    with atomic_write(path) as file:
        file.write(tomlkit.dumps(document))


def _sections() -> list[str]:
    return [setting.name for setting in dataclasses.fields(Config) if setting.name not in Config.ABOUT_THE_RUN]


def _as_toml(value: Any) -> Any:
    return (
        _name_text(value.absolute()) if isinstance(value, Path) else list(value) if isinstance(value, tuple) else value
    )


def _printable(text: str) -> str:
    return "".join(sign if sign.isprintable() else "?" for sign in text)


def _name_text(name: str | Path) -> str:
    """Return the name of a file as text, in a locale too that cannot write it; what is no UTF-8 at all is replaced."""
    return os.fsencode(name).decode("utf-8", "replace")


def _as_path(kind: type, value: object) -> Path:
    """Be the conversion of what msgspec does not know: the text of a path."""
    if isinstance(value, Path):
        return value
    if not isinstance(value, str):
        raise ValueError("Expected the path of a file")
    return Path(os.fsdecode(value.encode()))


def _hint(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(known), n=1)
    return f" Did you mean {close[0]}?" if close else ""


def _wrong(path: Path, text: str, problem: str, section: str, key: str) -> UsageError:
    number = _line_of(text, section, key)
    return UsageError(f"{path}{f', line {number}' if number else ''}: {problem}")


def _line_of(text: str, section: str, key: str) -> int | None:
    """Return the line, from 1, that sets a key of a section, or opens the section itself."""
    table, setting = "", re.compile(rf"""\s*(?:(\w+)\s*\.\s*)?["']?{re.escape(key)}["']?\s*=""")
    for number, line in enumerate(text.splitlines(), 1):
        if opened := re.match(r"""\s*\[\s*["']?([^]"']+?)["']?\s*\]""", line):
            table = opened[1]
            if not section and table == key:
                return number
        elif (found := setting.match(line)) and (table or found[1] or "") == section:
            return number
    return None
