"""Conversions with real pools, a real rsync and real users: all that a file can be arrives, and the name always has a volume. Needs root."""

from __future__ import annotations

import asyncio
import contextlib
import os
import uuid
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from test_driver_content import fill, flags
from test_driver_kit import (
    Nodes,
    btrfs_nodes,
    directory_nodes,
    image_nodes,
    pools,
    portrait,
    workplace,
)
from test_importing import user_of

from pannier.agent.custody import Custody
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
from pannier.contract.views import ConversionProgress
from pannier.contract.words import ConversionPhase
from pannier.core.errors import (
    Conflict,
    InvalidInput,
    NotHolder,
    OutcomeUnknown,
    PannierError,
    StorageError,
    StoreUnavailable,
    VolumeInUse,
)
from pannier.core.generation import Generation
from pannier.core.options import parse_options
from pannier.core.pace import AgentPace, HoldingPace, NodePace
from pannier.core.snapshots import Snapshot
from pannier.core.volume import Volume
from pannier.holding.adding import Adding
from pannier.holding.cluster_keys import ClusterKeys
from pannier.holding.conversions import Conversions, ConversionWish
from pannier.holding.import_notes import BegunImports
from pannier.holding.imports import Imports
from pannier.holding.volume_keys import KeysOfVolumes
from pannier.holding.volumes import Volumes
from pannier.host.clock import machine_clock
from pannier.host.state_files import DurableFile, UnsyncedFile
from pannier.storage.base import Driver
from pannier.storage.tree import rsync
from pannier.store.base import Change
from pannier.testing.engine import FakeEngine
from pannier.testing.store import MemoryStore

__all__ = ["btrfs_nodes", "directory_nodes", "image_nodes", "pools", "workplace"]
pytestmark = pytest.mark.root

TREE = {"layout": "tree"}
UNUSED: Any = None
"""Stands for parts that a conversion never asks."""


class Nobody:
    """No hand-over is under way."""

    def of(self, volume: Volume) -> None:
        return None


