"""What is wrong, where, and the one thing to do: ``pannier doctor``."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable

from pannier.agent.custody import Custody
from pannier.contract.views import FindingView
from pannier.core.errors import EngineUnavailable, PannierError
from pannier.core.ownership import LocalState, Lost, plan_cleanup, plan_serving
from pannier.core.size import format_size
from pannier.core.volume import Volume
from pannier.node.diagnosis import standing_still
from pannier.node.quarantine import quarantine_findings, quarantine_of
from pannier.swarm.labels import excluded_services

SCARCE_SHARE = 0.10


class Doctor:
    """Looks, and changes nothing. One check that cannot be made is a finding, not the end."""

    def __init__(self, custody: Custody, pool_checks: Callable[[], Awaitable[list[str]]]) -> None:
        self._custody = custody
        self._pool_checks = pool_checks

    async def examine(self) -> list[FindingView]:
        """All findings on this node and on what it sees of the others."""
        findings: list[FindingView] = []
        for check in (
            self._store,
            self._nodes,
            self._engine,
            self._hidden,
            self._services,
            self._pool,
            self._quarantined,
            self._volumes,
        ):
            try:
                findings += [finding async for finding in check()]
            except PannierError as error:
                findings.append(_problem(check.__name__.strip("_"), error.message, error.remedy))
        return findings

    async def _store(self) -> AsyncIterator[FindingView]:
        for member, state in (await self._custody.registry.store.health()).items():
            if state == "ok":
                yield _ok(f"store {member}", "answers")
            else:
                yield _problem(f"store {member}", state, "see whether it runs and can be reached")

    async def _nodes(self) -> AsyncIterator[FindingView]:
        catalog = self._custody.catalog
        for node in catalog.nodes():
            if catalog.is_up(node.name):
                yield _ok(f"node {node.name}", "up")
                continue
            held = [v.name for v in catalog.volumes() if v.grant.node == node.name]
            what = f"down; it holds {', '.join(held)}" if held else "down; it holds no volume"
            yield _problem(
                f"node {node.name}",
                what,
                "start it, its network, or its pannierd again; "
                "where all run, `pannier doctor` there says more",
            )

    async def _engine(self) -> AsyncIterator[FindingView]:
        subject = f"docker on {self._custody.node}"
        try:
            active = await self._custody.engine.plugin_active()
        except EngineUnavailable as error:
            yield _problem(subject, error.message, error.remedy)
            return
        if active:
            yield _ok(subject, "lists the pannier volume plugin")
        else:
            yield _problem(
                subject,
                "does not list the pannier volume plugin, so that Swarm schedules nothing here",
                "docker volume ls makes it look; else restart pannierd",
            )

    async def _hidden(self) -> AsyncIterator[FindingView]:
        ours = {volume.name for volume in self._custody.catalog.volumes()}
        try:
            others = await self._custody.engine.other_volumes()
        except EngineUnavailable:
            return  # said already
        for name in sorted(ours & set(others)):
            yield _warning(
                f"volume {name}",
                f"docker on {self._custody.node} has a volume of another driver with this name, "
                f"and takes that one",
                f"if it is not needed: docker volume rm {name} there",
            )

    async def _services(self) -> AsyncIterator[FindingView]:
        custody = self._custody
        try:
            async for finding in excluded_services(custody.engine.swarm, custody.catalog):
                yield finding
        except EngineUnavailable:
            return  # said already, or the Swarm has no leader, which says nothing of its services

    async def _pool(self) -> AsyncIterator[FindingView]:
        subject = f"pool on {self._custody.node}"
        for problem in await self._pool_checks():
            yield _problem(subject, problem, "see dmesg and the disk")
        for name, driver in self._custody.drivers.items():
            capacity = await driver.capacity()
            free = f"{format_size(capacity.free_bytes)} of {format_size(capacity.total_bytes)} free"
            if capacity.free_bytes < SCARCE_SHARE * capacity.total_bytes:
                yield _warning(
                    subject, f"{name}: only {free}", "remove volumes or enlarge the pool"
                )
            else:
                yield _ok(subject, f"{name}: {free}")

    async def _quarantined(self) -> AsyncIterator[FindingView]:
        async for finding in quarantine_findings(self._custody):
            yield finding

    async def _volumes(self) -> AsyncIterator[FindingView]:
        known = {volume.id for volume in self._custody.catalog.volumes()}
        known |= {volume.id for volume in self._custody.catalog.trashed()}
        for volume in self._custody.catalog.volumes():
            if volume.spec.driver in self._custody.drivers:
                if await quarantine_of(self._custody, volume):
                    continue  # said already
                async for finding in self._volume(volume):
                    yield finding
        for name, driver in self._custody.drivers.items():
            for orphan in sorted(set(await driver.volumes()) - known):
                yield _warning(
                    f"data {orphan}",
                    f"on this node's {name} driver, and of no volume that the cluster knows",
                    "left by a creation that did not finish, or by another cluster; kept",
                )

    async def _volume(self, volume: Volume) -> AsyncIterator[FindingView]:
        custody = self._custody
        driver = custody.driver(volume)
        copy = await driver.inspect(volume.id)
        local = LocalState({t.epoch: t.sealed for t in copy.live}, frozenset(copy.generations))
        subject = f"volume {volume.name}"
        for epoch in plan_cleanup(volume, local, node=custody.node).strays:
            yield _warning(
                subject,
                f"node {custody.node} has a stray of epoch {epoch}: writes that no other node has",
                "look into it before you remove anything",
            )
        if volume.grant.node != custody.node:
            return
        plan = plan_serving(volume, local, node=custody.node)
        if isinstance(plan, Lost):
            yield _problem(
                subject, "its data is not on this node's disk", "is the right disk there?"
            )
            return
        if custody.suspended(volume):
            yield standing_still(volume, custody.node)
        used = await driver.used_bytes(volume.id)
        users = await custody.users(volume)
        state = f"held by {custody.node}, " + (f"used by {', '.join(users)}" if users else "idle")
        if volume.spec.size and used > volume.spec.size:
            yield _warning(
                subject,
                f"takes {format_size(used)}, more than its size of {format_size(volume.spec.size)}",
                "delete files in it",
            )
        else:
            yield _ok(subject, state)


def _ok(subject: str, what: str) -> FindingView:
    return FindingView(level="ok", subject=subject, what=what)


def _warning(subject: str, what: str, remedy: str) -> FindingView:
    return FindingView(level="warning", subject=subject, what=what, remedy=remedy)


def _problem(subject: str, what: str, remedy: str) -> FindingView:
    return FindingView(level="problem", subject=subject, what=what, remedy=remedy)
