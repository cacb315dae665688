"""Encrypted images on real pools: what their disks have, who can read it, and what is refused."""

from __future__ import annotations

import asyncio
import os
import sys
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from test_driver_image_records import Pair, taken_over
from test_driver_kit import ROOT, SIZE, Nodes, pools, sync_everything, workplace

from pannier.core.errors import Corrupt, KeyMissing, StorageError
from pannier.core.generation import Generation
from pannier.core.line import OnTop
from pannier.cut import tracefs
from pannier.host.mountinfo import own_mounts
from pannier.storage.commands import run
from pannier.storage.image import driver as image_driver
from pannier.storage.image import unlocking
from pannier.storage.image.driver import ImageDriver
from pannier.storage.image.fscrypt import KEY_BYTES
from pannier.storage.image.kept import JOURNAL
from pannier.storage.image.nocow import IMAGE

__all__ = ["pools", "workplace"]
pytestmark = pytest.mark.root

SECRET = b"nobody-else-reads-this-" + uuid.uuid4().hex.encode()
NAME = f"nobody-else-sees-this-{uuid.uuid4().hex}"


@dataclass
class HeldKeys:
    """The keys that a node has. ``locked``: it knows which volumes are encrypted, and has no key."""

    keys: dict[str, bytes] = field(default_factory=dict)
    locked: bool = False

    def key_of(self, volume: str) -> bytes | None:
        found = self.keys.get(volume)
        if found is not None and self.locked:
            raise KeyMissing(f"the key of {volume} is not here")
        return found


@dataclass
class Encrypted:
    """A holder and a copy with an encrypted volume, which is attached on the holder."""

    nodes: Nodes
    holder: ImageDriver
    copy: ImageDriver
    mine: HeldKeys
    theirs: HeldKeys

    @property
    def volume(self) -> str:
        return self.nodes.volume

    @property
    def data(self) -> Path:
        return self.holder.data_path(self.volume, 1)

    async def written(self) -> Generation:
        """A generation with a file that has the secret many times."""
        (self.data / NAME).write_bytes(SECRET * 1000)
        sync_everything(self.data)
        return await self.holder.snapshot(self.volume, epoch=1)

    async def given_away(self) -> Path:
        """The volume as the copy has it after a takeover, attached."""
        generation = await self.written()
        await self.nodes.transfer(self.holder, self.copy, generation)
        await self.copy.promote(
            self.volume, generation, epoch=2, size_bytes=None, on_top=OnTop.NOTHING
        )
        await self.copy.attach(self.volume, epoch=2, grow=False)
        return self.copy.data_path(self.volume, 2)


@pytest.fixture
async def there(pools: list[Path], workplace: Path) -> AsyncIterator[Encrypted]:
    volume = f"v-{uuid.uuid4().hex[:12]}"
    key = os.urandom(KEY_BYTES)
    mine, theirs = HeldKeys({volume: key}), HeldKeys({volume: key})
    holder, copy = (
        ImageDriver(pool, staging=workplace / f"staging-crypt-{pool.name}", keys=keys)
        for pool, keys in zip(pools, (mine, theirs), strict=False)
    )
    for driver in (holder, copy):
        await driver.open()
    nodes = Nodes(holder, copy, copy, volume)
    try:
        await nodes.create()
        yield Encrypted(nodes, holder, copy, mine, theirs)
    finally:
        for driver in (holder, copy):
            await driver.delete(volume)
            await driver.delete(f"{volume}-clone")
            await driver.close()


def content_of(driver: ImageDriver, volume: str) -> bytes:
    """All bytes of all images of a volume in a pool."""
    images = (driver._mountpoint / "images" / volume).rglob(IMAGE)
    return b"".join(each.read_bytes() for each in images)


def staged(driver: ImageDriver) -> list[str]:
    """What is mounted where the driver mounts images."""
    return [mount.point for mount in own_mounts() if mount.point.startswith(str(driver._staging))]


async def test_no_disk_has_what_was_written(there: Encrypted) -> None:
    data = await there.given_away()
    assert (data / NAME).read_bytes() == SECRET * 1000
    assert (data.stat().st_uid, data.stat().st_mode & 0o7777) == (ROOT.uid, ROOT.mode)
    for driver in (there.holder, there.copy):
        content = content_of(driver, there.volume)
        assert len(content) > SIZE
        assert SECRET not in content
        assert NAME.encode() not in content


