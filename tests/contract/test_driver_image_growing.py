"""Images that are given a larger size: in use where the kernel allows it, else when they are attached next. Needs root."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from structlog.testing import capture_logs
from test_driver_kit import SIZE, Nodes, image_nodes, pools, workplace

from pannier.core.errors import StorageError
from pannier.core.line import OnTop
from pannier.storage.image import ext4
from pannier.storage.image.driver import ImageDriver

__all__ = ["image_nodes", "pools", "workplace"]
pytestmark = pytest.mark.root

MEBIBYTE = 1 << 20
LARGER = SIZE + 100 * MEBIBYTE


@pytest.fixture(params=[True, False], ids=["allowed", "not-allowed"])
def kernel_allows(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether a file system may grow in use: without CAP_SYS_RESOURCE the kernel says EPERM."""
    if not request.param:

        def refuse(at: Path, size: int) -> None:
            raise PermissionError(errno.EPERM, "Operation not permitted", str(at))

        monkeypatch.setattr("pannier.storage.image.ext4.grow", refuse)
    elif not _may_grow():
        pytest.skip("this machine does not let a mounted file system grow")
    return bool(request.param)


def _may_grow() -> bool:
    status = Path("/proc/self/status").read_text()
    effective = next(line for line in status.splitlines() if line.startswith("CapEff"))
    return bool(int(effective.split()[1], 16) & 1 << 24)


def driver_of(nodes: Nodes) -> ImageDriver:
    assert isinstance(nodes.a, ImageDriver)
    return nodes.a


def can_fill(data: Path, size: int) -> bool:
    """Whether a file of that size fits."""
    file = data / "filler"
    fd = os.open(file, os.O_CREAT | os.O_WRONLY)
    try:
        os.posix_fallocate(fd, 0, size)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        return False
    finally:
        os.close(fd)
        file.unlink()
    return True


async def test_it_has_the_room_that_it_is_given(image_nodes: Nodes, kernel_allows: bool) -> None:
    driver = driver_of(image_nodes)
    data = await image_nodes.create()
    (data / "kept").write_text("this")
    held = (data / "kept").open("a")
    assert not can_fill(data, SIZE + 20 * MEBIBYTE)
    driver.give_room(image_nodes.volume, LARGER)
    await image_nodes.attached(driver, epoch=1)
    assert can_fill(data, LARGER - 5 * MEBIBYTE) == kernel_allows
    held.close()
    await driver.detach(image_nodes.volume, epoch=1)
    await image_nodes.attached(driver, epoch=1)
    assert can_fill(data, LARGER - 5 * MEBIBYTE)
    assert not can_fill(data, LARGER + 20 * MEBIBYTE)
    assert (data / "kept").read_text() == "this"
    before = os.statvfs(data).f_blocks
    driver.give_room(image_nodes.volume, SIZE)
    await driver.detach(image_nodes.volume, epoch=1)
    await image_nodes.attached(driver, epoch=1)
    assert os.statvfs(data).f_blocks == before
    assert await driver.check_file_system(image_nodes.volume, None) == ()


async def test_a_copy_is_as_large(image_nodes: Nodes, kernel_allows: bool) -> None:
    """What it lacks of the larger one comes as a difference."""
    driver = driver_of(image_nodes)
    data = await image_nodes.create()
    first = await image_nodes.save(driver, epoch=1)
    await image_nodes.transfer(driver, image_nodes.b, first)
    driver.give_room(image_nodes.volume, LARGER)
    await driver.detach(image_nodes.volume, epoch=1)
    await image_nodes.attached(driver, epoch=1)
    (data / "big").write_bytes(os.urandom(MEBIBYTE) * 150)
    second = await image_nodes.save(driver, epoch=1)
    await image_nodes.transfer(driver, image_nodes.b, second, first)
    await image_nodes.b.promote(
        image_nodes.volume, second, epoch=2, size_bytes=None, on_top=OnTop.NOTHING
    )
    there = await image_nodes.attached(image_nodes.b, epoch=2)
    assert os.statvfs(there).f_blocks == os.statvfs(data).f_blocks
    assert (there / "big").read_bytes() == (data / "big").read_bytes()


async def test_power_fails_while_it_grows(
    image_nodes: Nodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is as it was, and grows the next time."""
    driver = driver_of(image_nodes)
    data = await image_nodes.create()
    (data / "kept").write_text("this")
    await driver.detach(image_nodes.volume, epoch=1)
    driver.give_room(image_nodes.volume, LARGER)

    class Cut(Exception):
        """As the end of the process."""

    def cut(*_: object) -> None:
        raise Cut

    def refuse(at: Path, size: int) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted", str(at))

    monkeypatch.setattr("pannier.storage.image.ext4.grow", refuse)
    for step in ("ext4.grow_unmounted", "ext4.mend"):
        with monkeypatch.context() as patch:
            patch.setattr(f"pannier.storage.image.{step}", cut)
            with pytest.raises(Cut):
                await image_nodes.attached(driver, epoch=1)
        await driver.open()
    await image_nodes.attached(driver, epoch=1)
    assert (data / "kept").read_text() == "this"
    assert can_fill(data, LARGER - 5 * MEBIBYTE)


async def test_what_cannot_grow_goes_on_as_it_is(
    image_nodes: Nodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = driver_of(image_nodes)
    data = await image_nodes.create()
    (data / "kept").write_text("this")
    await driver.detach(image_nodes.volume, epoch=1)
    driver.give_room(image_nodes.volume, LARGER)

    def fail(*_: object) -> None:
        raise StorageError("resize2fs refused")

    def refuse(at: Path, size: int) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted", str(at))

    monkeypatch.setattr("pannier.storage.image.ext4.grow", refuse)
    monkeypatch.setattr("pannier.storage.image.ext4.grow_unmounted", fail)
    await image_nodes.attached(driver, epoch=1)
    assert (data / "kept").read_text() == "this"
    assert can_fill(data, SIZE - 5 * MEBIBYTE)


@pytest.mark.parametrize(("room", "now"), [(300 << 20, 200 << 20), (1 << 40, 1 << 30)])
def test_the_size_for_some_room_has_a_little_more(room: int, now: int) -> None:
    size = ext4.size_for(room, now=now, size=now + (16 << 20))
    assert size % 4096 == 0
    assert room + (16 << 20) < size < (room + (16 << 20)) * 1.06


async def test_one_that_is_frozen_is_not_waited_for(
    image_nodes: Nodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody else has frozen it, as an agent for backups. The kernel would wait, and the volume's lock would be held."""
    driver = driver_of(image_nodes)
    data = await image_nodes.create()
    asked: list[int] = []
    monkeypatch.setattr("pannier.storage.image.ext4.grow", lambda at, size: asked.append(size))
    place = data.parent
    driver.give_room(image_nodes.volume, LARGER)
    assert ext4.freeze(place)
    try:
        with capture_logs() as logs:
            await image_nodes.attached(driver, epoch=1)
        assert not asked
        assert [f"fsfreeze --unfreeze {place}" in each.get("error", "") for each in logs] == [True]
        assert not ext4.freeze(place), "it is as frozen as it was"
    finally:
        ext4.thaw(place)
    await image_nodes.attached(driver, epoch=1)
    assert asked
    (data / "written").touch()
