"""Errors that a user can mend."""

from __future__ import annotations

from config import StageName


class UserError(Exception):
    """A problem that the user can mend. Its text is one sentence or two, and names the remedy."""


class UsageError(UserError):
    """The command line, or a recipe that it names, asks for what does not exist."""


class StageNeeded(UserError):
    """What a stage makes is missing or out of date."""

    def __init__(self, problem: str, stage: StageName, command: str, again: bool = False) -> None:
        """Say what the problem is, and which command mends it.

        Args:
            problem: one sentence.
            stage: name of the script without .py.
            command: runs the stage.
            again: the stage has been run, but must be run again.
        """
        self.stage, self.command, self.again = stage, command, again
        super().__init__(f"{problem} Run `{command}` {'again' if again else 'first'}.")
