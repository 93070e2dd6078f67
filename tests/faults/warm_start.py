"""Start stages from a process that has imported their libraries, so that a run takes a second or two and its work can be hit."""

from __future__ import annotations

import importlib
import json
import os
import select
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

PROJECT_DIR = Path(__file__).resolve().parents[2]
LIBRARIES = (
    "accelerate", "chromadb", "datasets", "gguf", "langchain_chroma", "langchain_huggingface", "matplotlib",
    "peft", "pipeline.training.trainer", "scipy.stats", "sentence_transformers", "tokenizers", "torch", "transformers", "trl", "tyro",
    "xllamacpp",
)  # fmt: skip


class Starter:
    """The process that has imported the libraries."""

    def __init__(self) -> None:
        """Import them."""
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "bufsize": 0}
        self._server = subprocess.Popen([sys.executable, __file__], cwd=PROJECT_DIR, **pipes)
        assert self._server.stdout.readline() == b"ready\n"

    def start(self, script: str, code: str, arguments: list[str], printed: Path) -> int:
        """Start the main() of a script in a process group of its own and return its id.

        Args:
            script: name without .py.
            code: run before it.
            arguments: of the command line.
            printed: file for all that it prints.
        """
        self._server.stdin.write(json.dumps([script, code, arguments, str(printed)]).encode() + b"\n")
        return int(self._server.stdout.readline())

    def status(self) -> int | None:
        """Return the exit status of what was started last, once it has ended; that of a signal is negative."""
        ended, _, _ = select.select([self._server.stdout], [], [], 0)
        return int(self._server.stdout.readline()) if ended else None


def serve() -> list[Any]:
    """Start what is asked for on standard input; return, in a new process, what Starter.start() was given."""
    for line in sys.stdin:
        if (child := os.fork()) == 0:
            os.setsid()
            return json.loads(line)
        print(child, flush=True)
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)
    raise SystemExit


def main() -> None:
    """Be the process that has imported the libraries, or one that runs a script."""
    sys.path[:0] = [str(PROJECT_DIR)]
    from pipeline.run.command_line import quiet_libraries

    quiet_libraries()  # it sets what must precede imports
    for name in LIBRARIES:
        importlib.import_module(name)
    print("ready", flush=True)
    script, code, arguments, printed = serve()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # nohup and the background jobs of a shell ignore it
    output = os.open(printed, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for source, target in ((nothing, 0), (output, 1), (output, 2)):
        os.dup2(source, target)
    sys.stdout.reconfigure(line_buffering=True)  # in the order of what it writes to standard error
    sys.argv = [f"{script}.py", *arguments]
    exec(code)
    importlib.import_module(script).main()


if __name__ == "__main__":
    main()
