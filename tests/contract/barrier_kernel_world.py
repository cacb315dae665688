"""The barrier with the real kernel, and nothing else: no engine, no systemd, no file system of its own.

Processes install their own seccomp filters (``barrier_kernel_caller``), volumes are bind mounts, and a socket
plays systemd's file descriptor store.
"""

from __future__ import annotations

import array
import asyncio
import contextlib
import ctypes
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from pannier.barrier.barrier import Barrier
from pannier.barrier.calls import BY_KERNEL, Answer, Strategy, SyncCall
from pannier.core.errors import Unavailable
from pannier.host.activation import unix_listener
from pannier.host.clock import machine_clock

CALLER = Path(__file__).with_name("barrier_kernel_caller.py")
PATIENCE_SECONDS = 20.0
_libc = ctypes.CDLL(None)


class Gate:
    """A strategy whose groups end when the test says so.

    Attributes:
        groups: volume and calls of every group that began.
        clean: whether the volumes count as unchanged.
        failing: whether groups fail at once.
    """

    def __init__(self) -> None:
        self.groups: list[tuple[str, list[SyncCall]]] = []
        self.clean = False
        self.failing = False
        self._open = asyncio.Event()

    def open(self) -> None:
        self._open.set()

    def shut(self) -> None:
        self._open.clear()

    async def make_durable(self, volume: str, calls: Sequence[SyncCall]) -> Sequence[Answer]:
        self.groups.append((volume, list(calls)))
        if self.failing:
            raise Unavailable("the test says so")
        await self._open.wait()
        return [BY_KERNEL for _ in calls]

    async def unchanged(self, volume: str) -> bool:
        return self.clean


@dataclass
class FakeSystemd:
    """The file descriptor store of sd_notify(3)."""

    path: Path
    fds: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(self.path))
        self._socket.setblocking(False)

    def listen(self) -> dict[str, int]:
        """Do what came in; returns the store."""
        with contextlib.suppress(BlockingIOError):
            while True:
                data, ancillary, _flags, _address = self._socket.recvmsg(4096, 1024)
                words = dict(line.split("=", 1) for line in data.decode().splitlines())
                received = array.array("i")
                for _level, _kind, payload in ancillary:
                    received.frombytes(payload)
                if words.get("FDSTORE") == "1":
                    (self.fds[words["FDNAME"]],) = received
                elif words.get("FDSTOREREMOVE") == "1":
                    os.close(self.fds.pop(words["FDNAME"]))
        return self.fds

    def hand_down(self) -> list[tuple[str, int]]:
        """What the next process gets: copies, as after an exec."""
        return [(name, os.dup(fd)) for name, fd in self.listen().items()]

    def close(self) -> None:
        self._socket.close()
        for fd in self.fds.values():
            os.close(fd)


