"""Imports with a real pool, a real rsync and real users: all that a file can be arrives, or nothing is left. Needs root."""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import sys
import uuid
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import pytest
from test_driver_content import fill, flags, guard, guards
from test_driver_kit import (
    Nodes,
    btrfs_nodes,
    directory_nodes,
    fill_with_difficulties,
    image_nodes,
    pools,
    portrait,
    workplace,
)

from pannier.agent.drivers import Drivers
from pannier.agent.mountids import MountIds
from pannier.agent.mounts import MountTable
from pannier.agent.room import RoomGuard
from pannier.agent.usage import users_of
from pannier.agent.use import Use
from pannier.cluster.catalog import Catalog
from pannier.cluster.cluster import Cluster
from pannier.cluster.key_records import KeyRecords
from pannier.cluster.keyring import Keyring, RecordedKeys
from pannier.cluster.registry import Registry
from pannier.contract.views import ImportProgress
from pannier.contract.words import ImportPhase
from pannier.core.errors import (
    AlreadyExists,
    Conflict,
    InvalidInput,
    NotFound,
    OutcomeUnknown,
    PannierError,
    PoolFull,
    StorageError,
    StoreUnavailable,
    VolumeInUse,
)
from pannier.core.importing import ImportNote, ImportSource
from pannier.core.pace import AgentPace, HoldingPace, NodePace, SwarmPace
from pannier.core.service_spec import MountOf
from pannier.core.swarm import Availability, SwarmNode, SwarmService
from pannier.core.volume import Grant, Volume, VolumeSpec
from pannier.engine.base import LocalVolume
from pannier.holding.adding import Adding
from pannier.holding.cluster_keys import ClusterKeys
from pannier.holding.import_notes import BegunImports
from pannier.holding.imports import Imports
from pannier.holding.volume_keys import KeysOfVolumes
from pannier.holding.volumes import Volumes
from pannier.host import process
from pannier.host.clock import machine_clock
from pannier.host.records import encode
from pannier.host.state_files import DurableFile, UnsyncedFile
from pannier.node.importing import Importing, ImportWish
from pannier.storage.base import Driver, RootAttributes
from pannier.storage.image.driver import ImageDriver
from pannier.storage.tree.fingerprint import fingerprint
from pannier.swarm.service_switch import ServiceSwitches, Switch
from pannier.testing.engine import FakeEngine, FakeSwarm, FakeSwarmData
from pannier.testing.store import MemoryStore

__all__ = ["btrfs_nodes", "directory_nodes", "image_nodes", "pools", "workplace"]
pytestmark = pytest.mark.root

MEBIBYTE = 1 << 20
UNUSED: Any = None
"""Stands for parts that an import never asks."""