@dataclass
class Node:
    """What conversions are made of on one node; a second one on the same files is the daemon after its restart."""

    wanted: dict[str, Driver]
    directory: Path
    store: MemoryStore
    engine: FakeEngine = field(default_factory=FakeEngine)

    def __post_init__(self) -> None:
        clock, agent = machine_clock(), AgentPace()
        catalog = Catalog(file=UnsyncedFile(self.directory / "catalog"), cluster=None, boot_id="b")
        self.cluster = Cluster(node="n1", registry=Registry(self.store), catalog=catalog)
        self.drivers = Drivers(self.wanted, default="image", node="n1", pace=NodePace())
        self.begun = BegunImports(DurableFile(self.directory / "imports.json"))
        self.mounts = MountTable(self.directory / "mounts")
        use = Use(
            drivers=self.drivers,
            mounts=self.mounts,
            mount_ids=MountIds(UnsyncedFile(self.directory / "ids")),
            engine=self.engine,
            freezer=UNUSED,
            users_of=users_of,
            kill=UNUSED,
            clock=clock,
            pace=agent,
        )
        custody = Custody(
            cluster=self.cluster,
            drivers=self.drivers,
            use=use,
            mounts=self.mounts,
            lease=UNUSED,
            clock=clock,
            pace=agent,
        )
        keyring = Keyring()
        recorded = RecordedKeys(node="n1", catalog=catalog, keyring=keyring)
        cluster_keys = ClusterKeys(
            cluster=self.cluster,
            records=KeyRecords(self.cluster.registry),
            keyring=keyring,
            peers=UNUSED,
            file=DurableFile(self.directory / "keys.json"),
            pace=HoldingPace(),
        )
        volume_keys = KeysOfVolumes(recorded=recorded, cluster_keys=cluster_keys)
        adding = Adding(cluster=self.cluster, begun_imports=self.begun)
        self.volumes = Volumes(
            cluster=self.cluster,
            custody=custody,
            drivers=self.drivers,
            use=use,
            adding=adding,
            volume_keys=volume_keys,
            clones=UNUSED,
            handovers=Nobody(),  # type: ignore[arg-type]
            peers=UNUSED,
            clock=clock,
        )
        self.imports = Imports(
            cluster=self.cluster,
            drivers=self.drivers,
            volumes=self.volumes,
            adding=adding,
            volume_keys=volume_keys,
            begun=self.begun,
            clock=clock,
        )
        room = RoomGuard(
            cluster=self.cluster,
            drivers=self.drivers,
            custody=UNUSED,
            use=use,
            clock=clock,
            pace=agent,
        )
        self.conversions = Conversions(
            cluster=self.cluster,
            custody=custody,
            drivers=self.drivers,
            use=use,
            handovers=Nobody(),  # type: ignore[arg-type]
            imports=self.imports,
            room=room,
            clock=clock,
            pace=HoldingPace(conversion_look=0.02),
        )

    async def convert(
        self,
        name: str,
        *,
        seen: Callable[[ConversionProgress], None] = lambda step: None,
        waits: bool = False,
        options: Mapping[str, str],
    ) -> ConversionProgress:
        """``pannier volume set``; ``seen`` is told each step. Returns the last one."""
        wish = ConversionWish(name=name, options=options, waits=waits, actor="anna")
        step = None
        async with contextlib.aclosing(self.conversions.run(wish)) as steps:
            async for step in steps:
                seen(step)
        assert step is not None
        return step

    async def record(self, name: str) -> Volume:
        return (await self.cluster.fresh(name)).record

    async def files_of(self, volume: Volume) -> Path:
        driver = self.drivers.of(volume)
        await driver.unseal(volume.id, epoch=1)
        await driver.attach(volume.id, epoch=1, grow=False)
        return driver.data_path(volume.id, 1)

    async def on_disk(self, name: str) -> set[str]:
        """Ids of all that is on the disk of a name."""
        found = [each for driver in self.drivers for each in await driver.volumes()]
        return {each for each in found if each.rpartition(".")[0] == name}

    async def restarted(self) -> Node:
        """The daemon after its restart; what was left is settled once."""
        again = Node(self.wanted, self.directory, self.store, self.engine)
        opening = asyncio.create_task(again.drivers.keep_open())
        await again.drivers.opened()
        opening.cancel()
        for volume_id, note in again.imports.left().items():
            await again.imports.settle(volume_id, note)
        assert not again.begun.all()
        return again


@pytest.fixture
async def node(
    image_nodes: Nodes, btrfs_nodes: Nodes, directory_nodes: Nodes, tmp_path: Path
) -> AsyncIterator[Node]:
    drivers = {
        "image": image_nodes.a,
        "btrfs": btrfs_nodes.a,
        "directory": directory_nodes.a,
    }
    before = {name: set(await each.volumes()) for name, each in drivers.items()}
    node = Node(drivers, tmp_path, MemoryStore())
    opening = asyncio.create_task(node.drivers.keep_open())
    await node.drivers.opened()
    async with node.store.session():
        yield node
    opening.cancel()
    for name, driver in drivers.items():
        for made in set(await driver.volumes()) - before[name]:
            await driver.detach(made, epoch=1)
            await driver.delete(made)


async def volume_with(node: Node, **options: str) -> Volume:
    """A volume with a file in it."""
    name = f"c-{uuid.uuid4().hex[:8]}"
    spec = parse_options({"size": "64M", **options}, default_driver="image")
    volume = await node.volumes.create_here(name, spec, {}, actor="anna")
    (await node.files_of(volume) / "file").write_text("x")
    return volume


