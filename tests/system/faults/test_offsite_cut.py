"""Backups off-site while nodes lose power, and at targets that are slow or full."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from cluster_world import IMAGE, World
from fault_world import Faults, Log, uptime, wait_until
from offsite import AT, HELD, add, add_sftp

from pannier.lab.errors import LabError

pytestmark = [pytest.mark.system, pytest.mark.timeout(400)]

TARGET = "faraway"
BULK = 96
"""Mebibytes: restic reads them for some seconds on these machines."""


@contextmanager
def keeping(log: Log, *, bulk: int) -> Iterator[str]:
    """The node that is neither the volume's holder nor a copy keeps a repository, and the volume has something to read."""
    world, keeper = log.world, log.witness
    assert keeper
    add_sftp(world, keeper, TARGET, server=keeper)
    world.write(log.holder, log.volume, mebibytes=bulk)
    world.lab.flush()
    try:
        yield keeper
    finally:
        world.run(keeper, "pannier", "backup", "target", "rm", TARGET)
        world.run(keeper, "rm", "-rf", f"{AT}/{TARGET}")


@contextmanager
def small_target(world: World, node: str) -> Iterator[str]:
    """A target that one node has, with room for little."""
    name = "small"
    at = f"{AT}/{name}"
    world.sh(node, f"mkdir -p {at}; mount -t tmpfs -o size=40M tmpfs {at}")
    try:
        add(world, node, name, at)
        try:
            yield name
        finally:
            world.run(node, "pannier", "backup", "target", "rm", name)
    finally:
        world.sh(node, f"umount {at}; rmdir {at}")


def backups(world: World, node: str, log: Log) -> list[str]:
    return [
        each["id"] for each in world.printed(node, "backup", "ls", log.volume, "--target", TARGET)
    ]


def reads(world: World, node: str, what: str) -> bool:
    """Whether restic does its work there: it has begun, and is not just looking which repository it has."""
    return world.attempt(node, "pgrep", "-f", f"^restic .*{what} ").status == 0


def nothing_is_left(world: World) -> None:
    """No mount and no file of a backup or a restore on any node, and no scratch volume."""

    def tidy() -> bool:
        try:
            held = world.on_all(lambda node: world.sh(node, HELD).split())
            volumes = world.json("node1", "volume", "ls")
        except LabError:
            return False
        return not any(held) and not [v for v in volumes if v["name"].startswith("drill-")]

    wait_until("nothing is left", tidy)


def bulk_of(world: World, node: str, volume: str) -> str:
    return world.container(node, volume, "md5sum", "/data/bulk")


@pytest.mark.faults
@pytest.mark.parametrize("who", ["holder", "reader"])
def test_f71_f74_power_fails_in_the_middle_of_a_backup(faults: Faults, who: str) -> None:
    """Where the reader is lost the holder reads. Where the holder is lost a copy takes over. What is listed is whole."""
    log, writer = faults.writing()
    world, replica = faults.world, log.replica
    with keeping(log, bulk=BULK) as keeper:
        begun = world.start(
            world.attempt, keeper, "pannier", "backup", "run", log.volume, "-o", "json"
        )
        wait_until("the copy is read", lambda: reads(world, replica, "backup"))
        victim = log.holder if who == "holder" else replica
        crashed_at = uptime()
        world.lab.crash(victim)
        if who == "holder":
            writer = log.write(replica)
        writer.goes_on()
        done = begun.result()
        assert "Traceback" not in done.text
        listed = backups(world, keeper, log)
        assert len(listed) == (1 if done.status == 0 else 0), done.text
        faults.boot(victim)
        nothing_is_left(world)
        again = world.printed(keeper, "backup", "run", log.volume)
        assert backups(world, keeper, log) == [*listed, again["id"]]
        log.stop(writer)
        for number, each in enumerate((*listed, again["id"])):
            new = f"{log.volume}-back-{number}"
            world.volumes.append(new)
            world.run(
                keeper,
                "pannier",
                "backup",
                "restore",
                f"{log.volume}@{each}",
                new,
                "--option",
                "copies=1",
            )
            assert bulk_of(world, keeper, new) == bulk_of(world, writer.node, log.volume)
        world.attempt(
            victim,
            "docker",
            "rm",
            "-f",
            *(each.container for each in log.writers if each.node == victim),
        )
    reader = "the node that reads a backup"
    faults.finish(
        log, at=writer.node, since=crashed_at,
        allowed=None,  # F01 and F03 judge that
        fault=f"F74 F71 {'the holder' if who == 'holder' else reader} loses power in the middle of it",
        outcome="what is listed at the target is whole; the next backup is made",
    )  # fmt: skip


