"""What lives in a journal, in memory: records, losses, and what frees them. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, replace

from pannier.core.generation import Generation
from pannier.core.line import LinePlace, is_settled
from pannier.storage.journal.format import Frame, FrameKind, Region, read_loss
from pannier.storage.journal.recovery import Damaged, Found, Recovered

Key = tuple[str, int, str, int]

_ELSEWHERE = 0
"""The segment of what may be in another journal: those that exist are counted from 1. ``start`` and ``end`` tell such
losses apart."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveRecord:
    """A record that is still of use.

    Attributes:
        number: of the segment that has it.
    """

    number: int
    frame: Frame

    @property
    def place(self) -> LinePlace:
        """Where it stands in its line."""
        assert self.frame.head.place is not None
        return self.frame.head.place

    @property
    def bytes(self) -> int:
        """What it takes in the journal."""
        return self.frame.end - self.frame.at


@dataclass(frozen=True, slots=True, kw_only=True)
class Loss:
    """Volumes that may lack a record, because a part of the journal was damaged, or another journal had it.

    Attributes:
        region: what could not be read; in segment 0 if another journal had it.
        place: of the record that was there, where that is known; the one volume is the record's then.
        volumes: those for which nothing has healed it.
        number: the segment in which it is noted; None until it is.
        arrival: of the note.
        bytes: what the note takes.
    """

    region: Region
    place: LinePlace | None
    volumes: frozenset[str]
    number: int | None = None
    arrival: int = 0
    bytes: int = 0

    def told(self) -> str:
        """What is wrong, for people."""
        if self.region.number == _ELSEWHERE:
            return "another journal had its records, or this node's disk was set back"
        if self.place:
            return f"record {self.place.number} of run {self.place.run} is damaged in the journal"
        return "a part of the journal is damaged, and what it held cannot be told"


def key_of(place: LinePlace) -> Key:
    """What makes a record the same as another."""
    return place.volume, place.epoch, place.run, place.number


class Index:
    """What lives in a journal. Not safe for several threads."""

    def __init__(self) -> None:
        self._records: dict[str, dict[Key, LiveRecord]] = defaultdict(dict)
        self._losses: list[Loss] = []
        self._bytes: dict[str, int] = defaultdict(int)

    # -- what is asked --------------------------------------------------------------------------------

    def record(self, place: LinePlace) -> LiveRecord | None:
        """The live record of a place."""
        return self._records.get(place.volume, {}).get(key_of(place))

    def places(self, volume: str) -> list[LinePlace]:
        """Those of a volume's live records, in the order in which they came."""
        return [record.place for record in self._records.get(volume, {}).values()]

    def last(self, volume: str) -> LinePlace | None:
        """The place of a volume's live record that came last. Asked for each record, of which there may be many."""
        newest = next(reversed(self._records.get(volume, {}).values()), None)
        return newest.place if newest else None

    def records_in(self, number: int) -> list[LiveRecord]:
        """The live records of a segment, in the order in which they came."""
        return sorted(
            (
                record
                for records in self._records.values()
                for record in records.values()
                if record.number == number
            ),
            key=lambda record: record.frame.head.arrival,
        )

    def losses_in(self, number: int | None) -> list[Loss]:
        """The losses that are noted in a segment; with None those that are not noted yet."""
        return [loss for loss in self._losses if loss.number == number and loss.volumes]

    def damaged(self) -> dict[str, str]:
        """The volumes that may lack a record, and why."""
        return {volume: loss.told() for loss in self._losses for volume in loss.volumes}

    def damage_of(self, volume: str) -> str:
        """Why one volume may lack a record; empty if it lacks none. Asked for each record, of which there may be many."""
        return next((loss.told() for loss in self._losses if volume in loss.volumes), "")

    def bytes_of(self, volume: str) -> int:
        """What a volume's live records take."""
        return self._bytes.get(volume, 0)

    @property
    def live_bytes(self) -> int:
        """What all that lives takes."""
        return sum(self._bytes.values()) + sum(loss.bytes for loss in self._losses if loss.volumes)

    @property
    def volumes(self) -> Mapping[str, int]:
        """What the live records of each volume take."""
        return {volume: count for volume, count in self._bytes.items() if count}

    # -- what changes it ------------------------------------------------------------------------------

    def add(self, record: LiveRecord) -> None:
        """Know a record that came, or another place of one that is known."""
        records = self._records[record.place.volume]
        key = key_of(record.place)
        if key not in records:
            self._bytes[record.place.volume] += record.bytes
        records[key] = record

    def add_loss(self, loss: Loss) -> None:
        """Know a loss, or where it is noted."""
        self._losses = [known for known in self._losses if known.region != loss.region]
        self._losses.append(loss)

    def relocate(self, record: LiveRecord) -> None:
        """A live record was moved; one that is freed by now stays so."""
        known = self.record(record.place)
        if known and known.frame.head.arrival == record.frame.head.arrival:
            self.add(record)

    def relocate_loss(self, loss: Loss) -> None:
        """A note of a loss was written or moved; what was healed meanwhile stays so."""
        for known in self._losses:
            if known.region == loss.region:
                self.add_loss(replace(loss, volumes=loss.volumes & known.volumes))
                return

    def lose(self, record: LiveRecord, loss: Loss) -> None:
        """A live record turned out to be damaged."""
        if self.record(record.place) is record:
            self._free([record])
            self.add_loss(loss)

    def lose_all(self, volumes: Collection[str]) -> None:
        """Records of these volumes may be in another journal. It is a new loss, also where such a one was healed, or is just
        being noted."""
        known = [loss.region.end for loss in self._losses if loss.region.number == _ELSEWHERE]
        number = max(known, default=0) + 1
        region = Region(number=_ELSEWHERE, start=number, end=number)
        self.add_loss(Loss(region=region, place=None, volumes=frozenset(volumes)))

    def lack(self, volume: str) -> None:
        """The same for one volume. Nothing new where it lacks something that is not known: what heals that heals this."""
        if not any(loss.place is None and volume in loss.volumes for loss in self._losses):
            self.lose_all({volume})

    def settle(self, volume: str, newest: Generation) -> None:
        """Free what a generation makes useless."""
        self._free(
            [
                record
                for record in self._records.get(volume, {}).values()
                if is_settled(record.place, newest)
            ]
        )
        self._heal(volume, lambda loss: bool(loss.place and is_settled(loss.place, newest)))

    def mend(self, volume: str, *, before: int) -> None:
        """Forget the losses of a volume that were noted before an arrival."""
        self._heal(volume, lambda loss: loss.number is not None and loss.arrival < before)

    def drop(self, volume: str, *, before: int) -> None:
        """Forget all of a volume that came before an arrival."""
        self._free(
            [
                record
                for record in self._records.get(volume, {}).values()
                if record.frame.head.arrival < before
            ]
        )
        self._heal(volume, lambda loss: loss.arrival < before)

    def _free(self, records: Iterable[LiveRecord]) -> None:
        for record in records:
            volume = record.place.volume
            del self._records[volume][key_of(record.place)]
            self._bytes[volume] -= record.bytes
            if not self._records[volume]:
                del self._records[volume], self._bytes[volume]

    def _heal(self, volume: str, healed: Callable[[Loss], bool]) -> None:
        self._losses = [
            replace(loss, volumes=loss.volumes - {volume}) if healed(loss) else loss
            for loss in self._losses
        ]


