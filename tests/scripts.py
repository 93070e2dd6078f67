"""Run a script of the project as a user would."""

from __future__ import annotations

import signal
import subprocess
import sys

from config import PROJECT_DIR


def hear_ctrl_c():
    """Be what a process does before its program: nohup and the background jobs of a shell have set that Ctrl-C is ignored."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


HEARS_CTRL_C = {} if sys.platform == "win32" else {"preexec_fn": hear_ctrl_c}


def command(script, *arguments, cwd=PROJECT_DIR, text=""):
    """Run a script, given with .py, to its end; return what it printed and its exit status."""
    return subprocess.run(
        [sys.executable, str(PROJECT_DIR / script), *map(str, arguments)],
        cwd=cwd, capture_output=True, text=True, encoding="utf-8", input=text,
    )  # fmt: skip
