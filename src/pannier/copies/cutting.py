"""Cuts by the thread that syncs a group's files.

To go from a thread to the event loop and back takes as long as a cut. So the thread takes the cuts of its group itself: one
as soon as the disk has taken what was written, and has still to flush it, and one after that. What it found is told to the event
loop, which sends it.

The event loop holds the volume's group lock meanwhile, so nobody else cuts. A thread that the disk keeps waiting may be
told to cut no more: then the lock can be given up.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from dataclasses import replace

import structlog

from pannier.core.errors import PannierError
from pannier.core.line import Cut, Doubt, LinePlace
from pannier.host.clock import Clock
from pannier.storage.lines import LineDriver

log = structlog.get_logger(__name__)


class ThreadCuts:
    """The cuts of one group of sync calls. The methods that take one are for the thread, all else for the event loop.

    Attributes:
        seconds: what the last one took.
        is_whole: whether the last one has all that the group made durable.
    """

    def __init__(
        self,
        driver: LineDriver,
        place: LinePlace,
        *,
        hear: Callable[[Cut | Doubt | None, float], None],
        durable: Callable[[], None],
        clock: Clock,
    ) -> None:
        """Prepare.

        Args:
            place: of the next record.
            hear: called in the event loop with each cut and the time at which it was begun, in their order; None where it was
                lost.
            durable: called there when everything is durable here, before the cut that has all is heard.
        """
        self._driver = driver
        self._place = place
        self._hear = hear
        self._durable = durable
        self._clock = clock
        self._loop = asyncio.get_running_loop()
        self._lock = threading.Lock()
        """Over what follows, and the cuts."""
        self._over = False
        self._newest: Cut | Doubt | None = None
        self.seconds = 0.0
        self.is_whole = False

    @property
    def nothing_new(self) -> bool:
        """Whether the last cut found that nothing was written since the one before."""
        return isinstance(self._newest, Cut) and not self._newest.ranges

    def take(self) -> None:
        """Take a cut, and note its record. Raises nothing."""
        with self._lock:
            if not self._over:
                self._try()

    def take_last(self) -> None:
        """Everything is durable: take the cut that has all. Raises nothing."""
        with self._lock:
            if not self._over:
                self._loop.call_soon_threadsafe(self._durable)
                self._try()
                self.is_whole = not self._over

    def _try(self) -> None:
        began = self._clock.now()
        try:
            self._take(began)
        # Bugs too: what was told and not sent must not count as sent.
        except Exception as error:
            self._over = True
            self._loop.call_soon_threadsafe(self._hear, None, began)
            known = isinstance(error, PannierError)
            log.warning(
                "line.cut-lost",
                id=self._place.volume,
                error=str(error),
                exc_info=None if known else error,
            )
        self.seconds = self._clock.now() - began

    def _take(self, began: float) -> None:
        self._newest = cut = self._driver.cut_now(self._place)
        self._loop.call_soon_threadsafe(self._hear, cut, began)
        if isinstance(cut, Doubt):
            self._over = True
        elif cut.ranges:
            # The copies have it by then, or not: what counts is that it is noted before a sync call is answered.
            self._driver.note(self._place)
            self._place = replace(self._place, number=self._place.number + 1)

    def stop(self) -> bool:
        """Let no cut begin any more. False if one is just being taken."""
        self._over = True
        free = self._lock.acquire(blocking=False)
        if free:
            self._lock.release()
        return free
