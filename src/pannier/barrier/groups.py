"""Group commit: the calls that wait for a volume are made durable together, one group at a time.

All calls that wait when a group begins are in it; those that come later form the next. Writers that
one group releases often call again at once, so the next group waits some milliseconds for them, beside those
that came meanwhile. Without that pause, the writers would be in two groups that take turns, and each would wait for both.
Where they do not come back in time, they are waited for ever more seldom.

A signal withdraws a waiting call, and the kernel restarts it as a new one. A caller with a fast timer
might therefore never see the end of a group. So its call keeps the time of its first arrival, and is
released once a group that began after that time is done and nothing was written since.
"""

from __future__ import annotations

import asyncio
import errno
import math
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import dataclass, field

import structlog

from pannier.barrier.calls import BY_KERNEL, DONE, Answer, Strategy, SyncCall
from pannier.core.errors import NotHolder, PannierError, VolumeNotFound
from pannier.core.worthwhile import Worthwhile
from pannier.host.clock import Clock

log = structlog.get_logger(__name__)

FIRST_PAUSE_SECONDS = 0.1
LONGEST_PAUSE_SECONDS = 2.0
"""Pauses between tries to make a group durable: the first, and the longest; doubled each time."""
GATHER_SECONDS = 0.01
GATHER_PART = 0.5
"""How long after the end of one group the next one waits for the same callers: ``GATHER_SECONDS``, but
no longer than this part of the time that the last group took."""
_LOOKS = 3
"""How often, before each group, ``unchanged`` is asked in order to release restarted calls."""


@dataclass(slots=True, eq=False)
class Waiting:
    """A call with the volumes that it still waits for.

    Attributes:
        volumes: names; changed by the groups, and empty as soon as the call is answered.
        answer: lets the call go on; called once, at the first failure or when no volume is left.
        lapse: called instead of ``answer`` when the thread no longer waits.
        passing: those of ``volumes`` that it only sees beside its own. Where one leaves this node, the call fails:
            whoever mounts it is ended then, and this caller goes on.
        told: what it is told for the volumes that are done.
    """

    call: SyncCall
    volumes: set[str]
    answer: Callable[[Answer], None]
    lapse: Callable[[], None]
    passing: Collection[str] = ()
    told: Answer = field(default=DONE)


@dataclass(frozen=True, slots=True)
class Backlog:
    """How many calls wait for a volume, and for how many seconds the oldest of them has waited."""

    calls: int
    oldest_seconds: float