@dataclass
class Node:
    """What imports are made of on one node; a second one on the same files is the daemon after its restart."""

    driver: Driver
    directory: Path
    store: MemoryStore
    engine: FakeEngine = field(default_factory=FakeEngine)

    def __post_init__(self) -> None:
        clock, agent = machine_clock(), AgentPace()
        pace = NodePace(import_look=0.02, import_left=0.05)
        catalog = Catalog(file=UnsyncedFile(self.directory / "catalog"), cluster=None, boot_id="b")
        self.cluster = Cluster(node="n1", registry=Registry(self.store), catalog=catalog)
        self.drivers = Drivers(
            {self.driver.name: self.driver}, default=self.driver.name, node="n1", pace=pace
        )
        self.begun = BegunImports(DurableFile(self.directory / "imports.json"))
        use = Use(
            drivers=self.drivers,
            mounts=MountTable(self.directory / "mounts"),
            mount_ids=MountIds(UnsyncedFile(self.directory / "ids")),
            engine=self.engine,
            freezer=UNUSED,
            users_of=users_of,
            kill=UNUSED,
            clock=clock,
            pace=agent,
        )
        keyring = Keyring()
        self.recorded = RecordedKeys(node="n1", catalog=catalog, keyring=keyring)
        cluster_keys = ClusterKeys(
            cluster=self.cluster,
            records=KeyRecords(self.cluster.registry),
            keyring=keyring,
            peers=UNUSED,
            file=DurableFile(self.directory / "keys.json"),
            pace=HoldingPace(),
        )
        volume_keys = KeysOfVolumes(recorded=self.recorded, cluster_keys=cluster_keys)
        adding = Adding(cluster=self.cluster, begun_imports=self.begun)
        volumes = Volumes(
            cluster=self.cluster,
            custody=UNUSED,
            drivers=self.drivers,
            use=use,
            adding=adding,
            volume_keys=volume_keys,
            clones=UNUSED,
            handovers=UNUSED,
            peers=UNUSED,
            clock=clock,
        )
        self.imports = Imports(
            cluster=self.cluster,
            drivers=self.drivers,
            volumes=volumes,
            adding=adding,
            volume_keys=volume_keys,
            begun=self.begun,
            clock=clock,
        )
        self.room = RoomGuard(
            cluster=self.cluster,
            drivers=self.drivers,
            custody=UNUSED,
            use=use,
            clock=clock,
            pace=agent,
        )
        self.importing = Importing(
            cluster=self.cluster,
            engine=self.engine,
            use=use,
            room=self.room,
            imports=self.imports,
            volumes=volumes,
            switches=ServiceSwitches(swarm=self.engine.swarm, clock=clock, pace=SwarmPace()),
            clock=clock,
            pace=pace,
        )

    async def run(
        self,
        name: str,
        source: Path | str,
        *,
        seen: Callable[[ImportProgress], None] = lambda step: None,
        wait: float = 20.0,
        options: Mapping[str, str] | None = None,
        service: str | None = None,
    ) -> list[ImportProgress]:
        """``pannier volume import``; ``seen`` is told each step."""
        wish = ImportWish(
            name=name,
            source=ImportSource.parse(f"dir:{source}" if isinstance(source, Path) else source),
            options=options or {},
            service=service,
            wait_seconds=wait,
            actor="anna",
        )
        steps = []
        async with contextlib.aclosing(self.importing.run_import(wish)) as stream:
            async for step in stream:
                seen(step)
                steps.append(step)
        return steps

    async def record(self, name: str) -> Volume:
        return (await self.cluster.fresh(name)).record

    async def files_of(self, volume: Volume) -> Path:
        await self.driver.attach(volume.id, epoch=1, grow=False)
        return self.driver.data_path(volume.id, 1)

    async def nothing_left(self, name: str) -> None:
        """Neither on the disk, nor in the kernel, nor in the notes."""
        assert [each for each in await self.driver.volumes() if each.startswith(f"{name}.")] == []
        assert [each for each in await self.driver.attached() if each.startswith(f"{name}.")] == []
        assert not self.begun.all()


@pytest.fixture(params=["image"])
def driver(request: pytest.FixtureRequest) -> Driver:
    """The one of that name."""
    found: Driver = request.getfixturevalue(f"{request.param}_nodes").a
    return found


@pytest.fixture
async def node(driver: Driver, tmp_path: Path) -> AsyncIterator[Node]:
    before = await driver.volumes()
    node = Node(driver, tmp_path, MemoryStore())
    opening = asyncio.create_task(node.drivers.keep_open())
    async with node.store.session():
        yield node
    opening.cancel()
    for made in set(await driver.volumes()) - set(before):
        await driver.detach(made, epoch=1)
        await driver.delete(made)


@pytest.fixture
async def source(image_nodes: Nodes) -> Path:
    """A directory on an ext4, which keeps all that a volume keeps."""
    await image_nodes.b.create(
        image_nodes.volume, epoch=1, root=RootAttributes(), size_bytes=100 * MEBIBYTE
    )
    return await image_nodes.attached(image_nodes.b, epoch=1)


def volume_name() -> str:
    return f"i-{uuid.uuid4().hex[:8]}"