class Caller:
    """A process with a filter."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self.pid = process.pid

    async def begin(self, line: str) -> int:
        """Let a new thread run a line; returns its id."""
        assert self._process.stdin is not None
        self._process.stdin.write(line.encode() + b"\n")
        return int((await self._heard("begins")).split()[1])

    async def sync(self, file: Path, call: str = "os.fsync") -> int:
        """Begin to sync a file in a new thread; returns the thread's id."""
        return await self.begin(f"{call}(os.open({str(file)!r}, os.O_RDWR))")

    async def sync_all(self, file: Path) -> int:
        """Begin a call that may concern every volume: msync, which syncs nothing of the host's."""
        line = f"mmap.mmap(os.open({str(file)!r}, os.O_RDWR), 4096).flush()"
        return await self.begin(line)

    async def outcome(self) -> str:
        """How the next thread to end has ended: ``ok`` or an errno."""
        return (await self._heard("ended")).split()[2]

    def interrupt(self, thread: int, number: int = signal.SIGUSR1) -> None:
        """Send a signal that has a handler to one thread; the default one restarts calls."""
        assert _libc.tgkill(self.pid, thread, number) == 0

    async def _heard(self, word: str) -> str:
        assert self._process.stdout is not None
        line = (await asyncio.wait_for(self._process.stdout.readline(), PATIENCE_SECONDS)).decode()
        assert line.startswith(word), line
        return line

    async def end(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()
        await self._process.wait()


@dataclass
class World:
    """A barrier, the volumes ``one`` and ``two``, and processes that use them.

    Attributes:
        strategy: the gate, unless the test has one of its own.
        server: the socket that runc connects to; it outlives the barrier, as systemd's does.
    """

    folder: Path
    gate: Gate
    strategy: Strategy
    systemd: FakeSystemd
    server: socket.socket
    barrier: Barrier = field(init=False)
    _callers: list[Caller] = field(default_factory=list)

    @property
    def mounts(self) -> Path:
        return self.folder / "mounts"

    def file(self, volume: str = "one") -> Path:
        return self.mounts / volume / "x"

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[Barrier]:
        """A daemon's life: it takes up what systemd has kept."""
        self.barrier = Barrier(
            self.strategy,
            mount_root=self.mounts,
            directory=self.folder / "run",
            clock=machine_clock(),
        )
        with socket.socket(fileno=os.dup(self.server.fileno())) as server:
            self.barrier.restore(self.systemd.hand_down())
            work = asyncio.create_task(self.barrier.run(server))
            try:
                yield self.barrier
            finally:
                work.cancel()
                await asyncio.wait([work])
                # As at the end of a process: what is left of it ends at once.
                left = [task for task in asyncio.all_tasks() if "barrier" in task.get_name()]
                for task in left:
                    task.cancel()
                await asyncio.gather(*left, return_exceptions=True)
                if not work.cancelled():
                    work.result()

    async def caller(
        self,
        *volumes: str,
        flags: int = 0,
        container: str = "c",
        door: str = "sock",
        own_mounts: bool = False,
    ) -> Caller:
        """A process whose container uses ``volumes``; it can call as soon as this returns.

        Args:
            volumes: ``*`` is a directory below which volumes come and go.
            door: the socket at which it hands its listener over.
            own_mounts: it has a mount namespace of its own, as in a real container.
        """
        words = [str(self.folder / door), container, ",".join(volumes or ("one",)), str(flags)]
        command = [sys.executable, str(CALLER), *words]
        process = await asyncio.create_subprocess_exec(
            *(["unshare", "--mount", *command] if own_mounts else command),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        caller = Caller(process)
        self._callers.append(caller)
        await caller._heard("ready")
        return caller

    async def waiting(self, number: int, volume: str = "one") -> None:
        """Wait until so many calls wait."""
        await until(lambda: self.barrier.waiting(volume).calls == number)

    async def restart_call(self, caller: Caller, thread: int, number: int = signal.SIGUSR1) -> None:
        """Let a signal withdraw a thread's call, and wait for its next one."""

        def received() -> set[int]:
            listeners = self.barrier._listeners.values()
            return {ident for listener in listeners for ident in listener._waiting}

        before = received()
        caller.interrupt(thread, number)
        await until(lambda: received() != before)

    async def close(self) -> None:
        for caller in self._callers:
            await caller.end()
        self.systemd.close()


async def until(true: Callable[[], object]) -> None:
    """Wait until something is so."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        while not true():
            await asyncio.sleep(0.005)


@contextlib.contextmanager
def volumes(folder: Path) -> Iterator[None]:
    """Mount ``one`` and ``two`` below ``folder/mounts``, each with a file ``x``."""
    points = [folder / "mounts" / name for name in ("one", "two")]
    trees = folder / "trees"
    trees.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", trees], check=True)
    try:
        for point in points:
            tree = trees / point.name
            tree.mkdir()
            (tree / "x").write_bytes(bytes(4096))
            point.mkdir(parents=True)
            subprocess.run(["mount", "--bind", tree, point], check=True)
        yield
    finally:
        for point in (*points, trees):
            subprocess.run(["umount", "-l", point], check=False)


@contextlib.asynccontextmanager
async def new_world(
    folder: Path, monkeypatch: pytest.MonkeyPatch, *, strategy: Strategy | None = None
) -> AsyncIterator[World]:
    """A world whose volumes are mounted by then, below ``folder/mounts``."""
    with unix_listener(folder / "sock") as server:
        systemd = FakeSystemd(folder / "notify")
        monkeypatch.setenv("NOTIFY_SOCKET", str(systemd.path))
        gate = Gate()
        world = World(folder, gate, strategy or gate, systemd, server)
        try:
            yield world
        finally:
            await world.close()