def before(patch: pytest.MonkeyPatch, step: str, node: Node, act: Callable[[], None]) -> None:
    """Let something happen in a conversion before it takes a step: ``renew``, when all is copied and nothing is compared yet, or
    ``note``, when all is the same, and the name is about to change hands."""
    taken = getattr(node.imports, step)

    async def acting(*arguments: Any) -> None:
        act()
        await taken(*arguments)

    patch.setattr(node.imports, step, acting)


@pytest.mark.parametrize(
    ("was", "options"),
    [
        ({"layout": "tree"}, {"layout": "image"}),
        ({"layout": "image"}, {"layout": "tree"}),
        ({"layout": "image"}, {"driver": "directory"}),
        ({"driver": "directory"}, {"driver": "btrfs", "size": "128M"}),
    ],
)
async def test_all_that_a_file_can_be_arrives(
    node: Node, was: dict[str, str], options: dict[str, str]
) -> None:
    old = await volume_with(node, labels="a=b", **was)
    files = await node.files_of(old)
    fill(files)
    flags(files / "dir", wanted=0)
    os.chown(files, 5, 6)
    files.chmod(0o2751)
    filled = portrait(files)
    done = await node.convert(old.name, options=options)
    new = await node.record(old.name)
    assert (done.phase, done.former) == (ConversionPhase.DONE, old.id)
    assert (new.id != old.id, new.spec.labels, new.created_at) == (True, {"a": "b"}, old.created_at)
    assert [line.what for line in new.history] == ["created", "converted"]
    assert f"by anna; what it was is in the trash as {old.id}" in new.history[-1].detail
    assert portrait(await node.files_of(new)) == filled
    assert not node.begun.all()


async def test_the_way_back(node: Node) -> None:
    old = await volume_with(node, layout="tree")
    await node.convert(old.name, options={"layout": "image"})
    (await node.files_of(await node.record(old.name)) / "later").touch()
    await node.volumes.remove(old.name, actor="anna")
    await node.volumes.restore(old.id, actor="anna")
    back = await node.record(old.name)
    assert (back.id, back.spec) == (old.id, old.spec)
    assert {each.name for each in (await node.files_of(back)).iterdir()} == {"file"}


async def test_who_uses_it_is_told_what_would_happen(node: Node) -> None:
    old = await volume_with(node)
    log = await node.files_of(old) / "log"
    with user_of(log, ends_after=60), pytest.raises(VolumeInUse) as refused:
        await node.convert(old.name, options=TREE)
    assert "copied while it is used" in refused.value.message
    assert " s; nothing was changed" in refused.value.message
    assert "--stop-service" in refused.value.remedy
    assert (await node.record(old.name), await node.on_disk(old.name)) == (old, {old.id})


async def test_it_is_copied_while_it_is_used_and_then_waits(node: Node) -> None:
    old = await volume_with(node)
    log, seen = await node.files_of(old) / "log", []

    with user_of(log, ends_after=60) as user:

        def end_it(step: ConversionProgress) -> None:
            seen.append(step.phase)
            if step.phase is ConversionPhase.WAITING and step.in_use_by:
                user.kill()

        done = await node.convert(old.name, waits=True, seen=end_it, options=TREE)
    assert seen[0] is ConversionPhase.COPYING
    assert ConversionPhase.WAITING in seen
    written = await node.files_of(await node.record(old.name)) / "log"
    trashed = (await node.cluster.registry.trash())[0].record
    assert written.read_text() == (await node.files_of(trashed) / "log").read_text() != ""
    assert done.pause_seconds is not None
    assert done.pause_seconds > 0


async def test_nobody_reads_the_progress_any_more(node: Node) -> None:
    old = await volume_with(node)
    wish = ConversionWish(name=old.name, options={"layout": "tree"}, waits=True, actor="anna")
    with user_of(await node.files_of(old) / "log", ends_after=60):
        async with contextlib.aclosing(node.conversions.run(wish)) as steps:
            async for step in steps:
                if step.phase is ConversionPhase.WAITING:
                    break
    assert (await node.record(old.name), await node.on_disk(old.name)) == (old, {old.id})
    assert not node.begun.all()