async def test_without_a_key_the_same_search_finds_it(pools: list[Path], workplace: Path) -> None:
    """So it searches where it would be."""
    driver = ImageDriver(pools[0], staging=workplace / "staging-plain")
    await driver.open()
    nodes = Nodes(driver, driver, driver, f"v-{uuid.uuid4().hex[:12]}")
    data = await nodes.create()
    (data / NAME).write_bytes(SECRET * 1000)
    sync_everything(data)
    await driver.snapshot(nodes.volume, epoch=1)
    content = content_of(driver, nodes.volume)
    assert SECRET in content
    assert NAME.encode() in content
    await driver.delete(nodes.volume)
    await driver.close()


async def test_a_node_without_the_key_gives_nothing_and_leaves_nothing_mounted(
    there: Encrypted, tmp_path: Path
) -> None:
    there.theirs.locked = True
    with pytest.raises(KeyMissing):
        await there.given_away()
    generation = (await there.copy.inspect(there.volume)).generations[-1]
    with pytest.raises(KeyMissing):
        await there.copy.show(there.volume, tree=generation, at=tmp_path)
    with pytest.raises(KeyMissing):
        async with there.copy.opened(there.volume, tree=generation):
            pass
    assert staged(there.copy) == []
    assert os.listdir(tmp_path) == []
    assert await there.copy.has_files(there.volume, epoch=2)
    assert await there.copy.check_file_system(there.volume, generation) == ()
    there.theirs.locked = False
    await there.copy.attach(there.volume, epoch=2, grow=False)
    assert (there.copy.data_path(there.volume, 2) / NAME).read_bytes() == SECRET * 1000


async def test_what_is_in_use_goes_on_while_its_node_has_no_key(there: Encrypted) -> None:
    """As after a start of the daemon: the kernel has the key for as long as it is mounted."""
    await there.written()
    there.mine.locked = True
    await there.holder.attach(there.volume, epoch=1, grow=False)
    assert (there.data / NAME).read_bytes() == SECRET * 1000
    await there.holder.detach(there.volume, epoch=1)
    with pytest.raises(KeyMissing):
        await there.holder.attach(there.volume, epoch=1, grow=False)


@pytest.mark.parametrize("what", ["another", "none", "unasked"])
async def test_an_image_that_is_not_what_its_record_says_is_given_to_nobody(
    there: Encrypted, what: str
) -> None:
    await there.written()
    await there.holder.detach(there.volume, epoch=1)
    if what == "unasked":
        there.mine.keys.clear()
    elif what == "another":
        there.mine.keys[there.volume] = os.urandom(KEY_BYTES)
    else:
        plain = ImageDriver(there.holder._mountpoint, staging=there.holder._staging)
        await plain.open()
        await plain.create(f"{there.volume}-clone", epoch=1, root=ROOT, size_bytes=SIZE)
        await plain.close()
        there.mine.keys[f"{there.volume}-clone"] = os.urandom(KEY_BYTES)
    volume = f"{there.volume}-clone" if what == "none" else there.volume
    said = {
        "another": "encrypted with another key",
        "none": "should be encrypted, and are not",
        "unasked": "are encrypted, and the cluster has no key",
    }
    with pytest.raises(Corrupt, match=said[what]):
        await there.holder.attach(volume, epoch=1, grow=False)
    assert staged(there.holder) == []


async def test_snapshots_are_shown_and_taken_out(there: Encrypted, tmp_path: Path) -> None:
    generation = await there.written()
    await there.holder.show(there.volume, tree=generation, at=tmp_path)
    try:
        assert (tmp_path / NAME).read_bytes() == SECRET * 1000
    finally:
        await run(["umount", str(tmp_path)], timeout_s=30)
    async with there.holder.opened(there.volume, tree=generation) as root:
        file = os.open(NAME, os.O_RDONLY, dir_fd=root)
        assert os.read(file, len(SECRET)) == SECRET
        os.close(file)


