"""The kernel's tracefs: mounted, and an instance in it with one event, as files."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from pannier.core.errors import Conflict, InvalidInput, Unavailable
from pannier.cut.ring import Layout, layout
from pannier.host.locks import who_locks

TRACEFS = Path("/sys/kernel/tracing")
_NOSUID, _NODEV, _NOEXEC = 2, 4, 8
_EVENT = "events/block/block_rq_complete"
_ENABLE, _FILTER = f"{_EVENT}/enable", f"{_EVENT}/filter"
_CLOCK = "mono"
"""CLOCK_MONOTONIC, which a program can read too."""
_TOTAL_RING_BYTES = 64 << 20
"""Of all CPUs together: this memory cannot be swapped out."""
_MOST_RING_BYTES, _LEAST_RING_BYTES = 4 << 20, 256 << 10
"""Of one CPU. An event takes 64 bytes, so 4 MiB last for a second of 65,000 writes. A ring that is not drained before
it is full costs a generation, so there is a least."""
_FILTER_BYTES = 4000
"""The kernel takes a filter of less than a page."""
_FILE_BYTES = 8192
"""No file that is read again and again is larger."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,200}")
_LOST = re.compile(rb"^(?:overrun|commit overrun|dropped events): (\d+)", re.MULTILINE)

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mount.argtypes = (
    ctypes.c_char_p, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_ulong, ctypes.c_char_p,
)  # fmt: skip


def mount() -> Path:
    """The mounted tracefs; it is mounted if it was not.

    Raises:
        Unavailable: this kernel has none, or forbids it.
    """
    instances = TRACEFS / "instances"
    if not instances.exists():
        flags = _NOSUID | _NODEV | _NOEXEC
        if _libc.mount(b"tracefs", os.fsencode(TRACEFS), b"tracefs", flags, None) < 0:
            number = ctypes.get_errno()
            if number != errno.EBUSY:  # another did it a moment ago
                raise _unavailable(OSError(number, os.strerror(number), str(TRACEFS)))
        if not instances.exists():
            raise _unavailable(FileNotFoundError(errno.ENOENT, "no such folder", str(instances)))
    return TRACEFS


def remove(name: str) -> None:
    """Remove an instance that nobody uses; without one, do nothing.

    Raises:
        Conflict: somebody has a file of it open.
    """
    try:
        _folder(name).rmdir()
    except FileNotFoundError:
        pass
    except OSError as error:
        raise _in_use(name) from error


def remove_unused(beginning: str) -> None:
    """Remove all instances whose names begin so, and that no living process has claimed."""
    try:
        names = [folder.name for folder in (TRACEFS / "instances").iterdir()]
    except OSError:  # no tracefs, so no instances
        return
    for name in names:
        if name.startswith(beginning) and not _is_claimed(TRACEFS / "instances" / name):
            with suppress(Conflict):
                remove(name)


def _is_claimed(folder: Path) -> bool:
    try:
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


def filter_text(devices: list[int]) -> str:
    """A filter that lets these devices' completed writes pass, and neither reads nor flushes.

    Args:
        devices: the kernel's numbers of them, at least one.
    """
    devices = sorted(devices)
    which = " || ".join(f"dev == {device}" for device in devices)
    if len(which) > _FILTER_BYTES:  # too much is only slow
        which = f"dev >= {devices[0]} && dev <= {devices[-1]}"
    return f'nr_sector > 0 && !(rwbs ~ "R*") && ({which})'


