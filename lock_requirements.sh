#!/bin/sh
# Write the lock files that run.py installs from: every package with its hashes, for every system and Python from 3.11 on.
# torch and what comes with its build are left out. Needs uv (pip install uv); run it after a change of requirements*.txt.
set -e
cd "$(dirname "$0")"
for name in requirements requirements-gpu requirements-tests; do
    compile() {
        uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --no-annotate "$@" "$name.txt"
    }
    unlocked=$(compile | sed -n -E 's/^(torch|torchvision|torchao|xformers|triton[a-z-]*|nvidia-[a-z0-9-]*|cuda-[a-z0-9-]*)==.*/--no-emit-package \1/p')
    # shellcheck disable=SC2086
    compile $unlocked --output-file "$name.lock" >/dev/null
done
