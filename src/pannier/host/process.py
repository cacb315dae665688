"""The one place where the daemon runs programs: with a time limit, and the end of their stderr kept."""

from __future__ import annotations

import asyncio
import fcntl
import os
import select
import signal
import sys
import termios
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from pannier.core.errors import PannierError, ProgramFailed
from pannier.host.ioctls import control

_PIPE_BYTES = 1 << 20  # 16 times the default: far fewer wake-ups on a stream
_STDERR_KEPT_BYTES = 16 << 10
_CHILDREN_SECONDS = 5.0
"""How long processes that a killed command has started may take to be gone: milliseconds, where no disk hangs."""
_ENVIRONMENT = {
    "LC_ALL": "C",
    "PATH": "/usr/sbin:/usr/bin:/sbin:/bin:/usr/local/sbin:/usr/local/bin",
}


@dataclass(frozen=True, slots=True)
class Failing:
    """How the failure of a command is reported; chosen by whoever runs it.

    Attributes:
        error: what is raised where it fails or is too slow.
        missing: what is raised where the program is not installed.
        remedy, slow, install: what to do where it failed, was too slow, is not installed.
    """

    error: type[PannierError] = ProgramFailed
    missing: type[PannierError] = ProgramFailed
    remedy: str = ""
    slow: str = "see what this machine is busy with, then try again"
    install: str = "install it"


@dataclass(frozen=True, slots=True)
class Finished:
    """How a command ended."""

    argv: tuple[str, ...]
    status: int
    stdout: str
    stderr: str
    failing: Failing = Failing()

    @property
    def last_words(self) -> str:
        """The last line of stderr that says something."""
        lines = [line.strip() for line in self.stderr.splitlines() if line.strip()]
        return lines[-1] if lines else f"exit status {self.status}, no message"

    def error(self, *, remedy: str = "") -> PannierError:
        """The failure, as the error that :class:`Failing` names."""
        return self.failing.error(
            f"`{' '.join(self.argv)}` failed: {self.last_words}",
            remedy=remedy or self.failing.remedy,
        )


class Running:
    """A started command whose stdin or stdout is a pipe of ours. Await :meth:`wait` or :meth:`stop`."""

    def __init__(
        self, process: asyncio.subprocess.Process, *, argv: tuple[str, ...], failing: Failing
    ) -> None:
        self._process = process
        self._argv = argv
        self._failing = failing
        self._stderr = asyncio.create_task(self._read_stderr())

    async def _read_stderr(self) -> str:
        assert self._process.stderr is not None
        kept = b""
        while chunk := await self._process.stderr.read(_STDERR_KEPT_BYTES):
            kept = (kept + chunk)[-_STDERR_KEPT_BYTES:]
        return kept.decode(errors="replace")

    async def wait(self, *, timeout_s: float) -> Finished:
        """Wait for the end, whatever the exit status.

        Raises:
            Failing.error: it ran longer than ``timeout_s`` seconds; it was killed.
        """
        try:
            async with asyncio.timeout(timeout_s):
                stderr = await self._stderr
                status = await self._process.wait()
        except TimeoutError as error:
            await self.stop()
            raise _too_slow(self._argv, timeout_s, self._failing) from error
        except asyncio.CancelledError:
            await self.stop()
            raise
        return Finished(self._argv, status, "", stderr, self._failing)

    async def stop(self) -> None:
        """Kill the process if it still runs, with those that it has started, and wait for their end."""
        if self._process.returncode is None:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)  # it leads a session of its own
        await asyncio.shield(self._process.wait())
        # They all have the other end of this pipe.
        await asyncio.wait([self._stderr], timeout=_CHILDREN_SECONDS)
        self._stderr.cancel()


def open_pipe() -> tuple[int, int]:
    """A large pipe: (read end, write end), both closed on exec. The caller closes both."""
    reader, writer = os.pipe2(os.O_CLOEXEC)
    with suppress(OSError):  # refused over the user's pipe limit: slower, not wrong
        fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
    return reader, writer


def pipe_bytes(pipe: int) -> int:
    """How much a pipe can hold."""
    return fcntl.fcntl(pipe, fcntl.F_GETPIPE_SZ)