# -- from what was found ------------------------------------------------------------------------------


def index_of(recovered: Recovered, volumes: Collection[str]) -> Index:
    """What lives in a journal that was opened.

    Args:
        volumes: those of which this node has copies. Damage that cannot be told apart may concern each of them.
    """
    index = Index()
    dropped: dict[str, int] = {}
    mended: dict[str, int] = {}
    for found in recovered.frames:
        head = found.frame.head
        if head.kind is FrameKind.DROP:
            dropped[head.volume] = max(head.arrival, dropped.get(head.volume, 0))
        if head.kind is FrameKind.MENDED:
            mended[head.volume] = max(head.arrival, mended.get(head.volume, 0))
    for record in _records(recovered.frames, dropped):
        index.add(record)
    noted: set[Region] = set()
    for found in recovered.frames:
        if found.frame.head.kind is FrameKind.LOSS:
            loss = _loss(found)
            noted.add(loss.region)
            index.add_loss(loss)
    for volume, before in mended.items():
        index.mend(volume, before=before)
    for volume, before in dropped.items():
        index.drop(volume, before=before)
    everyone = frozenset(volumes) | frozenset(index.volumes)
    for damaged in recovered.damaged:
        new = _new_loss(damaged, everyone, index, dropped)
        if new and damaged.region not in noted:
            index.add_loss(new)
    return index


def _records(found: Iterable[Found], dropped: Mapping[str, int]) -> list[LiveRecord]:
    """One of each record, in the order in which they came: of those that were moved, the last that was written."""
    by_arrival = {
        each.frame.head.arrival: LiveRecord(number=each.number, frame=each.frame)
        for each in found
        if each.frame.head.kind is FrameKind.RECORD
        and each.frame.head.arrival > dropped.get(each.frame.head.volume, 0)
    }
    kept: dict[Key, LiveRecord] = {}
    for _, record in sorted(by_arrival.items()):
        kept.setdefault(key_of(record.place), record)
    return list(kept.values())


def _loss(found: Found) -> Loss:
    head = found.frame.head
    region, volumes = read_loss(found.content)
    return Loss(
        region=region,
        place=head.place,
        volumes=volumes,
        number=found.number,
        arrival=head.arrival,
        bytes=found.frame.end - found.frame.at,
    )


def _new_loss(
    damaged: Damaged, everyone: frozenset[str], index: Index, dropped: Mapping[str, int]
) -> Loss | None:
    """What a damaged part means; None if nothing of use was there."""
    head = damaged.frame.head if damaged.frame else None
    if head is None or head.kind is FrameKind.LOSS:
        return Loss(region=damaged.region, place=None, volumes=everyone)
    if head.kind is not FrameKind.RECORD or head.place is None:
        return None
    if head.arrival < dropped.get(head.volume, 0) or index.record(head.place):
        return None
    return Loss(region=damaged.region, place=head.place, volumes=frozenset([head.volume]))
