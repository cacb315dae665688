"""Finding copies that are not what was written, and having them made anew.

A disk may give back other bytes than it was given. In a copy that nobody reads, this goes unnoticed
until it is the only copy. So each node reads its copies to the last byte now and then, and when a
person asks. Where checksums of blocks were stored when they came, a copy's damaged blocks are mended
(:mod:`pannier.copies.mending`). Otherwise a damaged copy is put into quarantine, and the holder is told that this node
has nothing any more. The holder lets it leave those in sync and sends everything anew. The quarantine is
emptied after that.

What a holder wrote itself has no checksums where the file system has none. So the holder has the copies of one
generation compared as often. Where they differ, the stored checksums decide, block by block, or nobody does: then all
is left as it is, and told. A holder that is proved to be wrong is told to a person, who moves the volume; what it
held is made anew then.

After a crash between these steps, or if somebody else removed the copy, the record names a node as in
sync that has nothing. So each node looks for this, too, and tells the holder.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace

import structlog

from pannier.agent.custody import Custody
from pannier.agent.drivers import Drivers
from pannier.cluster.cluster import Cluster, no_such_volume
from pannier.contract.peers import Peers
from pannier.contract.views import CheckView
from pannier.contract.words import CheckState
from pannier.copies.acknowledging import Acknowledging
from pannier.copies.comparison import compared
from pannier.copies.differences import Differences
from pannier.copies.mending import Mending, Outcome
from pannier.copies.settling import Settling, look_at_both, move_there, these_blocks
from pannier.core import damage
from pannier.core.errors import Conflict, Corrupt, PannierError, Stale
from pannier.core.generation import Generation
from pannier.core.pace import CopiesPace
from pannier.core.record import Record
from pannier.core.volume import Volume
from pannier.host.clock import Clock
from pannier.host.records import encode, read_file
from pannier.host.state_files import StateFile
from pannier.storage.base import CheckedDriver
from pannier.storage.kinds import by_class

log = structlog.get_logger(__name__)

_is_checked = by_class(lambda driver: isinstance(driver, CheckedDriver))


@dataclass(frozen=True, slots=True, kw_only=True)
class Verified(Record):
    """The file of :class:`Verification`: by volume id, the Unix time of the last verification."""

    at: dict[str, float] = field(default_factory=dict)


class Verification:
    """Verifies this node's copies."""

    def __init__(
        self,
        *,
        cluster: Cluster,
        custody: Custody,
        drivers: Drivers,
        peers: Peers,
        differences: Differences,
        mending: Mending,
        settling: Settling,
        acknowledging: Acknowledging,
        file: StateFile,
        clock: Clock,
        pace: CopiesPace,
    ) -> None:
        self._cluster = cluster
        self._custody = custody
        self._drivers = drivers
        self._peers = peers
        self._differences = differences
        self._mending = mending
        self._settling = settling
        self._acknowledging = acknowledging
        self._file = file
        self._clock = clock
        self._pace = pace
        self._saved = Verified()
        self._unfinished: set[str] = set()
        self._saving = asyncio.Lock()
        try:
            remedy = "all copies count as verified just now"
            self._saved = read_file(file, Verified, remedy=remedy) or Verified()
        except PannierError as error:
            log.warning("copy.verification-not-known", error=str(error))
        self._at = dict(self._saved.at)

    async def run(self) -> None:
        """For ever: run as a task."""
        self._unfinished |= {volume.name for volume in self._mine()}  # of an earlier run
        while True:
            for _ in range(round(self._pace.verify_turn / self._pace.verify_finish)):
                await asyncio.sleep(self._pace.verify_finish)
                for name in tuple(self._unfinished):
                    await self._attempt(self._finish, name)
            for volume in self._mine():
                now = self._clock.unix()
                self._at[volume.id] = min(self._at.get(volume.id, now), now)
                if damage.is_to_be_made_anew(volume, self._cluster.node):
                    self._unfinished.add(volume.name)
                if now - self._at[volume.id] > self._pace.verify_every:
                    compares = self._driver(volume).compares
                    held = compares and volume.grant.node == self._cluster.node
                    await self._attempt(self.everywhere if held else self.here, volume.name)
            await self._save()

    async def _attempt(self, work: Callable[[str], Awaitable[object]], name: str) -> None:
        try:
            await work(name)
        except PannierError as error:  # tried again at the next turn
            log.warning("copy.not-verified", volume=name, error=str(error))

    def _mine(self) -> list[Volume]:
        return [volume for volume in self._cluster.catalog.volumes() if self._is_here(volume)]

    def _is_here(self, volume: Volume) -> bool:
        if self._cluster.node not in (volume.grant.node, *volume.replicas):
            return False
        driver = self._drivers.get(volume.spec.driver)
        return driver is not None and _is_checked(driver)

    async def here(self, name: str, wanted: Generation | None = None) -> CheckView:
        """Read this node's copy of a volume, and have it mended or made anew where it is damaged.

        Args:
            wanted: the generation to be read, if it is still here; else the newest.

        Raises:
            VolumeNotFound, StorageError, Unavailable.
        """
        volume, me = self._volume(name), self._cluster.node
        newest = await self._drivers.newest(volume) if self._is_here(volume) else None
        live = self._is_here(volume) and await self._is_live(volume)
        if newest is not None and self._driver(volume).compares:
            live = False  # what others have, too
            if wanted in (await self._driver(volume).inspect(volume.id)).generations:
                newest = wanted
        if newest is None and not live:
            self._unfinished.add(name)
            return CheckView(node=me, state=CheckState.NOTHING)
        found = None if live else newest
        try:
            async with self._differences.reading:
                read = await self._driver(volume).verify(volume.id, found)
        except Corrupt as error:
            log.error(
                "copy.damaged", volume=name, generation=str(found or "live"), error=str(error)
            )
            return await self._damaged(volume, found, error)
        if read.damaged:
            log.error(
                "copy.damaged",
                volume=name,
                generation=str(found or "live"),
                blocks=len(read.damaged),
            )
            return await self._damaged(volume, found, _damage(me, read.damaged), read.damaged)
        self._at[volume.id] = self._clock.unix()
        await self._save()
        return CheckView(
            node=me,
            state=CheckState.WHOLE if read.proved else CheckState.READ,
            generation=str(found) if found else None,
            digest=read.digest,
        )

    async def _is_live(self, volume: Volume) -> bool:
        """Whether this node holds the volume and has its live tree: then that is verified."""
        copy = await self._driver(volume).inspect(volume.id)
        return volume.grant.node == self._cluster.node and any(
            tree.epoch == volume.grant.epoch for tree in copy.live
        )

    async def _damaged(
        self,
        volume: Volume,
        found: Generation | None,
        error: Corrupt,
        blocks: Sequence[int] = (),
    ) -> CheckView:
        """Do what is to be done about this node's damage: in ``blocks``, or nobody knows where."""
        me, outcome = self._cluster.node, Outcome.LOST
        async with self._custody.lock(volume):  # so that it is not taken over meanwhile
            volume = (await self._cluster.fresh(volume.name)).record
            is_holder = volume.grant.node == me
            if blocks and not is_holder:
                outcome = await self._mending.mend(volume, blocks)
            if outcome is Outcome.LOST and not is_holder:
                await self._driver(volume).quarantine(volume.id)
        remedy = error.remedy or ""
        if is_holder:
            state, what = CheckState.DAMAGED, damage.DAMAGED
            remedy = "it is the only copy; see `dmesg` on that node"
            if volume.in_sync:
                remedy = move_there(volume, volume.in_sync[0])
        elif outcome is Outcome.MENDED:
            state, what = CheckState.MENDED, damage.MENDED
        elif outcome is Outcome.REFUTED:
            state, what = CheckState.DIFFERS, damage.DIFFERS
            error = Corrupt(f"{error.message}; no node that answers has what was received")
            remedy = look_at_both(volume)
        else:
            state, what = CheckState.MADE_ANEW, damage.MADE_ANEW
        await self._settling.note(volume, me, what, error.message)
        match state:
            case CheckState.MADE_ANEW:
                self._unfinished.add(volume.name)
                await self._attempt(self._finish, volume.name)
            case (
                CheckState.DAMAGED | CheckState.DIFFERS
            ):  # it stays so: not read again at each turn
                self._at[volume.id] = self._clock.unix()
                await self._save()
        return CheckView(
            node=me,
            state=state,
            generation=str(found) if found else None,
            error=error.message,
            remedy=remedy,
        )

    async def _finish(self, name: str) -> None:
        """Tell the holder if nothing is here; empty the quarantine once the copy is in sync again."""
        volume, me = self._cluster.catalog.volume(name), self._cluster.node
        if volume is None or not self._is_here(volume) or volume.grant.node == me:
            self._unfinished.discard(name)
        elif await self._drivers.newest(volume) is None:
            node = self._cluster.catalog.node(volume.grant.node)
            if node is not None and me in volume.in_sync:
                await self._peers.to(node).peer_lost_copy(name, epoch=volume.grant.epoch)
        elif damage.is_to_be_made_anew(volume, me):
            # What it held goes first: only its last generation shows that nothing of that is lost then.
            if not (await self._driver(volume).inspect(volume.id)).live:
                newest = await self._drivers.newest(volume)
                why = "its disk did not give back what it was given while it held the volume"
                await self._damaged(volume, newest, Corrupt(why))
        elif me in volume.in_sync:
            await self._driver(volume).drop_quarantined(volume.id)
            self._unfinished.discard(name)

    async def everywhere(self, name: str, *, trust_holder: bool = False) -> list[CheckView]:
        """Have every copy of a volume read, at the same time; the holder's first.

        Args:
            trust_holder: a copy that differs is made anew from what the holder has, although nobody can prove theirs.
        """
        volume = self._volume(name)
        names = (volume.grant.node, *volume.replicas)
        common = await self._differences.newest_of_all(volume, names)
        checks = await asyncio.gather(*(self._on(node, volume, common) for node in names))
        holder, copies = compared(checks[0], checks[1:])
        checks = [holder, *copies]
        if any(copy.state is CheckState.DIFFERS and copy.digest for copy in copies):
            checks, wrong = await self._settling.settled(volume, checks)
            checks = [
                await self._made_anew(volume, check) if check.node in wrong else check
                for check in checks
            ]
        await self._settling.note_whole(volume, checks)
        if trust_holder and checks[0].state is not CheckState.DAMAGED:
            checks = [await self._trusting(volume, check) for check in checks]
        return checks

    async def _trusting(self, volume: Volume, check: CheckView) -> CheckView:
        differs = check.state is CheckState.DIFFERS
        return await self._made_anew(volume, check) if differs else check

    async def _made_anew(self, volume: Volume, copy: CheckView) -> CheckView:
        """A copy that is not what the holder has is made anew."""
        log.error("copy.made-anew", volume=volume.name, node=copy.node, generation=copy.generation)
        try:
            if copy.node == self._cluster.node:
                return await self.set_aside(volume.name, epoch=volume.grant.epoch)
            node = self._cluster.catalog.node(copy.node)
            if node is None:
                return copy
            return await self._peers.to(node).peer_set_aside(volume.name, epoch=volume.grant.epoch)
        except PannierError as error:
            return replace(copy, error=f"{copy.error}; {error.message}", remedy=error.remedy or "")

    async def set_aside(self, name: str, *, epoch: int) -> CheckView:
        """Set this node's copy aside and have it made anew: it is not what the holder has.

        Raises:
            VolumeNotFound; Stale: it is not at ``epoch``; Conflict: this node holds it; StorageError.
        """
        volume = self._volume(name)
        if volume.grant.epoch != epoch:
            raise Stale(f"volume {name} is at epoch {volume.grant.epoch}, not {epoch}")
        if volume.grant.node == self._cluster.node:
            raise Conflict(f"volume {name} is held by this node")
        why = Corrupt(f"the copy of volume {name} is not what node {volume.grant.node} has")
        return await self._damaged(volume, await self._drivers.newest(volume), why)

    async def _on(self, name: str, volume: Volume, wanted: Generation | None) -> CheckView:
        if name == self._cluster.node:
            return await self.here(volume.name, wanted)
        node = self._cluster.catalog.node(name)
        try:
            if node is None or not self._cluster.catalog.is_up(name):
                return CheckView(node=name, state=CheckState.UNKNOWN, error=f"node {name} is down")
            return await self._peers.to(node).peer_verify(
                volume.name, generation=str(wanted) if wanted else None
            )
        except PannierError as error:
            return CheckView(
                node=name, state=CheckState.UNKNOWN, error=error.message, remedy=error.remedy or ""
            )

    async def lost(self, name: str, *, epoch: int, peer: str) -> None:
        """``peer`` has lost its copy of a volume that is held here: send it everything.

        Raises:
            NotHolder, Stale: not held here, or not at ``epoch``; Unavailable, OutcomeUnknown: ask again.
        """
        await self._acknowledging.lost(name, epoch=epoch, node=peer)

    def _volume(self, name: str) -> Volume:
        volume = self._cluster.catalog.volume(name)
        if volume is None:
            raise no_such_volume(name)
        return volume

    def _driver(self, volume: Volume) -> CheckedDriver:
        driver = self._drivers.of(volume)
        assert isinstance(driver, CheckedDriver)
        return driver

    async def _save(self) -> None:
        """Save the times. If that fails, a copy may be read again sooner than necessary."""
        async with self._saving:
            known = {v.id for v in self._mine()}
            self._at = {volume_id: at for volume_id, at in self._at.items() if volume_id in known}
            if self._at == self._saved.at:
                return
            saved = replace(self._saved, at=dict(self._at))
            try:
                await asyncio.to_thread(self._file.write, encode(saved))
            except OSError as error:
                log.warning("copy.verification-not-noted", error=str(error))
            else:
                self._saved = saved


def _damage(node: str, blocks: Sequence[int]) -> Corrupt:
    return Corrupt(
        f"{these_blocks(blocks)} not what was written",
        remedy=f"see `dmesg` on {node}, and replace its disk if it happens again",
    )
