"""A volume that this node holds and replicates: what was made of it, and how far its copies are."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterable
from dataclasses import dataclass, field
from typing import Any

from pannier.core.delivery import Tries
from pannier.core.generation import Generation
from pannier.core.line import Doubt, LinePlace
from pannier.core.seldom import Seldom
from pannier.core.sync_times import LastGroups
from pannier.core.volume import Volume
from pannier.core.worthwhile import Worthwhile

BEGINS = "a run of records begins with a generation"
"""Why there is a generation where nothing is doubtful."""


@dataclass(slots=True)
class OpenLine:
    """The present run of a volume's records: see :mod:`pannier.core.line`.

    Attributes:
        generation: the newest one, made when ``included`` records were.
        number: of the newest record.
        acknowledged: of the newest record whose sync calls were answered.
        noted: the same, before the newest sync call began: that one has made the note of it durable.
        bytes: of the records since the generation.
    """

    run: str
    generation: Generation
    included: int = 0
    number: int = 0
    acknowledged: int = 0
    noted: int = 0
    bytes: int = 0

    def next_place(self, volume: Volume) -> LinePlace:
        """Of the record after the newest."""
        return LinePlace(
            volume=volume.id,
            epoch=volume.grant.epoch,
            run=self.run,
            number=self.number + 1,
            generation=self.generation,
            included=self.included,
            acknowledged=self.noted,
        )


@dataclass(slots=True)
class Following:
    """A replica gets each record of a run as it is made, one after the other.

    Attributes:
        number: of the newest record that was, or is being, sent to it.
        base: the generation on which the first of them stands.
        ready: set when it has confirmed that, or a later one: until then they wait here.
        broken: it did not get one of them: it gets a generation before it follows again.
        last: the sending of the newest.
        waiting, waiting_bytes: of those that are not confirmed yet.
        kept: it has confirmed one of them.
    """

    run: str
    number: int
    base: Generation
    ready: asyncio.Event = field(default_factory=asyncio.Event)
    broken: bool = False
    kept: bool = False
    last: asyncio.Task[None] | None = None
    waiting: int = 0
    waiting_bytes: int = 0

    def break_off(self) -> None:
        """Nothing more is sent."""
        self.broken = True
        self.ready.set()


@dataclass(slots=True)
class ReplicaProgress:
    """How far one replica is. Times are seconds since boot."""

    generation: Generation | None = None
    position: int | None = None
    """The newest of :attr:`Replicated.position` that it has confirmed, with all before it."""
    current_at: float | None = None
    """It is known to have everything that was written before this time."""
    error: str = ""
    tries: Tries = field(default_factory=Tries)
    """How the last ones went to bring it up to date."""
    failures: int = 0
    """Attempts that failed since the beginning."""
    sending: Generation | None = None
    """On its way, or given up without an answer: the replica may have it."""
    sending_position: int = 0
    """Of what is on its way."""
    perhaps: Generation | None = None
    """The last that was given up without an answer, until it confirms one. Another one may be on its way by now."""
    following: Following | None = None
    record: LinePlace | None = None
    """The newest that it has confirmed."""
    record_error: str = ""
    """Why it has not kept the last record that it was sent."""
    first_refused: int = 0
    """So many times in a row it has not kept the first record on top of a generation."""
    no_records_until: float = 0.0
    """It gets no records on generations that are made before this: it would not keep them."""
    sent_bytes: int = 0
    """Since the beginning, broken transfers included."""
    absent_since: float | None = None
    caught_up: bool = False
    """Whether it has got a generation since it was away: what it still lacks is little."""
    hurried: bool = False
    """Whether somebody waits until it has everything."""
    snapshots: frozenset[Generation] = frozenset()
    """Those that it has said to have: it keeps them."""
    lacks: tuple[Generation, ...] = ()
    """Snapshots that it lacks and that are here, oldest first, as far as is known."""
    asked_at: float | None = None
    """When it said which snapshots it has."""
    ahead: Generation | None = None
    """Its newest, if it has what this node has sent and lacks now: this node's disk was set back."""

    def has(self, position: int) -> bool:
        """Whether the replica confirmed this position or a later one."""
        return self.position is not None and self.position >= position

    def follows(self, line: OpenLine | None) -> bool:
        """Whether it got, or is getting, all records of a line."""
        following = self.following
        return (
            line is not None
            and following is not None
            and not following.broken
            and (following.run, following.number) == (line.run, line.number)
        )


@dataclass(frozen=True, slots=True)
class Detour:
    """A generation was made where a record would have done.

    Attributes:
        number: counts them.
        reason: for people.
    """

    number: int
    reason: str


