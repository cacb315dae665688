"""Waiting for the end of use: whoever gives the move up ends it, at whatever moment."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from pannier.core.node import Node
from pannier.core.pace import HoldingPace
from pannier.core.volume import Grant, Volume, VolumeSpec
from pannier.holding.rounds import Moving, Rounds
from pannier.host.clock import machine_clock

VOLUME = Volume(name="v", id="v.1", spec=VolumeSpec(), grant=Grant("a", 1), created_at=0.0)
NODE = Node(name="b", address="", drivers=(), version="1", joined_at=0.0, certificate="c")


class Used:
    """A volume that is always in use, of a driver that cannot copy what is in use; it is not replicated."""

    generations_in_use = False

    def __init__(self) -> None:
        self.event = asyncio.Event()
        self.looked = 0

    async def users(self, volume: Volume) -> list[str]:
        self.looked += 1
        return ["ci"]

    def released(self, volume: Volume) -> asyncio.Event:
        return self.event

    def of(self, volume: Volume) -> Used:
        return self

    async def bring(self, volume: Volume, node: str) -> None:
        return None


@pytest.mark.parametrize("steps", range(5))
async def test_it_can_be_given_up_just_as_a_user_lets_the_volume_go(steps: int) -> None:
    used: Any = Used()
    rounds = Rounds(
        cluster=used,
        drivers=used,
        use=used,
        sender=used,
        replication=used,
        named=used,
        clock=machine_clock(),
        pace=HoldingPace(poll=3600.0),
    )
    forever = float("inf")
    moving = Moving(VOLUME, NODE, started=0.0, wanted_until=forever, started_at=0.0)
    task = asyncio.create_task(rounds.while_used(moving))
    while not used.looked:
        await asyncio.sleep(0)
    await asyncio.sleep(0)
    used.event.set()
    for _ in range(steps):
        await asyncio.sleep(0)
    task.cancel()
    done, _ = await asyncio.wait({task}, timeout=5)
    task.cancel()
    assert done == {task}, "the cancellation was swallowed"
    assert task.cancelled()