@contextlib.contextmanager
def user_of(path: Path, *, ends_after: float) -> Iterator[subprocess.Popen[bytes]]:
    """A process that appends a line to a file every 10 ms, which it keeps open, for some seconds."""
    script = (
        "import sys, time\n"
        "until = time.monotonic() + float(sys.argv[2])\n"
        "with open(sys.argv[1], 'a') as log:\n"
        "    print('open', flush=True)\n"
        "    while time.monotonic() < until:\n"
        "        log.write('line\\n'); log.flush(); time.sleep(0.01)\n"
    )
    command = [sys.executable, "-c", script, str(path), str(ends_after)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        try:
            yield process
        finally:
            process.kill()


async def test_what_is_imported_into_an_encrypted_volume_is_on_no_disk_in_clear_text(
    node: Node, source: Path
) -> None:
    secret = b"nobody-else-reads-this-" + os.urandom(8).hex().encode()
    (source / "letter").write_bytes(secret * 1000)
    driver = cast("ImageDriver", node.driver)
    driver._keys = node.recorded
    name = volume_name()
    steps = await node.run(name, source, options={"encrypted": "true"})
    assert steps[-1].phase is ImportPhase.DONE
    volume = await node.record(name)
    assert volume.key is not None
    assert (await node.files_of(volume) / "letter").read_bytes() == secret * 1000
    await node.driver.detach(volume.id, epoch=1)
    images = list((driver._mountpoint / "images" / volume.id).rglob("image"))
    assert images
    assert not any(secret in each.read_bytes() for each in images)


async def test_all_that_a_file_can_be_arrives(node: Node, source: Path) -> None:
    fill(source)
    flags(source / "dir", wanted=0)
    os.chown(source, 5, 6)
    source.chmod(0o2751)
    os.setxattr(source, "user.note", b"of the root")
    name = volume_name()
    try:
        before, guarded = portrait(source), guards(source)
        steps = await node.run(name, source)
        assert steps[-1].phase is ImportPhase.DONE
        volume = await node.record(name)
        assert (volume.grant, volume.history[0].detail) == (
            Grant("n1", 1),
            f"from dir:{source}, by anna",
        )
        assert await node.driver.attached() & {volume.id} == set()
        data = await node.files_of(volume)
        assert portrait(data) == before
        assert guards(data) == guarded
        assert (data / "sparse").stat().st_blocks < MEBIBYTE // 512
        assert (await node.driver.inspect(volume.id)).generations
        assert not node.begun.all()
        guard(data, on=False)
        flags(data / "never-changed", wanted=0)
    finally:
        guard(source, on=False)
        flags(source / "never-changed", wanted=0)


@pytest.mark.parametrize("driver", ["btrfs", "directory"], indirect=True)
async def test_other_drivers_get_all_that_they_can_keep(node: Node, source: Path) -> None:
    fill_with_difficulties(source)
    name = volume_name()
    await node.run(name, source)
    volume = await node.record(name)
    assert portrait(await node.files_of(volume)) == portrait(source)
    assert not node.begun.all()


async def test_what_is_in_use_is_waited_for_and_has_its_last_line(node: Node, source: Path) -> None:
    (source / "gone-later").write_text("x")
    name, waited = volume_name(), list[ImportProgress]()

    def seen(step: ImportProgress) -> None:
        if step.phase is ImportPhase.WAITING:
            waited.append(step)
            (source / "gone-later").unlink(missing_ok=True)

    with user_of(source / "log", ends_after=2.0):
        steps = await node.run(name, source, seen=seen)
    assert waited
    assert waited[0].in_use_by[0].startswith("process")
    assert steps[-1].pause_seconds is not None
    data = await node.files_of(await node.record(name))
    assert (data / "log").read_text() == (source / "log").read_text()
    assert not (data / "gone-later").exists()


async def test_who_does_not_stop_is_named_and_nothing_is_left(node: Node, source: Path) -> None:
    name = volume_name()
    with user_of(source / "log", ends_after=30.0), pytest.raises(VolumeInUse, match="process"):
        await node.run(name, source, wait=0.3)
    await node.nothing_left(name)


async def test_a_source_that_somebody_unseen_changes_is_refused(node: Node, source: Path) -> None:
    """As a client of an NFS server elsewhere: nobody can see who it is."""
    for number in range(200):
        (source / f"file-{number}").write_bytes(os.urandom(2000))
    name, ended = volume_name(), asyncio.Event()

    async def change() -> None:
        while not ended.is_set():
            (source / "changes").write_bytes(os.urandom(100))
            await asyncio.sleep(0.001)

    changing = asyncio.create_task(change())
    with pytest.raises(Conflict, match="changes"):
        await node.run(name, source)
    ended.set()
    await changing
    await node.nothing_left(name)


def test_each_change_of_a_tree_is_seen(tmp_path: Path) -> None:
    """Also one that leaves the content, the size and the time of the last write as they were."""
    file, other = tmp_path / "dir" / "file", tmp_path / "other"
    file.parent.mkdir()
    file.write_text("same")
    other.write_text("x")
    at = file.stat().st_mtime_ns

    def rewrite() -> None:
        file.write_text("sAme")
        os.utime(file, ns=(at, at))

    changes: list[Callable[[], object]] = [
        rewrite,
        lambda: file.chmod(0o600),
        lambda: os.setxattr(file, "user.note", b"x"),
        lambda: os.link(file, tmp_path / "link"),
        lambda: os.rename(other, tmp_path / "renamed"),
        lambda: (tmp_path / "renamed").unlink(),
        lambda: tmp_path.chmod(0o711),
    ]
    before = fingerprint(tmp_path)
    assert not fingerprint(tmp_path).changed_since(before)
    for change in changes:
        change()
        after = fingerprint(tmp_path)
        assert after.changed_since(before)
        before = after


async def test_a_name_that_is_taken_meanwhile_stays_whose_it_is(node: Node, source: Path) -> None:
    (source / "file").write_text("x")
    name = volume_name()
    other = Volume(
        name=name, id=f"{name}.other", spec=VolumeSpec(), grant=Grant("n2", 1), created_at=0.0
    )
    taking: list[asyncio.Task[Any]] = []

    def seen(step: ImportProgress) -> None:
        if step.phase is ImportPhase.WAITING and not taking:
            taking.append(asyncio.create_task(node.cluster.registry.add_volume(other)))

    with user_of(source / "log", ends_after=1.0), pytest.raises(AlreadyExists, match="n2"):
        await node.run(name, source, seen=seen)
    assert (await node.record(name)).id == other.id
    await node.nothing_left(name)
    with pytest.raises(AlreadyExists, match=name):
        await node.run(name, source)


async def test_what_does_not_fit_is_told_and_nothing_is_left(node: Node, source: Path) -> None:
    (source / "big").write_bytes(os.urandom(60 * MEBIBYTE))
    name = volume_name()
    with pytest.raises(PoolFull, match=r"does not fit.*No space left"):
        await node.run(name, source, options={"size": "32M"})
    await node.nothing_left(name)


async def test_a_pool_that_gets_full_ends_it_before_others_stand_still(
    node: Node, source: Path
) -> None:
    (source / "big").write_bytes(os.urandom(MEBIBYTE) * 90)
    assert isinstance(node.driver, ImageDriver)
    pool, name = node.driver.pool, volume_name()
    watching = asyncio.create_task(node.room.keep_free())
    ballast = pool / "ballast"
    try:
        with ballast.open("wb") as file:
            found = os.statvfs(pool)
            free = found.f_bavail * found.f_frsize
            os.posix_fallocate(file.fileno(), 0, free - 220 * MEBIBYTE)
        with pytest.raises(PoolFull):
            await node.run(name, source)
        await node.nothing_left(name)
    finally:
        ballast.unlink()
        watching.cancel()
        await node.driver.restrict(full=False, limits=None, frozen=frozenset())


@pytest.mark.parametrize("phase", [ImportPhase.COPYING, ImportPhase.COMPARING])
async def test_who_gives_up_leaves_nothing(node: Node, source: Path, phase: ImportPhase) -> None:
    """Ctrl-C, while rsync runs with all its processes: what they have open would keep the volume."""
    (source / "big").write_bytes(os.urandom(80 * MEBIBYTE))
    name, reached = volume_name(), asyncio.Event()

    def seen(step: ImportProgress) -> None:
        if step.phase is phase:
            reached.set()

    importing = asyncio.create_task(node.run(name, source, seen=seen))
    async with asyncio.timeout(20):
        await reached.wait()
        await until(lambda: bool(node.begun.all()))
    assert not importing.done()
    importing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await importing
    await node.nothing_left(name)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.005)


