"""Backups and clones of all volumes of a service, as of one moment; whole nodes in virtual time, and the backups without a target."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from copies_world import CopiesWorld
from fake_driver import SparseSnapshotDriver
from test_one_moment import named, service
from world import ACTOR, Fault, Machine, event_loop_policy

from pannier.backups.progress import unreported
from pannier.backups.services import ServiceBackups
from pannier.contract.backup_progress import BackupProgress
from pannier.contract.views import BackupView, SnapshotView
from pannier.contract.volumes import VolumeView
from pannier.contract.words import BackupPhase
from pannier.core.clones import name_of_clone
from pannier.core.errors import (
    AlreadyExists,
    BackupFailed,
    InvalidInput,
    NotFound,
    PannierError,
    TargetUnavailable,
)
from pannier.core.pace import BackupPace
from pannier.host.clock import Clock

__all__ = ["event_loop_policy"]


@pytest_asyncio.fixture
async def world(tmp_path: Path) -> AsyncIterator[CopiesWorld]:
    async with CopiesWorld(tmp_path, driver=SparseSnapshotDriver) as world:
        yield world


async def clone(
    machine: Machine, name_as: str = "{}-test", *, of: str = "web", **options: str
) -> list[VolumeView]:
    return await machine.ask(
        lambda run: run.service.by(ACTOR).clone_service(of, name_as=name_as, options=options)
    )


def test_names_of_clones() -> None:
    assert name_of_clone("test_{}", "shop_db") == "test_shop_db"
    for pattern in ("test", "{}{}", "{}/x", "{}" + "x" * 128):
        with pytest.raises(InvalidInput):
            name_of_clone(pattern, "shop_db")


@pytest.mark.parametrize("holders", ["aa", "abc"])
async def test_all_volumes_of_a_service_are_cloned_as_of_one_moment(
    world: CopiesWorld, holders: str
) -> None:
    volumes = await service(world, holders)
    made = await clone(world.c, copies="1")
    assert [each.name for each in made] == [f"{name}-test" for name in volumes]
    assert [each.holder for each in made] == list(holders)
    ((moment,), *others) = named(world, volumes)
    assert others == [[moment]] * (len(holders) - 1)
    assert [each.cloned_from for each in made] == [f"{name}@{moment}" for name in volumes]


async def test_where_a_name_is_taken_nothing_is_done(world: CopiesWorld) -> None:
    volumes = await service(world, "ab")
    await world.create(world.c, "web-2-test")
    with pytest.raises(AlreadyExists, match="web-2-test exists; nothing was cloned"):
        await clone(world.c)
    with pytest.raises(InvalidInput, match="does not say where"):
        await clone(world.c, "test")
    with pytest.raises(NotFound, match="no service nosuch"):
        await clone(world.c, of="nosuch")
    assert named(world, volumes) == [[], []]


async def test_a_holder_that_dies_meanwhile_leaves_no_clone_of_the_others(
    world: CopiesWorld,
) -> None:
    await service(world, "ab")
    world.fail_at_label("driver.clone", Fault.CUT_BEFORE, of="b")
    with pytest.raises(PannierError):
        await clone(world.c, copies="1")
    await world.b.start()
    await asyncio.sleep(3 * world.pace.holding.unborn_look)
    known = await world.a.ask(lambda run: run.service.by(ACTOR).volumes())
    assert {each.name for each in known} == {"web-1", "web-2"}
    made = await clone(world.c, copies="1")
    assert [each.name for each in made] == ["web-1-test", "web-2-test"]


# -- backups ----------------------------------------------------------------------------------------


class Parts:
    """What backups of a service need: the cluster, its targets, its snapshots and the backups of single volumes.

    Attributes:
        failing: volumes whose backup fails.
    """

    def __init__(self) -> None:
        self.failing: set[str] = set()
        self.name = "offsite"
        self.snapshots_made: list[str] = []
        self.put_there: list[tuple[str, str]] = []

    async def chosen(self, target: str | None) -> Parts:
        return self

    async def create(self, service: str, snapshot: str, **more: Any) -> list[SnapshotView]:
        self.snapshots_made.append(snapshot)
        return [
            SnapshotView(volume=each, name=snapshot, generation="1.1", made_at="")
            for each in ("one", "two")
        ]

    async def fresh(self, name: str) -> Parts:
        self.record = name
        return self

    async def put(
        self, volume: Any, made: SnapshotView, target: str, plan: None, **more: Any
    ) -> BackupView:
        more["report"](BackupProgress(phase=BackupPhase.READING, node="n1"))
        if made.volume in self.failing:
            raise TargetUnavailable("it does not answer")
        self.put_there.append((made.volume, made.name))
        return BackupView(
            target=target, id="1f", volume=made.volume, volume_id="", generation="", made_at=""
        )


def backups_of(parts: Any) -> ServiceBackups:
    return ServiceBackups(
        cluster=parts,
        snapshots=parts,
        backups=parts,
        targets=parts,
        clock=Clock(now=lambda: 0.0, unix=lambda: 1_767_268_800.0),
        pace=BackupPace(),
    )


async def test_all_volumes_are_put_there_from_snapshots_of_one_name() -> None:
    parts, steps = Parts(), list[BackupProgress]()
    made = await backups_of(parts).run("web", target=None, actor=ACTOR, report=steps.append)
    assert [each.volume for each in made] == ["one", "two"]
    assert parts.snapshots_made == ["backup-offsite-20260101T120000Z"]
    assert parts.put_there == [(each, parts.snapshots_made[0]) for each in ("one", "two")]
    assert [each.volume for each in steps] == ["one", "two"]


async def test_one_that_fails_keeps_no_other_from_being_there() -> None:
    parts = Parts()
    parts.failing = {"one"}
    with pytest.raises(
        BackupFailed, match=r"1 of 2 volumes of service web .* one: it does not answer"
    ):
        await backups_of(parts).run("web", target=None, actor=ACTOR, report=unreported)
    assert [volume for volume, _ in parts.put_there] == ["two"]