class CutStore(MemoryStore):
    """Power fails as the name changes hands: the request arrives, or does not, and the daemon is gone."""

    cut_at_exchange = ""

    async def commit(self, *changes: Change) -> int:
        if self.cut_at_exchange and changes[0].key.startswith("trash/"):
            arrives, self.cut_at_exchange = self.cut_at_exchange == "after", ""
            if arrives:
                await super().commit(*changes)
            raise asyncio.CancelledError
        return await super().commit(*changes)


@pytest.mark.parametrize("arrives", ["before", "after"])
async def test_power_fails_as_the_name_changes_hands(node: Node, arrives: str) -> None:
    """One of the two has it, with all its files, and nothing is left over."""
    node.store.__class__ = CutStore
    old = await volume_with(node)
    node.store.cut_at_exchange = arrives  # type: ignore[attr-defined]
    with pytest.raises(asyncio.CancelledError):
        await node.convert(old.name, options=TREE)
    again = await node.restarted()
    found = await again.record(old.name)
    assert (found.id == old.id) is (arrives == "before")
    assert (await again.files_of(found) / "file").read_text() == "x"
    assert await again.on_disk(old.name) == (
        {old.id} if arrives == "before" else {old.id, found.id}
    )


@pytest.mark.parametrize("step", ["copy", "renew", "note"])
async def test_power_fails_before_that(
    node: Node, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = await volume_with(node)

    async def nothing(*_: object) -> None:
        """Whoever would tidy up is gone."""

    async def cut_off(*_: object, **__: object) -> None:
        raise asyncio.CancelledError

    monkeypatch.setattr(node.imports, "_remove", nothing)
    monkeypatch.setattr(rsync if step == "copy" else node.imports, step, cut_off)
    with pytest.raises(asyncio.CancelledError):
        await node.convert(old.name, options=TREE)
    assert len(await node.on_disk(old.name)) == 2
    again = await node.restarted()
    assert (await again.record(old.name)).id == old.id
    assert (await again.files_of(old) / "file").read_text() == "x"
    assert await again.on_disk(old.name) == {old.id}


async def test_a_change_of_the_name_that_comes_late_is_refused(node: Node) -> None:
    """The answer never comes, and the request arrives when all is settled."""
    old = await volume_with(node)
    late: list[tuple[Change, ...]] = []
    commit = node.store.commit

    async def keep(*changes: Change) -> int:
        if changes[0].key.startswith("trash/") and not late:
            late.append(changes)
            raise OutcomeUnknown("no answer came")
        return await commit(*changes)

    node.store.commit = keep  # type: ignore[method-assign]
    with pytest.raises(OutcomeUnknown):
        await node.convert(old.name, options=TREE)
    again = await node.restarted()
    with pytest.raises(Conflict):
        await commit(*late[0])
    assert (await again.record(old.name)).id == old.id
    assert (await again.files_of(old) / "file").read_text() == "x"
    assert await again.on_disk(old.name) == {old.id}


@pytest.mark.parametrize("arrives", [True, False])
async def test_the_answer_never_comes(
    node: Node, arrives: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = await volume_with(node)
    lose = node.store.lose_answers if arrives else node.store.lose_requests
    before(monkeypatch, "note", node, lose)
    if arrives:
        await node.convert(old.name, options=TREE)
    else:
        with pytest.raises(OutcomeUnknown):
            await node.convert(old.name, options=TREE)
    again = await node.restarted()
    found = await again.record(old.name)
    assert (found.id != old.id) is arrives
    assert (await again.files_of(found) / "file").read_text() == "x"
    assert len(await again.on_disk(old.name)) == 1 + arrives


async def test_without_the_store_it_stays_what_it_was(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = await volume_with(node)
    before(monkeypatch, "note", node, node.store.cut)
    with pytest.raises(StoreUnavailable):
        await node.convert(old.name, options=TREE)
    node.store.mend()
    assert not (await node.drivers.of(old).inspect(old.id)).state.sealed[1], "it can be written"
    assert await node.on_disk(old.name) == {old.id}


async def test_options_that_were_changed_meanwhile(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = await volume_with(node)
    registry = node.cluster.registry
    publish = node.imports.publish_instead

    async def changed_first(*arguments: Any) -> Volume:
        found = await node.cluster.fresh(old.name)
        spec = replace(found.record.spec, labels={"new": "1"})
        await registry.replace_volume(replace(found.record, spec=spec), expect=found.revision)
        return await publish(*arguments)

    monkeypatch.setattr(node.imports, "publish_instead", changed_first)
    with pytest.raises(Conflict, match="changed while it was converted"):
        await node.convert(old.name, options=TREE)
    assert (await node.record(old.name)).id == old.id
    assert not (await node.drivers.of(old).inspect(old.id)).state.sealed[1]
    assert await node.on_disk(old.name) == {old.id}


@pytest.mark.parametrize("goes", [True, False])
async def test_somebody_uses_it_while_it_is_compared(
    node: Node, goes: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is not kept from that, also if it has ended by then."""
    old = await volume_with(node)
    log = await node.files_of(old) / "log"
    with contextlib.ExitStack() as users:

        def use() -> None:
            user = users.enter_context(user_of(log, ends_after=60))
            if goes:
                user.kill()

        before(monkeypatch, "renew", node, use)
        with pytest.raises(Conflict, match=r"used while it was converted|changed while"):
            await node.convert(old.name, options=TREE)
    assert (await node.record(old.name)).id == old.id
    assert await node.on_disk(old.name) == {old.id}


async def test_it_does_not_fit(node: Node) -> None:
    old = await volume_with(node, layout="tree")
    (await node.files_of(old) / "big").write_bytes(os.urandom(48 << 20))
    with pytest.raises(StorageError, match="does not fit"):
        await node.convert(old.name, options={"layout": "image", "size": "16M"})
    assert (await node.record(old.name)).id == old.id
    assert await node.on_disk(old.name) == {old.id}


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"labels": "a=b"}, Conflict, "nothing of that needs a copy"),
        ({"layout": "tree", "copies": "2"}, InvalidInput, "cluster has 0"),
        ({"driver": "directory", "layout": "tree"}, InvalidInput, "layout"),
        ({"layout": "tree", "uid": "5"}, Conflict, "uid"),
        ({"layout": "tree", "snapshots": "daily:1"}, InvalidInput, "only images have snapshots"),
    ],
)
async def test_what_cannot_be_is_refused(
    node: Node, options: dict[str, str], error: type[PannierError], says: str
) -> None:
    old = await volume_with(node)
    with pytest.raises(error, match=says):
        await node.convert(old.name, options=options)
    assert await node.on_disk(old.name) == {old.id}


async def test_a_protected_one_is_left(node: Node) -> None:
    old = await volume_with(node, protected="true")
    with pytest.raises(Conflict, match="protected"):
        await node.convert(old.name, options=TREE)


async def test_a_driver_that_is_not_there(node: Node) -> None:
    old = await volume_with(node)
    del node.drivers._open["btrfs"]
    node.drivers._wanted = {"image": node.wanted["image"]}
    with pytest.raises(NotHolder, match="no btrfs driver"):
        await node.convert(old.name, options=TREE)


async def test_snapshots_stay_with_what_it_was(node: Node) -> None:
    old = await volume_with(node)
    found = await node.cluster.fresh(old.name)
    snapshot = Snapshot(name="first", generation=Generation(1, 1), made_at=0.0)
    named = found.record.with_snapshot(snapshot)
    await node.cluster.replace(named, expect=found.revision)
    await node.convert(old.name, options=TREE)
    assert (await node.record(old.name)).snapshots == ()
    assert (await node.cluster.registry.trash())[0].record.snapshots == (snapshot,)
