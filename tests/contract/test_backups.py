"""Backup targets and their secrets, with the real restic: repositories on this disk, and a store in memory."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pannier.backups.restic import Restic
from pannier.backups.targets import Targets
from pannier.backups.workroom import Workroom
from pannier.cluster.backup_records import BackupRecords
from pannier.cluster.key_records import KeyRecords
from pannier.cluster.keyring import Keyring
from pannier.cluster.registry import Registry, encode
from pannier.contract.bodies import BackupTargetOrder
from pannier.contract.views import BackupKeyView
from pannier.core.backup_plans import Retention
from pannier.core.backups import host_of
from pannier.core.errors import (
    AlreadyExists,
    BackupFailed,
    Conflict,
    Corrupt,
    Denied,
    InvalidInput,
    NotFound,
    PannierError,
    PeerUnavailable,
    RepositoryMissing,
    TargetUnavailable,
    Unavailable,
)
from pannier.core.node import Node
from pannier.core.pace import BackupPace, HoldingPace
from pannier.core.volume import Volume
from pannier.holding.cluster_keys import ClusterKeys
from pannier.host.clock import machine_clock
from pannier.host.mountflags import bind
from pannier.host.state_files import DurableFile
from pannier.store.base import Change
from pannier.testing.store import MemoryData, MemoryStore

PASSWORD = "s3cret-of-the-repository"
CLUSTER = "c0ffee"
TAGS = {"volume": "data", "id": "data.1", "generation": "1.1"}
EVERYTHING = Retention(last=100)
PACE = BackupPace()


class Site:
    """Nodes of one cluster with its store. Any of them may be down.

    Attributes:
        asked: which node asked which one for a key.
    """

    def __init__(self, directory: Path, cluster: str = CLUSTER) -> None:
        self.directory = directory
        self.cluster = cluster
        self.data = MemoryData()
        self.nodes: dict[str, Member] = {}
        self.down: set[str] = set()
        self.asked: list[tuple[str, str]] = []
        self.sessions = AsyncExitStack()

    async def node(self, name: str) -> Member:
        store = MemoryStore(self.data)
        await self.sessions.enter_async_context(store.session())
        self.nodes[name] = Member(self, name, store)
        return self.nodes[name]


class Member:
    """A node: what :class:`ClusterKeys` needs of the cluster, and its peers."""

    def __init__(self, site: Site, name: str, store: MemoryStore) -> None:
        self.site, self.name, self.store = site, name, store
        self.catalog = self.cluster = self
        home = site.directory / name
        (home / "run").mkdir(parents=True)
        self.workroom = Workroom(run=home / "run", cache=home / "cache")
        self.records = BackupRecords(Registry(store))
        self.file = home / "backup-keys.json"
        self.keys = self.started()
        self.restic = Restic(node=name, workroom=self.workroom, pace=PACE)
        self.targets = Targets(
            cluster=site.cluster,
            records=self.records,
            keys=self.keys,
            restic=self.restic,
            clock=machine_clock(),
        )

    def started(self) -> ClusterKeys:
        """The keys as they are after a start."""
        return ClusterKeys(
            cluster=_ClusterOf(self),  # type: ignore[arg-type]
            records=KeyRecords(Registry(self.store)),
            keyring=Keyring(),
            peers=self,
            file=DurableFile(self.file),
            pace=HoldingPace(),
        )

    def to(self, node: Node) -> Any:
        return _PeerOf(self, node.name)

    async def add(self, url: Path | str, name: str = "offsite", **more: Any) -> None:
        order = BackupTargetOrder(name=name, url=str(url), **{"password": PASSWORD, **more})
        await self.targets.add(order, actor="anna")


class _ClusterOf:
    def __init__(self, member: Member) -> None:
        self._site = member.site
        self.node = member.name
        self.catalog = self

    def nodes(self) -> list[Node]:
        return [
            Node(name=n, address="", drivers=(), version="", joined_at=0.0, certificate="")
            for n in sorted(self._site.nodes)
        ]

    def is_up(self, name: str) -> bool:
        return name not in self._site.down

    def volumes(self) -> list[Volume]:
        return []

    def trashed(self) -> list[Volume]:
        return []


class _PeerOf:
    def __init__(self, member: Member, name: str) -> None:
        self._member, self._name = member, name

    async def peer_backup_key(self, id: str) -> BackupKeyView:
        site = self._member.site
        site.asked.append((self._member.name, self._name))
        if self._name in site.down:
            raise PeerUnavailable(f"{self._name} does not answer")
        return site.nodes[self._name].keys.here(id)


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    site = Site(tmp_path)
    async with site.sessions:
        yield site


@pytest.fixture
async def node(site: Site) -> Member:
    return await site.node("n1")


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    (tmp_path / "repository").mkdir()
    return tmp_path / "repository"


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """A volume with what restic has to keep."""
    data = tmp_path / "volume" / "data"
    data.mkdir(parents=True)
    (data / "small").write_text("hello")
    (data / "large").write_bytes(os.urandom(1 << 20))
    os.link(data / "small", data / "linked")
    (data / "to").symlink_to("small")
    os.mkfifo(data / "pipe")
    os.setxattr(data / "small", "user.kind", b"greeting")
    os.chown(data / "large", 33, 44)
    os.chmod(data, 0o1750)
    os.chown(data, 55, 66)
    return data.parent


def alone(repository: Path, *words: str, password: str = PASSWORD) -> str:
    """restic, as somebody uses it who has no Pannier."""
    environment = {
        **os.environ,
        "RESTIC_PASSWORD": password,
        "RESTIC_REPOSITORY": str(repository),
        "RESTIC_CACHE_DIR": str(repository.parent / "other-cache"),
    }
    done = subprocess.run(
        ["restic", *words], env=environment, check=True, capture_output=True, text=True
    )
    return done.stdout


async def back_up(node: Member, files: Path, name: str = "offsite", **tags: str) -> Any:
    async with node.targets.opened(name) as opened:
        return await opened.back_up(
            ("data",),
            mark="data/small",
            directory=files,
            host=node.targets.host,
            tags={**TAGS, **tags},
            told=lambda _: None,
        )


@contextmanager
def unreadable(file: Path) -> Iterator[None]:
    """A file that gives errors to whoever reads it, root included."""
    file.touch()
    subprocess.run(["mount", "--bind", "/proc/1/mem", file], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", file], check=True)


def put_alone(repository: Path, files: Path, *tags: str, at: str, host: str) -> str:
    """What restic has put there for a node that is gone. Returns its id."""
    marks = [f"--tag={each}" for each in ("volume=data", "id=data.1", *tags)]
    done = alone(
        repository, "backup", "--json", "--host", host, "--time", at, *marks, str(files / "data")
    )
    return str(json.loads(done.splitlines()[-1])["snapshot_id"][:8])


@contextmanager
def small_disk(at: Path, size: str) -> Iterator[None]:
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", at], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", at], check=True)


# -- what is put there, and brought back ------------------------------------------------------------


async def test_what_comes_back_is_what_was_put_there_and_restic_alone_reads_it(
    node: Member, repository: Path, files: Path, tmp_path: Path
) -> None:
    await node.add(repository)
    written = await back_up(node, files)
    assert (written.changed, written.unchanged) == (3, 0)
    (listed,) = await node.targets.backups("offsite")
    assert (listed.id, listed.volume, listed.generation) == (written.id, "data", "1.1")
    assert written.id in alone(repository, "snapshots")
    back = tmp_path / "back"
    (back / "data").mkdir(parents=True)
    async with node.targets.opened("offsite") as opened:
        await opened.restore(
            written.id, "data", to=back, directory=back / "data", compares=lambda: None
        )
    was, now = files / "data", back / "data"
    assert (now / "large").read_bytes() == (was / "large").read_bytes()
    assert (now / "small").stat().st_ino == (now / "linked").stat().st_ino
    assert os.getxattr(now / "small", "user.kind") == b"greeting"
    for name in (".", "large", "pipe"):
        one, other = os.lstat(was / name), os.lstat(now / name)
        assert (one.st_mode, one.st_uid, one.st_gid) == (other.st_mode, other.st_uid, other.st_gid)
    assert os.readlink(now / "to") == "small"


async def test_only_what_changed_is_read(node: Member, repository: Path, files: Path) -> None:
    await node.add(repository)
    await back_up(node, files)
    (files / "data" / "small").write_text("another text")
    again = await back_up(node, files)
    assert (again.changed, again.unchanged) == (2, 1), "a file with two names"
    assert again.added_bytes < 1 << 20


async def test_no_secret_is_in_the_store_or_in_a_list_of_processes(
    node: Member, repository: Path, files: Path
) -> None:
    await node.add(repository)
    for entry in await node.store.list(""):
        assert PASSWORD.encode() not in entry.value
    assert os.stat(node.file).st_mode & 0o777 == 0o600
    seen: list[bytes] = []
    running = asyncio.create_task(back_up(node, files))
    while not running.done():
        for process in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                line = process.read_bytes()
            except OSError:
                continue
            if line.startswith(b"restic\0"):
                seen.append(line)
        await asyncio.sleep(0.01)
    await running
    assert seen
    assert not [line for line in seen if PASSWORD.encode() in line]
    assert list(node.workroom.run.iterdir()) == []


async def test_a_prune_keeps_what_is_asked_and_what_is_not_ours(
    node: Member, repository: Path, files: Path
) -> None:
    await node.add(repository)
    alone(repository, "backup", "--host", "somebody", str(files))
    made = [(await back_up(node, files)).id for _ in range(3)]
    with pytest.raises(InvalidInput, match="remove all"):
        await node.targets.prune("offsite", Retention())
    pruned = await node.targets.prune("offsite", Retention(last=1))
    assert (pruned.kept, sorted(pruned.removed)) == ([made[2]], sorted(made[:2]))
    assert [each.id for each in await node.targets.backups("offsite")] == [made[2]]
    assert "somebody" in alone(repository, "snapshots")


async def test_a_lock_that_a_killed_command_left_is_no_obstacle(
    node: Member, repository: Path, files: Path
) -> None:
    await node.add(repository)
    environment = {
        **os.environ,
        "RESTIC_PASSWORD": PASSWORD,
        "RESTIC_REPOSITORY": str(repository),
    }
    holding = await asyncio.create_subprocess_exec(
        *("restic", "backup", "--no-cache", "--stdin"), env=environment, stdin=subprocess.PIPE
    )
    while not list((repository / "locks").iterdir()):
        await asyncio.sleep(0.01)
    holding.kill()
    await holding.wait()
    await back_up(node, files)
    pruned = await node.targets.prune("offsite", EVERYTHING)
    assert len(pruned.kept) == 1


async def test_what_lacks_a_file_is_no_backup(node: Member, repository: Path, files: Path) -> None:
    """Neither where restic's word of it is heard, nor where power fails before."""
    await node.add(repository)
    good = await back_up(node, files)
    with (
        unreadable(files / "data" / "bad"),
        pytest.raises(BackupFailed, match=r"could not be read.*at offsite"),
    ):
        await back_up(node, files)
    assert len(json.loads(alone(repository, "snapshots", "--json"))) == 2, "a backup and its mark"
    host = node.targets.host
    cut_off = put_alone(repository, files, "pannier", "run=77", at="2026-01-01 12:00:00", host=host)
    assert cut_off in alone(repository, "snapshots")
    assert [each.id for each in await node.targets.backups("offsite")] == [good.id]
    (latest,) = json.loads(
        alone(
            repository,
            "snapshots",
            "--json",
            "--tag",
            "volume=data,generation=1.1",
            "--latest",
            "1",
        )
    )
    assert latest["short_id"] == good.id, "and no mark"
    pruned = await node.targets.prune("offsite", Retention(last=1))
    assert (pruned.kept, pruned.removed) == ([good.id], [])
    assert cut_off not in alone(repository, "snapshots"), "it is old"


