"""What run.py installs is pinned with hashes, and the lock files say what the requirements say."""

from __future__ import annotations

import re

import pytest

from config import PROJECT_DIR

# Their build depends on the machine, so that they are pinned by version alone.
WITH_TORCH = re.compile(r"torch|torchvision|torchao|xformers|triton.*|nvidia-.*|cuda-.*")


def pins(name: str) -> dict[str, list[str]]:
    """For each package of a file, and of the files that it names, its lines: the version, and the hashes."""
    text = (PROJECT_DIR / name).read_text(encoding="utf-8").replace("\\\n", "")
    found: dict[str, list[str]] = {}
    for line in text.splitlines():
        if line.startswith("-r "):
            found |= pins(line.removeprefix("-r ").strip())
        elif line and not line.startswith("#"):
            package, _, rest = line.partition("==")
            found.setdefault(package.strip().lower().replace("_", "-"), []).append(rest)
    return found


@pytest.mark.parametrize("name", ["requirements", "requirements-gpu", "requirements-tests"])
def test_the_lock_has_what_is_required_and_hashes_of_all(name):
    required, locked = pins(f"{name}.txt"), pins(f"{name}.lock")
    for package, versions in required.items():
        if not WITH_TORCH.fullmatch(package):
            assert package in locked, f"run ./lock_requirements.sh: {package} is not in {name}.lock"
            assert [line.split()[0] for line in locked[package]] == versions, f"run ./lock_requirements.sh: {package}"
    assert not [package for package in locked if WITH_TORCH.fullmatch(package)]
    assert all("--hash=sha256:" in line for lines in locked.values() for line in lines)


@pytest.mark.parametrize("name", ["requirements-models.txt", "requirements-converter.txt"])
def test_what_is_installed_without_dependencies_has_hashes(name):
    assert all("--hash=sha256:" in line for lines in pins(name).values() for line in lines)
