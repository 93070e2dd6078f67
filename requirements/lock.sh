#!/bin/sh
# Write the lock files that run.py installs from: every package with its hashes, for every system and Python from 3.11 on.
# torch and what comes with its build are left out. Needs uv (pip install uv); run it after a change of requirements.
set -e
cd "$(dirname "$0")/.."
lock() {
    target=$1
    shift
    compile() {
        uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --no-annotate "$@"
    }
    unlocked=$(compile "$@" | sed -n -E 's/^(torch|torchvision|torchao|xformers|triton[a-z-]*|nvidia-[a-z0-9-]*|cuda-[a-z0-9-]*)==.*/--no-emit-package \1/p')
    # shellcheck disable=SC2086
    compile "$@" $unlocked --output-file "requirements/$target.lock" >/dev/null
}
lock requirements requirements.txt
lock gpu requirements.txt requirements/gpu.txt
lock tests requirements/tests.txt
