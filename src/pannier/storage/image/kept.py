"""The records of other nodes' volumes that this node keeps, and the live image that is made with them.

A journal that was damaged may lack records that were confirmed. Then no takeover begins here until a generation has
come that was made after this node had told so: each record that is refused meanwhile tells the holder, and a later
one says which generation was made after that.

A journal that another process has, as a daemon that was killed while a thread of it waits for the disk, is opened once that
is gone. Until then the node goes on as without one, and takes nothing over.
"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Collection, Iterable
from dataclasses import replace
from pathlib import Path

import structlog

from pannier.core.errors import (
    Conflict,
    Corrupt,
    InvalidInput,
    JournalFull,
    NotFollowing,
    PannierError,
    PoolFull,
    StorageError,
)
from pannier.core.generation import Generation
from pannier.core.line import Buffer, Data, LinePlace, LineRecord, Tail, Zeros, follows, tail
from pannier.host.files import punch_hole
from pannier.storage.btrfs.layout import Home
from pannier.storage.journal.journal import Journal
from pannier.storage.journal.opening import open_journal
from pannier.storage.lines import JournalState

log = structlog.get_logger(__name__)

JOURNAL = "journal"
SET_BACK = "this node's disk was set back"
_POOL_PART = 8
"""A journal takes this part of its pool at most, so that a small pool is for its volumes."""
_MOST_BYTES = 256 << 20
"""Enough for four volumes that write as fast as they can between two generations: a good half of it can be used."""


class KeptRecords:
    """The journal of a pool. All methods block, and may be called from several threads.

    Args:
        pool: where the pool is mounted.
        pool_bytes: its size.
        volumes: those of which this node has something.
    """

    def __init__(self, pool: Path, *, pool_bytes: int, volumes: Collection[str]) -> None:
        self._journal: Journal | None = None
        self._why: PannierError | None = None
        """Why there is no journal."""
        self._lost = False
        """Whether there was one that cannot be read."""
        self._taken = False
        """Whether another process has it."""
        self._is_closed = False
        self._opening = threading.Lock()
        """Held while it is opened."""
        self._lock = threading.Lock()
        self._refused: dict[str, LinePlace] = {}
        """By volume that may lack records, the first one that was refused."""
        self._lacking: frozenset[str] = frozenset()
        """The volumes whose disk was found to be set back by this process: where there is no journal, only memory knows."""
        self._based: set[str] = set()
        """The volumes known to have a generation: looking for one at each record would cost more than the record."""
        self._path = pool / JOURNAL
        self._size = min(_MOST_BYTES, pool_bytes // _POOL_PART)
        self._open(volumes)
        if self._why is not None:
            log.warning("journal.none", reason=self._why.message)

    def _open(self, volumes: Collection[str]) -> None:
        why: PannierError | None = None
        lost = taken = False
        try:
            journal = open_journal(self._path, size_bytes=self._size, volumes=volumes)
        except (InvalidInput, PoolFull) as error:
            why = error
        except Conflict as error:
            why, lost, taken = error, True, True
        except StorageError as error:
            why, lost = error, True
        else:
            _forget_unknown(
                journal, volumes
            )  # before anything is kept of a volume that comes meanwhile
            self._note_lacking(journal)
            self._journal = journal
        self._why, self._lost, self._taken = why, lost, taken

    def _note_lacking(self, journal: Journal) -> None:
        """What only memory knows so far."""
        for volume in self._lacking:
            try:
                journal.lack(volume)
            except PannierError as error:  # memory knows it still
                log.warning("journal.not-noted", id=volume, error=str(error))

    @property
    def is_taken(self) -> bool:
        """Whether another process had the journal at the last look."""
        return self._taken

    def open_again(self, volumes: Collection[str]) -> None:
        """Open a journal that another process had; where it still has it, nothing happens.

        Args:
            volumes: those of which this node has something.
        """
        with self._opening:
            if self._is_closed or not self._taken:
                return
            self._open(volumes)
            if self._journal is not None:
                log.info("journal.opened", path=str(self._path))
                if self._is_closed:  # meanwhile
                    self._journal.close()

    def close(self) -> None:
        """End it in order, unless the disk does not answer for some seconds. Nothing is kept any more."""
        self._is_closed = True
        if self._journal is not None and not self._journal.close():
            log.warning("journal.not-ended", reason="its disk did not answer, or refused something")

    def keep(self, home: Home, place: LinePlace, encoded: Buffer) -> None:
        """See :meth:`pannier.storage.lines.LineDriver.keep`."""
        if self._journal is None:
            raise JournalFull(f"this node has no journal: {self._reason}")
        volume = place.volume
        if self._lack_of(volume):
            self._mend(home, place)
        elif volume in self._refused:
            self._refused.pop(volume, None)  # it was before what it may lack later on
        if volume not in self._based:
            self._look_for_base(home)
        last = self._journal.last(volume)
        if last != place and not follows(place, last=last, newest=None):
            newest = max(home.generations(), default=None)
            if not follows(place, last=None, newest=newest):
                raise NotFollowing(
                    f"record {place.number} of run {place.run} of volume {volume} does not follow what is here"
                )
        self._journal.append([encoded], place)

    def _look_for_base(self, home: Home) -> None:
        """Raises NotFollowing where there are records at most: nothing can be made of those."""
        with self._lock:
            if not home.generations():
                raise NotFollowing(f"no generation of volume {home.volume} is here")
            self._based.add(home.volume)

    def note_set_aside(self, volume: str) -> None:
        """Its generations may be gone. Its records stay, and no more are kept before a generation has come."""
        with self._lock:
            self._based.discard(volume)

    def _mend(self, home: Home, place: LinePlace) -> None:
        """See the module. Raises NotFollowing until nothing can be missing."""
        assert self._journal is not None
        newest = max(home.generations(), default=None)
        with self._lock:
            first = self._refused.setdefault(place.volume, place)
        if place.run == first.run:
            made_later = place.included >= first.number
        else:  # a later run, and not an earlier one whose record was late
            made_later = place.generation.number > first.generation.number
        if not made_later or newest != place.generation:
            raise NotFollowing(
                f"this node may lack records of volume {place.volume}, since its journal was damaged"
            )
        self.mend(place.volume)
        log.info("journal.mended", id=place.volume, generation=str(newest))

    def lack(self, volume: str) -> None:
        """See :meth:`pannier.storage.lines.LineDriver.lack`."""
        with self._lock:
            self._lacking |= {volume}
        if self._journal is not None:
            self._journal.lack(volume)

    def mend(self, volume: str) -> None:
        """See :meth:`pannier.storage.lines.LineDriver.mend_records`."""
        if self._journal is not None and self._journal.damage_of(volume):
            self._journal.mended(volume)
        with self._lock:
            self._lacking -= {volume}
            self._refused.pop(volume, None)

    def _may_lack(self) -> dict[str, str]:
        """The volumes that may lack records and can be mended, and why."""
        lacking = dict.fromkeys(self._lacking, SET_BACK)
        return lacking if self._journal is None else {**lacking, **self._journal.damaged()}

    def settle(self, volume: str, generation: Generation) -> None:
        """See :meth:`pannier.storage.lines.LineDriver.settle`."""
        if self._journal is not None:
            self._journal.settle(volume, generation)

    def forget(self, volume: str) -> None:
        """The volume is gone, or nobody needs its records: see :meth:`pannier.storage.lines.LineDriver.drop_records`."""
        self.note_set_aside(volume)
        with self._lock:
            self._lacking -= {volume}
        if self._journal is not None and volume in _volumes_of(self._journal):
            self._journal.drop(volume)

    def last(self, volume: str) -> LinePlace | None:
        """The newest record of a volume that is needed."""
        return self._journal.last(volume) if self._journal is not None else None

    def missing(self, volume: str) -> str:
        """See :meth:`pannier.storage.lines.LineDriver.missing`."""
        return self._lack_of(volume) or (self._reason if self._lost else "")

    def _lack_of(self, volume: str) -> str:
        """Why a volume may lack records that can be mended; empty if it lacks none."""
        damage = self._journal.damage_of(volume) if self._journal is not None else ""
        return damage or (SET_BACK if volume in self._lacking else "")

    @property
    def _reason(self) -> str:
        return self._why.message if self._why is not None else ""

    def state(self) -> JournalState:
        """See :meth:`pannier.storage.lines.LineDriver.journal`."""
        if self._journal is None:
            return JournalState(
                trouble=self._why,
                unreadable=self._lost,
                taken=self._taken,
                damaged=self._may_lack(),
            )
        usage = self._journal.usage()
        return JournalState(
            total_bytes=usage.total_bytes,
            live_bytes=usage.live_bytes,
            most_bytes=usage.most_bytes,
            volumes=usage.volumes,
            damaged=self._may_lack(),
            trouble=self._journal.failure(),
        )

    def tail(self, volume: str, generation: Generation) -> Tail:
        """The records that stand on a generation, and why there may have been more. They may be damaged: see :meth:`readable`."""
        found = Tail(places=())
        if self._journal is not None:
            found = tail(self._journal.places(volume), generation)
        lacks = filter(None, (self.missing(volume), found.lacks))
        return replace(found, lacks="; ".join(lacks))

    def readable(self, volume: str, generation: Generation) -> Tail:
        """As :meth:`tail`, up to the first record that is damaged. All of them are read.

        Raises:
            StorageError: the disk refused.
        """
        found = self.tail(volume, generation)
        for index, place in enumerate(found.places):
            assert self._journal is not None
            try:
                self._journal.read(place)
            except Corrupt as error:
                lacks = "; ".join(filter(None, (found.lacks, error.message)))
                return Tail(places=found.places[:index], lacks=lacks)
        return found

    def put_on_top(self, image: Path, places: Iterable[LinePlace]) -> None:
        """Put records on top of an image that nobody uses, durably.

        Raises:
            OSError: the disk refused something. PannierError: a record cannot be read.
        """
        assert self._journal is not None
        fd = os.open(image, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            for place in places:
                _put(fd, self._journal.read(place))
            os.fsync(fd)
        finally:
            os.close(fd)


def _put(fd: int, record: LineRecord) -> None:
    if record.size != os.fstat(fd).st_size:
        os.ftruncate(fd, record.size)
    for one in record.ranges:
        match one:
            case Data(start, content):
                rest = memoryview(content)
                while rest:
                    written = os.pwrite(fd, rest, start)
                    if not written:
                        raise OSError(errno.EIO, "a record was written in part")
                    rest, start = rest[written:], start + written
            case Zeros(start, end):
                punch_hole(fd, start, end - start)


def _forget_unknown(journal: Journal, volumes: Collection[str]) -> None:
    """Free what a removal has left of volumes that are not here any more."""
    for volume in _volumes_of(journal) - set(volumes):
        try:
            journal.drop(volume)
        except PannierError as error:  # it is freed for now
            log.warning("journal.not-dropped", id=volume, error=str(error))


def _volumes_of(journal: Journal) -> set[str]:
    """The volumes of which a journal has anything: records, or that it may have lost some."""
    return {*journal.usage().volumes, *journal.damaged()}