async def begun(node: Node, name: str, *, whole: bool) -> Volume:
    """What a power cut leaves: a tree with a file, noted; its record may have been on its way."""
    volume = Volume(
        name=name,
        id=f"{name}.1",
        spec=VolumeSpec(driver="image"),
        grant=Grant("n1", 1),
        created_at=0.0,
    )
    note = ImportNote(name=name, driver="image", record=encode(volume).decode() if whole else "")
    await node.begun.put(volume.id, note)
    await node.driver.create(volume.id, epoch=1, root=RootAttributes(), size_bytes=32 * MEBIBYTE)
    (await node.files_of(volume) / "file").write_text("x")
    return volume


async def settled(node: Node) -> Node:
    """The daemon has started again, and has put away what was left."""
    again = Node(node.driver, node.directory, node.store, node.engine)
    opening = asyncio.create_task(again.drivers.keep_open())
    await again.drivers.opened()
    tidying = asyncio.create_task(again.importing.run())
    await until(lambda: not again.begun.all())
    for task in (opening, tidying):
        task.cancel()
    return again


async def test_power_fails_while_it_is_copied(node: Node) -> None:
    name = volume_name()
    await begun(node, name, whole=False)
    again = await settled(node)
    await again.nothing_left(name)
    with pytest.raises(NotFound):
        await again.record(name)


