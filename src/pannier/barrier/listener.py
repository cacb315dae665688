"""One seccomp listener: the sync calls of a container, or of one process that was exec'd into it."""

from __future__ import annotations

import asyncio
import errno
import os
import select
from collections.abc import Callable
from functools import partial

from pannier.barrier import kernel, local_sync
from pannier.barrier.calls import Answer, Mapped, OpenFile, SyncCall
from pannier.barrier.groups import Groups, Waiting
from pannier.barrier.keeping import Origin
from pannier.barrier.kernel import Notification
from pannier.barrier.pending import Pending
from pannier.barrier.reach import Reach, Reached
from pannier.barrier.turns import Turns
from pannier.host.clock import Clock
from pannier.host.threads import in_own_thread

_MOUNTS_KEPT_SECONDS = 1.0
"""How long what was read of the mounts of a container serves its calls: it keeps the container's mount namespace, with
the volume in it, also when the container has ended."""
_PROBED = 1024
"""How many ids after the last stored one are looked up after a restart of the daemon."""
_LAPSED_SECONDS = 60.0
"""How long an interrupted call is remembered; the kernel restarts it right after its signal's handler."""
_STACKED_AT_ONCE = 8
"""How many calls of a container on file systems of its own are synced at once. Such a file system may be served by
the container itself, and hang: each then takes a thread."""

_Key = tuple[str, tuple[int, ...]]


