"""Docker's local volumes that hide ours: the empty ones go by themselves, and nothing else does."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from world import World, event_loop_policy

from pannier.core.errors import Conflict, EngineUnavailable, OutcomeUnknown
from pannier.core.pace import Pace
from pannier.engine.base import Container, LocalVolume
from pannier.node.twins import Twins
from pannier.testing.engine import FakeEngine

__all__ = ["event_loop_policy"]


class WatchedEngine(FakeEngine):
    """Tells what is removed, and lets a test act in between."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[str] = []
        self.meanwhile: list[Exception] = []
        self.docker_asks = self._nothing

    async def _nothing(self) -> None:
        pass

    async def remove_volume(self, name: str) -> bool:
        self.asked.append(name)
        await self.docker_asks()
        if self.meanwhile:
            raise self.meanwhile.pop()
        return await super().remove_volume(name)


@pytest_asyncio.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with World(tmp_path) as world:
        yield world


@pytest.fixture
def engine() -> WatchedEngine:
    return WatchedEngine()


def local(
    engine: FakeEngine, folder: Path, name: str, *, plain: bool = True, content: bool = False
) -> None:
    place = folder / "volumes" / name / "_data"
    place.mkdir(parents=True)
    if content:
        (place / "x").touch()
    engine.local[name] = LocalVolume(name, place, plain=plain)


async def twins_of(world: World, engine: FakeEngine) -> Twins:
    await world.create(world.a, "vol")
    return Twins(catalog=world.a.up.catalog, engine=engine, pace=Pace().node)


async def test_an_empty_one_goes_and_others_stay(
    world: World, engine: WatchedEngine, tmp_path: Path
) -> None:
    twins = await twins_of(world, engine)
    local(engine, tmp_path, "vol")
    local(engine, tmp_path, "other")
    for _ in range(2):
        await twins.clear()
    assert (engine.asked, list(engine.local)) == (["vol"], ["other"])


@pytest.mark.parametrize(
    "wish", [{"content": True}, {"plain": False}], ids=["with content", "a mount"]
)
async def test_what_may_have_content_stays(
    world: World, engine: WatchedEngine, tmp_path: Path, wish: dict[str, bool]
) -> None:
    twins = await twins_of(world, engine)
    local(engine, tmp_path, "vol", **wish)
    await twins.clear()
    assert (engine.asked, list(engine.local)) == ([], ["vol"])
    (twin,) = await twins.find()
    assert not twin.empty


async def test_one_whose_folder_cannot_be_read_stays(world: World, engine: WatchedEngine) -> None:
    twins = await twins_of(world, engine)
    engine.local["vol"] = LocalVolume("vol", Path("/nowhere/at/all"), plain=True)
    await twins.clear()
    assert engine.asked == []


async def test_one_that_a_container_has_goes_after_that(
    world: World, engine: WatchedEngine, tmp_path: Path
) -> None:
    twins = await twins_of(world, engine)
    local(engine, tmp_path, "vol")
    engine.put(Container(id="c", name="c", service=None, running=False), volumes=("vol",))
    await twins.clear()
    assert list(engine.local) == ["vol"]
    engine.take("c")
    await twins.clear()
    assert not engine.local


async def test_docker_cannot_be_made_to_remove_ours_instead(
    world: World, engine: WatchedEngine, tmp_path: Path
) -> None:
    """A person was quicker: the name is ours again, and Docker asks our plugin."""
    twins = await twins_of(world, engine)
    local(engine, tmp_path, "vol")
    refused = []

    async def ask() -> None:
        with pytest.raises(Conflict, match="vol"):
            twins.check("vol")
        refused.append("vol")

    engine.docker_asks = ask
    await twins.clear()
    assert refused == ["vol"]
    twins.check("vol")


@pytest.mark.parametrize("error", [OutcomeUnknown("no answer"), EngineUnavailable("gone")])
async def test_after_an_error_it_is_tried_again(
    world: World, engine: WatchedEngine, tmp_path: Path, error: Exception
) -> None:
    twins = await twins_of(world, engine)
    local(engine, tmp_path, "vol")
    engine.meanwhile.append(error)
    with pytest.raises(type(error)):
        await twins.clear()
    twins.check("vol")
    await twins.clear()
    assert not engine.local


async def test_doctor_says_what_is_to_be_done(world: World, tmp_path: Path) -> None:
    await world.create(world.a, "vol")
    await world.create(world.a, "full")
    local(world.a.engine, tmp_path, "vol")
    local(world.a.engine, tmp_path, "full", content=True)
    findings = await world.a.ask(lambda run: run.service.doctor())
    told = {each.subject: each for each in findings if "local volume" in each.what}
    assert "removed by itself" in told["volume vol"].what
    assert "docker volume rm full" in told["volume full"].remedy
