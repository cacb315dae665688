"""Snapshots by schedule: made and removed by the node that holds the volume.

The snapshot's name is that of its slot, and the record takes no second one of a name: so a takeover, or a daemon that is started
again, doubles none. Whoever holds the volume looks whether the present slot has one: so a takeover loses none.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Collection
from dataclasses import dataclass
from functools import partial

import structlog

from pannier.cluster.catalog import Changed
from pannier.cluster.cluster import Cluster
from pannier.contract.views import FindingView
from pannier.contract.words import Level
from pannier.core.errors import AlreadyExists, DeadlineExceeded, PannierError
from pannier.core.pace import HoldingPace
from pannier.core.schedules import Period, Slot, due, last_made, not_kept
from pannier.core.snapshots import Snapshot
from pannier.core.volume import Volume
from pannier.holding.lasting import Lasting
from pannier.holding.policies import Policies
from pannier.holding.snapshots import Snapshots
from pannier.host.clock import Clock

log = structlog.get_logger(__name__)

ACTOR = "its schedule"
"""By whom such a snapshot was made, in a volume's history."""


@dataclass(frozen=True, slots=True)
class _Trouble:
    """Why no snapshot can be made for a slot, and since when (seconds since boot) that is so."""

    slot: Slot
    since: float
    error: PannierError