@dataclass(slots=True)
class Circle:
    """Who may take a volume over from this node. The same object serves for as long as this node holds
    the volume, even if replication ends and begins again."""

    required: frozenset[str]
    """Every node that the record may name as in sync, whether or not unanswered changes happened."""
    unsettled: bool = True
    """A change of the record may still be on its way. Writing the record anew makes it fail."""
    group: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Taken to make a generation, to make sync calls durable, or to change who counts."""


@dataclass(slots=True)
class Replicated:
    """One volume's replication."""

    volume: Volume
    since: float
    circle: Circle
    ended: bool = False
    position: int = 0
    """Counts the generations and records that were made: each has all that was written before it was begun."""
    newest: Generation | None = None
    newest_position: int = 0
    acknowledged: int = 0
    """The last position that made sync calls durable."""
    made_at: float = 0.0
    line: OpenLine | None = None
    """None where what is written is not told: then there are only generations."""
    doubt: Doubt | None = None
    """Why what was written could not be told the last time; None since it was told."""
    detour: Detour = Detour(0, "")
    """The last one."""
    groups: LastGroups = field(default_factory=LastGroups)
    """Of sync calls."""
    sends_ahead: Worthwhile = field(default_factory=Worthwhile)
    """To send a record before this node's disk has flushed. It is in vain where the local sync writes more after that, such as
    the journal of the file system: then there is a second record. Neither is wrong: each is a state that this disk was in."""
    said: Seldom = field(default_factory=Seldom)
    """What the log was told."""
    due: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when there are so many records that a generation should follow."""
    found: frozenset[Generation] | None = None
    """What was here at the beginning. A replica that has not answered yet may have any of these."""
    made: set[Generation] = field(default_factory=set)
    """What was made since then, and may still be here."""
    trouble: str = ""
    """Why no generation can be made."""
    written: asyncio.Condition = field(default_factory=asyncio.Condition)
    """Notified of each new generation."""
    answered: asyncio.Event = field(default_factory=asyncio.Event)
    """Set at the next answer of any replica, good or bad; then a new event takes its place."""
    unknown: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when it is to be found out at once which snapshots copies lack."""
    progress: dict[str, ReplicaProgress] = field(default_factory=dict)
    tasks: list[asyncio.Task[None]] = field(default_factory=list)
    """Make and send generations; none of them ends by itself."""
    records: set[asyncio.Task[None]] = field(default_factory=set)
    """Send records."""

    @property
    def group(self) -> asyncio.Lock:
        """See :class:`Circle`."""
        return self.circle.group

    def start(self, work: Coroutine[Any, Any, None], *, name: str) -> asyncio.Task[None]:
        """Begin to send a record. It is cancelled when the replication ends."""
        task = asyncio.create_task(work, name=name)
        self.records.add(task)
        task.add_done_callback(self.records.discard)
        return task

    def end(self) -> None:
        """Mark the replication as ended, and wake whoever waits for an answer."""
        self.ended = True
        self._note_answer()

    async def note_made(self, generation: Generation, *, at: float) -> None:
        """A generation was made of what was written before ``at``; the last one again if nothing was."""
        async with self.written:
            if generation != self.newest and generation not in (self.found or ()):
                self.made.add(generation)
            if generation != self.newest or self.newest_position != self.position:
                self.position += 1
            self.newest, self.made_at, self.newest_position = generation, at, self.position
            for node, progress in self.progress.items():
                if progress.generation == generation:
                    # Nothing was written since: it is current again.
                    progress.current_at, progress.position = at, self.position
                self._let_follow(node, at=at)
                if self.trouble and progress.error == self.trouble:
                    progress.error = ""
            self.trouble = ""
            self.written.notify_all()

    async def note_lost(self, node: str) -> None:
        """A replica has lost its copy: everything is sent to it anew."""
        async with self.written:
            progress = self.progress[node]
            progress.generation = progress.current_at = progress.sending = progress.position = None
            progress.perhaps = None
            progress.caught_up, progress.record = False, None
            progress.snapshots, progress.lacks = frozenset(), ()
            if progress.following is not None:
                progress.following.break_off()
            self.written.notify_all()

    def note_confirmed(self, node: str, *, at: float) -> None:
        """A replica confirmed what was on its way to it, which was made at ``at``."""
        progress = self.progress[node]
        if progress.sending is None:
            return  # it has lost its copy since it said so
        progress.generation, progress.current_at = (
            progress.sending,
            max(at, progress.current_at or at),
        )
        position = progress.sending_position
        if progress.generation == self.newest:
            position = self.newest_position  # nothing was written since it was begun to be sent
        progress.position = max(position, progress.position or 0)
        progress.sending = progress.perhaps = None
        progress.error, progress.caught_up = "", True
        following = progress.following
        if following is not None and following.base.number <= progress.generation.number:
            following.ready.set()
        self._let_follow(node, at=at)
        self._note_answer()

    def _let_follow(self, node: str, *, at: float) -> None:
        """Let a replica get the records that are made from now on, once it has the newest generation, if that has all
        records before them.

        They are kept for one that sync calls wait for: while it gets a generation, so much may be written that it would
        need another one after that, again and again.

        Args:
            at: when that generation was made.
        """
        progress, line = self.progress[node], self.line
        if (
            line is None
            or progress.follows(line)
            or at < progress.no_records_until
            or (line.generation, line.included) != (self.newest, line.number)
        ):
            return
        has_it = progress.generation == line.generation
        if has_it or node in self.circle.required:
            progress.following = following = Following(line.run, line.number, line.generation)
            if has_it:
                following.ready.set()

    def note_followed(self, node: str, place: LinePlace, *, position: int, at: float) -> None:
        """A replica confirmed a record with all that was written before ``at``, and all before it."""
        progress = self.progress[node]
        progress.record, progress.record_error, progress.first_refused = place, "", 0
        if progress.following is not None:
            progress.following.kept = True
        progress.position = max(position, progress.position or 0)
        progress.current_at = max(at, progress.current_at or at)
        self._note_answer()

    def has_since(self, node: str, place: LinePlace) -> bool:
        """Whether a replica has confirmed a generation that was made after a record, and so has what that has."""
        confirmed = self.progress[node].generation
        return confirmed is not None and confirmed.number > place.generation.number

    def note_not_following(self, node: str, following: Following, error: str) -> None:
        """A replica did not confirm a record: it gets no more of them until it has a new generation."""
        following.break_off()
        self.progress[node].record_error = error
        self._note_answer()

    def note_refused(self, node: str, following: Following, *, tries: int, again: float) -> None:
        """A replica has not kept a record. Where it had none on top of the generation, the next one may not help.

        Args:
            tries: after so many in a row it gets no records for a while: each would cost a sync call a round trip.
            again: until then.
        """
        if following.kept:
            return
        progress = self.progress[node]
        progress.first_refused += 1
        if progress.first_refused >= tries:
            progress.no_records_until = again

    def note_detour(self, reason: str) -> None:
        """A generation was made where a record would have done."""
        self.detour = Detour(self.detour.number + 1, reason)

    def why_no_records(self, node: str) -> str:
        """For people: why a replica that gets no records does not."""
        progress = self.progress[node]
        why = progress.record_error or progress.error or "it has no generation of this run yet"
        return f"copy on {node}: {why}"

    def without_records(self) -> str:
        """Why the next group of sync calls would wait for a generation, as far as is known; empty if for a record."""
        if self.doubt is not None:
            return self.doubt.reason
        if self.line is None:
            return BEGINS
        for node in sorted(self.circle.required & self.progress.keys()):
            if self.progress[node].record_error or not self.progress[node].follows(self.line):
                return self.why_no_records(node)
        return ""

    def note_synced(self) -> None:
        """What sync calls cover, and what was noted on this node's disk before they began, is durable here."""
        if self.line is not None:
            self.line.noted = self.line.acknowledged

    def note_acknowledged(self) -> None:
        """The newest position made sync calls durable."""
        self.acknowledged = self.position
        if self.line is not None:
            self.line.acknowledged = self.line.number

    def note_unchanged(self, *, at: float) -> None:
        """Nothing was written since the last position was made."""
        for progress in self.progress.values():
            if progress.has(self.position):
                progress.current_at = at

    def _note_answer(self) -> None:
        answered, self.answered = self.answered, asyncio.Event()
        answered.set()

    def note_failed(self, node: str, error: str, *, arrived: bool | None) -> None:
        """A replica did not confirm; ``arrived`` is None if it may have the generation anyway."""
        progress = self.progress[node]
        progress.error = error
        progress.failures += 1
        progress.caught_up = False
        if progress.following is not None and not progress.following.ready.is_set():
            progress.following.break_off()
        if arrived is False:
            progress.sending = None
        else:
            progress.perhaps = progress.sending
        self._note_answer()

    def may_wait(self, node: str) -> bool:
        """Whether nobody waits until a replica has caught up: no sync call, no move."""
        progress = self.progress[node]
        awaited = node in self.circle.required
        too_few = 1 + len(self.circle.required) < self.volume.spec.min_copies
        return not (progress.caught_up or progress.hurried or awaited or too_few)

    def lag_seconds(self, node: str, now: float) -> float:
        """Age of the newest state that the replica is known to have."""
        at = self.progress[node].current_at if node in self.progress else None
        return now - (self.since if at is None else at)

    def who_lacks(self, generation: Generation, nodes: Iterable[str]) -> tuple[str, ...]:
        """Those of the nodes that have not said to have a snapshot."""
        return tuple(
            node
            for node in nodes
            if node not in self.progress or generation not in self.progress[node].snapshots
        )

    def needed(self) -> frozenset[Generation]:
        """The generations that a replica may have as its newest."""
        known = {p.generation for p in self.progress.values()}
        maybe = (self.found or frozenset()) if None in known else frozenset()
        known |= {each for p in self.progress.values() for each in (p.sending, p.perhaps)} | maybe
        return frozenset(one for one in known if one is not None)