async def test_power_fails_while_a_service_is_stopped(node: Node) -> None:
    """It has its tasks again before anything is removed, however long the Swarm takes to answer."""
    name, swarm = volume_name(), FakeSwarmData()
    swarm.put(
        SwarmNode(
            id="s1", hostname="n1", state="ready", availability=Availability.ACTIVE,
            role="manager", version=0,
        )
    )  # fmt: skip
    swarm.services = [SwarmService(id="x9", name="web", version=1, constraints=(), replicas=0)]
    volume = await begun(node, name, whole=False)
    noted = replace(node.begun.all()[volume.id], service="x9", replicas=1)
    await node.begun.put(volume.id, noted)
    swarm.has_leader = False
    node.engine.swarm = FakeSwarm(swarm, node="s1")
    settling = asyncio.create_task(settled(node))
    await asyncio.sleep(0.1)
    assert volume.id in await node.driver.volumes()
    swarm.has_leader = True
    again = await settling
    assert swarm.services[0].replicas == 1
    await again.nothing_left(name)


async def test_power_fails_after_it_was_whole(node: Node) -> None:
    """Nobody knows whether its record has arrived: it is sent again, and is there once."""
    name = volume_name()
    volume = await begun(node, name, whole=True)
    again = await settled(node)
    assert (await again.record(name)).id == volume.id
    assert (await again.files_of(volume) / "file").read_text() == "x"


async def test_power_fails_after_it_was_whole_and_the_name_is_taken_since(node: Node) -> None:
    name = volume_name()
    await begun(node, name, whole=True)
    other = Volume(
        name=name, id=f"{name}.other", spec=VolumeSpec(), grant=Grant("n2", 1), created_at=0.0
    )
    await node.cluster.registry.add_volume(other)
    again = await settled(node)
    await again.nothing_left(name)


async def test_one_that_was_removed_since_does_not_come_back(node: Node) -> None:
    name = volume_name()
    volume = await begun(node, name, whole=True)
    written = await node.cluster.registry.add_volume(volume)
    await node.cluster.registry.trash_volume(written.record, expect=written.revision)
    again = await settled(node)
    with pytest.raises(NotFound):
        await again.record(name)
    assert volume.id in await node.driver.volumes()  # the trash has it


@pytest.mark.parametrize("arrives", [True, False])
async def test_the_store_does_not_answer_to_the_record(
    node: Node, source: Path, arrives: bool
) -> None:
    (source / "file").write_text("x")
    name = volume_name()
    (node.store.lose_answers if arrives else node.store.lose_requests)()
    if arrives:
        await node.run(name, source)
        assert not node.begun.all()
    else:
        with pytest.raises(OutcomeUnknown):
            await node.run(name, source)
        assert node.imports.left()
        await settled(node)
    data = await node.files_of(await node.record(name))
    assert (data / "file").read_text() == "x"


