"""Cuts of one volume's image: what was written to it since the last one."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pannier.core.errors import InvalidInput, StorageError
from pannier.core.line import Data, Range
from pannier.cut.device import LoopSettings, Statistics
from pannier.cut.doubt import Doubt, Doubtful, Reason
from pannier.cut.image import ImageReader
from pannier.cut.rounds import gather
from pannier.cut.spans import Written
from pannier.cut.tracer import Tracer
from pannier.cut.watch import Watch

_MATCH_SECONDS = 0.05
"""How long events and statistics may differ: an event is visible when the one that it interrupted is whole, and a
request counts when its CPU goes on with it."""
_FIRST_TRIES = 3
"""So often they are compared without a pause."""
_PAUSE_SECONDS = 0.0002
_UNWATCHED = Doubt(Reason.GAP, "the device is not watched")


@dataclass(frozen=True, slots=True)
class Cut:
    """What was written since the last cut, as it was at a moment when a power cut could have left it so.

    All that a sync call had made durable before the cut began is in it.

    Attributes:
        ranges: sorted and disjoint; starts and lengths are multiples of 4 KiB.
        size: of the image, in bytes.
    """

    ranges: tuple[Range, ...]
    size: int


class Cutter:
    """Takes the cuts of one image while its loop device has it. Methods block and may be called from several threads.

    The order is: :meth:`begin`, a generation (a snapshot of the image), then cuts on top of it. A cut is told once.
    After a :class:`Doubt`, or when a cut was lost on its way: :meth:`restart`, *then* a generation. What was written
    before the restart is in the snapshot, and what was written after it is told. The other order would lose what is
    written between. Until then nothing that was noted is forgotten, but a gap stays a gap.

    Args:
        device: ``dev_t`` of the loop device.
        image: its file, the live one.
        tracer: of this node.

    Raises:
        OSError: the device has no image, or the image cannot be opened.
    """

    def __init__(self, device: int, image: Path, tracer: Tracer) -> None:
        self._tracer = tracer
        self._lock = threading.Lock()
        """One cut at a time."""
        self._claimed = Written()
        """Told, and not yet given away by a cut."""
        self._doubt: Doubt | None = _UNWATCHED
        """A doubt that only a restart ends."""
        self._watch: Watch | None = None
        self._settings = LoopSettings(device)
        try:
            self._image = ImageReader(image)
        except BaseException:
            self._settings.close()
            raise
        self._device = device

    def begin(self) -> None:
        """Watch the device, and :meth:`restart`. A second call only restarts.

        Raises:
            Conflict: another cutter watches it.
            OSError: the kernel refused.
        """
        with self._lock:
            if self._watch is None:
                self._watch = self._tracer.watch(self._device)
        self.restart()

    def restart(self) -> None:
        """Forget what was told, and all doubts. All that is written after the return is told by the cuts.

        A device on which writes complete all the time may leave no moment to begin at: then the next cut is a doubt.

        Raises:
            OSError: the kernel refused.
        """
        with self._lock:
            watch = self._watched()
            self._tracer.restart(watch)
            self._claimed, self._doubt = Written(), None
            try:
                self._find_base(watch)
            except Doubtful as doubtful:
                self._doubt = doubtful.doubt

    def flushes(self) -> int:
        """How many flushes have completed: read it before a group is synced, for :meth:`take`.

        Raises:
            StorageError: the device was removed, or the cutter closed.
        """
        try:
            return self._settings.statistics().flushes
        except Doubtful as doubtful:
            raise StorageError(doubtful.doubt.detail, remedy="attach the image anew") from doubtful

    def take(self, limit_bytes: int, *, flushes: int | None = None) -> Cut | Doubt:
        """What was written since the last cut.

        Args:
            limit_bytes: of content at most; zeros do not count.
            flushes: :meth:`flushes` before a group was synced, if one was: a flush must have been counted since.

        Raises:
            OSError: the image cannot be read. Nothing is forgotten.
        """
        with self._lock:
            if self._doubt:
                return self._doubt
            try:
                return self._take(limit_bytes, flushes)
            except Doubtful as doubtful:
                if doubtful.doubt.reason in (Reason.GAP, Reason.MISMATCH):
                    self._doubt = doubtful.doubt
                return doubtful.doubt

    def close(self) -> None:
        """Watch the device no more. A second call does nothing.

        Raises:
            OSError: the kernel refused.
        """
        with self._lock:
            self._doubt = _UNWATCHED
            watch, self._watch = self._watch, None
            self._settings.close()
            self._image.close()
            if watch:
                self._tracer.unwatch(watch)

    def _watched(self) -> Watch:
        if self._watch is None:
            raise InvalidInput("a cutter must begin before anything else")
        return self._watch

    def _take(self, limit_bytes: int, flushes: int | None) -> Cut:
        watch = self._watched()
        self._settings.check()
        if flushes is not None and self._settings.statistics().flushes <= flushes:
            raise Doubtful(Reason.NO_FLUSH, "a group was synced, and the device counted no flush")
        ranges = gather(_Attempt(self, limit_bytes))
        content = sum(one.end - one.start for one in ranges if isinstance(one, Data))
        if content > limit_bytes:
            raise Doubtful(Reason.TOO_MUCH, f"{content} bytes were written")
        self._tracer.check()
        self._settings.check()
        if watch.gap:
            raise Doubtful(Reason.GAP, watch.gap)
        self._claimed = Written()
        return Cut(ranges, self._image.size)

    def _find_base(self, watch: Watch) -> None:
        """Find what the statistics have counted when nothing was told."""
        for _ in _tries():
            watch.open()
            clock_ns = time.monotonic_ns()
            counted = self._settings.statistics().sectors
            after_ns = time.monotonic_ns()
            self._drain(watch)
            if watch.found_base(clock_ns, counted, after_ns):
                watch.close()
                return
        raise Doubtful(Reason.MISMATCH, "writes complete all the time: no moment to begin at")

    def _matched(self, watch: Watch) -> Statistics:
        """Drain the trace until the events until a moment are what was counted; the statistics at that moment."""
        for _ in _tries():
            watch.open()
            clock_ns = time.monotonic_ns()
            counted = self._settings.statistics()
            self._drain(watch)
            missing = watch.missing(clock_ns, counted.sectors)
            if not missing:
                watch.close()
                return counted
        raise Doubtful(
            Reason.MISMATCH, f"{missing} more sectors were counted than told, of {counted.sectors}"
        )

    def _drain(self, watch: Watch) -> None:
        self._tracer.drain()
        if watch.gap:
            raise Doubtful(Reason.GAP, watch.gap)


class _Attempt:
    """One attempt at a cut: the :class:`pannier.cut.rounds.Source` of a cutter."""

    def __init__(self, cutter: Cutter, limit_bytes: int) -> None:
        self._cutter = cutter
        self._limit_bytes = limit_bytes
        self._earlier = cutter._claimed
        """Claimed by attempts that ended in a doubt."""

    def drain(self) -> tuple[int, Written]:
        cutter = self._cutter
        watch = cutter._watched()
        counted = cutter._matched(watch)
        new = watch.claim()
        cutter._claimed |= new
        if cutter._claimed.plain_bytes > self._limit_bytes:
            text = f"{cutter._claimed.plain_bytes} bytes were written"
            raise Doubtful(Reason.TOO_MUCH, text)
        earlier, self._earlier = self._earlier, Written()
        return counted.flushes, earlier | new

    def read(self, what: Written) -> Sequence[Range]:
        return self._cutter._image.read(what, limit_bytes=self._limit_bytes)

    def flushes(self) -> int:
        return self._cutter._settings.statistics().flushes


def _tries() -> Iterator[None]:
    """Until it has taken too long: without pauses at first."""
    until = time.monotonic() + _MATCH_SECONDS
    for number in itertools.count():
        yield
        if number >= _FIRST_TRIES:
            if time.monotonic() >= until:
                return
            time.sleep(_PAUSE_SECONDS)
