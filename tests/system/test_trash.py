"""Room on one node: a CI that leaves volumes in the trash, and a volume that is too full to clean itself up."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from cluster_world import World
from demo import story
from pool_room import nearly_full

pytestmark = [pytest.mark.system, pytest.mark.timeout(300)]

NODE = "node1"


def kinds(world: World, name: str) -> list[str]:
    return [entry["kind"] for entry in world.json(NODE, "volume", "history", name)]


def stands_still(world: World, name: str) -> str:
    return str(world.json(NODE, "volume", "show", name)["stands_still"])


@contextmanager
def room_of(single: World, left: str) -> Iterator[World]:
    """Little room. A new daemon has not seen how fast that went."""
    with nearly_full(single, NODE, left=left):
        single.run(NODE, "systemctl", "restart", "pannierd")
        single.wait_for_pannier(NODE)
        yield single


@pytest.fixture
def room(single: World) -> Iterator[World]:
    with room_of(single, "2G") as room:
        yield room


@pytest.fixture
def wide_room(single: World) -> Iterator[World]:
    """So much that the half of it is enough for writers to go on, however fast the disk is."""
    with room_of(single, "4500M") as room:
        yield room


def test_a_ci_finds_room_however_many_volumes_it_has_removed(room: World) -> None:
    """One at a time, each removed with its container; together they are more than the pool has."""
    write = "dd if=/dev/zero of=/data/fill bs=1M count=600 conv=fsync 2>&1"
    names = [room.create(NODE, "ci") for _ in range(5)]
    for name in names:
        room.container(NODE, name, "sh", "-c", write)
        room.run(NODE, "docker", "volume", "rm", name)
    left = {each["name"] for each in room.json(NODE, "volume", "trash")}
    gone = [name for name in names if name not in left]
    assert gone == names[: len(gone)] != [], "the oldest first"
    (line,) = room.json(NODE, "volume", "history", gone[0])
    assert (line["kind"], line["node"]) == ("volume.purged", NODE)
    assert "nearly full" in line["detail"]


def test_what_stands_still_is_cleaned_up_from_outside(wide_room: World) -> None:
    room, name = wide_room, wide_room.create(NODE)
    flood, more = f"flood-{name}", "dd if=/dev/zero of=/data/old/bulk bs=1M count=2200 conv=fsync"
    script = f"mkdir /data/old; {more} 2>/dev/null; cat /dev/zero >/data/new"
    room.run(NODE, *room.docker_run(name, "-d", "--name", flood), "sh", "-c", script)
    story.wait_until("it stands still", lambda: stands_still(room, name))
    assert f"volume clean {name}" in room.run(NODE, "pannier", "volume", "show", name)
    # So soon after its start the container may be thought to be starting: then the file system is frozen as well for a moment.
    clean = ("pannier", "volume", "clean", name)
    refused = lambda: "names no file" in room.attempt(NODE, *clean, "../old").text  # noqa: E731
    story.wait_until("only its container is frozen", refused)
    room.refused(NODE, "pannier", "volume", "clean", name, "none", says=["not there"])
    room.run(NODE, "pannier", "volume", "clean", name, "old")
    story.wait_until("it goes on", lambda: "volume.continued" in kinds(room, name))
    story.wait_until("it stands still again", lambda: stands_still(room, name))
    room.run(NODE, "docker", "rm", "-f", flood)
    room.run(NODE, "pannier", "volume", "clean", name, "new")
    story.wait_until("there is room", lambda: not stands_still(room, name))
    room.refused(NODE, "pannier", "volume", "clean", name, "new", says=["not stand still"])