class Listener:
    """Takes calls from the kernel, lets them wait in the groups, and answers them."""

    def __init__(
        self,
        fd: int,
        origin: Origin,
        *,
        name: str,
        reach: Reach,
        pending: Pending,
        groups: Groups,
        turns: Turns,
        clock: Clock,
        ended: Callable[[Listener], None],
    ) -> None:
        """Make a listener that does not listen yet; it owns ``fd``.

        Args:
            name: under which it is kept.
            ended: called when the last process with the filter is gone; ``fd`` is closed by then.
        """
        self.fd = fd
        self.origin = origin
        self.name = name
        self.reach = reach
        self._pending = pending
        self._groups = groups
        self._turns = turns
        self._clock = clock
        self._ended = ended
        self._loop = asyncio.get_running_loop()
        self._paused = False
        self._closed = False
        self._mounts_kept: asyncio.TimerHandle | None = None
        self._stacked = asyncio.Semaphore(_STACKED_AT_ONCE)
        self._tasks: set[asyncio.Task[None]] = set()
        self._waiting: dict[int, tuple[Waiting, int]] = {}  # by id; with the slot
        self._by_thread: dict[int, tuple[_Key, int]] = {}  # with the id
        self._lapsed: dict[int, tuple[_Key, float, float]] = {}  # first arrival, and when it lapsed

    def start(self) -> None:
        """Take up the calls from before a restart, and listen."""
        self._restore()
        self._turns.add(self.fd, self._turn)

    def close(self) -> None:
        """Stop listening. What waits goes on waiting, for as long as systemd has the descriptor."""
        self._turns.remove(self.fd)
        if self._mounts_kept is not None:
            self._mounts_kept.cancel()
        self._let_go_of_mounts()
        for task in self._tasks:
            task.cancel()
        for waiting, _slot in self._waiting.values():
            self._groups.discard(waiting)
        self._waiting.clear()
        self._pending.close()
        self._closed = True
        os.close(self.fd)

    # -- calls come ------------------------------------------------------------------------------

    def _turn(self, events: int) -> None:
        if not events & select.EPOLLIN:
            self.close()
            self._ended(self)
        elif self._pending.full:  # the rest waits in the kernel
            self._turns.rest(self.fd)
            self._paused = True
        elif call := kernel.receive(self.fd):
            self._take(call)

    def _take(self, call: Notification) -> None:
        slot = self._pending.add(call.ident)
        first = self._first_arrival(call)
        if self._mounts_kept is None:
            self._mounts_kept = self._loop.call_later(_MOUNTS_KEPT_SECONDS, self._let_go_of_mounts)
        reached = self.reach.of(call)
        self._wait(call, slot, first, reached)

    def _let_go_of_mounts(self) -> None:
        self._mounts_kept = None
        self.reach.mounts.let_go()

    def _wait(self, call: Notification, slot: int, first: float, reached: Reached) -> None:
        """Let a call wait for the volumes that it reaches, or go on at once where there are none.

        What was read from /proc is true of this call if the call can still be answered: the thread
        has then waited all the time.
        """
        if not reached.volumes:
            kernel.let_continue(self.fd, call.ident)
            self._pending.clear(slot)
            return
        waiting = Waiting(
            call=self._made(call, first, None if reached.stacked else reached.file),
            volumes=set(reached.volumes),
            passing=reached.volumes - self.origin.places.keys(),
            answer=partial(self._answer, call.ident),
            lapse=partial(self._forget, call.ident),
        )
        self._waiting[call.ident] = waiting, slot
        if call.tid:
            self._by_thread[call.tid] = _key(call), call.ident
        if reached.stacked and reached.file is not None:
            file = self._made(call, first, reached.file)
            task = self._loop.create_task(self._sync_stacked(call.ident, file, waiting))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        else:
            self._groups.add(waiting)

    def _made(self, call: Notification, first: float, file: OpenFile | None) -> SyncCall:
        start, length = (call.arguments[0], call.arguments[1]) if call.name == "msync" else (0, 0)
        return SyncCall(
            container=self.origin.container,
            pid=call.tid,
            name=call.name,
            fd=call.fd,
            arrival=first,
            file=file,
            mapped=Mapped(start, start + length) if call.name == "msync" else None,
            is_there=partial(self._is_there, call.ident),
        )

    async def _sync_stacked(self, ident: int, call: SyncCall, waiting: Waiting) -> None:
        """Bring a file system that may lie in a volume into the volume, before the volume's group.

        No group waits for it: a container that serves the file system itself may need a group to do that.
        """
        async with self._stacked:
            if ident not in self._waiting:
                return
            error = await in_own_thread(partial(local_sync.sync_stacked, call))
        if ident not in self._waiting:
            return  # it was withdrawn meanwhile
        if error:
            self._answer(ident, Answer(error))
        else:
            self._groups.add(waiting)

    def _restore(self) -> None:
        """Let the calls that an earlier process received wait for all volumes: the kernel does not
        say again what they were.

        A process may have been killed after it took a call and before it stored its id. The kernel
        counts ids up, so such calls are found by asking for the ids after the last stored one.
        """
        for slot, ident in self._pending:
            if not kernel.is_waiting(self.fd, ident):
                self._pending.clear(slot)
        known = {ident for _slot, ident in self._pending}
        last = self._pending.last
        for ident in range(last, last + _PROBED) if last else ():
            if ident not in known and kernel.is_waiting(self.fd, ident):
                self._pending.add(ident)
        for slot, ident in self._pending:
            unknown = Notification(ident, 0, "unknown", ())
            everything = Reached(frozenset(self.reach.places))
            self._wait(unknown, slot, self._clock.now(), everything)

    # -- calls end -------------------------------------------------------------------------------

    def _is_there(self, ident: int) -> bool:
        """Whether a call's thread still waits. Asked from other threads too, also when this listener is closed."""
        if self._closed:
            return False
        try:
            return kernel.is_waiting(self.fd, ident)
        except OSError as error:
            if error.errno in (errno.EBADF, errno.ENOTTY, errno.EINVAL):  # closed in this moment
                return False
            raise

    def _answer(self, ident: int, answer: Answer) -> None:
        if answer.error is None:
            there = kernel.let_continue(self.fd, ident)
        else:
            there = kernel.answer(self.fd, ident, answer.error)
        if not there:
            self._forget(ident)
            return
        waiting, slot = self._waiting.pop(ident)
        self._groups.discard(waiting)  # one that failed may still wait for other volumes
        self._pending.clear(slot)
        self._by_thread.pop(waiting.call.pid, None)
        self._resume()

    def _forget(self, ident: int) -> None:
        """A signal ended the call; remember it, in case the kernel restarts it."""
        waiting, slot = self._waiting.pop(ident)
        self._groups.discard(waiting)
        self._pending.clear(slot)
        tid = waiting.call.pid
        if tid in self._by_thread:
            key, _ident = self._by_thread.pop(tid)
            now = self._clock.now()
            self._lapsed = {
                tid: lapsed
                for tid, lapsed in self._lapsed.items()
                if now - lapsed[2] < _LAPSED_SECONDS
            }
            self._lapsed[tid] = key, waiting.call.arrival, now
        self._resume()

    def _resume(self) -> None:
        """Listen again, if there was no room."""
        if self._paused:
            self._paused = False
            self._turns.go_on(self.fd)

    def _first_arrival(self, call: Notification) -> float:
        """When the call came for the first time: earlier than now for a restarted one."""
        if call.tid in self._by_thread:  # a thread waits for one call at a time
            self._forget(self._by_thread[call.tid][1])
        key, arrival, _lapsed = self._lapsed.pop(call.tid, (None, 0.0, 0.0))
        return arrival if key == _key(call) else self._clock.now()


def _key(call: Notification) -> _Key:
    """What stays the same when a call is restarted. Registers that it does not use may hold anything."""
    relevant = {"msync": 3, "sync": 0}.get(call.name, 1)
    return call.name, call.arguments[:relevant]
