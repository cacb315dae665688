"""The block trace of a node: what completed on the devices that are watched."""

from __future__ import annotations

import threading

import structlog

from pannier.core.errors import Conflict
from pannier.cut.ring import kernel_number, parse
from pannier.cut.tracefs import TraceInstance, pages
from pannier.cut.watch import Watch

log = structlog.get_logger(__name__)


class Tracer:
    """The trace of one node, for all its devices: each instance costs every block request of the machine.

    The instance of an earlier process is taken over and set up anew: what it holds is lost, and no watch of this tracer
    begins before that. Methods block and may be called from several threads. Somebody must call :meth:`drain` often
    enough that no ring overruns, also while no cut is taken.

    Args:
        name: of the instance: ``pannier-CLUSTER-NODE``.

    Raises:
        Unavailable: the kernel has no such trace, or forbids it.
        Conflict: another process uses this instance.
    """

    def __init__(self, name: str) -> None:
        self._instance = TraceInstance(name)
        self._lock = threading.Lock()
        """Of the rings and the watches. Whoever has it waits for nothing but the kernel's memory."""
        self._settings = threading.Lock()
        """Of what is watched. Taken before the other; the kernel needs milliseconds for a change."""
        self._watches: dict[int, Watch] = {}
        self._is_closed = False

    @property
    def ring_bytes(self) -> int:
        """Memory of each CPU's ring."""
        return self._instance.ring_bytes

    def watch(self, device: int) -> Watch:
        """Watch a device: what completes after the return is told.

        Args:
            device: its ``dev_t``, as stat(2) gives it.

        Raises:
            Conflict: it is watched already, or this tracer was closed.
            OSError: the kernel refused.
        """
        number = kernel_number(device)
        with self._settings:
            self._require_open()
            if number in self._watches:
                raise Conflict(
                    f"the block device {number >> 20}:{number & 0xFFFFF} is watched already"
                )
            self._instance.watch([*self._watches, number])
            watch = Watch(number, self._lock)
            with self._lock:
                self._watches[number] = watch
        return watch

    def unwatch(self, watch: Watch) -> None:
        """Watch a device no more. Without such a watch, do nothing.

        Raises:
            OSError: the kernel refused.
        """
        with self._settings:
            if self._watches.get(watch.device) is not watch:
                return
            with self._lock:
                del self._watches[watch.device]
            self._instance.watch(list(self._watches))

    def drain(self) -> None:
        """Give what the rings have to the watches. Whatever is lost is a gap of all of them.

        What completed before the call is with its watch after it, but for an event that is just being recorded.
        """
        with self._lock:
            try:
                for ring in self._instance.rings:
                    for page in pages(ring, self._instance.layout.page_bytes):
                        self._give_out(page)
            except (OSError, ValueError) as error:
                self._miss(f"a ring cannot be read: {error}")

    def check(self) -> None:
        """Look whether the trace could tell everything until now. If not, that is a gap of all watches."""
        with self._lock:
            self._look()

    def restart(self, watch: Watch) -> None:
        """Forget what was told of a device, and its gap. What completes after the return is told.

        Raises:
            Conflict: this tracer was closed.
            OSError: the trace is not as it must be, and cannot be set up anew.
        """
        with self._settings, self._lock:
            self._require_open()
            if self._look():
                self._instance.set_up()
        self.drain()
        watch.clear()

    def close(self) -> None:
        """End it: a gap of all watches. The instance stays, and tells nothing; see :func:`pannier.cut.tracefs.remove`."""
        with self._settings, self._lock:
            self._is_closed = True
            for watch in self._watches.values():
                watch.miss("the trace was closed")
            self._watches.clear()
            self._instance.close()

    def _require_open(self) -> None:
        if self._is_closed:
            raise Conflict("the trace was closed", remedy="open it anew")

    def _give_out(self, page: bytes) -> None:
        events, is_missing = parse(page, self._instance.layout)
        if is_missing:
            self._miss("a ring overran")
        for event in events:
            if watch := self._watches.get(event.device):
                watch.note(event)

    def _look(self) -> bool:
        """Whether something is wrong."""
        try:
            trouble = self._instance.trouble()
        except OSError as error:
            trouble = f"the trace cannot be looked at: {error}"
        if trouble:
            self._miss(trouble)
        return bool(trouble)

    def _miss(self, why: str) -> None:
        if any(
            not watch.gap for watch in self._watches.values()
        ):  # one line for each gap, however often it is seen
            log.warning("trace.gap", why=why, devices=len(self._watches))
        for watch in self._watches.values():
            watch.miss(why)