def waiting_bytes(reader: int) -> int:
    """How much a pipe holds now."""
    held = bytearray(4)
    control(reader, termios.FIONREAD, held)
    return int.from_bytes(held, sys.byteorder)


def has_reader(writer: int) -> bool:
    """Whether anybody still holds the read end of a pipe."""
    poll = select.poll()
    poll.register(writer, 0)
    return not any(event & select.POLLERR for _fd, event in poll.poll(0))


async def start(
    argv: Sequence[str],
    *,
    stdin: int | None = None,
    stdout: int | None = None,
    failing: Failing = Failing(),
) -> Running:
    """Start a command with the given file descriptors; what is not given is /dev/null.

    Raises:
        Failing.missing: the program is not installed.
    """
    process = await _spawn(
        argv,
        stdin=asyncio.subprocess.DEVNULL if stdin is None else stdin,
        stdout=asyncio.subprocess.DEVNULL if stdout is None else stdout,
        failing=failing,
    )
    return Running(process, argv=tuple(argv), failing=failing)


async def run(
    argv: Sequence[str],
    *,
    timeout_s: float,
    check: bool = True,
    failing: Failing = Failing(),
    environment: Mapping[str, str] | None = None,
    directory: Path | None = None,
    told: Callable[[str], bool] | None = None,
) -> Finished:
    """Run a command to its end.

    Args:
        argv: program and arguments; no shell.
        timeout_s: seconds after which it is killed.
        check: raise where the exit status is not 0.
        environment: variables beside those that every command has. They are never shown.
        directory: where it runs; None for where this process does.
        told: gets each line of stdout when it comes. Those for which it returns True are not kept.

    Raises:
        Failing.error: it failed or was too slow; Failing.missing: the program is not installed.
    """
    process = await _spawn(
        argv,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        failing=failing,
        environment=environment,
        directory=directory,
    )
    try:
        async with asyncio.timeout(timeout_s):
            if told is None:
                stdout, stderr = await process.communicate()
            else:
                stdout, stderr = await _communicate_by_lines(process, told)
    except (TimeoutError, asyncio.CancelledError) as error:
        with suppress(ProcessLookupError):
            process.kill()
        await asyncio.shield(process.wait())
        if isinstance(error, asyncio.CancelledError):
            raise
        raise _too_slow(tuple(argv), timeout_s, failing) from error
    status = process.returncode
    assert status is not None
    finished = Finished(
        tuple(argv),
        status,
        stdout.decode(errors="replace"),
        stderr.decode(errors="replace"),
        failing,
    )
    if check and status:
        raise finished.error()
    return finished


async def _communicate_by_lines(
    process: asyncio.subprocess.Process, told: Callable[[str], bool]
) -> tuple[bytes, bytes]:
    assert process.stdout is not None
    assert process.stderr is not None
    errors = asyncio.create_task(process.stderr.read())
    kept, rest = bytearray(), b""
    try:
        while chunk := await process.stdout.read(_STDERR_KEPT_BYTES):
            *lines, rest = (rest + chunk).split(b"\n")
            for line in lines:
                if not told(line.decode(errors="replace")):
                    kept += line + b"\n"
        stderr = await errors
        await process.wait()
    finally:
        errors.cancel()
    return bytes(kept + rest), stderr


async def _spawn(
    argv: Sequence[str],
    *,
    stdin: int,
    stdout: int,
    failing: Failing,
    environment: Mapping[str, str] | None = None,
    directory: Path | None = None,
) -> asyncio.subprocess.Process:
    try:
        return await asyncio.create_subprocess_exec(
            *argv,
            stdin=stdin,
            stdout=stdout,
            stderr=asyncio.subprocess.PIPE,
            env={**_ENVIRONMENT, **(environment or {})},
            cwd=directory,
            start_new_session=True,  # a Ctrl-C meant for us must not cut a half-done transfer
        )
    except FileNotFoundError as error:
        raise failing.missing(
            f"the program {argv[0]} is not installed on this node", remedy=failing.install
        ) from error


def _too_slow(argv: tuple[str, ...], timeout_s: float, failing: Failing) -> PannierError:
    return failing.error(
        f"`{' '.join(argv)}` did not end within {timeout_s:g} s and was stopped",
        remedy=failing.slow,
    )
