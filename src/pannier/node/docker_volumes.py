"""The Docker volume plugin's use cases."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, assert_never

import structlog

from pannier.agent.custody import Custody
from pannier.agent.drivers import Drivers
from pannier.agent.mounts import Mounts
from pannier.agent.use import Use
from pannier.cluster.cluster import Cluster, no_such_volume
from pannier.contract.docker_volumes import DockerVolume
from pannier.contract.peers import Peers, holder_unreachable
from pannier.contract.words import HolderState
from pannier.core.errors import (
    Conflict,
    NotHolder,
    OutcomeUnknown,
    PannierError,
    PeerUnavailable,
    SetBack,
    Unavailable,
)
from pannier.core.mounting import (
    AskForVolume,
    GiveUp,
    LookAgain,
    MountHere,
    MountLimits,
    Occupied,
    Ready,
    State,
    TakeOver,
    Unreachable,
    Unready,
    Wait,
    Why,
    needs_disk,
    next_step,
)
from pannier.core.pace import NodePace
from pannier.core.size import format_size
from pannier.core.volume import Volume
from pannier.holding.handover import still_waiting
from pannier.holding.memories import Memories
from pannier.holding.set_back import Abdication
from pannier.holding.takeover import Takeover
from pannier.holding.volumes import Volumes
from pannier.host.clock import Clock, rfc3339
from pannier.node.barrier_admission import BarrierAdmission
from pannier.node.freeing import Freeing
from pannier.node.twins import Twins

log = structlog.get_logger(__name__)


@dataclass(slots=True)
class _Waiting:
    """What one Mount has heard up to now. Times are seconds since boot."""

    began: float
    reason: str = ""
    """The last answer: why the volume is not here yet."""
    silent_since: float | None = None
    """When the first of the tries without an answer was; None after an answer."""
    error: PannierError | None = None
    """The last error that may have to be told to Docker."""

    def heard(self, reason: str, *, now: float) -> Occupied:
        """The holder answered."""
        self.reason, self.silent_since = reason, None
        return Occupied(waited=now - self.began)

    def missed(self, error: PannierError, *, now: float) -> tuple[float, float]:
        """There was no answer. Returns the seconds since the Mount began, and those without an answer."""
        self.error = error
        if self.silent_since is None:
            self.silent_since = now
        return now - self.began, now - self.silent_since


class VolumesForDocker:
    """What the Docker engine of this node asks for."""

    def __init__(
        self,
        *,
        cluster: Cluster,
        custody: Custody,
        drivers: Drivers,
        use: Use,
        mounts: Mounts,
        volumes: Volumes,
        peers: Peers,
        takeover: Takeover,
        abdication: Abdication,
        memories: Memories,
        admission: BarrierAdmission,
        freeing: Freeing,
        twins: Twins,
        clock: Clock,
        pace: NodePace,
    ) -> None:
        self._cluster = cluster
        self._custody = custody
        self._drivers = drivers
        self._use = use
        self._mounts = mounts
        self._volumes = volumes
        self._peers = peers
        self._takeover = takeover
        self._abdication = abdication
        self._memories = memories
        self._admission = admission
        self._freeing = freeing
        self._twins = twins
        self._clock = clock
        self._pace = pace
        self._limits = MountLimits(
            budget=pace.mount_budget, silence=pace.mount_silence, retry=pace.mount_retry
        )

    async def create(self, name: str, options: Mapping[str, str]) -> None:
        """See :class:`~pannier.contract.docker_volumes.DockerVolumes`."""
        await self._freeing.wait_for_room()
        await self._volumes.create(name, options, actor=f"docker on {self._cluster.node}")

    async def remove(self, name: str) -> None:
        """See :class:`~pannier.contract.docker_volumes.DockerVolumes`."""
        self._twins.check(name)
        await self._volumes.remove(name, actor=f"docker on {self._cluster.node}")

    async def mount(self, name: str, mount_id: str) -> Path:
        """See :class:`~pannier.contract.docker_volumes.DockerVolumes`."""
        with self._use.awaiting(name):
            return await self._mount(name, mount_id)

    async def _mount(self, name: str, mount_id: str) -> Path:
        waiting = _Waiting(began=self._clock.now())
        await self._drivers.tried.wait()
        await self._freeing.wait_for_room()
        volume = await self._volumes.find(name)
        state: State = await self._ready(volume, waiting)
        while True:
            found: Path | Volume | State
            match next_step(state, self._limits):
                case MountHere():
                    found = await self._try_here(volume, mount_id, waiting)
                case TakeOver() | AskForVolume() as attempt:
                    found = await self._try_elsewhere(attempt, volume, waiting)
                case Wait(seconds):
                    await asyncio.sleep(seconds)
                    found = volume
                case LookAgain(seconds):
                    found = await self._again(volume, seconds)
                case GiveUp(why):
                    self._give_up(why, volume, waiting)
                case step:
                    assert_never(step)
            if isinstance(found, Path):
                return found
            if isinstance(found, Volume):
                volume, state = found, await self._ready(found, waiting)
            else:
                state = found

    async def _ready(self, volume: Volume, waiting: _Waiting) -> Ready:
        """What this node could do for the volume now."""
        node, driver, disk = self._cluster.node, False, False
        try:
            self._drivers.of(volume)
            driver = True
            if needs_disk(volume, node=node):
                await self._drivers.check_disk(volume)
            disk = True
        except PannierError as error:
            waiting.error = error
        return Ready(
            record=volume,
            node=node,
            driver=driver,
            disk=disk,
            takeover_possible=self._takeover.possible(volume),
        )

    async def _try_here(
        self, volume: Volume, mount_id: str, waiting: _Waiting
    ) -> Path | Volume | Unready:
        """Try to serve it. Returns Docker's path, the record if another node holds it, or why not yet."""
        try:
            try:
                return await self._serve(volume, mount_id)
            except NotHolder:
                return (await self._cluster.fresh(volume.name)).record
        except (Unavailable, SetBack) as error:  # an election takes a second or two
            waited, silent = waiting.missed(error, now=self._clock.now())
            return Unready(waited=waited, silent=silent, here=True)

    async def _try_elsewhere(
        self, attempt: TakeOver | AskForVolume, volume: Volume, waiting: _Waiting
    ) -> Volume | Occupied | Unreachable | Unready:
        """Try to get the volume here. Returns the new record, or why it is not here yet."""
        now = self._clock.now
        try:
            match attempt:
                case TakeOver():
                    return await self._takeover.arrange(volume)
                case AskForVolume():
                    users = await self._ask_while_up(volume)
                    return waiting.heard(f"used by {', '.join(users)}" if users else "", now=now())
                case _:
                    assert_never(attempt)
        except Conflict as error:  # it has just moved, is moving, or its user has just begun
            return waiting.heard(error.message, now=now())
        except (PeerUnavailable, OutcomeUnknown) as error:
            waited, silent = waiting.missed(error, now=now())
            gone = isinstance(attempt, AskForVolume) and self._takeover.possible(volume)
            return Unreachable(waited=waited, silent=silent, holder_gone=gone)
        except Unavailable as error:  # the holder, a takeover or the store cannot go on yet
            waited, silent = waiting.missed(error, now=now())
            return Unready(waited=waited, silent=silent, here=False)

    def _give_up(self, why: Why, volume: Volume, waiting: _Waiting) -> NoReturn:
        match why:
            case Why.NO_DRIVER | Why.DISK_FAILED | Why.UNAVAILABLE:
                assert waiting.error is not None
                raise waiting.error
            case Why.HOLDER_SILENT:
                assert waiting.error is not None
                raise holder_unreachable(volume, waiting.error) from waiting.error
            case Why.TIME_OVER:
                waited = self._clock.now() - waiting.began
                raise still_waiting(volume.name, volume.grant.node, waiting.reason, waited)
            case _:
                assert_never(why)

    async def _serve(self, volume: Volume, mount_id: str) -> Path:
        """Serve it, and finish that even if the engine hangs up: a half-finished Mount is worse."""

        async def serve() -> Path:
            await self._memories.asked()
            await self._abdication.heard(volume)
            await self._admission.admit(volume)
            async with self._custody.lock(volume):
                path = await self._custody.serve(volume)
                self._use.begins(volume, mount_id)
                return path

        task = asyncio.create_task(serve(), name=f"serve {volume.name}")
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            task.add_done_callback(lambda _: self._use.ends(volume.name, mount_id))
            raise

    async def _ask_while_up(self, volume: Volume) -> list[str]:
        """Ask the holder, and stop waiting once it is known to be gone."""
        asking = asyncio.create_task(self._ask(volume), name=f"ask for {volume.name}")
        try:
            while not asking.done():
                await asyncio.wait({asking}, timeout=self._pace.mount_look)
                if not asking.done() and self._takeover.possible(volume):
                    raise PeerUnavailable(f"node {volume.grant.node} went down")
            return asking.result()
        finally:
            asking.cancel()

    async def _ask(self, volume: Volume) -> list[str]:
        """Ask the holder once; returns who uses the volume there, empty when it was given."""
        holder = self._cluster.catalog.node(volume.grant.node)
        if holder is None:
            raise PeerUnavailable(f"node {volume.grant.node} is not in this cluster any more")
        reply = await self._peers.to(holder).peer_handover(volume.name, epoch=volume.grant.epoch)
        return reply.in_use_by

    async def _again(self, volume: Volume, seconds: float) -> Volume:
        """The newest record, after a pause if the holder is the same; from memory without the store."""
        try:
            fresh = (await self._cluster.fresh(volume.name)).record
        except Unavailable:
            fresh = self._cluster.catalog.volume(volume.name) or volume
        if fresh.grant == volume.grant:
            await self._pause(fresh, seconds)
        return fresh

    async def _pause(self, volume: Volume, seconds: float) -> None:
        """Wait before the holder is asked again; shorter if it turns out to be gone, or back."""
        possible, until = self._takeover.possible(volume), self._clock.now() + seconds
        while self._takeover.possible(volume) == possible and self._clock.now() < until:
            await asyncio.sleep(self._pace.mount_look)

    async def unmount(self, name: str, mount_id: str) -> None:
        """See :class:`~pannier.contract.docker_volumes.DockerVolumes`.

        The path stays mounted: the next Mount is often milliseconds away. Whoever else wants the
        volume asks for it, and /proc tells whether it is in use.
        """
        self._use.ends(name, mount_id)
        volume = self._cluster.catalog.volume(name)
        if volume:
            self._use.released(volume).set()

    async def abandon(self, name: str, mount_id: str) -> None:
        """See :class:`~pannier.contract.docker_volumes.DockerVolumes`."""
        await self.unmount(name, mount_id)

    def get(self, name: str) -> DockerVolume:
        """See :class:`~pannier.contract.docker_volumes.DockerVolumes`."""
        volume = self._cluster.catalog.volume(name)
        if volume is None:
            raise no_such_volume(name)
        return self._describe(volume)

    def list(self) -> list[DockerVolume]:
        """See :class:`~pannier.contract.docker_volumes.DockerVolumes`."""
        return [self._describe(volume) for volume in self._cluster.catalog.volumes()]

    def _describe(self, volume: Volume) -> DockerVolume:
        up = self._cluster.catalog.is_up(volume.grant.node)
        status: dict[str, Any] = {
            "holder": volume.grant.node,
            "holder_state": HolderState.UP if up else HolderState.DOWN,
            "epoch": volume.grant.epoch,
            "generation": str(volume.base) if volume.base else "none",
            "copies": volume.spec.copies,
            "driver": volume.spec.driver,
            "size": format_size(volume.spec.size) if volume.spec.size else "unlimited",
        }
        here = volume.grant.node == self._cluster.node
        return DockerVolume(
            name=volume.name,
            mountpoint=str(self._mounts.path(volume.name)) if here else "",
            created_at=rfc3339(volume.created_at),
            status=status,
        )
