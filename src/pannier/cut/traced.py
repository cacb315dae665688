"""What a cut is made from: the trace of a device, its statistics, and its image."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator, Sequence

from pannier.core.line import Range
from pannier.cut.device import LoopSettings, Statistics
from pannier.cut.doubt import Doubtful, DoubtKind
from pannier.cut.image import ImageReader
from pannier.cut.spans import Written
from pannier.cut.tracer import Tracer
from pannier.cut.watch import Watch

_MATCH_SECONDS = 0.05
"""How long events and statistics may differ: an event is visible when the one that it interrupted is whole, and a
request counts when its CPU goes on with it."""
_FIRST_TRIES = 3
"""So often they are compared without a pause."""
_PAUSE_SECONDS = 0.0002


class TracedImage:
    """The :class:`pannier.cut.rounds.Source` of one image. For one thread at a time.

    What it told is remembered until :meth:`forget`: an attempt at a cut that ended in a doubt loses nothing.
    """

    def __init__(
        self, *, tracer: Tracer, watch: Watch, settings: LoopSettings, image: ImageReader
    ) -> None:
        self._tracer = tracer
        self._watch = watch
        self._settings = settings
        self._image = image
        self._told = Written()
        """Since the last :meth:`forget`."""
        self._untold = Written()
        """What of it the present attempt has not told yet."""
        self._limit_bytes = 0

    def restart(self) -> None:
        """Forget everything, and find what the statistics have counted when nothing was told.

        Raises:
            Doubtful: writes complete all the time.
            OSError: the kernel refused.
        """
        self._tracer.restart(self._watch)
        self._told = Written()
        with self._watch.compared():
            for _ in _tries():
                self._watch.open()
                clock_ns = time.monotonic_ns()
                counted = self._settings.statistics().sectors
                self._drain()
                if self._watch.found_base(clock_ns, counted):
                    return
        raise Doubtful(DoubtKind.MISMATCH, "writes complete all the time: no moment to begin at")

    def attempt(self, limit_bytes: int) -> None:
        """Begin an attempt at a cut of so many bytes at most: it is told also what earlier ones were."""
        self._untold, self._limit_bytes = self._told, limit_bytes

    def forget(self) -> None:
        """A cut has all that was told."""
        self._told = Written()

    def drain(self) -> tuple[int, Written]:
        """Count the completed flushes, then drain the trace.

        Raises:
            Doubtful: something is missing, or it is too much.
        """
        counted = self._matched()
        new = self._watch.claim()
        self._told |= new
        if self._told.plain_bytes > self._limit_bytes:
            raise Doubtful(DoubtKind.TOO_MUCH, f"{self._told.plain_bytes} bytes were written")
        untold, self._untold = self._untold | new, Written()
        return counted.flushes, untold

    def read(self, what: Written) -> Sequence[Range]:
        """The present content of some spans."""
        return self._image.read(what, limit_bytes=self._limit_bytes)

    def flushes(self) -> int:
        """The number of completed flushes."""
        return self._settings.statistics().flushes

    def check(self) -> None:
        """Look whether the trace could tell everything until now.

        Raises:
            Doubtful: it could not.
        """
        self._tracer.check()
        self._settings.check()
        self._require_no_gap()

    def _matched(self) -> Statistics:
        """Drain the trace until it told what was counted; the statistics at that moment."""
        with self._watch.compared():
            for _ in _tries():
                self._watch.open()
                clock_ns = time.monotonic_ns()
                counted = self._settings.statistics()
                self._drain()
                missing = self._watch.missing(clock_ns, counted.sectors)
                if not missing:
                    return counted
        raise Doubtful(
            DoubtKind.MISMATCH,
            f"{missing} more sectors were counted than told, of {counted.sectors}",
        )

    def _drain(self) -> None:
        self._tracer.drain()
        self._require_no_gap()

    def _require_no_gap(self) -> None:
        if self._watch.gap:
            raise Doubtful(DoubtKind.GAP, self._watch.gap)


def _tries() -> Iterator[None]:
    """Until it has taken too long: without pauses at first."""
    until = time.monotonic() + _MATCH_SECONDS
    for number in itertools.count():
        yield
        if number >= _FIRST_TRIES:
            if time.monotonic() >= until:
                return
            time.sleep(_PAUSE_SECONDS)
