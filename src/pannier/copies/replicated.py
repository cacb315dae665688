"""A volume that this node holds and replicates: what was made of it, and how far its copies are."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from pannier.core.generation import Generation
from pannier.core.volume import Volume


@dataclass(slots=True)
class ReplicaProgress:
    """How far one replica is. Times are seconds since boot."""

    generation: Generation | None = None
    current_at: float | None = None
    """It is known to have everything that was written before this time."""
    error: str = ""
    failures: int = 0
    """Attempts that failed since the beginning."""
    sending: Generation | None = None
    """On its way, or given up without an answer: the replica may have it."""
    sent_bytes: int = 0
    """Since the beginning, broken transfers included."""
    absent_since: float | None = None
    caught_up: bool = False
    """Whether it has got a generation since it was away: what it still lacks is little."""
    hurried: bool = False
    """Whether somebody waits until it has everything."""
    ahead: Generation | None = None
    """Its newest, if it has what this node has sent and lacks now: this node's disk was set back."""

    def has(self, generation: Generation) -> bool:
        """Whether the replica confirmed ``generation`` or a later one."""
        return self.generation is not None and self.generation >= generation


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
    newest: Generation | None = None
    acknowledged: Generation | None = None
    """The last one that made sync calls durable."""
    made_at: float = 0.0
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
    progress: dict[str, ReplicaProgress] = field(default_factory=dict)
    tasks: list[asyncio.Task[None]] = field(default_factory=list)

    @property
    def group(self) -> asyncio.Lock:
        """See :class:`Circle`."""
        return self.circle.group

    def end(self) -> None:
        """Mark the replication as ended, and wake whoever waits for an answer."""
        self.ended = True
        self._note_answer()

    async def note_made(self, generation: Generation, *, at: float) -> None:
        """A generation was made of what was written before ``at``; the last one again if nothing was."""
        async with self.written:
            if generation != self.newest and generation not in (self.found or ()):
                self.made.add(generation)
            self.newest, self.made_at = generation, at
            for progress in self.progress.values():
                if progress.generation == generation:
                    progress.current_at = at  # nothing was written since: it is current again
                if self.trouble and progress.error == self.trouble:
                    progress.error = ""
            self.trouble = ""
            self.written.notify_all()

    async def note_lost(self, node: str) -> None:
        """A replica has lost its copy: everything is sent to it anew."""
        async with self.written:
            progress = self.progress[node]
            progress.generation = progress.current_at = progress.sending = None
            progress.caught_up = False
            self.written.notify_all()

    def note_confirmed(self, node: str, *, at: float) -> None:
        """A replica confirmed what was on its way to it, which was made at ``at``."""
        progress = self.progress[node]
        progress.generation, progress.current_at = progress.sending, at
        progress.sending, progress.error, progress.caught_up = None, "", True
        self._note_answer()

    def _note_answer(self) -> None:
        answered, self.answered = self.answered, asyncio.Event()
        answered.set()

    def note_failed(self, node: str, error: str, *, arrived: bool | None) -> None:
        """A replica did not confirm; ``arrived`` is None if it may have the generation anyway."""
        progress = self.progress[node]
        progress.error = error
        progress.failures += 1
        progress.caught_up = False
        if arrived is False:
            progress.sending = None
        self._note_answer()

    def may_wait(self, node: str) -> bool:
        """Whether nobody waits until a replica has caught up: no sync call, no move."""
        progress = self.progress[node]
        return not (progress.caught_up or progress.hurried or node in self.circle.required)

    def lag_seconds(self, node: str, now: float) -> float:
        """Age of the newest state that the replica is known to have."""
        at = self.progress[node].current_at if node in self.progress else None
        return now - (self.since if at is None else at)

    def needed(self) -> frozenset[Generation]:
        """The generations that a replica may have as its newest."""
        known = {p.generation for p in self.progress.values()}
        maybe = (self.found or frozenset()) if None in known else frozenset()
        known |= {p.sending for p in self.progress.values()} | maybe
        return frozenset(one for one in known if one is not None)