async def test_backups_of_an_earlier_version_have_no_mark_and_count(
    node: Member, repository: Path, files: Path
) -> None:
    await node.add(repository)
    host = node.targets.host
    old = put_alone(repository, files, "pannier", at="2026-01-01 12:00:00", host=host)
    new = await back_up(node, files)
    assert [each.id for each in await node.targets.backups("offsite")] == [old, new.id]
    pruned = await node.targets.prune("offsite", Retention(last=1))
    assert (pruned.kept, pruned.removed) == ([new.id], [old])


# -- targets that are not in order ------------------------------------------------------------------


async def test_a_flipped_byte_is_found_and_named(
    node: Member, repository: Path, files: Path
) -> None:
    await node.add(repository)
    await back_up(node, files)
    assert (await node.targets.verify("offsite", lambda _: None)).name == "offsite"
    pack = max((repository / "data").rglob("*"), key=lambda each: each.stat().st_size)
    pack.chmod(0o600)
    content = bytearray(pack.read_bytes())
    content[len(content) // 2] ^= 1
    pack.write_bytes(content)
    with pytest.raises(Corrupt, match=r"offsite.*damaged"):
        await node.targets.verify("offsite", lambda _: None)


async def test_a_wrong_password_adds_nothing(node: Member, repository: Path) -> None:
    alone(repository, "init", password="another")
    with pytest.raises(Denied, match=r"offsite.*password"):
        await node.add(repository)
    assert await node.targets.all() == []


async def test_a_repository_of_another_cluster_is_only_read(
    node: Member, repository: Path, files: Path, tmp_path: Path
) -> None:
    another = Site(tmp_path / "theirs", "badcafe")
    async with another.sessions:
        theirs = await another.node("n9")
        await theirs.add(repository)
        kept = await back_up(theirs, files)
    with pytest.raises(Conflict, match=r"another cluster \(badcafe\).*--read-only"):
        await node.add(repository)
    await node.add(repository, read_only=True)
    assert [each.id for each in await node.targets.backups("offsite")] == [kept.id]
    with pytest.raises(Conflict, match="only to be read"):
        await node.targets.chosen("offsite")
    with pytest.raises(Conflict, match="only to be read"):
        await node.targets.prune("offsite", EVERYTHING)


async def test_a_path_that_is_not_there_is_not_made(node: Member, tmp_path: Path) -> None:
    with pytest.raises(TargetUnavailable, match="no directory"):
        await node.add(tmp_path / "typo")
    assert not (tmp_path / "typo").exists()


async def test_a_share_that_is_not_mounted_is_told_from_an_empty_repository(
    node: Member, repository: Path
) -> None:
    await node.add(repository)
    repository.rename(repository.with_name("unmounted"))
    repository.mkdir()
    with pytest.raises(RepositoryMissing, match="mounted"):
        await node.targets.backups("offsite")
    assert list(repository.iterdir()) == []


async def test_another_repository_in_its_place_is_not_used(
    node: Member, repository: Path, files: Path
) -> None:
    await node.add(repository)
    repository.rename(repository.with_name("former"))
    repository.mkdir()
    alone(repository, "init")
    with pytest.raises(Conflict, match="when it was added"):
        await back_up(node, files)


async def test_a_full_target_is_named_and_what_was_there_stays(
    node: Member, repository: Path, files: Path
) -> None:
    with small_disk(repository, "4M"):
        await node.add(repository)
        kept = await back_up(node, files)
        (files / "data" / "more").write_bytes(os.urandom(16 << 20))
        with pytest.raises(BackupFailed, match=r"offsite.*full"):
            await back_up(node, files)
        assert [each.id for each in await node.targets.backups("offsite")] == [kept.id]


async def test_a_backup_that_has_no_room_is_told_from_a_target_that_is_full(
    node: Member, repository: Path, files: Path, tmp_path: Path
) -> None:
    await node.add(repository)
    written = await back_up(node, files)
    back = tmp_path / "back"
    (back / "data").mkdir(parents=True)
    with small_disk(back / "data", "64K"):
        async with node.targets.opened("offsite") as opened:
            with pytest.raises(BackupFailed, match="no room on node n1"):
                await opened.restore(
                    written.id, "data", to=back, directory=back / "data", compares=lambda: None
                )


async def test_an_s3_server_that_refuses_is_told_from_one_without_a_repository(
    node: Member,
) -> None:
    with pytest.raises(TargetUnavailable, match=r"does not answer.*refused") as caught:
        await node.add("s3:http://127.0.0.1:1/bucket", s3_key_id="id", s3_key="key", read_only=True)
    assert not isinstance(caught.value, RepositoryMissing)


async def test_a_server_that_refuses_is_named(node: Member) -> None:
    with pytest.raises(TargetUnavailable, match="offsite, from node n1: it does not answer"):
        await node.add("sftp://me@127.0.0.1:1//srv", ssh_key="none", known_hosts="none")
    assert await node.targets.all() == []
    assert list(node.workroom.run.iterdir()) == []


@pytest.mark.parametrize(
    ("url", "more", "says"),
    [
        ("relative", {}, "no place"),
        ("/a/../b", {}, "no place"),
        ("sftp:-oProxyCommand=x:/srv", {}, "no place"),
        ("s3:https://key:secret@host/bucket", {}, "no place"),
        ("ftp://host/x", {}, "no place"),
        ("sftp://me@host:22:/srv", {}, "no place"),
        ("sftp:me@host:/srv", {}, "--ssh-key"),
        ("sftp:me@host:/srv", {"ssh_key": "k"}, "--known-hosts"),
        ("s3:https://host/bucket", {"s3_key_id": "k"}, "--s3-key-file"),
        ("/srv", {"ssh_key": "k"}, "only"),
        ("/srv", {"password": ""}, "password"),
        ("/srv", {"password": "a\nb"}, "password"),
    ],
)
async def test_bad_input_is_told(node: Member, url: str, more: dict[str, str], says: str) -> None:
    with pytest.raises(InvalidInput, match=says):
        await node.add(url, **more)


async def test_names_are_used_once(node: Member, repository: Path) -> None:
    await node.add(repository)
    with pytest.raises(AlreadyExists, match="offsite already"):
        await node.add(repository)
    await node.targets.remove("offsite", actor="anna")
    with pytest.raises(NotFound, match="no backup target"):
        await node.targets.remove("offsite", actor="anna")
    await node.add(repository)


# -- the key ----------------------------------------------------------------------------------------


async def test_another_node_gets_the_key_once(site: Site, node: Member, repository: Path) -> None:
    await node.add(repository)
    other = await site.node("n2")
    assert await other.targets.backups("offsite") == []
    site.down = {"n1"}
    assert await other.targets.backups("offsite") == [], "it has the key now"
    assert site.asked == [("n2", "n1")]


async def test_without_the_key_nothing_is_guessed(
    site: Site, node: Member, repository: Path
) -> None:
    await node.add(repository)
    other = await site.node("n2")
    site.down = {"n1"}
    with pytest.raises(Unavailable, match="no node that answers has the cluster's key"):
        await other.targets.backups("offsite")


async def test_two_first_targets_at_the_same_time_have_one_key(site: Site, tmp_path: Path) -> None:
    members = [await site.node("n1"), await site.node("n2")]
    places = [tmp_path / "one", tmp_path / "two"]
    for place in places:
        place.mkdir()
    await asyncio.gather(*(m.add(p, name=p.name) for m, p in zip(members, places, strict=True)))
    keys = {(await members[0].records.target(p.name)).record.key for p in places}
    assert keys == {await members[0].keys.current()}
    for member in members:
        for place in places:
            assert await member.targets.backups(place.name) == []


async def test_secrets_are_not_sent_to_an_address_that_somebody_wrote_into_the_store(
    node: Member, repository: Path, tmp_path: Path
) -> None:
    await node.add(repository)
    found = await node.records.target("offsite")
    changed = replace(found.record, url=str(tmp_path))
    await node.store.commit(Change("backup-targets/offsite", encode(changed), found.revision))
    with pytest.raises(Corrupt, match="not those that were put there"):
        await node.targets.backups("offsite")


async def test_a_key_file_of_a_later_version_keeps_what_it_has(
    site: Site, node: Member, repository: Path
) -> None:
    await node.add(repository)
    other = await site.node("n2")
    other.file.write_text('{"format":1,"keys":{},"later":[1]}')
    await other.targets.backups("offsite")
    assert '"later":[1]' in other.file.read_text()


# -- the workroom -----------------------------------------------------------------------------------


async def test_what_an_earlier_run_left_goes_and_nothing_behind_a_mount_with_it(
    node: Member, files: Path
) -> None:
    place = node.workroom.run / "data.1"
    (place / "data").mkdir(parents=True)
    (place / "volume.json").write_text("{}")
    bind(files / "data", place / "data", allow_devices_and_setuid=False)
    await node.workroom.tidy()
    assert list(node.workroom.run.iterdir()) == []
    assert (files / "data" / "small").exists()


async def test_a_place_is_cleared_also_where_the_work_in_it_fails(
    node: Member, files: Path
) -> None:
    async def fail() -> None:
        async with node.workroom.place("data.1") as place:
            (place / "data").mkdir()
            bind(files / "data", place / "data", allow_devices_and_setuid=False)
            raise PannierError("no")

    with pytest.raises(PannierError):
        await fail()
    assert list(node.workroom.run.iterdir()) == []
    assert (files / "data" / "small").exists()


def test_backups_of_clusters_are_told_apart() -> None:
    assert host_of(CLUSTER) != host_of("badcafe")
