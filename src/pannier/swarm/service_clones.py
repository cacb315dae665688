"""Clones of all volumes of a Swarm service, as of one moment, led by the Swarm manager that was asked."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress

import structlog

from pannier.cluster.cluster import Cluster
from pannier.core.clone_source import CloneSource
from pannier.core.clones import name_of_clone
from pannier.core.errors import AlreadyExists, PannierError, VolumeNotFound
from pannier.core.volume import Volume
from pannier.host.clock import Clock
from pannier.swarm.service_snapshots import ServiceSnapshots
from pannier.swarm.services import Services

log = structlog.get_logger(__name__)

_KEEP_SECONDS = 24 * 3600.0
"""For how long the snapshots stay of which the clones are made. The clones' copies begin with what these have in common with
them, and a node with a copy may be away for some hours."""


class ServiceClones:
    """Leads the cloning of services' volumes."""

    def __init__(
        self,
        *,
        cluster: Cluster,
        services: Services,
        snapshots: ServiceSnapshots,
        clone: Callable[[CloneSource, str, Mapping[str, str], str], Awaitable[Volume]],
        discard: Callable[[Volume, str], Awaitable[None]],
        clock: Clock,
    ) -> None:
        """Put it together.

        Args:
            clone: makes a clone, by its source, name, options and who asks for it.
            discard: removes a volume for ever, on behalf of somebody.
        """
        self._cluster = cluster
        self._services = services
        self._snapshots = snapshots
        self._clone = clone
        self._discard = discard
        self._clock = clock

    async def create(
        self, service: str, *, name_as: str, options: Mapping[str, str], actor: str
    ) -> list[Volume]:
        """Make a clone of each volume of a service, all as of one moment. The service itself is not cloned.

        Args:
            name_as: what they are called: the volume's name stands for ``{}`` in it.
            options: those that are to be others than the volumes'.

        Raises:
            InvalidInput: ``name_as`` makes no name. AlreadyExists: a name is taken; nothing was done then.
            And what :meth:`ServiceSnapshots.create` and the making of a clone raise. Those that were made are removed then.
        """
        _, names = await self._services.mounted(service)
        for name in names:
            await self._check_free(name_of_clone(name_as, name))
        stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(self._clock.unix()))
        snapshots = await self._snapshots.create(
            service,
            f"clone-{stamp}",
            keep_seconds=_KEEP_SECONDS,
            labels={"clone": name_as},
            actor=actor,
        )
        made: list[Volume] = []
        try:
            for each in snapshots:
                source = CloneSource(each.volume, each.name)
                new = name_of_clone(name_as, each.volume)
                made.append(await self._clone(source, new, options, actor))
        except BaseException:
            for volume in made:
                with suppress(PannierError):  # the first error is the one to tell
                    await self._discard(volume, actor)
            raise
        log.info("service.cloned", service=service, volumes=[each.name for each in made], by=actor)
        return made

    async def _check_free(self, name: str) -> None:
        try:
            await self._cluster.fresh(name)
        except VolumeNotFound:
            return
        raise AlreadyExists(
            f"volume {name} exists; nothing was cloned", remedy="use another --name-as"
        )
