"""The promises that the layout makes: direction of imports, lazy heavy packages, commands in the README."""

from __future__ import annotations

import ast
import functools
import re
import subprocess
import sys

import pytest

from config import PROJECT_DIR, SECTIONS, section_fields

HEAVY = {"torch", "transformers", "trl", "peft", "unsloth", "datasets", "chromadb", "langchain_chroma", "gradio",
         "langchain_huggingface", "langchain_text_splitters", "sentence_transformers", "matplotlib", "xllamacpp", "optuna",
         "sqlalchemy"}  # fmt: skip
MODULES = sorted([*PROJECT_DIR.glob("*.py"), *(PROJECT_DIR / "pipeline").rglob("*.py")])
PAGES = sorted([*PROJECT_DIR.glob("*.md"), *(PROJECT_DIR / "docs").glob("*.md"), PROJECT_DIR / "data" / "README.md"])


def imported(path, top_level_only):
    """The first two parts of every name that a module imports."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    guarded = {id(n) for node in tree.body if isinstance(node, ast.If) for n in ast.walk(node)}
    for node in tree.body if top_level_only else ast.walk(tree):
        if id(node) in guarded:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ""
            if node.module == "pipeline":
                yield from (f"pipeline.{alias.name}" for alias in node.names)


def module_name(path):
    """The name of a module without .py, as `pipeline/run/files`."""
    return path.relative_to(PROJECT_DIR).with_suffix("").as_posix()


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_imports_go_from_stages_to_pipeline_to_config(path):
    names = set(imported(path, top_level_only=False))
    first = {name.partition(".")[0] for name in names}
    assert not first & set(SECTIONS), "no stage is imported"
    if path.name == "config.py":
        assert first <= set(sys.stdlib_module_names)
    if path.name == "run.py":
        assert first <= set(sys.stdlib_module_names) | {"config", "pipeline"}
    if module_name(path).startswith("pipeline/") and path.stem not in ("command_line", "recipe"):
        source = path.read_text(encoding="utf-8")
        assert "PRESETS" not in source, "values come in as arguments"


# These are imported inside functions themselves.
IMPORTED_LATE = {
    "pipeline/training/attention",
    "pipeline/training/batching",
    "pipeline/training/flat_optimizer",
    "pipeline/training/isolation",
    "pipeline/training/loss",
    "pipeline/training/session",
    "pipeline/training/trainer",
    "pipeline/training/progress",
    "pipeline/page/site",
    "pipeline/page/tab",
    "pipeline/page/tabs/ask",
    "pipeline/page/tabs/compare",
    "pipeline/page/tabs/search",
    "pipeline/page/tabs/train",
}


@pytest.mark.parametrize("path", [p for p in MODULES if module_name(p) not in IMPORTED_LATE], ids=module_name)
def test_heavy_packages_are_imported_inside_functions(path):
    assert not {name.partition(".")[0] for name in imported(path, top_level_only=True)} & HEAVY


@pytest.mark.parametrize("script", [*SECTIONS, "run"])
def test_help_answers_without_a_heavy_package(script):
    code = (
        "import runpy, sys\n"
        f"sys.argv = ['{script}.py', '--help']\n"
        "try:\n"
        f"    runpy.run_path('{script}.py', run_name='__main__')\n"
        "except SystemExit as end:\n"
        "    assert not end.code, end.code\n"
        f"assert not {HEAVY!r} & set(sys.modules), {HEAVY!r} & set(sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=PROJECT_DIR, capture_output=True, text=True, encoding="utf-8"
    )
    assert done.returncode == 0, done.stderr
    assert "usage" in done.stdout.lower()


def documented_commands():
    """Every `python …` command line of the documentation."""
    for path in PAGES:
        for block in re.findall(r"```(?:\w*)\n(.*?)```", path.read_text(encoding="utf-8"), re.DOTALL):
            for line in block.splitlines():
                if line.strip().startswith("python "):
                    yield path.name, line.split("#")[0].strip()


@functools.cache
def help_of(script):
    """What a script prints for --help."""
    return subprocess.run(
        [sys.executable, script, "--help"], cwd=PROJECT_DIR, capture_output=True, text=True, encoding="utf-8"
    ).stdout


def test_there_are_pages_with_commands():
    names = {name for name, _ in documented_commands()}
    assert names >= {
        "README.md",
        "README.pt-BR.md",
        "CONTRIBUTING.md",
        "data.md",
        "training.md",
        "retrieval.md",
        "gguf.md",
    }


@pytest.mark.parametrize(("page", "command"), sorted(set(documented_commands())))
def test_every_documented_command_exists(page, command):
    import shlex

    _, script, *arguments = shlex.split(command)
    if script == "-m":
        assert arguments[0] in {"venv", "pytest"}
        return
    assert (PROJECT_DIR / script).exists(), command
    stage = script.removesuffix(".py")
    shown = help_of(script)
    for argument in arguments:
        option = argument.partition("=")[0]
        if not option.startswith("--"):
            continue
        section, dot, field = option.removeprefix("--").partition(".")
        if not dot:
            assert option in shown, f"{option} in {command}"
            continue
        known = {name.replace("_", "-") for name in section_fields(section)}
        assert field.removeprefix("no-") in known, f"{option} in {command}"
        assert stage == "run" or section in SECTIONS[stage], f"{option} in {command}"


def test_everything_public_says_what_it_is():
    for path in MODULES:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        classes = [node for node in tree.body if isinstance(node, ast.ClassDef)]
        for node in [*tree.body, *(member for cls in classes for member in cls.body)]:
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_"):
                assert ast.get_docstring(node), f"{path.name}: {node.name} has no docstring"