class TraceInstance:
    """An instance of the trace that belongs to this process until it is closed. Its event is off at first.

    While its event is on, it costs each block request of the machine a moment.

    Attributes:
        layout: of its rings.
        ring_bytes: of each CPU's ring.
        rings: descriptors of the rings, one for each CPU that may ever be there.

    Raises:
        Unavailable: the kernel has no such trace, or forbids it.
        Conflict: another process uses the instance.
    """

    layout: Layout

    def __init__(self, name: str) -> None:
        self._root = _folder(name)
        self._open: dict[str, int] = {}
        self._filters: tuple[str, ...] = ("none",)
        """Those that the kernel may have now: two while one is replaced."""
        self._is_on = False
        self._lost: tuple[int, ...] = ()
        self.rings: list[int] = []
        share = _TOTAL_RING_BYTES // max(1, os.cpu_count() or 1)
        self.ring_bytes = min(_MOST_RING_BYTES, max(_LEAST_RING_BYTES, share))
        try:
            with suppress(FileExistsError):
                self._root.mkdir(mode=0o700)
            self._claim(name)
            self._cpus = sorted(folder.name for folder in (self._root / "per_cpu").iterdir())
            self.set_up()
            self.rings = [self._descriptor(f"per_cpu/{cpu}/trace_pipe_raw") for cpu in self._cpus]
        except OSError as error:
            self.close()
            raise _unavailable(error) from error
        except BaseException:
            self.close()
            raise

    def set_up(self) -> None:
        """Stop it, empty its rings, and set everything as it must be. What it had to tell is lost.

        Raises:
            OSError: the kernel refused something.
        """
        self._write("tracing_on", "0")
        self._write(_ENABLE, "0")
        self._write("trace", "")
        self._write("trace_clock", _CLOCK)
        self._write("options/overwrite", "1")
        self._write("buffer_size_kb", str(self.ring_bytes >> 10))
        self._write(_FILTER, "0" if self._filters[-1] == "none" else self._filters[-1])
        self._write(_ENABLE, _switch(self._is_on))
        self._write("tracing_on", "1")
        header_page = (self._root / "events/header_page").read_text()
        self.layout = layout(header_page, (self._root / _EVENT / "format").read_text())
        self._lost = self._losses()

    def watch(self, devices: list[int]) -> None:
        """Let these devices' events be told, and no others'. Those that were told already are told all the time.

        Args:
            devices: the kernel's numbers of them, see :func:`pannier.cut.ring.kernel_number`.

        Raises:
            OSError: the kernel refused something.
        """
        is_on = bool(devices)
        if is_on:
            wanted = filter_text(devices)
            self._filters = (self._filters[-1], wanted)
            self._write(_FILTER, wanted)
            self._filters = (wanted,)
        if is_on != self._is_on:
            self._write(_ENABLE, _switch(is_on))
            self._is_on = is_on

    def trouble(self) -> str:
        """Why what it told since the last call may not be everything: "" or words for people."""
        found = {
            file: self._read(file).decode().strip() for file in ("tracing_on", _ENABLE, _FILTER)
        }
        clock = self._read("trace_clock").decode()
        before, self._lost = self._lost, self._losses()
        if found["tracing_on"] != "1":
            return "somebody switched the trace off"
        if found[_ENABLE] != _switch(self._is_on):
            return "somebody switched the event block_rq_complete"
        if found[_FILTER] not in self._filters:
            return f"somebody set the filter {found[_FILTER][:100]!r}"
        if f"[{_CLOCK}]" not in clock:
            return f"somebody set the clock: {clock.strip()}"
        if self._lost != before:
            return f"the rings lost events: {sum(self._lost) - sum(before)}"
        return ""

    def close(self) -> None:
        """Switch it off and give it back. It stays, for the next one."""
        if "." in self._open:
            with suppress(OSError):
                self._write("tracing_on", "0")
                self._write(_ENABLE, "0")
        for fd in self._open.values():
            os.close(fd)
        self._open.clear()
        self.rings = []

    def _claim(self, name: str) -> None:
        """One process at a time: the lock goes with it, however it ends."""
        fd = os.open(self._root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            who = who_locks(fd)
            os.close(fd)
            raise _in_use(name, who) from error
        self._open["."] = fd

    def _losses(self) -> tuple[int, ...]:
        """How many events the rings lost, ever: of each CPU, each kind of loss."""
        texts = [self._read(f"per_cpu/{cpu}/stats") for cpu in self._cpus]
        return tuple(int(number) for text in texts for number in _LOST.findall(text))

    def _write(self, file: str, text: str) -> None:
        """Write a file of it; an empty text empties the file, which means something to the kernel."""
        fd = os.open(self._root / file, os.O_WRONLY | os.O_TRUNC | os.O_CLOEXEC)
        try:
            if text:
                os.write(fd, text.encode())
        finally:
            os.close(fd)

    def _read(self, file: str) -> bytes:
        return os.pread(self._descriptor(file), _FILE_BYTES, 0)

    def _descriptor(self, file: str) -> int:
        if file not in self._open:
            flags = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC
            self._open[file] = os.open(self._root / file, flags)
        return self._open[file]


def pages(ring: int, page_bytes: int) -> Iterator[bytes]:
    """The sub-buffers that a ring has now, whole.

    A ring that has nothing says EAGAIN at first, and 0 bytes from the first moment on in which a child of this process
    has closed the descriptor, as every program does that is started. It says 0 bytes as well while an event is just
    being recorded. So 0 bytes end a ring too, and whoever misses an event drains again.

    Args:
        ring: descriptor.

    Raises:
        OSError: it cannot be read.
    """
    while True:
        try:
            page = os.read(ring, page_bytes)
        except BlockingIOError:
            return
        except OSError as error:
            if error.errno == errno.ENODEV:  # its CPU was never there
                return
            raise
        if not page:
            return
        yield page


def _folder(name: str) -> Path:
    """Raises InvalidInput."""
    if not _NAME.fullmatch(name):
        raise InvalidInput(f"{name[:100]!r} is no name for an instance of the trace")
    return mount() / "instances" / name


def _switch(is_on: bool) -> str:
    return "1" if is_on else "0"


def _unavailable(error: OSError) -> Unavailable:
    return Unavailable(
        f"the kernel's block trace is not to be had: {error}",
        remedy="it needs root, tracefs and no lockdown=confidentiality; without it, sync calls wait for generations",
    )


def _in_use(name: str, who: str = "") -> Conflict:
    return Conflict(
        f"another process uses the trace {name}" + (f": {who}" if who else ""),
        remedy=f"see who: fuser -v {TRACEFS}/instances/{name}. One that has ended already waits for its disk: see dmesg, and "
        "restart the machine if that never answers. The trace is had again by itself once the process is gone",
    )
