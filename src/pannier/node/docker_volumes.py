"""The Docker volume plugin's use cases."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import structlog

from pannier.agent.custody import Custody, no_such_volume
from pannier.contract.docker_volumes import DockerVolume
from pannier.contract.peers import Peers, holder_unreachable
from pannier.contract.words import HolderState
from pannier.core.errors import (
    Conflict,
    NotHolder,
    OutcomeUnknown,
    PeerUnavailable,
    StoreUnavailable,
    Unavailable,
)
from pannier.core.size import format_size
from pannier.core.volume import Volume
from pannier.holding.handover import still_waiting
from pannier.holding.takeover import Takeover
from pannier.holding.volumes import Volumes
from pannier.host.clock import rfc3339
from pannier.node.barrier_admission import SyncGuard

log = structlog.get_logger(__name__)

MOUNT_BUDGET_SECONDS = 95.0
"""Docker gives up at 120 s and the plugin answers by 100: the error must be out before."""
SILENCE_SECONDS = 20.0
"""A holder that cannot be reached for so long ends the wait, so that Swarm may try elsewhere."""
RETRY_SECONDS = 0.5
WATCH_SECONDS = 0.1


class DockerUse:
    """What the Docker engine of this node asks for."""

    def __init__(
        self,
        custody: Custody,
        volumes: Volumes,
        peers: Peers,
        takeover: Takeover,
        guard: SyncGuard,
    ) -> None:
        self._custody = custody
        self._volumes = volumes
        self._peers = peers
        self._takeover = takeover
        self._guard = guard

    async def create(self, name: str, options: Mapping[str, str]) -> None:
        """See :class:`~pannier.contract.docker_volumes.DockerVolumes`."""
        await self._volumes.create(name, options, actor=f"docker on {self._custody.node}")

    async def remove(self, name: str) -> None:
        """See :class:`~pannier.contract.docker_volumes.DockerVolumes`."""
        await self._volumes.remove(name, actor=f"docker on {self._custody.node}")

    async def mount(self, name: str, mount_id: str) -> Path:
        """See :class:`~pannier.contract.docker_volumes.DockerVolumes`."""
        with self._custody.awaiting(name):
            return await self._mount(name, mount_id)

    async def _mount(self, name: str, mount_id: str) -> Path:
        began = self._custody.clock()
        silent_since: float | None = None
        reason = ""
        await self._custody.opened.wait()
        volume = await self._volumes.find(name)
        while True:
            driver = self._custody.driver(volume)  # a node without must not even ask for the volume
            # Nor one that could not keep it. What has only this copy may still be read.
            if volume.grant.node != self._custody.node or volume.spec.copies > 1:
                await driver.check_disk()
            if volume.grant.node == self._custody.node:
                try:
                    return await self._serve(volume, mount_id)
                except NotHolder:
                    volume = (await self._custody.fresh(name)).record
                    continue
                except StoreUnavailable:  # an election takes a second or two
                    silent_since = silent_since or self._custody.clock()
                    if self._custody.clock() - silent_since > SILENCE_SECONDS:
                        raise
                    await asyncio.sleep(RETRY_SECONDS)
                    continue
            try:
                if self._takeover.possible(volume):
                    volume = await self._takeover.arrange(volume)
                    continue
                users = await self._ask_while_up(volume)
                reason, silent_since = f"used by {', '.join(users)}" if users else "", None
            except Conflict as error:  # it has just moved, is moving, or its user has just begun
                reason, silent_since = error.message, None
            except (PeerUnavailable, OutcomeUnknown) as error:
                silent_since = silent_since or self._custody.clock()
                if self._custody.clock() - silent_since > SILENCE_SECONDS:
                    raise holder_unreachable(volume, error) from error
                if self._takeover.possible(volume):
                    continue
            except Unavailable:  # what the holder needs; it says so itself
                silent_since = silent_since or self._custody.clock()
                if self._custody.clock() - silent_since > SILENCE_SECONDS:
                    raise
            waited = self._custody.clock() - began
            if waited > MOUNT_BUDGET_SECONDS:
                raise still_waiting(name, volume.grant.node, reason, waited)
            volume = await self._again(volume)

    async def _serve(self, volume: Volume, mount_id: str) -> Path:
        """Serve to the end even when the engine has hung up: half done is worse than not wanted."""
        ids = self._custody.mount_ids

        async def serve() -> Path:
            await self._guard.admit(volume)
            async with self._custody.lock(volume):
                path = await self._custody.serve(volume)
                ids.add(volume.name, mount_id, self._custody.clock())
                return path

        task = asyncio.create_task(serve(), name=f"serve {volume.name}")
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            task.add_done_callback(lambda _: ids.discard(volume.name, mount_id))
            raise

    async def _ask_while_up(self, volume: Volume) -> list[str]:
        """Ask the holder, and no longer wait for it once it is known to be gone."""
        asking = asyncio.create_task(self._ask(volume), name=f"ask for {volume.name}")
        try:
            while not asking.done():
                await asyncio.wait({asking}, timeout=WATCH_SECONDS)
                if not asking.done() and self._takeover.possible(volume):
                    raise PeerUnavailable(f"node {volume.grant.node} went down")
            return asking.result()
        finally:
            asking.cancel()

    async def _ask(self, volume: Volume) -> list[str]:
        """Ask the holder once; returns who uses the volume there, empty when it was given."""
        holder = self._custody.catalog.node(volume.grant.node)
        if holder is None:
            raise PeerUnavailable(f"node {volume.grant.node} is not in this cluster any more")
        reply = await self._peers.to(holder).peer_handover(volume.name, epoch=volume.grant.epoch)
        return reply.in_use_by

    async def _again(self, volume: Volume) -> Volume:
        """The record after a question; from memory where the store does not answer."""
        try:
            fresh = (await self._custody.fresh(volume.name)).record
        except Unavailable:
            fresh = self._custody.catalog.volume(volume.name) or volume
        if fresh.grant == volume.grant:
            await self._pause(fresh)
        return fresh

    async def _pause(self, volume: Volume) -> None:
        """Some time before the next question; less where its holder is found to be gone, or back."""
        possible, until = self._takeover.possible(volume), self._custody.clock() + RETRY_SECONDS
        while self._takeover.possible(volume) == possible and self._custody.clock() < until:
            await asyncio.sleep(WATCH_SECONDS)

    async def unmount(self, name: str, mount_id: str) -> None:
        """See :class:`~pannier.contract.docker_volumes.DockerVolumes`.

        The path stays mounted: the next Mount is often milliseconds away. Whoever else wants the
        volume asks for it, and /proc tells whether it is in use.
        """
        self._custody.mount_ids.discard(name, mount_id)
        volume = self._custody.catalog.volume(name)
        if volume:
            self._custody.released(volume).set()

    async def abandon(self, name: str, mount_id: str) -> None:
        """See :class:`~pannier.contract.docker_volumes.DockerVolumes`."""
        await self.unmount(name, mount_id)

    def get(self, name: str) -> DockerVolume:
        """See :class:`~pannier.contract.docker_volumes.DockerVolumes`."""
        volume = self._custody.catalog.volume(name)
        if volume is None:
            raise no_such_volume(name)
        return self._describe(volume)

    def list(self) -> list[DockerVolume]:
        """See :class:`~pannier.contract.docker_volumes.DockerVolumes`."""
        return [self._describe(volume) for volume in self._custody.catalog.volumes()]

    def _describe(self, volume: Volume) -> DockerVolume:
        up = self._custody.catalog.is_up(volume.grant.node)
        status: dict[str, Any] = {
            "holder": volume.grant.node,
            "holder_state": HolderState.UP if up else HolderState.DOWN,
            "epoch": volume.grant.epoch,
            "generation": str(volume.base) if volume.base else "none",
            "copies": volume.spec.copies,
            "driver": volume.spec.driver,
            "size": format_size(volume.spec.size) if volume.spec.size else "unlimited",
        }
        here = volume.grant.node == self._custody.node
        return DockerVolume(
            name=volume.name,
            mountpoint=str(self._custody.mounts.path(volume.name)) if here else "",
            created_at=rfc3339(volume.created_at),
            status=status,
        )
