"""The journal that others use: many threads append, and one flush serves all that wait for one."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from threading import Event, Lock, Thread

from pannier.core.errors import (
    Corrupt,
    InvalidInput,
    JournalFull,
    NotFound,
    PannierError,
    StorageError,
)
from pannier.core.generation import Generation
from pannier.core.line import Buffer, LinePlace, LineRecord, decode
from pannier.storage.blocking import storage_error
from pannier.storage.journal.file import Medium
from pannier.storage.journal.format import Frame, FrameHead, FrameKind
from pannier.storage.journal.index import Index, Key, LiveRecord, index_of, key_of
from pannier.storage.journal.layout import BLOCK_BYTES, Geometry, read_segment_head
from pannier.storage.journal.recovery import recover
from pannier.storage.journal.room import (
    JournalUsage,
    check_room,
    most_live,
    most_of_volume,
)
from pannier.storage.journal.writing import Writer, frame_bytes

END_SECONDS = 5.0
"""What a disk has to answer when the journal is closed: the daemon has 20 s for all of its end. A flush that takes longer is
of a disk that is failing."""


@dataclass(slots=True, eq=False)
class _Asked:
    """A frame that waits for its turn.

    Attributes:
        bytes: that will live.
        woken: set when it is done, or when its thread is to write for all.
    """

    head: FrameHead
    content: Sequence[Buffer]
    bytes: int = 0
    woken: Event = field(default_factory=Event)
    done: bool = False
    error: PannierError | None = None


class Journal:
    """The journal of a node's copies. Its methods block, and any thread may call them.

    A generation frees records in memory only. After a restart, what was freed since they were written may be there again,
    until the next generation is confirmed. That is harmless: a generation has all that they have.

    Args:
        volumes: those of which this node has copies.
        stranger: whether records of theirs may be in another journal, which is not here. That is noted in this one.
    """

    def __init__(
        self,
        medium: Medium,
        geometry: Geometry,
        *,
        volumes: Collection[str],
        what: str,
        stranger: bool = False,
    ) -> None:
        self._medium = medium
        self._geometry = geometry
        self._what = what
        self._lock = Lock()
        self._waiting: list[_Asked] = []
        self._on_their_way: dict[Key, _Asked] = {}
        self._writing = False
        self._failed: PannierError | None = None
        self._closed = False
        self._end = _Asked(FrameHead(kind=FrameKind.CLOSED, arrival=0, synced=0), [])
        """The last that is ever asked."""
        self._ended = Event()
        heads = [
            read_segment_head(
                geometry.identity, medium.read(geometry.start(at), BLOCK_BYTES), what=what
            )
            for at in range(geometry.segments)
        ]
        recovered = recover(
            geometry,
            heads,
            lambda number: medium.read(geometry.start(number), geometry.segment_bytes),
        )
        self._index: Index = index_of(recovered, volumes)
        if stranger:
            self._index.lose_all(volumes)
        self._writer = Writer(medium, geometry, recovered, self._index, self._lock)
        self._write(lambda: self._take_up(recovered.stale))

    def close(self, *, within: float = END_SECONDS) -> bool:
        """End it in order: what is damaged after that is told, to the last record. Nothing reads any more.

        What waits to be written is written before that. A disk that does not answer is not waited for: the journal then ends as by a
        power cut, and its file stays open.

        Args:
            within: seconds that the disk has.

        Returns:
            Whether it ended in order. A second call only waits again.
        """
        with self._lock:
            begins, self._closed = not self._closed, True
            if begins:
                self._waiting.append(self._end)
        if begins:
            Thread(target=self._close, name="journal-end", daemon=True).start()
        return self._ended.wait(within) and self._end.error is None

    def _close(self) -> None:
        try:
            with suppress(PannierError):  # of a disk that has refused something
                self._until_done(self._end)
            self._medium.close()
        finally:
            self._ended.set()

    # -- what is there --------------------------------------------------------------------------------

    def last(self, volume: str) -> LinePlace | None:
        """Of the newest record of a volume."""
        with self._lock:
            return self._index.last(volume)

    def places(self, volume: str) -> list[LinePlace]:
        """Of all records of a volume that are needed, in the order in which they came."""
        with self._lock:
            return self._index.places(volume)

    def read(self, place: LinePlace) -> LineRecord:
        """A record.

        Raises:
            NotFound: it is not here, or was freed. Corrupt: it is damaged. StorageError: the disk refused.
        """
        what = f"record {place.number} of run {place.run} of volume {place.volume}"
        before: LiveRecord | None = None
        while True:
            with self._lock:
                record = self._index.record(place)
            if record is None:
                raise NotFound(f"{self._what} has no {what}")
            if record == before:  # it was not moved while it was read
                raise Corrupt(
                    f"{what} is damaged in {self._what}",
                    remedy="let a node with a complete copy take the volume over",
                )
            try:
                content = self._writer.read(record)
            except OSError as error:
                raise storage_error(f"read {what} in {self._what}", error) from error
            if content is not None:
                return decode(content)
            before = record

    def damaged(self) -> Mapping[str, str]:
        """The volumes that may lack a record that was confirmed, and why.

        A restart does not change it. A record that is known ends it with a generation that was made after it
        (:meth:`settle`); anything else only :meth:`mended`.
        """
        with self._lock:
            return self._index.damaged()

    def damage_of(self, volume: str) -> str:
        """The same for one volume; empty if it lacks none."""
        with self._lock:
            return self._index.damage_of(volume)

    @property
    def tells_all(self) -> bool:
        """Whether whoever opens it next finds all of :meth:`damaged` in it."""
        with self._lock:
            return self._failed is None and not self._index.losses_in(None)

    def usage(self) -> JournalUsage:
        """How full it is."""
        with self._lock:
            return JournalUsage(
                total_bytes=self._geometry.size_bytes,
                live_bytes=self._index.live_bytes,
                most_bytes=most_live(self._geometry),
                most_volume_bytes=most_of_volume(self._geometry),
                volumes=dict(self._index.volumes),
            )

    def failure(self) -> StorageError | None:
        """Why it takes nothing any more; None where it does."""
        with self._lock:
            return self._refusal(self._failed) if self._failed else None

    # -- what changes it ------------------------------------------------------------------------------

    def append(self, encoded: Sequence[Buffer], place: LinePlace) -> None:
        """Keep a record; it is durable when this returns. One that is here already is not written again.

        Args:
            encoded: the record, as line.encode gives it.

        Raises:
            JournalFull: there is no room; nothing was written. InvalidInput: it is too large.
            StorageError: the disk refused it now, or something before. It may be there or not.
        """
        head = FrameHead(
            kind=FrameKind.RECORD, arrival=0, synced=0, volume=place.volume, place=place
        )
        asked = _Asked(head=head, content=encoded, bytes=frame_bytes(head, encoded))
        with self._lock:
            self._check_open()
            if self._index.record(place):
                return
            same = self._on_their_way.get(key_of(place))
            if same is None:
                self._check_room(asked, place.volume)
                self._on_their_way[key_of(place)] = asked
                self._waiting.append(asked)
        self._until_done(same or asked)

    def settle(self, volume: str, newest: Generation) -> None:
        """A generation of a volume is durable here: free the records that it makes useless. May be repeated.

        It is not kept: after a restart, the next generation that is confirmed frees what comes back.
        """
        with self._lock:
            self._index.settle(volume, newest)

    def lack(self, volume: str) -> None:
        """The copy of a volume lacks what this node has confirmed, and nothing here shows it; durable when this returns. It
        ends as damage does: see :meth:`mended`.

        Raises:
            JournalFull, StorageError: as :meth:`append`. It is so in memory all the same.
        """
        with self._lock:
            self._index.lack(volume)
        self._ask(FrameHead(kind=FrameKind.LOSS, arrival=0, synced=0))

    def mended(self, volume: str) -> None:
        """The copy of a volume lacks nothing any more; durable when this returns.

        That is so when a generation is durable here that the holder made after this node told it what
        :meth:`damaged` says. One that was on its way before may lack what is lost, whatever its number is: a lost record may
        have been made after a generation that never came here.

        Raises:
            JournalFull, StorageError: as :meth:`append`.
        """
        self._ask(FrameHead(kind=FrameKind.MENDED, arrival=0, synced=0, volume=volume))

    def drop(self, volume: str) -> None:
        """The volume is gone from this node: free all that it has here; durable when this returns. May be repeated.

        Raises:
            JournalFull, StorageError: as :meth:`append`. It is freed in memory all the same.
        """
        with self._lock:
            self._index.drop(volume, before=self._writer.next_arrival)
        self._ask(FrameHead(kind=FrameKind.DROP, arrival=0, synced=0, volume=volume))

    # -- writing --------------------------------------------------------------------------------------

    def _ask(self, head: FrameHead) -> None:
        asked = _Asked(head=head, content=[])
        with self._lock:
            self._check_open()
            self._waiting.append(asked)
        self._until_done(asked)

    def _check_open(self) -> None:
        if self._closed:
            raise StorageError(f"{self._what} is closed")
        if self._failed:
            raise self._refusal(self._failed)

    def _refusal(self, first: PannierError) -> StorageError:
        return StorageError(
            f"{self._what} takes nothing any more: {first.message}",
            remedy="restart pannierd on this node when its disk is in order",
        )

    def _check_room(self, asked: _Asked, volume: str) -> None:
        coming = list(self._on_their_way.values())
        check_room(
            self._geometry,
            more=asked.bytes,
            live=self._index.live_bytes + sum(each.bytes for each in coming),
            volume=volume,
            of_volume=self._index.bytes_of(volume)
            + sum(each.bytes for each in coming if each.head.volume == volume),
        )

    def _until_done(self, asked: _Asked) -> None:
        """Wait until a frame is durable; if nobody writes, write for all that wait."""
        while True:
            with self._lock:
                if asked.done:
                    break
                leads = not self._writing
                if leads:
                    self._writing = True
                    group, self._waiting = self._waiting, []
                else:
                    asked.woken.clear()
            if leads:
                self._write_group(group)
            else:
                asked.woken.wait()
        if asked.error:
            raise asked.error

    def _write_group(self, group: Sequence[_Asked]) -> None:
        put: list[tuple[int, Frame]] = []

        def work() -> None:
            self._writer.put_losses()
            for asked in group:
                try:
                    if asked is self._end:
                        self._writer.sync()  # what is before a CLOSED is known to be durable
                        self._writer.put_closed()
                    elif asked.head.kind is not FrameKind.LOSS:  # those are put already
                        put.append(self._writer.put(asked.head, asked.content))
                except (JournalFull, InvalidInput) as error:
                    asked.error = error
            self._writer.sync()

        error = self._write(work)
        with self._lock:
            if error is None:
                for number, frame in put:
                    self._know(number, frame)
            for asked in group:
                asked.error = asked.error or error
                asked.done = True
                if asked.head.place:
                    del self._on_their_way[key_of(asked.head.place)]
                asked.woken.set()
            self._writing = False
            if self._waiting:
                self._waiting[0].woken.set()

    def _know(self, number: int, frame: Frame) -> None:
        head = frame.head
        match head.kind:
            case FrameKind.RECORD:
                self._index.add(LiveRecord(number=number, frame=frame))
            case FrameKind.DROP:
                self._index.drop(head.volume, before=head.arrival)
            case FrameKind.MENDED:
                self._index.mend(head.volume, before=head.arrival)

    def _write(self, work: Callable[[], None]) -> PannierError | None:
        """Write something. The first error of the disk is the last thing that is written: the kernel tells it once.

        Returns:
            What went wrong, for whoever waits for it.
        """
        if self._failed:
            return self._refusal(self._failed)
        try:
            work()
        except JournalFull as error:
            return error
        except OSError as error:
            self._failed = storage_error(f"write {self._what}", error)
            return self._failed
        except Exception as error:  # whoever waits must not wait for ever
            self._failed = StorageError(f"cannot write {self._what}: {error!r}")
            return self._failed
        return None

    def _take_up(self, stale: Sequence[int]) -> None:
        self._writer.take_up(stale)
        self._writer.free_oldest()
        self._writer.put_losses()
        self._writer.sync()
