"""The watch over a node's disks, on a real file system that really hangs. Needs root."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import pytest
from test_driver_kit import Nodes, btrfs_nodes, image_nodes, pools, workplace

from pannier.agent.disks import Disks
from pannier.agent.drivers import Drivers
from pannier.agent.lease import Lease
from pannier.agent.own_name import OwnName
from pannier.agent.renewal import Renewal
from pannier.core.errors import DiskFailed
from pannier.core.lease import Terms
from pannier.core.pace import AgentPace, NodePace
from pannier.host.clock import machine_clock
from pannier.host.state_files import UnsyncedFile
from pannier.storage.base import Driver
from pannier.testing.store import MemoryStore

__all__ = ["btrfs_nodes", "image_nodes", "pools", "workplace"]
pytestmark = pytest.mark.root

PACE = AgentPace(disk_look=0.05, disk_ask=0.2, disk_hang=1.0)
"""A frozen file system is no slow disk: less time tells it."""


@pytest.fixture(params=["btrfs", "image"])
def nodes(request: pytest.FixtureRequest) -> Nodes:
    found: Nodes = request.getfixturevalue(f"{request.param}_nodes")
    return found


@contextmanager
def hanging(pool: Path) -> Iterator[None]:
    """Let all writes to a pool wait. A ``sync`` anywhere on this machine waits as well."""
    subprocess.run(["fsfreeze", "--freeze", pool], check=True)
    try:
        yield
    finally:
        subprocess.run(["fsfreeze", "--unfreeze", pool], check=True)


@asynccontextmanager
async def watched(driver: Driver, run: Path) -> AsyncIterator[tuple[Lease, Drivers]]:
    """A node's watch over its disk; ``run`` is its tmpfs."""
    clock, store, terms = machine_clock(), MemoryStore(), Terms()
    keeper = Renewal(store, node="a", boot_id="1", terms=terms, clock=clock)
    lease = Lease(store, keeper=keeper, name=OwnName("a", "1"), terms=terms, clock=clock)
    drivers = Drivers({driver.name: driver}, default=driver.name, node="a", pace=NodePace())
    file = UnsyncedFile(run / "hanging.json")
    disks = Disks(drivers=drivers, lease=lease, file=file, clock=clock, pace=PACE)
    work = [asyncio.create_task(each) for each in (drivers.keep_open(), disks.run())]
    try:
        await drivers.opened()
        yield lease, drivers
    finally:
        for task in work:
            task.cancel()
        await asyncio.gather(*work, return_exceptions=True)


async def until(what: Callable[[], object]) -> None:
    async with asyncio.timeout(20):
        while not what():
            await asyncio.sleep(0.02)


async def test_a_disk_that_hangs_is_noticed_and_holds_nobody_up(
    nodes: Nodes, tmp_path: Path
) -> None:
    volume = await nodes.create()
    async with watched(nodes.a, tmp_path) as (lease, drivers):
        with hanging(nodes.a.pool):
            await until(lambda: lease.withheld)
            assert "it hangs" in lease.withheld
            assert isinstance(drivers.hanging[nodes.a.name], DiskFailed)
            written = nodes.a.writes_done()
            assert written is not None, "it is asked while the disk hangs"
        await until(lambda: not lease.withheld)
        assert not drivers.hanging
    (volume / "file").write_text("it goes on")


async def test_an_idle_disk_is_asked_and_answers(nodes: Nodes, tmp_path: Path) -> None:
    async with watched(nodes.a, tmp_path) as (lease, _):
        for _ in range(3):
            await _writes(nodes.a)
            assert not lease.withheld


async def test_the_watch_ends_while_the_disk_hangs(nodes: Nodes, tmp_path: Path) -> None:
    """As when the daemon ends: it waits for no answer."""
    async with watched(nodes.a, tmp_path) as (lease, _):
        with hanging(nodes.a.pool):
            await until(lambda: lease.withheld)
            async with asyncio.timeout(5):
                await _ended("disk")


async def _writes(driver: Driver) -> None:
    """Wait until the disk has completed another write."""
    before = driver.writes_done()
    await until(lambda: driver.writes_done() != before)


async def _ended(name: str) -> None:
    """Cancel the tasks of that name, and wait for their end."""
    tasks = [task for task in asyncio.all_tasks() if task.get_name().startswith(name)]
    assert tasks
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
