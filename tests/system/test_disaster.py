"""All machines are lost: new ones, the repository and its password bring every volume back."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from cluster_world import IMAGE, World
from laboratory import world_on

from pannier.lab import Lab

pytestmark = [pytest.mark.system, pytest.mark.faults, pytest.mark.timeout(900)]

AT = "/srv/backups"
PASSWORD = "of-the-repository"


@contextmanager
def machines(word: str) -> Iterator[World]:
    """Three new machines, which are gone after the block, with all that was on them."""
    lab = Lab(f"{word}{os.getpid() % 100000}")
    try:
        lab.up(nodes=3)
        lab.build_busybox(IMAGE)
        with world_on(lab) as world:
            yield world
    finally:
        lab.down()


def add(world: World, *words: str) -> None:
    """The target, at a path of the first machine."""
    world.run("node1", "mkdir", "-p", AT)
    command = ("backup", "target", "add", "offsite", AT, "--password-file", "-", *words)
    world.run("node1", "pannier", *command, input=PASSWORD + "\n")


def test_f75_every_volume_comes_back_after_the_loss_of_all_machines() -> None:
    with machines("q") as world:
        add(world)
        volumes = {
            world.filled("node1", mebibytes=4, files=50, copies="2"): "2",
            world.filled("node1", mebibytes=2, files=10, size="200M"): "1",
        }
        for name in volumes:
            world.run("node1", "pannier", "backup", "run", name)
        before = {name: world.manifest("node1", name) for name in volumes}
        repository = world.sh("node1", f"tar -C {AT} -c . | base64")
    with machines("r") as world:
        world.run("node1", "mkdir", "-p", AT)
        world.run("node1", "sh", "-c", f"base64 -d | tar -C {AT} -x", input=repository)
        says = ["another cluster", "--read-only"]
        target = ("backup", "target", "add", "offsite", AT, "--password-file", "-")
        refused = world.attempt("node1", "pannier", *target, input=PASSWORD + "\n")
        assert refused.status, "a repository of another cluster"
        assert all(each in refused.text for each in says)
        add(world, "--read-only")
        world.volumes += volumes
        every = ("pannier", "backup", "restore-all", "offsite", "--format", "json")
        done = json.loads(world.run("node1", *every))
        assert {each["volume"]: each["state"] for each in done} == dict.fromkeys(
            volumes, "restored"
        )
        assert {name: world.manifest("node1", name) for name in volumes} == before
        for name, copies in volumes.items():
            options = world.json("node1", "volume", "show", name)["options"]
            assert options.get("copies", "1") == copies
        again = json.loads(world.run("node1", *every))
        assert {each["state"] for each in again} == {"there already"}
