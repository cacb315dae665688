"""What is wrong, where, and the one thing to do: ``pannier doctor``."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable

from pannier.agent.drivers import Drivers
from pannier.agent.lease import Lease
from pannier.agent.mounts import Mounts
from pannier.agent.own_name import COPIED_REMEDY
from pannier.agent.room import RoomGuard
from pannier.agent.use import Use
from pannier.backups.findings import BackupFindings
from pannier.cluster.cluster import Cluster
from pannier.contract.views import FindingView
from pannier.contract.words import Level
from pannier.copies.replication import Replicator
from pannier.core.errors import EngineUnavailable, PannierError
from pannier.core.ownership import Disbelieve, Lost, plan_cleanup, plan_serving
from pannier.core.restored import disk_is_newer
from pannier.core.room import ways_out
from pannier.core.size import format_size
from pannier.core.volume import Volume
from pannier.engine.base import Engine
from pannier.holding.cluster_keys import ClusterKeys
from pannier.holding.import_notes import BegunImports
from pannier.holding.schedules import Schedules
from pannier.host.clock import Clock
from pannier.node.asked_by_containers import declared_here
from pannier.node.certificates import Certificates
from pannier.node.diagnosis import (
    damage_findings,
    past_the_barrier,
    refused_copy,
    standing_still,
    written_past_the_barrier,
)
from pannier.node.quarantine import apart_findings, quarantine_findings, quarantine_of
from pannier.node.restored_store import older_store_findings
from pannier.node.sync_findings import doubt_findings, journal_findings
from pannier.node.sync_views import journal_of
from pannier.node.twins import Twin, Twins
from pannier.node.unheld import Unheld
from pannier.storage.base import CloningDriver, FileSystemDriver
from pannier.swarm.asked_options import declared_now
from pannier.swarm.labels import excluded_services
from pannier.swarm.service_stops import stopped_services

SCARCE_SHARE = 0.10
MOST_PROMISED = 2.0
"""The sizes of a node's volumes may be this many times its pool before somebody is told: few volumes are ever
full, and those that are stop all others when the pool is."""


class Doctor:
    """Runs all checks and changes nothing. A check that fails becomes a finding, and the others go on."""

    def __init__(
        self,
        *,
        cluster: Cluster,
        lease: Lease,
        drivers: Drivers,
        use: Use,
        engine: Engine,
        mounts: Mounts,
        room: RoomGuard,
        replicator: Replicator,
        unheld: Unheld,
        twins: Twins,
        begun_imports: BegunImports,
        pool_problems: Callable[[], Awaitable[list[str]]],
        store_trusts_all: bool,
        certificates: Certificates,
        schedules: Schedules,
        cluster_keys: ClusterKeys,
        backup_findings: BackupFindings,
        clock: Clock,
        doubt: float,
    ) -> None:
        self._cluster = cluster
        self._lease = lease
        self._drivers = drivers
        self._use = use
        self._docker = engine
        self._mounts = mounts
        self._room = room
        self._replicator = replicator
        self._unheld = unheld
        self._twins = twins
        self._begun_imports = begun_imports
        self._pool_problems = pool_problems
        self._store_trusts_all = store_trusts_all
        self._certificates = certificates
        self._schedules = schedules
        self._cluster_keys = cluster_keys
        self._backup_findings = backup_findings
        self._clock = clock
        self._doubt = doubt

    async def examine(self) -> list[FindingView]:
        """All findings on this node and on what it sees of the others."""
        findings: list[FindingView] = []
        for check in (
            self._store,
            self._own_lease,
            self._nodes,
            self._certificates.findings,
            self._engine,
            self._hidden,
            self._services,
            self._sync_calls,
            self._schedules.findings,
            self._older_store,
            self._cluster_keys.findings,
            self._backup_findings.backups,
            *self._of_disks(),
        ):
            try:
                async for finding in check():
                    findings.append(finding)  # kept, even if the check fails later
            except PannierError as error:
                findings.append(_problem(check.__name__.strip("_"), error.message, error.remedy))
            except OSError as error:  # doctor is asked when something is broken
                findings.append(_problem(check.__name__.strip("_"), str(error), "see dmesg"))
        return findings

    def _of_disks(self) -> tuple[Callable[[], AsyncIterator[FindingView]], ...]:
        """The checks that read this node's disks. While one hangs they would wait for it."""
        if self._drivers.hanging:
            return (self._hanging,)
        return self._pool, self._journal, self._quarantined, self._volumes

    async def _hanging(self) -> AsyncIterator[FindingView]:
        for error in self._drivers.hanging.values():
            yield _problem(
                f"pool on {self._cluster.node}",
                f"{error.message}; what is on it is not looked at until it answers",
                error.remedy,
            )

    async def _store(self) -> AsyncIterator[FindingView]:
        for member, health in (await self._cluster.registry.store.health()).items():
            if health.problem:
                yield _problem(f"store {member}", health.problem, health.remedy)
            elif health.warning:
                yield _warning(f"store {member}", health.warning, health.remedy)
            else:
                yield _ok(f"store {member}", "answers")
        if self._store_trusts_all:
            yield _warning(
                "store",
                f"etcd lets {self._cluster.node} in with its node's certificate, so also nodes that were removed",
                "give it an authority of its own: see 'An etcd of an earlier version' in the documentation",
            )

    async def _own_lease(self) -> AsyncIterator[FindingView]:
        subject = f"lease of node {self._cluster.node}"
        if self._lease.name_taken:
            who = "another boot has this node's name: an earlier one of this machine, or another machine's"
            if self._lease.name_taken_by_machine:
                who = "another machine has this node's name: one of the two is a copy of the other"
            what = f"{who}. This machine serves nothing and changes nothing"
            yield _problem(subject, what, COPIED_REMEDY)
        elif self._lease.withheld:
            yield _problem(
                subject,
                f"deliberately not renewed: {self._lease.withheld}",
                "see dmesg for errors of the disk; others take its volumes over meanwhile",
            )
        elif self._lease.until < self._clock.now():
            yield _problem(
                subject,
                "not renewed: of volumes with copies, sync calls wait here and containers do not run; "
                "they are ended if that lasts",
                "see the store's members above; the node goes on by itself when they answer",
            )
        else:
            yield _ok(subject, "renewed")

    async def _nodes(self) -> AsyncIterator[FindingView]:
        catalog = self._cluster.catalog
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
        subject = f"docker on {self._cluster.node}"
        try:
            active = await self._docker.plugin_active()
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
        ours = {volume.name for volume in self._cluster.catalog.volumes()}
        try:
            others, twins = await self._docker.other_volumes(), await self._twins.find()
        except EngineUnavailable:
            return  # reported already
        for twin in twins:
            yield _twin(twin, self._cluster.node)
        local = {twin.volume.name for twin in twins}
        for name in sorted((ours & set(others)) - local):
            yield _warning(
                f"volume {name}",
                f"docker on {self._cluster.node} has a volume of another driver with this name, "
                f"and takes that one",
                f"if it is not needed: docker volume rm {name} there",
            )

    async def _services(self) -> AsyncIterator[FindingView]:
        try:
            for declared in await declared_here(self._docker, self._cluster):
                for finding in declared.findings(self._cluster):
                    yield finding
            async for finding in excluded_services(self._docker.swarm, self._cluster.catalog):
                yield finding
            async for finding in stopped_services(self._docker.swarm):
                yield finding
            for declared in await declared_now(self._docker.swarm, self._cluster):
                for finding in declared.findings(self._cluster):
                    yield finding
        except EngineUnavailable:
            return  # reported already, or the Swarm has no leader: then its services are not known

    async def _pool(self) -> AsyncIterator[FindingView]:
        subject = f"pool on {self._cluster.node}"
        problems = [error.message for error in self._drivers.broken.values()]
        problems += await self._pool_problems()
        problems += [
            f"{self._mounts.path(name)} could not be made immutable: its file system has no such flag"
            for name in self._mounts.unguarded
        ]
        for problem in problems:
            yield _problem(subject, problem, "see dmesg and the disk")
        total, pools = 0, dict[tuple[str, bool], list[str]]()
        for driver in self._drivers:  # two of them may keep their volumes in one pool
            found = await driver.capacity()
            total = max(total, found.total_bytes)
            free = f"{format_size(found.free_bytes)} of {format_size(found.total_bytes)} free"
            scarce = found.free_bytes < SCARCE_SHARE * found.total_bytes
            pools.setdefault((free, scarce), []).append(driver.name)
        for (free, scarce), names in pools.items():
            if scarce:
                yield _warning(
                    subject,
                    f"{', '.join(names)}: only {free}",
                    "pannier trash ls shows what gives its room by itself; beyond that, remove or move volumes, or "
                    "enlarge the pool",
                )
            else:
                yield _ok(subject, f"{', '.join(names)}: {free}")
        if total and (promised := self._promised()) > MOST_PROMISED * total:
            yield _warning(
                subject,
                f"the volumes that it keeps may grow to {format_size(promised)}, more than "
                f"{MOST_PROMISED:g} times the pool",
                "enlarge the pool, or move volumes to other nodes",
            )

    def _promised(self) -> int:
        """What the volumes that this node keeps or has copies of may grow to, in bytes. Those without a
        size promise nothing."""
        return sum(
            volume.spec.size or 0
            for volume in self._cluster.catalog.volumes()
            if self._cluster.node in (volume.grant.node, *volume.replicas)
        )

    async def _journal(self) -> AsyncIterator[FindingView]:
        state = await journal_of(self._drivers)
        if state is not None:
            catalog = self._cluster.catalog
            for finding in journal_findings(
                state, catalog.volumes(), node=self._cluster.node, is_up=catalog.is_up
            ):
                yield finding

    async def _sync_calls(self) -> AsyncIterator[FindingView]:
        for finding in doubt_findings(self._replicator.all_replicated(), node=self._cluster.node):
            yield finding

    async def _quarantined(self) -> AsyncIterator[FindingView]:
        volumes = self._cluster.catalog.volumes()
        async for finding in quarantine_findings(self._drivers, volumes):
            yield finding
        async for finding in apart_findings(self._drivers, volumes, node=self._cluster.node):
            yield finding

    async def _older_store(self) -> AsyncIterator[FindingView]:
        async for finding in older_store_findings(self._cluster):
            yield finding

    async def _volumes(self) -> AsyncIterator[FindingView]:
        for key, why in sorted(self._cluster.catalog.damaged.items()):
            yield _problem(f"record {key}", why, "it is left out until then")
        for volume in self._cluster.catalog.volumes():
            if volume.is_newer:
                yield _warning(
                    f"volume {volume.name}",
                    f"a newer version of Pannier wrote its record: node {self._cluster.node} can "
                    "neither serve nor change it",
                    "install that version on this node",
                )
        known = {volume.id for volume in self._cluster.catalog.volumes()}
        known |= {volume.id for volume in self._cluster.catalog.trashed()}
        known |= set(self._begun_imports.ids)
        for volume in self._cluster.catalog.volumes():
            if volume.spec.driver in self._drivers:
                if await quarantine_of(self._drivers, volume):
                    continue  # reported already
                async for finding in self._volume(volume):
                    yield finding
        for driver in self._drivers:
            orphans = set(await driver.volumes()) - known
            if isinstance(driver, CloningDriver):
                orphans -= await driver.unborn()  # these are being made, or go by themselves
            for orphan in sorted(orphans):
                yield _warning(
                    f"data {orphan}",
                    f"on this node's {driver.name} driver, and of no volume that the cluster knows",
                    "left by a creation that did not finish, by another cluster, or of a volume that was removed while this disk "
                    "was away; kept",
                )

    async def _volume(self, volume: Volume) -> AsyncIterator[FindingView]:
        driver = self._drivers.of(volume)
        copy = await driver.inspect(volume.id)
        local = copy.state
        subject = f"volume {volume.name}"
        plan = plan_serving(volume, local, node=self._cluster.node)
        if isinstance(plan, Disbelieve):
            error = disk_is_newer(volume, plan.epoch, node=self._cluster.node)
            yield _problem(subject, error.message, error.remedy)
        for epoch in plan_cleanup(volume, local, node=self._cluster.node).strays:
            yield _warning(
                subject,
                f"node {self._cluster.node} has a stray of epoch {epoch}: writes that no other node has",
                f"look into it: pannier volume mount {volume.name}@{epoch} --at DIRECTORY"
                if isinstance(driver, FileSystemDriver)
                else "look into it before you remove anything",
            )
        if volume.grant.node != self._cluster.node:
            return
        if isinstance(plan, Lost):
            yield _problem(
                subject, "its data is not on this node's disk", "is the right disk there?"
            )
            return
        for finding in damage_findings(volume):
            yield finding
        for node, progress in self._replicator.progress(volume).items():
            if progress.tries.whole:
                yield refused_copy(volume.name, node, progress.tries.whole)
        if past := self._unheld.of(volume):
            yield past_the_barrier(volume.name, past)
        if writers := self._unheld.writers_of(volume):
            yield written_past_the_barrier(volume.name, writers)
        if self._use.suspended(volume):
            yield standing_still(volume, self._cluster.node, doubt=self._doubt)
        if full := self._room.full(volume):
            yield _problem(
                subject,
                f"nobody can write to it on {self._cluster.node}: {full}",
                f"{ways_out(volume.name)}; it goes on by itself once there is room",
            )
        if readers := await self._use.readers(volume):
            yield _problem(
                subject,
                f"{', '.join(readers)} reads its image on {self._cluster.node} while it is in use: the kernel "
                f"then fails the container's own writes",
                "end that, and read generations/*/tree/image beside it instead",
            )
        used = await driver.used_bytes(volume.id)
        users = await self._use.users(volume)
        state = f"held by {self._cluster.node}, " + (
            f"used by {', '.join(users)}" if users else "idle"
        )
        if onlookers := await self._use.onlookers(volume):
            state += f"; {', '.join(onlookers)} only reads, and keeps it from nothing"
        # The size of a file system of its own is exact, and it takes some room for itself.
        size = None if isinstance(driver, FileSystemDriver) else volume.spec.size
        if size and used > size:
            yield _warning(
                subject,
                f"takes {format_size(used)}, more than its size of {format_size(size)}",
                "delete files in it",
            )
        else:
            yield _ok(subject, state)


def _twin(twin: Twin, node: str) -> FindingView:
    name, folder = twin.volume.name, twin.volume.folder
    what = (
        f"docker on {node} has a local volume with this name: no container with it is started there"
    )
    if twin.empty:
        return _warning(
            f"volume {name}",
            f"{what}. It is empty, and is removed by itself once no container has it",
            f"docker ps -a --filter volume={name} shows those; docker rm them there",
        )
    return _warning(
        f"volume {name}",
        f"{what}. It may have content: look into {folder}",
        f"if that is not needed: docker volume rm {name} there",
    )


def _ok(subject: str, what: str) -> FindingView:
    return FindingView(level=Level.OK, subject=subject, what=what)


def _warning(subject: str, what: str, remedy: str) -> FindingView:
    return FindingView(level=Level.WARNING, subject=subject, what=what, remedy=remedy)


def _problem(subject: str, what: str, remedy: str) -> FindingView:
    return FindingView(level=Level.PROBLEM, subject=subject, what=what, remedy=remedy)
