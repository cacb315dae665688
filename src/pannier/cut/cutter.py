"""Cuts of one volume's image: what was written to it since the last one."""

from __future__ import annotations

import threading
from pathlib import Path

from pannier.core.errors import InvalidInput
from pannier.core.line import Cut, Data
from pannier.cut.device import LoopSettings
from pannier.cut.doubt import Doubtful, DoubtKind, TraceDoubt
from pannier.cut.image import ImageReader
from pannier.cut.rounds import gather
from pannier.cut.traced import TracedImage
from pannier.cut.tracer import Tracer
from pannier.cut.watch import Watch

_UNWATCHED = TraceDoubt(DoubtKind.GAP, "the device is not watched")


class Cutter:
    """Takes the cuts of one image while its loop device has it. Methods block and may be called from several threads.

    The order is: :meth:`begin`, a generation (a snapshot of the image), then cuts on top of it. A cut is told once.
    After a :class:`TraceDoubt`, or when a cut was lost on its way: :meth:`restart`, *then* a generation. What was written
    before the restart is in the snapshot, and what was written after it is told. The other order would lose what is
    written between. Only a restart forgets what was told and not yet cut, and only a restart ends a gap.

    Args:
        device: ``dev_t`` of the loop device.
        image: its file, the live one.
        tracer: of this node.

    Raises:
        OSError: the device has no image, or the image cannot be opened.
    """

    def __init__(self, device: int, image: Path, tracer: Tracer) -> None:
        self._tracer = tracer
        self._device = device
        self._lock = threading.Lock()
        """One cut at a time."""
        self._lasting: TraceDoubt | None = _UNWATCHED
        """A doubt that only a restart ends."""
        self._watch: Watch | None = None
        self._source: TracedImage | None = None
        self._settings = LoopSettings(device)
        try:
            self._image = ImageReader(image)
        except BaseException:
            self._settings.close()
            raise

    def begin(self) -> None:
        """Watch the device, and :meth:`restart`. A second call only restarts.

        Raises:
            Conflict: another cutter watches it, or the tracer was closed.
            OSError: the kernel refused.
        """
        with self._lock:
            if self._watch is None:
                self._watch = watch = self._tracer.watch(self._device)
                self._source = TracedImage(
                    tracer=self._tracer, watch=watch, settings=self._settings, image=self._image
                )
        self.restart()

    def restart(self) -> None:
        """Forget what was told, and all doubts. All that is written after the return is told by the cuts.

        A device on which writes complete all the time may leave no moment to begin at: then the next cut is a doubt.

        Raises:
            Conflict: the tracer was closed.
            OSError: the kernel refused.
        """
        with self._lock:
            source = self._begun()
            self._lasting = None
            try:
                source.restart()
            except Doubtful as doubtful:
                self._lasting = doubtful.doubt

    def take(self, limit_bytes: int) -> Cut | TraceDoubt:
        """What was written since the last cut.

        Args:
            limit_bytes: of content at most; zeros do not count.

        Raises:
            OSError: the image cannot be read. Nothing is forgotten.
        """
        with self._lock:
            if self._lasting:
                return self._lasting
            try:
                return self._take(limit_bytes)
            except Doubtful as doubtful:
                doubt = self._explained(doubtful.doubt)
                if doubt.reason in (DoubtKind.GAP, DoubtKind.MISMATCH):
                    self._lasting = doubt
                return doubt

    def close(self) -> None:
        """Watch the device no more. A second call does nothing.

        Raises:
            OSError: the kernel refused.
        """
        with self._lock:
            self._lasting = _UNWATCHED
            watch, self._watch, self._source = self._watch, None, None
            self._settings.close()
            self._image.close()
            if watch:
                self._tracer.unwatch(watch)

    def _begun(self) -> TracedImage:
        if self._source is None:
            raise InvalidInput("a cutter must begin before anything else")
        return self._source

    def _explained(self, doubt: TraceDoubt) -> TraceDoubt:
        """A device that does not count, or has its image no more, is why what was told and what was counted differ."""
        if doubt.reason is DoubtKind.MISMATCH:
            try:
                self._settings.check()
            except Doubtful as settings:
                return settings.doubt
        return doubt

    def _take(self, limit_bytes: int) -> Cut:
        source = self._begun()
        source.attempt(limit_bytes)
        ranges = gather(source)
        content = sum(one.end - one.start for one in ranges if isinstance(one, Data))
        if content > limit_bytes:
            raise Doubtful(DoubtKind.TOO_MUCH, f"{content} bytes were written")
        source.check()
        source.forget()
        return Cut(ranges=ranges, size=self._image.size)
