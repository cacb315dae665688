"""What can go wrong in the lab, in the project's error tree."""

from __future__ import annotations

from pannier.core.errors import PannierError


class LabError(PannierError):
    """The lab, or this host, cannot do what was asked."""

    code = "lab"


class CommandFailed(LabError):
    """A command ended with a status other than 0.

    Attributes:
        returncode: its exit status; negative for a signal, as :mod:`subprocess` has it.
        stdout: what it printed.
        stderr: what it complained about.
    """

    code = "lab-command-failed"

    def __init__(
        self, message: str, *, returncode: int, stdout: str, stderr: str, remedy: str = ""
    ) -> None:
        super().__init__(message, remedy=remedy)
        self.returncode = returncode
        self.stdout = stdout
        self.stderr = stderr


class CommandTimedOut(LabError):
    """A command did not end in the time allowed; it and its children were killed."""

    code = "lab-command-timed-out"
