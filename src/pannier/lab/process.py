"""The only place where the lab starts other programs."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, TypeVar

from pannier.lab.errors import CommandFailed, CommandTimedOut, LabError

T = TypeVar("T")

POLL_S = 0.05
"""Pause between two looks at something that will be ready soon."""


def run(
    argv: Sequence[str],
    *,
    check: bool = True,
    input: str | None = None,
    stdin: IO[bytes] | None = None,
    stdout: IO[bytes] | None = None,
    timeout: float | None = None,
    env: Mapping[str, str] | None = None,
    what: str | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run a program to its end and return what it printed, decoded as UTF-8.

    The program gets its own process group, so that a time-out or Ctrl-C ends its children too, and
    it ends when we do, even if we are killed: nothing may be made after the lab's lock is gone.

    Args:
        argv: program and arguments; no shell is involved.
        check: raise if the exit status is not 0.
        input: text for its standard input; without it and ``stdin`` the input is empty.
        stdin: an open file to read from instead.
        stdout: an open file that takes its output instead of the result.
        timeout: seconds; None waits for ever.
        env: the whole environment; None passes ours on.
        what: what to call it in an error; None shows the command.

    Raises:
        CommandFailed: it ended with another status than 0 and ``check`` is set.
        CommandTimedOut: it took longer than ``timeout``.
        LabError: the program is not there.
    """
    what = what or shlex.join(argv)[:300]
    try:
        child = subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", *argv],
            stdin=subprocess.PIPE if input is not None else stdin or subprocess.DEVNULL,
            stdout=stdout or subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=env,
            encoding="utf-8",
            errors="replace",
            start_new_session=True,
        )
    except OSError as error:
        raise LabError(f"cannot start {argv[0]}: {error.strerror}") from error
    with child:
        try:
            out, err = child.communicate(input, timeout)
        except BaseException as error:
            os.killpg(child.pid, signal.SIGKILL)
            if isinstance(error, subprocess.TimeoutExpired):
                raise CommandTimedOut(f"no end after {timeout:g} s: {what}") from error
            raise
    if check and child.returncode:
        raise _command_failed(what, child.returncode, out or "", err or "")
    return subprocess.CompletedProcess(argv, child.returncode, out or "", err or "")


def _command_failed(what: str, returncode: int, out: str, err: str) -> CommandFailed:
    """The error for a command's bad end, with the last lines of what it said."""
    said = "\n".join((err.strip() or out.strip()).splitlines()[-12:])
    return CommandFailed(
        f"exit status {returncode} from: {what}" + (f"\n{said}" if said else ""),
        returncode=returncode,
        stdout=out,
        stderr=err,
    )


def start_detached(
    argv: Sequence[str],
    *,
    join: Callable[[list[str]], list[str]],
    log: Path,
    env: Mapping[str, str] | None = None,
) -> None:
    """Start a program that outlives us, in its own session and in a control group.

    Its process id is not returned on purpose: between the fork and writing the id down we could
    be killed. The group finds it in any case: it is there from its first moment.

    Args:
        join: :meth:`pannier.lab.cgroup.HostGroup.joining` of the group.
        log: file that takes what it prints.
        env: the whole environment; None passes ours on.
    """
    with log.open("ab") as out:
        child = subprocess.run(
            join(["setsid", "--fork", *argv]),
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            env=env,
            check=False,
        )
    if child.returncode:
        raise LabError(f"cannot start {argv[0]}", remedy=f"see {log}")


def become(argv: Sequence[str], *, env: Mapping[str, str]) -> None:
    """Replace this process by the program: terminal, input, output and exit status are its own."""
    try:
        os.execvpe(argv[0], list(argv), dict(env))
    except OSError as error:
        raise LabError(f"cannot start {argv[0]}: {error.strerror}") from error


def supervise(argv: Sequence[str]) -> int:
    """Run a program with our own input and output and return its exit status."""
    return subprocess.run(argv, check=False).returncode


def wait_for(
    ready: Callable[[], T | None],
    *,
    what: str,
    timeout: float,
    remedy: str = "",
    poll: float = POLL_S,
) -> T:
    """Call ``ready`` until it returns something true, and return that.

    Raises:
        LabError: nothing true came within ``timeout`` seconds.
    """
    deadline = time.monotonic() + timeout
    while not (found := ready()):
        if time.monotonic() > deadline:
            raise LabError(f"{what}: not there after {timeout:g} s", remedy=remedy)
        time.sleep(poll)
    return found