async def test_without_the_store_nothing_is_begun(node: Node, source: Path) -> None:
    name = volume_name()
    node.store.cut()
    with pytest.raises(StoreUnavailable):
        await node.run(name, source)
    node.store.mend()
    await node.nothing_left(name)


async def test_a_volume_that_is_being_imported_is_made_by_nobody_else(node: Node) -> None:
    name = volume_name()
    await begun(node, name, whole=False)
    with pytest.raises(Conflict, match="being imported"):
        node.begun.check_free(name)
    with pytest.raises(Conflict, match="being imported"):
        await node.run(name, node.directory)


@pytest.mark.parametrize(
    ("source", "options", "error", "says"),
    [
        ("local:nosuch", {}, NotFound, "no local volume nosuch"),
        ("local:mounted", {}, NotFound, "elsewhere"),
        ("dir:/nosuch", {}, NotFound, "no directory /nosuch"),
        ("dir:/", {}, InvalidInput, "keeps its volumes in"),
        ("dir:/etc", {"uid": "5"}, InvalidInput, "owner"),
        ("dir:/etc", {"nodes": "n2"}, Conflict, "n1"),
        ("dir:/etc", {"from": "another"}, InvalidInput, "from"),
        ("dir:/etc", {"size": "much"}, InvalidInput, "much"),
    ],
)
async def test_what_cannot_be_is_refused(
    node: Node,
    source: str,
    options: dict[str, str],
    error: type[PannierError],
    says: str,
    tmp_path: Path,
) -> None:
    node.engine.local["mounted"] = LocalVolume("mounted", tmp_path, plain=False)
    name = volume_name()
    with pytest.raises(error, match=says):
        await node.run(name, source, options=options)
    await node.nothing_left(name)


async def test_a_local_volume_of_dockers(node: Node, source: Path) -> None:
    (source / "file").write_text("x")
    node.engine.local["old"] = LocalVolume("old", source, plain=True)
    with pytest.raises(AlreadyExists, match="hide"):
        await node.run("old", "local:old")
    name = volume_name()
    await node.run(name, "local:old")
    data = await node.files_of(await node.record(name))
    assert (data / "file").read_text() == "x"


async def test_without_rsync_it_says_what_to_install(
    node: Node, source: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(process._ENVIRONMENT, "PATH", str(tmp_path))
    with pytest.raises(StorageError, match="rsync is not installed") as caught:
        await node.run(volume_name(), source)
    assert "apt install rsync" in caught.value.remedy


class Switched(ServiceSwitches):
    """A service that is stopped and switched at once, and of which nobody can see then whether it runs.

    Attributes:
        looking: set when that is asked; nobody answers.
        was_put_back: whether it was given what it had.
    """

    def __init__(self) -> None:
        self.looking = asyncio.Event()
        self.was_put_back = False

    async def find(self, name: str, old: MountOf) -> Switch:
        service = SwarmService(id="s1", name=name, constraints=(), mounts=(), replicas=1)
        return Switch(service, {}, old)

    async def stop(self, switch: Switch, *, within: float) -> None:
        pass

    async def switch(self, switch: Switch, volume: str) -> frozenset[str]:
        return frozenset()

    async def why_down(self, service: SwarmService, known: frozenset[str]) -> str:
        self.looking.set()
        await asyncio.Event().wait()
        return ""

    async def put_back(self, switch: Switch) -> None:
        self.was_put_back = True


async def test_a_service_that_may_write_to_the_volume_keeps_it(node: Node, source: Path) -> None:
    """Whoever asked has gone, as by Ctrl-C. What it wrote would go to the trash with the volume."""
    (source / "file").write_text("x")
    node.importing.switches = switches = Switched()
    importing = asyncio.create_task(node.run("new", source, service="web"))
    await switches.looking.wait()
    importing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await importing
    assert not switches.was_put_back
    assert (await node.files_of(await node.record("new")) / "file").read_text() == "x"
    assert not node.begun.all()