@pytest.mark.faults
@pytest.mark.parametrize("at", ["restore", "check"])
def test_f72_power_fails_in_the_middle_of_a_drill(faults: Faults, at: str) -> None:
    """On the holder, which writes on after its boot. Neither volume nor container of the drill stays, and one is made by itself."""
    log, writer = faults.writing("--restart", "always")
    world, node = faults.world, log.holder
    with keeping(log, bulk=BULK) as keeper:
        made = world.printed(keeper, "backup", "run", log.volume)
        world.run(node, "pannier", "volume", "set", log.volume, "-o", f"drill={TARGET}:daily")
        check = ("--image", IMAGE, "--check", "echo begun; sleep 1000") if at == "check" else ()
        begun = world.start(world.attempt, node, "pannier", "backup", "drill", log.volume, *check)

        def under_way() -> bool:
            if at == "restore":
                return reads(world, node, "restore")
            names = world.run(node, "docker", "ps", "--format", "{{.Names}}").split()
            return any(each.startswith("drill-") for each in names)

        wait_until("the drill is under way", under_way)
        world.lab.flush()  # so that Docker, too, knows its container after the power cut
        crashed_at = uptime()
        world.lab.crash(node)
        assert begun.result().status != 0
        faults.boot(node)

        def good() -> bool:
            drills = world.json(node, "backup", "drills")
            return any((each["backup"], each["failure"]) == (made["id"], "") for each in drills)

        wait_until("a drill is made by itself", good)
        nothing_is_left(world)
        containers = world.run(node, "docker", "ps", "-a", "--format", "{{.Names}}").split()
        assert not [each for each in containers if each.startswith("drill-")]
        writer.goes_on()
        log.stop(writer)
    faults.finish(
        log, at=node, since=crashed_at, allowed=None,
        fault=f"F72 power fails in the middle of a drill's {at}",
        outcome="nothing of the drill stays; the next one is good",
    )  # fmt: skip


@pytest.mark.faults
def test_f73_a_target_is_slow_and_then_full(faults: Faults) -> None:
    """The writer feels neither, and the backups before stay as they were."""
    log, writer = faults.writing()
    world, replica = faults.world, log.replica
    with keeping(log, bulk=8) as keeper:
        began = uptime()
        lossy = f"INPUT -s {faults.address(replica)} -p tcp --dport 22 -m statistic --mode random --probability 0.2"
        with faults.dropping(keeper, lossy):
            begun = world.start(
                world.attempt, log.holder, "pannier", "backup", "run", log.volume, "-o", "json"
            )
            wait_until("the copy is read", lambda: reads(world, replica, "backup"))
            writer.goes_on(records=100)
        assert begun.result().status == 0, begun.result().text
        assert len(backups(world, keeper, log)) == 1
        with small_target(world, replica) as small:
            kept = world.printed(log.holder, "backup", "run", log.volume, "--target", small)
            assert kept["node"] == replica
            world.write(log.holder, log.volume, mebibytes=BULK)
            world.refused(
                log.holder, "pannier", "backup", "run", log.volume, "--target", small, says=["it is full"],
            )  # fmt: skip
            there = world.printed(replica, "backup", "ls", log.volume, "--target", small)
            assert [each["id"] for each in there] == [kept["id"]]
            world.run(replica, "pannier", "backup", "drill", log.volume, "--target", small)
        writer.goes_on()
        nothing_is_left(world)
        log.stop(writer)
    faults.finish(
        log, at=log.holder, since=began, allowed=None,
        fault="F73 a backup target is slow, and then full",
        outcome="the writer feels nothing; backups before are as they were",
    )  # fmt: skip
