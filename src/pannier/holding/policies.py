"""Policies: schedules of all volumes that have some labels. They are in the store, and any node may change them."""

from __future__ import annotations

from collections.abc import Mapping

import structlog

from pannier.cluster.cluster import Cluster
from pannier.contract.views import PolicyView
from pannier.core.errors import InvalidInput, NotFound
from pannier.core.schedules import (
    InForce,
    SchedulePolicy,
    check_policy_name,
    in_force,
    parse_schedule,
)
from pannier.core.volume import Volume
from pannier.store.base import ABSENT

log = structlog.get_logger(__name__)


class Policies:
    """Lists, sets and removes policies, and knows what counts for a volume.

    All methods that ask the store raise StoreUnavailable, and Corrupt or NewerFormat where a policy cannot be read: what
    it says is not known, so none of them is acted on.
    """

    def __init__(self, *, cluster: Cluster) -> None:
        self._cluster = cluster
        self._known: tuple[SchedulePolicy, ...] = ()

    async def read(self) -> None:
        """Take in what the store has."""
        found = await self._cluster.registry.policies()
        self._known = tuple(each.record for each in found.values())

    def of(self, volume: Volume) -> InForce | None:
        """The schedule of a volume, by what was read last; None without one."""
        if volume.spec.layout != "image":
            return None
        return in_force(volume.spec.snapshots, volume.spec.labels, self._known)

    async def all(self) -> list[PolicyView]:
        """All of them, by name."""
        await self.read()
        return [self._view(each) for each in sorted(self._known, key=lambda each: each.name)]

    async def set(
        self, name: str, *, schedule: str, labels: Mapping[str, str], actor: str
    ) -> PolicyView:
        """Add a policy, or change it.

        Raises:
            InvalidInput: one of these cannot be; Stale: it was changed meanwhile; OutcomeUnknown.
        """
        if not labels:
            raise InvalidInput(
                "a policy is for volumes with a label", remedy="name at least one: --label team=web"
            )
        policy = SchedulePolicy(
            name=check_policy_name(name), schedule=parse_schedule(schedule), labels=dict(labels)
        )
        found = (await self._cluster.registry.policies()).get(name)
        await self._cluster.registry.put_policy(
            policy, expect=ABSENT if found is None else found.revision
        )
        log.info("schedule.set", policy=name, schedule=str(policy.schedule), by=actor)
        await self.read()
        return self._view(policy)

    async def remove(self, name: str, *, actor: str) -> PolicyView:
        """Remove a policy. Snapshots that were made by it stay.

        Raises:
            NotFound: there is none of that name; Stale: it was changed meanwhile; OutcomeUnknown.
        """
        found = (await self._cluster.registry.policies()).get(check_policy_name(name))
        if found is None:
            raise NotFound(f"there is no policy {name}", remedy="pannier schedule ls shows all")
        await self._cluster.registry.remove_policy(name, expect=found.revision)
        log.info("schedule.removed", policy=name, by=actor)
        await self.read()
        return self._view(found.record)

    def _view(self, policy: SchedulePolicy) -> PolicyView:
        volumes = [
            volume.name
            for volume in self._cluster.catalog.volumes()
            if (now := self.of(volume)) is not None and policy.name in now.policies
        ]
        return PolicyView(
            name=policy.name,
            schedule=str(policy.schedule),
            labels=dict(policy.labels),
            volumes=volumes,
        )
