"""Who uses a volume past the barrier is found and told, however they came to it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import pytest_asyncio
import structlog
from copies_world import CopiesWorld
from msgspec import structs
from structlog.testing import capture_logs
from world import Machine, event_loop_policy

from pannier.agent.usage import Contact, User
from pannier.barrier.barrier import UNKNOWN
from pannier.barrier.syncwrites import UnheldWriter
from pannier.contract.volumes import LiveVolumeView
from pannier.contract.words import Level
from pannier.core.pace import Pace
from pannier.core.volume import Volume
from pannier.node.diagnosis import explain
from pannier.node.unheld import Unheld, outsiders

__all__ = ["event_loop_policy"]


def user(
    container: str | None = "c",
    *,
    pid: int = 7,
    contact: Contact = Contact.WRITES,
    filtered: bool = True,
) -> User:
    return User(pid, container, "app", contact, filtered=filtered)


@pytest.mark.parametrize(
    ("one", "held_in", "outside"),
    [
        (user(), {"c"}, False),
        (user(), {"d"}, True),
        (user(), set(), True),
        (user(), {UNKNOWN}, False),
        (user(filtered=False), {"c"}, True),
        (user(filtered=False), {UNKNOWN}, True),
        (user(None), {"c"}, True),
        (user(None, filtered=False, contact=Contact.MAY_WRITE), set(), False),
        (user(pid=0), set(), False),
        (replace(user(None, filtered=False), command="docker-untar / /x"), set(), False),
    ],
    ids=[
        "a container with a listener",
        "another one",
        "no listener at all",
        "a listener whose container was forgotten",
        "a process that came into the container from outside",
        "the same",
        "a process of this machine's",
        "one that only reads",
        "a second mount",
        "docker cp",
    ],
)
def test_who_is_past_the_barrier(one: User, held_in: set[str], outside: bool) -> None:
    assert outsiders([one], held_in) == ([one] if outside else [])


# -- over time -------------------------------------------------------------------------------------


@pytest_asyncio.fixture
async def world(tmp_path: Path) -> AsyncIterator[CopiesWorld]:
    async with CopiesWorld(tmp_path) as world:
        yield world


def watch(machine: Machine, held: set[str], writers: Sequence[UnheldWriter] = ()) -> Unheld:
    run = machine.up
    return Unheld(
        cluster=run.cluster,
        drivers=run.drivers,
        use=run.use,
        held_in=lambda name: frozenset(held),
        writers=lambda name: [each for each in writers if name in each.volumes],
        pace=Pace().node,
    )


async def look(machine: Machine, unheld: Unheld) -> None:
    await machine.ask(lambda _: unheld.look())


async def volume_of(world: CopiesWorld, name: str = "vol") -> Volume:
    return await world.volume(world.a, name)


async def test_a_listener_may_come_a_moment_later(world: CopiesWorld) -> None:
    """As while the daemon restarts: it waits in the socket."""
    volume, held = await volume_of(world), set[str]()
    unheld = watch(world.a, held)
    container = world.start_container(world.a, "vol")
    await look(world.a, unheld)
    held.add(container)
    for _ in range(2):
        await look(world.a, unheld)
        assert unheld.of(volume) == ()


async def test_what_two_looks_find_is_told_until_it_is_gone(world: CopiesWorld) -> None:
    volume = await volume_of(world)
    unheld = watch(world.a, set())
    container = world.start_container(world.a, "vol")
    for _ in range(2):
        await look(world.a, unheld)
    (name,) = unheld.of(volume)
    assert name == f"container {container}"
    world.stop_container(world.a, container)
    await look(world.a, unheld)
    assert unheld.of(volume) == ()


async def test_every_volume_has_its_turn(world: CopiesWorld) -> None:
    """Long after their Mounts, and many at once."""
    volumes = [await volume_of(world, f"v{number}") for number in range(10)]
    for volume in volumes:
        await world.unmount(world.a, volume.name)
    unheld = watch(world.a, set())
    world.start_container(world.a, "v9")
    world.start_container(world.a, "v5")
    for _ in range(4):
        await look(world.a, unheld)
    assert {each.name for each in volumes if unheld.of(each)} == {"v5", "v9"}


async def test_a_volume_that_went_away_is_not_told(world: CopiesWorld) -> None:
    volume = await volume_of(world)
    unheld = watch(world.a, set())
    container = world.start_container(world.a, "vol")
    for _ in range(2):
        await look(world.a, unheld)
    world.stop_container(world.a, container)
    await world.unmount(world.a, "vol")
    await world.write_once(world.b, "vol")
    await look(world.a, unheld)
    assert unheld.of(volume) == ()


async def test_who_writes_past_the_barrier_is_told_until_it_is_over(world: CopiesWorld) -> None:
    volume, other = await volume_of(world), await volume_of(world, "other")
    container = world.start_container(world.a, "vol")
    of_it = frozenset({"vol"})
    writers = [
        UnheldWriter(container, of_it, 7, "mdb", "/data/lock.mdb"),
        UnheldWriter(container, of_it, 8, "mysqld", None),
    ]
    unheld = watch(world.a, {container}, writers)
    structlog.configure(wrapper_class=structlog.BoundLogger)  # the world lets nothing through
    with capture_logs() as logs:
        for _ in range(2):
            await look(world.a, unheld)
        by_file, by_aio = unheld.writers_of(volume)
        assert by_file.startswith(f"container {container}: process mdb (pid 7) has /data/lock.mdb")
        assert by_aio == f"container {container}: process mysqld (pid 8) uses Linux AIO"
        assert unheld.writers_of(other) == ()
        writers.clear()
        for _ in range(2):
            await look(world.a, unheld)
    assert unheld.writers_of(volume) == ()
    told = [each["event"] for each in logs if each["event"].endswith("writes-not-held")]
    over = [each["event"] for each in logs if each["event"].endswith("all-writes-held")]
    assert (len(told), len(over)) == (1, 1)


async def test_who_writes_past_the_barrier_to_a_volume_that_went_away_is_not_told(
    world: CopiesWorld,
) -> None:
    volume = await volume_of(world)
    unheld = watch(world.a, set(), [UnheldWriter("c", frozenset({"vol"}), 7, "mdb", "/x")])
    await look(world.a, unheld)
    assert unheld.writers_of(volume)
    await world.unmount(world.a, "vol")
    await world.write_once(world.b, "vol")
    await look(world.a, unheld)
    assert unheld.writers_of(volume) == ()


async def test_what_the_barrier_finds_is_shown_wherever_people_look(tmp_path: Path) -> None:
    world = CopiesWorld(tmp_path)
    world.without -= {"unheld"}
    async with world:
        await volume_of(world)
        writers = world.a.up.node.sync_calls.writers
        writers.append(UnheldWriter("c", frozenset({"vol"}), 7, "mdb", "/data/lock.mdb"))
        await asyncio.sleep(2 * Pace().node.unheld_look)
        shown = await world.a.ask(lambda run: run.service.volume("vol"))
        assert isinstance(shown, LiveVolumeView)
        (told,) = shown.unheld_writes
        assert "/data/lock.mdb" in told
        status = await world.a.ask(lambda run: run.service.status())
        assert len([each for each in status.warnings if told in each]) == 1
        findings = await world.a.ask(lambda run: run.service.doctor())
        assert [each.level for each in findings if told in each.what] == [Level.WARNING]
        writers.clear()
        await asyncio.sleep(2 * Pace().node.unheld_look)
        status = await world.a.ask(lambda run: run.service.status())
        assert not [each for each in status.warnings if told in each]


async def test_writes_past_the_barrier_are_a_warning(world: CopiesWorld) -> None:
    volume = await volume_of(world)
    live = await world.a.ask(lambda run: run.service.volume("vol"))
    told = structs.replace(live, unheld_writes=["container c: process mdb (pid 7) uses Linux AIO"])
    findings = explain(
        volume,
        told,  # type: ignore[arg-type]
        is_up=lambda _: True,
        fresh=True,
        suspended=False,
        doubt=20.0,
    )
    (warning,) = [each for each in findings if "Linux AIO:" in each.what]
    assert warning.level is Level.WARNING
    assert "unheld_writes=refuse" in warning.remedy


async def test_an_explanation_names_them(world: CopiesWorld) -> None:
    volume = await volume_of(world)
    live = await world.a.ask(lambda run: run.service.volume("vol"))
    told = structs.replace(live, not_held=["container c"])
    findings = explain(
        volume,
        told,  # type: ignore[arg-type]
        is_up=lambda _: True,
        fresh=True,
        suspended=False,
        doubt=20.0,
    )
    (problem,) = [each for each in findings if each.level is Level.PROBLEM]
    assert "container c are not held" in problem.what
    assert problem.remedy
