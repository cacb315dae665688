"""Pools: made, opened, grown, and never made out of what is somebody else's. Needs root."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import os
import shlex
import shutil
import stat
import struct
import tempfile
import zlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from test_driver_kit import workplace as workplace

from pannier.agent.mounts import MountTable
from pannier.core.errors import DiskFailed, ForeignData, InvalidInput, PoolMissing, StorageError
from pannier.host.files import draft_of
from pannier.host.mountinfo import mount_at
from pannier.storage.base import RootAttributes
from pannier.storage.btrfs import ioctl
from pannier.storage.btrfs.driver import BtrfsDriver
from pannier.storage.btrfs.loop import attach, detach, find_attached
from pannier.storage.btrfs.pool import (
    MARKER,
    check,
    close_pool,
    create_pool,
    grow_pool,
    open_pool,
    verify_pool,
)
from pannier.storage.commands import run
from pannier.storage.directory.driver import DirectoryDriver
from pannier.storage.directory.root import create_directory

pytestmark = pytest.mark.root
SIZE_BYTES = 200 << 20


@pytest.fixture
async def mountpoint(tmp_path: Path, workplace: Path) -> AsyncIterator[Path]:
    place = tmp_path / "pool"
    yield place
    while mount_at(place):
        assert await close_pool(place)


@pytest.fixture
async def device(tmp_path: Path, workplace: Path) -> AsyncIterator[Path]:
    """A block device, blank."""
    backing = tmp_path / "disk"
    backing.touch()
    os.truncate(backing, SIZE_BYTES)
    found = await run(["losetup", "--find", "--show", str(backing)], timeout_s=10)
    yield Path(found.stdout.strip())
    await run(["losetup", "--detach", found.stdout.strip()], timeout_s=10)


async def until_detached(image: Path) -> None:
    """The kernel detaches a device when nobody has it open: mkfs, too, looks at all devices there are."""
    for _ in range(100):
        if find_attached(image) is None:
            return
        await asyncio.sleep(0.05)
    pytest.fail(f"{image} is still attached")


async def mkfs_ext4(target: Path) -> None:
    await run(["mkfs.ext4", "-q", "-F", "-L", "home", str(target)], timeout_s=30)


async def mkfs_btrfs(target: Path) -> None:
    await run(["mkfs.btrfs", "-q", "-L", "photos", str(target)], timeout_s=30)


async def make_swap(target: Path) -> None:
    await run(["mkswap", str(target)], timeout_s=30)


async def make_gpt(target: Path) -> None:
    """A primary GPT header with an empty table, and a protective MBR."""
    head = bytearray(512 * 34)
    head[446:462] = bytes([0, 0, 2, 0, 0xEE, 255, 255, 255]) + struct.pack("<II", 1, 0xFFFF)
    head[510:512] = b"\x55\xaa"
    last = target.stat().st_size // 512 - 1 if target.is_file() else SIZE_BYTES // 512 - 1
    table = zlib.crc32(bytes(512 * 32))
    header = struct.pack(
        "<8sIIIIQQQQ16sQIII",
        *(b"EFI PART", 0x10000, 92, 0, 0, 1, last, 34, last - 33, os.urandom(16), 2, 128, 128),
        table,
    )
    header = header[:16] + struct.pack("<I", zlib.crc32(header)) + header[20:]
    head[512 : 512 + len(header)] = header
    with target.open("r+b") as disk:
        disk.write(head)


async def make_luks(target: Path) -> None:
    await write_at(target, b"LUKS\xba\xbe\x00\x01aes".ljust(592, b"\0"), 0)


async def make_lvm(target: Path) -> None:
    label = bytearray(512)
    label[:32] = struct.pack("<8sQII8s", b"LABELONE", 1, 0, 32, b"LVM2 001")
    label[32:64] = b"A" * 32
    label[16:20] = struct.pack("<I", _lvm_crc(bytes(label[20:])))
    await write_at(target, bytes(label), 512)


def _lvm_crc(data: bytes) -> int:
    return (zlib.crc32(data, 0xF597A6CF ^ 0xFFFFFFFF) ^ 0xFFFFFFFF) & 0xFFFFFFFF


async def make_raw_data(target: Path) -> None:
    """A cipher or database without any header that somebody could know."""
    await write_at(target, os.urandom(100_000), 300_000)


async def write_at(target: Path, data: bytes, offset: int) -> None:
    with target.open("r+b") as disk:
        disk.seek(offset)
        disk.write(data)


FOREIGN = {
    "ext4": mkfs_ext4,
    "btrfs": mkfs_btrfs,
    "swap": make_swap,
    "gpt": make_gpt,
    "crypto_LUKS": make_luks,
    "LVM2_member": make_lvm,
    "data": make_raw_data,
}


def digest(path: Path) -> str:
    with path.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


@pytest.mark.parametrize("kind", FOREIGN)
@pytest.mark.parametrize("where", ["device", "file"])
async def test_foreign_data_is_never_formatted(
    device: Path, tmp_path: Path, mountpoint: Path, kind: str, where: str
) -> None:
    target = device
    if where == "file":
        target = tmp_path / "image"
        target.touch()
        os.truncate(target, SIZE_BYTES)
    await FOREIGN[kind](target)
    before = digest(target)
    size_bytes = SIZE_BYTES if where == "file" else None
    with pytest.raises(ForeignData, match=kind):
        await create_pool(target, mountpoint=mountpoint, size_bytes=size_bytes)
    with pytest.raises(ForeignData, match=kind):
        await open_pool(target, mountpoint=mountpoint)
    assert digest(target) == before
    assert mount_at(mountpoint) is None


async def test_force_overwrites_foreign_data(device: Path, mountpoint: Path) -> None:
    await mkfs_ext4(device)
    pool = await create_pool(device, mountpoint=mountpoint, force_format=True)
    assert pool.quotas
    check(mountpoint)


async def test_a_text_file_is_no_pool(tmp_path: Path, mountpoint: Path) -> None:
    letters = tmp_path / "letters.txt"
    letters.write_text("Dear Jane,\n" * 1000)
    with pytest.raises(ForeignData, match="data"):
        await create_pool(letters, mountpoint=mountpoint, size_bytes=SIZE_BYTES)
    assert letters.read_text() == "Dear Jane,\n" * 1000


async def test_a_pool_is_never_formatted_twice_even_by_force(
    device: Path, mountpoint: Path
) -> None:
    first = await create_pool(device, mountpoint=mountpoint)
    (mountpoint / "precious").write_text("x")
    for _ in range(2):
        again = await create_pool(device, mountpoint=mountpoint, force_format=True)
        assert again == first
        assert (mountpoint / "precious").read_text() == "x"
        await close_pool(mountpoint)
    assert await open_pool(device, mountpoint=mountpoint) == first
    assert await open_pool(device, mountpoint=mountpoint) == first


async def test_a_crash_between_mkfs_and_marker_is_finished(device: Path, mountpoint: Path) -> None:
    await run(["mkfs.btrfs", "-q", "-L", "pannier", str(device)], timeout_s=30)
    with pytest.raises(ForeignData, match="without our marker"):
        await open_pool(device, mountpoint=mountpoint)
    assert await close_pool(mountpoint)
    pool = await create_pool(device, mountpoint=mountpoint)
    assert pool.uuid


async def test_our_label_on_somebody_elses_files_is_foreign(device: Path, mountpoint: Path) -> None:
    await run(["mkfs.btrfs", "-q", "-L", "pannier", str(device)], timeout_s=30)
    mountpoint.mkdir()
    await run(["mount", str(device), str(mountpoint)], timeout_s=30)
    (mountpoint / "letters").write_text("x")
    await close_pool(mountpoint)
    with pytest.raises(ForeignData, match="without our marker"):
        await create_pool(device, mountpoint=mountpoint, force_format=True)
    assert mount_at(mountpoint) is None


async def test_a_file_pool_is_made_whole_or_not_at_all(tmp_path: Path, mountpoint: Path) -> None:
    image = tmp_path / "deep" / "pool.img"
    image.parent.mkdir()
    image.with_name("pool.img.new").write_text("a crash in the middle of mkfs")
    await create_pool(image, mountpoint=mountpoint, size_bytes=SIZE_BYTES)
    assert os.listdir(image.parent) == ["pool.img"]
    assert image.stat().st_blocks * 512 < 40 << 20, "the file is sparse"
    mount = mount_at(mountpoint)
    assert mount is not None
    assert mount.fstype == "btrfs"
    await close_pool(mountpoint)
    await until_detached(image)


async def test_a_crash_before_the_marker_was_whole_leaves_a_pool_to_be_made(
    tmp_path: Path, mountpoint: Path
) -> None:
    image = tmp_path / "pool.img"
    await create_pool(image, mountpoint=mountpoint, size_bytes=SIZE_BYTES)
    (mountpoint / MARKER).rename(draft_of(mountpoint / MARKER))
    await close_pool(mountpoint)
    pool = await create_pool(image, mountpoint=mountpoint, size_bytes=SIZE_BYTES)
    assert pool.uuid
    assert os.listdir(mountpoint) == [MARKER]


async def test_a_loop_device_left_by_a_crash_is_taken_again(
    tmp_path: Path, mountpoint: Path
) -> None:
    image = tmp_path / "pool.img"
    await create_pool(image, mountpoint=mountpoint, size_bytes=SIZE_BYTES)
    await close_pool(mountpoint)
    left = await attach(image)
    assert find_attached(image) == left
    other = tmp_path / "other.img"
    other.write_bytes(bytes(1 << 20))
    assert find_attached(other) is None
    await open_pool(image, mountpoint=mountpoint)
    mount = mount_at(mountpoint)
    assert mount is not None
    assert mount.source == str(left)


@pytest.mark.parametrize("detached", [True, False])
async def test_a_loop_device_that_does_not_flush_is_made_to(
    tmp_path: Path, mountpoint: Path, detached: bool
) -> None:
    """Its number keeps the settings of whoever had it before."""
    image = tmp_path / "pool.img"
    await create_pool(image, mountpoint=mountpoint, size_bytes=SIZE_BYTES)
    await close_pool(mountpoint)
    device = await attach(image)
    (Path("/sys/block") / device.name / "queue/write_cache").write_text("write through")
    if detached:
        await detach(device)
    await open_pool(image, mountpoint=mountpoint)
    attached = find_attached(image)
    assert attached is not None
    cache = Path("/sys/block") / attached.name / "queue/write_cache"
    assert cache.read_text().strip() == "write back"


async def test_a_mounted_pool_that_does_not_flush_is_made_to(
    tmp_path: Path, mountpoint: Path
) -> None:
    """As one that the administrator mounts, or that was mounted before an upgrade."""
    image = tmp_path / "pool.img"
    await create_pool(image, mountpoint=mountpoint, size_bytes=SIZE_BYTES)
    attached = find_attached(image)
    assert attached is not None
    cache = Path("/sys/block") / attached.name / "queue/write_cache"
    cache.write_text("write through")
    await BtrfsDriver(mountpoint).open()
    assert cache.read_text().strip() == "write back"


async def test_a_loop_device_that_cannot_be_made_to_flush_is_not_left_attached(
    tmp_path: Path, mountpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: Path) -> None:
        raise StorageError("read-only")

    image = tmp_path / "pool.img"
    monkeypatch.setattr("pannier.storage.btrfs.loop.make_sound", refuse)
    with pytest.raises(StorageError, match="read-only"):
        await create_pool(image, mountpoint=mountpoint, size_bytes=SIZE_BYTES)
    await until_detached(image)


async def test_a_pool_grows_in_use(tmp_path: Path, mountpoint: Path) -> None:
    image = tmp_path / "pool.img"
    await create_pool(image, mountpoint=mountpoint, size_bytes=SIZE_BYTES)
    with (mountpoint / "in-use").open("w"):
        await grow_pool(image, mountpoint=mountpoint, size_bytes=2 * SIZE_BYTES)
        driver = BtrfsDriver(mountpoint)
        await driver.open()
        assert (await driver.capacity()).total_bytes == 2 * SIZE_BYTES
        assert not await close_pool(mountpoint), "it is busy"
    with pytest.raises(InvalidInput, match="only grow"):
        await grow_pool(image, mountpoint=mountpoint, size_bytes=SIZE_BYTES)


@pytest.mark.parametrize("size_bytes", [None, 1 << 20])
async def test_a_file_pool_needs_a_size(
    tmp_path: Path, mountpoint: Path, size_bytes: int | None
) -> None:
    with pytest.raises(InvalidInput, match="size of at least"):
        await create_pool(tmp_path / "p.img", mountpoint=mountpoint, size_bytes=size_bytes)
    assert not (tmp_path / "p.img").exists()


async def test_a_missing_device_or_file_is_told(tmp_path: Path, mountpoint: Path) -> None:
    with pytest.raises(PoolMissing, match="no device"):
        await create_pool(Path("/dev/pannier-no-such"), mountpoint=mountpoint)
    for source in (Path("/dev/pannier-no-such"), tmp_path / "no.img"):
        with pytest.raises(PoolMissing, match="not there"):
            await open_pool(source, mountpoint=mountpoint)


async def test_a_file_or_files_in_place_of_the_mountpoint(tmp_path: Path, mountpoint: Path) -> None:
    image = tmp_path / "p.img"
    mountpoint.write_text("what is this")
    with pytest.raises(ForeignData, match="a file is in the place"):
        await create_pool(image, mountpoint=mountpoint, size_bytes=SIZE_BYTES)
    with pytest.raises(PoolMissing, match="a file is in its place"):
        await BtrfsDriver(mountpoint).open()
    mountpoint.unlink()
    mountpoint.mkdir()
    (mountpoint / "f").touch()
    with pytest.raises(ForeignData, match="not empty"):
        await create_pool(image, mountpoint=mountpoint, size_bytes=SIZE_BYTES)


async def test_an_unmounted_pool_is_missing_not_empty(mountpoint: Path) -> None:
    mountpoint.mkdir()
    with pytest.raises(PoolMissing, match="nothing is mounted"):
        await BtrfsDriver(mountpoint).open()
    assert os.listdir(mountpoint) == []


async def test_another_file_system_at_the_mountpoint_is_foreign(
    device: Path, mountpoint: Path
) -> None:
    await mkfs_ext4(device)
    mountpoint.mkdir()
    await run(["mount", str(device), str(mountpoint)], timeout_s=30)
    with pytest.raises(ForeignData, match="ext4"):
        await BtrfsDriver(mountpoint).open()


async def test_a_device_in_use_is_foreign(device: Path, tmp_path: Path, mountpoint: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    await mkfs_ext4(device)
    await run(["mount", str(device), str(other)], timeout_s=30)
    try:
        with pytest.raises(ForeignData, match="in use"):
            await create_pool(device, mountpoint=mountpoint, force_format=True)
    finally:
        await run(["umount", str(other)], timeout_s=30)


async def test_a_pool_gone_read_only_is_noticed(
    device: Path, mountpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await create_pool(device, mountpoint=mountpoint)
    check(mountpoint)
    driver = BtrfsDriver(mountpoint)
    await driver.check_disk(by_writing=True)
    await run(["mount", "-o", "remount,ro", str(mountpoint)], timeout_s=30)
    with pytest.raises(DiskFailed, match="read-only"):
        await driver.open()

    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr("pannier.storage.btrfs.ioctl.charged_bytes", fail)
    with pytest.raises(DiskFailed, match="read-only"):
        check(mountpoint)
    with pytest.raises(StorageError, match="Input/output error"):
        verify_pool(mountpoint)
    with pytest.raises(DiskFailed, match="read-only"):
        await driver.check_disk()
    with pytest.raises(DiskFailed, match="Read-only"):
        await driver.check_disk(by_writing=True)


@pytest.mark.parametrize("there", [True, False])
async def test_a_pool_that_is_not_mounted_is_missing_whatever_is_below(
    tmp_path: Path, there: bool
) -> None:
    place = tmp_path / "pool"
    if there:
        place.mkdir()
    with pytest.raises(PoolMissing, match="nothing is mounted there"):
        check(place)


async def test_a_kernel_without_simple_quotas_has_no_limits_and_works(
    device: Path, mountpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path) -> None:
        raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(ioctl, "enable_simple_quota", refuse)
    pool = await create_pool(device, mountpoint=mountpoint)
    assert not pool.quotas
    driver = BtrfsDriver(mountpoint)
    await driver.open()
    await driver.create("v", epoch=1, root=RootAttributes(), size_bytes=1 << 20)
    data = driver.data_path("v", 1)
    with (data / "f").open("wb", buffering=0) as late:
        late.write(os.urandom(10 << 20))
        generation = await driver.seal("v", epoch=1)
        late.write(b"read-only does not stop an open descriptor")
    with pytest.raises(StorageError, match="may hold what no generation has"):
        await driver.drop_live("v", epoch=1)
    assert await driver.seal("v", epoch=1) > generation
    assert 9 << 20 < await driver.used_bytes("v") < 12 << 20
    await driver.drop_live("v", epoch=1)
    await driver.delete("v")


async def test_a_driver_with_a_source_mounts_and_unmounts_it(
    tmp_path: Path, mountpoint: Path
) -> None:
    image = tmp_path / "pool.img"
    await create_pool(image, mountpoint=mountpoint, size_bytes=SIZE_BYTES)
    await close_pool(mountpoint)
    driver = BtrfsDriver(mountpoint, source=image)
    for _ in range(2):
        await driver.open()
        assert (mountpoint / MARKER).exists()
        await driver.close()
        assert mount_at(mountpoint) is None


async def test_a_directory_without_its_marker_is_not_taken(tmp_path: Path) -> None:
    root = tmp_path / "root"
    with pytest.raises(PoolMissing):
        await DirectoryDriver(root).open()
    root.mkdir()
    with pytest.raises(PoolMissing, match="should be mounted"):
        await DirectoryDriver(root).open()
    (root / "letters").write_text("x")
    for action in (DirectoryDriver(root).open(), create_directory(root)):
        with pytest.raises(ForeignData, match="other files"):
            await action
    (root / "letters").unlink()
    for _ in range(2):
        await create_directory(root)
        await DirectoryDriver(root).open()


def mount_flags(place: Path) -> int:
    return os.statvfs(place).f_flag & (os.ST_NODEV | os.ST_NOSUID | os.ST_NOATIME)


async def test_no_device_and_no_setuid_program_works_on_the_pools_own_mount(
    tmp_path: Path, mountpoint: Path
) -> None:
    """Also on a pool that an earlier version has mounted, and left open to all."""
    image = tmp_path / "pool.img"
    await create_pool(image, mountpoint=mountpoint, size_bytes=SIZE_BYTES)
    wanted = os.ST_NODEV | os.ST_NOSUID | os.ST_NOATIME
    assert mount_flags(mountpoint) == wanted
    for source in (image, None):
        await run(["mount", "-o", "remount,bind,dev,suid", str(mountpoint)], timeout_s=10)
        mountpoint.chmod(0o755)
        driver = BtrfsDriver(mountpoint, source=source)
        await driver.open()
        assert mount_flags(mountpoint) == wanted
        assert mountpoint.stat().st_mode & 0o777 == 0o700


async def test_containers_get_a_volume_in_which_devices_and_setuid_programs_work(
    tmp_path: Path, mountpoint: Path
) -> None:
    await create_pool(tmp_path / "pool.img", mountpoint=mountpoint, size_bytes=SIZE_BYTES)
    driver = BtrfsDriver(mountpoint)
    await driver.open()
    await driver.create("volume", epoch=1, root=RootAttributes(), size_bytes=None)
    table = MountTable(tmp_path / "mounts", ours=[mountpoint])
    seen = table.mount("volume", driver.data_path("volume", 1))
    try:
        assert mount_flags(seen) == os.ST_NOATIME
        os.mknod(seen / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
        (seen / "null").write_bytes(b"swallowed")
        shutil.copy("/usr/bin/id", seen / "id")
        (seen / "id").chmod(0o4755)
        namespace = ["unshare", "--mount", "--propagation", "slave", "--"]
        copied = ["mount", "--bind", str(seen), "/mnt"]  # as an engine's own namespace sees it
        user = ["setpriv", "--reuid", "65534", "--clear-groups", "/mnt/id", "-u"]
        script = f"{shlex.join(copied)} && {shlex.join(user)}"
        done = await run([*namespace, "sh", "-c", script], timeout_s=10)
        assert done.stdout.strip() == "0"
    finally:
        table.unmount("volume")
        table.forget("volume")


async def test_other_users_of_the_host_do_not_get_at_a_volume() -> None:
    """Nor where the directory was made by an earlier version."""
    other = ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups"]
    with tempfile.TemporaryDirectory(dir="/tmp") as place:
        mounts = Path(place) / "mounts"
        look = [*other, "ls", "-d", str(mounts / "v")]
        (mounts / "v").mkdir(parents=True)
        Path(place).chmod(0o711)
        mounts.chmod(0o755)
        assert not (await run(look, timeout_s=10, check=False)).status
        MountTable(mounts)
        assert (await run(look, timeout_s=10, check=False)).status