class Schedules:
    """Keeps the schedules of the volumes that are held here."""

    def __init__(
        self,
        *,
        cluster: Cluster,
        snapshots: Snapshots,
        policies: Policies,
        clock: Clock,
        pace: HoldingPace,
    ) -> None:
        self._cluster = cluster
        self._snapshots = snapshots
        self._policies = policies
        self._clock = clock
        self._pace = pace
        self._changed = asyncio.Event()
        self._turns = asyncio.Semaphore(pace.schedules_at_once)
        self._unread: PannierError | None = None
        """Why the policies cannot be read."""
        self._troubles: dict[str, _Trouble] = {}
        """By volume id."""
        self._not_kept = Lasting[tuple[str, str]]()
        """Of snapshots that no schedule keeps any more, by volume id and name."""

    def hear(self, change: Changed) -> None:
        """A listener for the catalog: a volume whose options are others is looked at at once."""
        before, after = change.before, change.after
        if isinstance(after, Volume) and (
            not isinstance(before, Volume) or before.spec != after.spec
        ):
            self._changed.set()

    async def run(self) -> None:
        """For ever: run as a task."""
        while True:
            self._changed.clear()
            await self._look()
            try:
                async with asyncio.timeout(self._pace.schedules_look):
                    await self._changed.wait()
            except TimeoutError:
                continue

    async def _look(self) -> None:
        try:
            await self._policies.read()
        except PannierError as error:
            self._unread = error
            log.info("schedules.not-read", error=str(error))
            return
        self._unread = None
        held = self._held()
        self._troubles = {key: each for key, each in self._troubles.items() if key in held}
        await asyncio.gather(*(self._make_due(volume) for volume in held.values()))
        for volume, names in self._to_remove():
            await self._snapshots.drop(volume, partial(self._unkept, names), why=f"by {ACTOR}")

    def _held(self) -> dict[str, Volume]:
        """The volumes with a schedule that are held here, by id."""
        return {
            volume.id: volume
            for volume in self._cluster.catalog.volumes()
            if volume.grant.node == self._cluster.node and self._policies.of(volume) is not None
        }

    # -- making -----------------------------------------------------------------------------------

    async def _make_due(self, volume: Volume) -> None:
        async with self._turns:
            plan = self._policies.of(volume)
            slot = (
                due(plan.schedule, volume.snapshots, now=self._clock.unix())
                if plan is not None
                else None
            )
            if slot is None:
                self._troubles.pop(volume.id, None)
                return
            try:
                await self._make(volume, slot)
            except PannierError as error:
                self._note(volume, slot, error)
            else:
                self._troubles.pop(volume.id, None)

    async def _make(self, volume: Volume, slot: Slot) -> None:
        """Make the snapshot of a slot.

        Raises:
            As :meth:`Snapshots.create_here`; AlreadyExists: a person has given one its name; DeadlineExceeded.
        """
        patience = self._pace.schedule_patience
        try:
            async with asyncio.timeout(patience):
                await self._snapshots.create_here(
                    volume.name, slot.name, keep_seconds=None, labels={}, actor=ACTOR, slot=slot
                )
        except TimeoutError as error:
            raise DeadlineExceeded(
                f"it was not made within {patience:.0f} s", remedy="see the log of pannierd"
            ) from error
        except AlreadyExists:
            found = (await self._cluster.fresh(volume.name)).record.snapshot(slot.name)
            if found.slot_start is None:
                raise

    def _note(self, volume: Volume, slot: Slot, error: PannierError) -> None:
        before = self._troubles.get(volume.id)
        since = before.since if before is not None else self._clock.now()
        self._troubles[volume.id] = _Trouble(slot, since, error)
        log.info("schedule.not-kept", volume=volume.name, snapshot=slot.name, error=str(error))

    # -- removing ---------------------------------------------------------------------------------

    def _to_remove(self) -> list[tuple[Volume, frozenset[str]]]:
        """Volumes with the snapshots that their schedules have not kept for a while."""
        held = self._held()
        found = [
            (volume.id, name) for volume in held.values() for name in self._unkept_names(volume)
        ]
        gone = self._not_kept.for_long(
            found, now=self._clock.now(), seconds=self._pace.snapshot_grace
        )
        return [
            (volume, names)
            for volume in held.values()
            if (names := frozenset(name for key, name in gone if key == volume.id))
        ]

    def _unkept_names(self, volume: Volume) -> frozenset[str]:
        plan = self._policies.of(volume)
        if plan is None:
            return frozenset()
        return frozenset(each.name for each in not_kept(plan.schedule, volume.snapshots))

    def _unkept(self, names: Collection[str], found: Volume) -> list[Snapshot]:
        """Those of them that the schedule does not keep, by the newest record."""
        now = self._unkept_names(found)
        return [each for each in found.snapshots if each.name in now and each.name in names]

    # -- telling ----------------------------------------------------------------------------------

    async def findings(self) -> AsyncIterator[FindingView]:
        """The schedules that are not kept, for doctor."""
        if self._unread is not None:
            yield _warning(
                f"schedules on {self._cluster.node}",
                f"the policies cannot be read, so no snapshot is made or removed by schedule here: {self._unread.message}",
                self._unread.remedy or "see the store",
            )
        for volume in self._cluster.catalog.volumes():
            plan = self._policies.of(volume)
            if plan is None:
                continue
            trouble = self._troubles.get(volume.id)
            if (
                trouble is not None
                and self._clock.now() - trouble.since >= self._pace.schedule_doubt
            ):
                yield _warning(
                    f"volume {volume.name}",
                    f"its snapshot {trouble.slot.name} cannot be made: {trouble.error.message}",
                    f"{trouble.error.remedy or 'see the log of pannierd'}; it is tried again by itself",
                )
            elif late := self._late(volume, plan.schedule.periods[0]):
                yield late

    def _late(self, volume: Volume, period: Period) -> FindingView | None:
        """Whichever node holds it has made none in the slot before."""
        last, now = last_made(volume.snapshots), Slot.of(period, self._clock.unix())
        if last is None or last.slot_start is None or last.slot_start >= now.before.start:
            return None
        return _warning(
            f"volume {volume.name}",
            f"its last snapshot by schedule is {last.name}, and there should be one of {now.before.name}",
            f"see pannier doctor on node {volume.grant.node}, which holds it; it is made by itself once that works",
        )


def _warning(subject: str, what: str, remedy: str) -> FindingView:
    return FindingView(level=Level.WARNING, subject=subject, what=what, remedy=remedy)
