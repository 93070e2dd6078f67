"""What run.py installs is pinned with hashes, and the lock files say what the requirements say."""

from __future__ import annotations

import re

import pytest

from config import PROJECT_DIR

# Their build depends on the machine, so that they are pinned by version alone.
WITH_TORCH = re.compile(r"torch|torchvision|torchao|xformers|triton.*|nvidia-.*|cuda-.*")


def pins(name: str) -> dict[str, list[str]]:
    """For each package of a file, its lines: the version, and the hashes."""
    text = (PROJECT_DIR / name).read_text(encoding="utf-8").replace("\\\n", "")
    found: dict[str, list[str]] = {}
    for line in text.splitlines():
        if line and not line.startswith("#"):
            package, _, rest = line.partition("==")
            found.setdefault(package.strip().lower().replace("_", "-"), []).append(rest)
    return found


@pytest.mark.parametrize(("name", "files"), [
    ("requirements", ["requirements.txt"]),
    ("gpu", ["requirements.txt", "requirements/gpu.txt"]),
    ("tests", ["requirements/tests.txt"]),
])  # fmt: skip
def test_the_lock_has_what_is_required_and_hashes_of_all(name, files):
    locked = pins(f"requirements/{name}.lock")
    required = {package: versions for file in files for package, versions in pins(file).items()}
    for package, versions in required.items():
        if not WITH_TORCH.fullmatch(package):
            assert package in locked, f"run requirements/lock.sh: {package} is not in {name}.lock"
            assert [line.split()[0] for line in locked[package]] == versions, f"run requirements/lock.sh: {package}"
    assert not [package for package in locked if WITH_TORCH.fullmatch(package)]
    assert all("--hash=sha256:" in line for lines in locked.values() for line in lines)


@pytest.mark.parametrize("name", ["requirements/models.txt", "requirements/converter.txt"])
def test_what_is_installed_without_dependencies_has_hashes(name):
    assert all("--hash=sha256:" in line for lines in pins(name).values() for line in lines)