class Groups:
    """The calls that wait, by volume. For one event loop; not thread-safe."""

    def __init__(self, strategy: Strategy, *, clock: Clock) -> None:
        self._strategy = strategy
        self._now = clock.now
        self._queues: dict[str, _Queue] = {}

    def add(self, waiting: Waiting) -> None:
        """Let a call wait for all its volumes."""
        for volume in tuple(waiting.volumes):
            queue = self._queues.get(volume)
            if queue is None:
                queue = self._queues[volume] = _Queue(volume, self._strategy, self._now)
            queue.add(waiting)

    def discard(self, waiting: Waiting) -> None:
        """Forget a call that nobody waits for any more; one that is not there is no error."""
        for volume in waiting.volumes:
            if volume in self._queues:
                self._queues[volume].discard(waiting)

    def backlog(self, volume: str) -> Backlog:
        """What waits for a volume now."""
        queue = self._queues.get(volume)
        arrivals = [waiting.call.arrival for waiting in queue.waiting] if queue else []
        if not arrivals:
            return Backlog(0, 0.0)
        return Backlog(len(arrivals), max(0.0, self._now() - min(arrivals)))

    async def close(self) -> None:
        """End the work; what waits stays unanswered."""
        tasks = [queue.task for queue in self._queues.values() if queue.task]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class _Queue:
    """The calls that wait for one volume.

    Attributes:
        waiting: in the order of arrival: those of the group under way, and of the next.
        task: the work on them; None while nothing waits.
    """

    def __init__(self, volume: str, strategy: Strategy, now: Callable[[], float]) -> None:
        self.waiting: dict[Waiting, None] = {}
        self.task: asyncio.Task[None] | None = None
        self._volume = volume
        self._strategy = strategy
        self._now = now
        self._begun = -math.inf  # when the last completed group began
        self._expected = 0  # calls of the next one, if all whom that group let go call again
        self._gather_until = -math.inf
        self._gathers = Worthwhile()
        self._came = asyncio.Event()

    def add(self, waiting: Waiting) -> None:
        self.waiting[waiting] = None
        self._came.set()
        if self.task is None:
            self.task = asyncio.create_task(self._work(), name=f"barrier {self._volume}")

    def discard(self, waiting: Waiting) -> None:
        self.waiting.pop(waiting, None)

    async def _work(self) -> None:
        try:
            while self.waiting:
                await self._gather()
                await self._release_restarted()
                await self._group()
        finally:
            self.task = None

    async def _gather(self) -> None:
        """Wait a moment for the callers that the last group released."""
        if self._gather_until <= self._now() or not self._gathers.due():
            return
        while len(self.waiting) < self._expected and (left := self._gather_until - self._now()) > 0:
            self._came.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(left):
                    await self._came.wait()
        self._gathers.tried(useful=len(self.waiting) >= self._expected)

    async def _group(self) -> None:
        """Make all that waits durable, for as long as it takes."""
        pause, failure = FIRST_PAUSE_SECONDS, ""
        while group := self._present():
            begun = self._now()
            try:
                answers = await self._strategy.make_durable(
                    self._volume, [each.call for each in group]
                )
            except Exception as error:  # bugs too: an answer would claim what was not done
                if isinstance(error, NotHolder | VolumeNotFound):
                    for each in [each for each in group if self._volume in each.passing]:
                        self._release(each, Answer(errno.EIO))
                failure = self._complain(error, failure, len(group))
                await asyncio.sleep(pause)
                pause = min(2 * pause, LONGEST_PAUSE_SECONDS)
                continue
            if failure:
                log.info("barrier.again-durable", volume=self._volume, calls=len(group))
            ended = self._now()
            self._begun, self._expected = begun, len(self.waiting)
            self._gather_until = ended + min(GATHER_SECONDS, GATHER_PART * (ended - begun))
            for each, answer in zip(group, answers, strict=True):
                self._release(each, answer)
            return

    def _present(self) -> list[Waiting]:
        """The calls whose threads still wait; the others are dropped."""
        for each in [each for each in self.waiting if not each.call.is_there()]:
            self.discard(each)
            each.lapse()
        return list(self.waiting)

    async def _release_restarted(self) -> None:
        """Release the restarted calls whose data an earlier group made durable, if nothing was
        written since.

        A call may be withdrawn while ``unchanged`` runs, and its successor then comes too late for that
        answer. The next try begins soon after the successor came, with most of the time left until
        the caller's next signal.
        """
        for _ in range(_LOOKS):
            covered = [each for each in self.waiting if each.call.arrival < self._begun]
            if not covered or not await self._is_unchanged():
                return
            for each in covered:
                self._release(each, BY_KERNEL)

    async def _is_unchanged(self) -> bool:
        try:
            return await self._strategy.unchanged(self._volume)
        except Exception:
            return False  # the calls wait for the next group, which says why it cannot be done

    def _release(self, waiting: Waiting, answer: Answer) -> None:
        if waiting not in self.waiting:
            return  # it was withdrawn, or released already
        self.discard(waiting)
        waiting.volumes.discard(self._volume)
        waiting.told = waiting.told.and_also(answer)
        if waiting.told.error or not waiting.volumes:
            waiting.answer(waiting.told)

    def _complain(self, error: Exception, before: str, calls: int) -> str:
        """Log a failure, once for each text of it in a row; returns the text."""
        text = str(error) or repr(error)
        if text != before:
            known = isinstance(error, PannierError)
            log.warning(
                "barrier.not-durable",
                volume=self._volume,
                calls=calls,
                error=text,
                exc_info=None if known else error,
            )
        return text