async def test_a_clone_has_the_same_key_and_can_be_larger(there: Encrypted) -> None:
    generation = await there.written()
    clone = f"{there.volume}-clone"
    base = Generation(0, 1, generation.identity)
    await there.holder.clone(there.volume, generation, volume=clone, base=base, unborn=False)
    there.mine.keys[clone] = there.mine.keys[there.volume]
    await there.holder.enlarge(
        clone, base, epoch=1, size_bytes=SIZE + (64 << 20), more_bytes=64 << 20
    )
    await there.holder.attach(clone, epoch=1, grow=False)
    data = there.holder.data_path(clone, 1)
    (data / "new").write_bytes(SECRET)
    assert (data / NAME).read_bytes() == SECRET * 1000
    assert not (there.data / "new").exists()


@pytest.mark.parametrize("left", ["before", "after"])
async def test_power_fails_at_creation(
    there: Encrypted, monkeypatch: pytest.MonkeyPatch, left: str
) -> None:
    """What is not encrypted yet never counts as the volume."""
    volume = f"{there.volume}-clone"
    there.mine.keys[volume] = os.urandom(KEY_BYTES)
    whole = unlocking.encrypt

    def cut(image: Path, key: bytes) -> None:
        if left == "after":
            whole(image, key)
        raise StorageError("the power failed")

    with monkeypatch.context() as patch:
        patch.setattr(image_driver, "encrypt", cut)
        with pytest.raises(StorageError, match="power"):
            await there.holder.create(volume, epoch=1, root=ROOT, size_bytes=SIZE)
    assert (await there.holder.inspect(volume)).live == ()
    await there.holder.create(volume, epoch=1, root=ROOT, size_bytes=SIZE)
    await there.holder.attach(volume, epoch=1, grow=False)
    (there.holder.data_path(volume, 1) / NAME).write_bytes(SECRET)
    await there.holder.snapshot(volume, epoch=1)
    assert SECRET not in content_of(there.holder, volume)


_KILLED = """
import os, signal, sys
from pathlib import Path
from pannier.storage.image import fscrypt, unlocking
fscrypt.set_policy = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
unlocking.encrypt(Path(sys.argv[1]), bytes(64))
"""


async def test_nothing_stays_mounted_where_the_daemon_is_killed_at_a_creation(
    there: Encrypted,
) -> None:
    await there.written()
    await there.holder.detach(there.volume, epoch=1)
    image = there.holder._home(there.volume).live(1) / IMAGE
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", _KILLED, str(image))
    assert await process.wait() == -9
    await there.holder.attach(there.volume, epoch=1, grow=False)  # no loop device has it
    assert (there.data / NAME).read_bytes() == SECRET * 1000


@pytest.fixture
async def pair(pools: list[Path], workplace: Path) -> AsyncIterator[Pair]:
    name = f"pannier-test-{uuid.uuid4().hex[:8]}"
    volume = f"v-{uuid.uuid4().hex[:12]}"
    keys = HeldKeys({volume: os.urandom(KEY_BYTES)})
    holder, copy = (
        ImageDriver(pool, staging=workplace / f"staging-crypt-{pool.name}", trace=name, keys=keys)
        for pool in pools[:2]
    )
    for driver in (holder, copy):
        await driver.open()
    try:
        await holder.create(volume, epoch=1, root=ROOT, size_bytes=64 << 20)
        await holder.attach(volume, epoch=1, grow=False)
        yield Pair(holder, copy, volume, name)
    finally:
        for driver in (holder, copy):
            await driver.delete(volume)
            await driver.close()
        tracefs.remove(name)


async def test_records_and_the_journal_have_nothing_in_clear_text(pair: Pair) -> None:
    place = await pair.begin()
    for number in range(3):
        place, encoded = await pair.synced(place, f"{NAME}-{number}", SECRET * 100)
        assert SECRET not in encoded
        assert NAME.encode() not in encoded
        pair.copy.keep(place, encoded)
    journal = (pair.copy._mountpoint / JOURNAL).read_bytes()
    assert encoded[-4096:] in journal, "it searches where they are"
    assert SECRET not in journal
    assert NAME.encode() not in journal
    data = await taken_over(pair, place.generation)
    assert {each.name: each.read_bytes() for each in data.iterdir()} == {
        f"{NAME}-{number}": SECRET * 100 for number in range(3)
    }
    assert SECRET not in content_of(pair.copy, pair.volume)
