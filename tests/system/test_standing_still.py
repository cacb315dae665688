"""What ``test_cgroups`` tries, with control groups of version 2: as every Debian has them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from cluster_world import World
from laboratory import world_on
from test_cgroups import (
    counter,
    pytestmark,
    test_what_a_person_has_paused_stays_so_when_the_lease_is_back,
    test_what_is_unpaused_after_the_end_of_the_lease_makes_no_step,
    test_what_stands_still_can_be_killed_and_leaves_nothing,
)

from pannier.lab import Lab

__all__ = [
    "counter",
    "pytestmark",
    "test_what_a_person_has_paused_stays_so_when_the_lease_is_back",
    "test_what_is_unpaused_after_the_end_of_the_lease_makes_no_step",
    "test_what_stands_still_can_be_killed_and_leaves_nothing",
]


@pytest.fixture
def world(guard_lab: Lab) -> Iterator[World]:
    with world_on(guard_lab) as world:
        yield world


def test_the_machines_have_what_every_debian_has(world: World) -> None:
    for node in world.nodes:
        assert world.run(node, "docker", "info", "-f", "{{.CgroupVersion}}").strip() == "2"
