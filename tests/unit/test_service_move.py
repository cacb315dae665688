"""A service's move from end to end, on a Swarm, engines and volumes in memory and in virtual time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from swarm_world import SwarmWorld, event_loop_policy, volume

from pannier.contract.views import HookView, MoveProgress, NodeView, ServiceMoveProgress
from pannier.contract.volumes import LiveVolumeView
from pannier.contract.words import HolderState, MovePhase, NodeState
from pannier.core.errors import (
    Conflict,
    EngineUnavailable,
    OutcomeUnknown,
    PannierError,
    PeerUnavailable,
    PoolFull,
    Stale,
    Unavailable,
    VolumeInUse,
)
from pannier.core.hooks import Moment
from pannier.core.pace import Pace
from pannier.core.swarm import ServiceMount, SwarmService, SwarmTask, volume_label
from pannier.engine.base import Container, Executed
from pannier.host.clock import Clock
from pannier.host.state_files import UnsyncedFile
from pannier.swarm.hooks import Hooks
from pannier.swarm.service_plan import Wish
from pannier.swarm.services import Services
from pannier.testing.engine import FakeEngine, FakeSwarm

__all__ = ["event_loop_policy"]

LABEL = f"node.labels.{volume_label('home')} == copy"
QUIET = {
    "pannier.hook.pre-move": "quiet",
    "pannier.hook.pre-move.timeout": "30s",
    "pannier.hook.post-move": "loud",
}
WISH = Wish(now=False, stay=False, timeout_seconds=600.0, actor="anna")


class ActingSwarm(FakeSwarm):
    """The manager's Swarm: it ends and starts tasks as its services' constraints ask."""

    def __init__(self, world: ServiceWorld) -> None:
        super().__init__(world.swarms.swarm, node="id-a")
        self._world = world
        self.mishaps: list[Exception] = []
        """What the next changes of a service answer; Stale changes nothing, others are made."""

    async def update_service(
        self, service: SwarmService, *, constraints: Sequence[str], labels: Mapping[str, str]
    ) -> None:
        mishap = self.mishaps.pop(0) if self.mishaps else None
        if isinstance(mishap, Stale):
            await super().update_service(
                service, constraints=service.constraints, labels={**service.labels, "by": "other"}
            )
            raise mishap
        await super().update_service(service, constraints=constraints, labels=labels)
        self._world.said.append(f"constraints {' '.join(constraints)}")
        self._world.schedule(constraints)
        if mishap is not None:
            raise mishap


class ServiceWorld:
    """A service ``ci`` with the volumes ``home`` and ``cache`` on node ``a``, which is the manager.

    Attributes:
        said: what happened, in order.
        fate: what becomes of tasks on a node: ``running`` or ``rejected``.
    """

    def __init__(self, directory: Path, *, labels: Mapping[str, str] = QUIET) -> None:
        self.swarms = SwarmWorld(directory, "abc", managers=1)
        self.said: list[str] = []
        self.fate: dict[str, str] = {}
        self.labels = labels
        self.in_use_by = ["container ci.1.t1 (service ci)"]
        self.free_bytes = 20_000
        self.copy_seconds = 5.0
        self.cut: set[str] = set()
        self._directory = directory
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> ServiceWorld:
        world = await self.swarms.__aenter__()
        for name in ("home", "ci-cache"):
            await world.put_volume(volume(name, "a", "b"))
        catalog = world.catalogs["a"]
        while len(catalog.volumes()) < 2:
            await asyncio.sleep(0.1)
        self.engines = {name: FakeEngine() for name in "abc"}
        for engine in self.engines.values():
            engine.commands = {"quiet": Executed(0, ""), "loud": Executed(0, "")}
        self.hooks = {
            name: Hooks(
                node=name,
                engine=engine,
                catalog=catalog,
                file=UnsyncedFile(self._directory / f"{name}.json"),
                pace=Pace().swarm,
            )
            for name, engine in self.engines.items()
        }
        for hooks in self.hooks.values():
            self._start(hooks.run())
        self.swarm = ActingSwarm(self)
        self.services = Services(
            node="a",
            swarm=self.swarm,
            catalog=catalog,
            hooks=self.hooks["a"],
            peers=self,
            cluster=self,
            clock=Clock(now=asyncio.get_running_loop().time, unix=time.time),
            pace=Pace().swarm,
        )
        service = SwarmService(
            id="id-ci",
            name="ci",
            constraints=(LABEL,),
            mounts=(ServiceMount(source="home"), ServiceMount(source="{{.Service.Name}}-cache")),
            container_labels=self.labels,
        )
        world.swarm.services.append(service)
        for name in "ab":
            changed = replace(world.node(name), labels={volume_label("home"): "copy"})
            world.swarm.put(changed)
        self._run("t1", "a")
        return self

    async def __aexit__(self, *end: Any) -> None:
        await self.services.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.swarms.__aexit__(*end)

    def _start(self, work: Any) -> None:
        self._tasks.add(asyncio.create_task(work))

    # -- Swarm's part -----------------------------------------------------------------------------

    def schedule(self, constraints: Sequence[str]) -> None:
        """Begin to bring the one task to where the constraints want it."""
        wanted = [c.partition("==")[2] for c in constraints if c.startswith("node.hostname==")]
        here = self.running()
        if wanted and (here is None or here.node != f"id-{wanted[0]}"):
            self._start(self._bring(wanted[0]))

    async def _bring(self, name: str) -> None:
        number = len(self.swarms.swarm.tasks) + 1
        here = self.running()
        if here is not None:
            self._put(replace(here, wanted=False))
            await asyncio.sleep(2.0)
            self._put(replace(here, state="shutdown", wanted=False))
            self.said.append(f"{here.node} ended")
            self.engines[here.node[-1]].take(f"c-{here.id}")
        while self.fate.get(name) == "rejected":
            await asyncio.sleep(1.0)
            failed = SwarmTask(
                id=f"t{number}", service="id-ci", node=f"id-{name}", state="rejected", wanted=False,
                message="no such image",
            )  # fmt: skip
            self._put(failed)
            number += 1
        await asyncio.sleep(1.0)
        self._run(f"t{number}", name)
        self.said.append(f"id-{name} started")

    def _run(self, task: str, name: str) -> None:
        self._put(
            SwarmTask(id=task, service="id-ci", node=f"id-{name}", state="running", wanted=True)
        )
        container = Container(
            id=f"c-{task}", name=f"ci.1.{task}", service="ci", running=True, labels=self.labels
        )
        self.engines[name].put(container)

    def _put(self, task: SwarmTask) -> None:
        tasks = self.swarms.swarm.tasks
        tasks[:] = [each for each in tasks if each.id != task.id] + [task]

    def running(self) -> SwarmTask | None:
        found = [t for t in self.swarms.swarm.tasks if t.wanted and t.state == "running"]
        return found[0] if found else None

    def service(self) -> SwarmService:
        return self.swarms.swarm.services[0]

    # -- the rest of the cluster ------------------------------------------------------------------

    async def node(self, name: str) -> NodeView:
        return NodeView(
            name=name, address="", state=NodeState.UP, drivers=["btrfs"], version="", volumes=0,
            joined_at="", pool_free_bytes=self.free_bytes,
        )  # fmt: skip

    async def volume(self, name: str) -> LiveVolumeView:
        return LiveVolumeView(
            name=name, id=name, holder="a", holder_state=HolderState.UP, epoch=1, driver="btrfs",
            options={}, created_at="", generation="1.1", generations=["1.1"], used_bytes=6000,
            in_use_by=self.in_use_by, copies=[], copies_on=["a"], mountpoint="", transfer=None,
            sync_calls=0, sync_waiting_seconds=0.0,
        )  # fmt: skip

    async def move_volume(
        self, name: str, node: str, *, wait_seconds: float, actor: str
    ) -> AsyncIterator[MoveProgress]:
        step = MoveProgress(phase=MovePhase.COPYING, volume=name, source="a", target=node)
        ended = False
        try:
            yield step
            await asyncio.sleep(self.copy_seconds)
            yield replace(step, phase=MovePhase.WAITING)
            here = self.running()
            while here is not None and here.node == "id-a":
                await asyncio.sleep(0.5)
                here = self.running()
            ended = True
            yield replace(step, phase=MovePhase.DONE)
        finally:
            if not ended:
                self.said.append(f"{name} is not wanted any more")

    def to(self, node: Any) -> Any:
        world = self

        class Peer:
            async def peer_hook(
                self, service: str, *, hook: Moment
            ) -> AsyncGenerator[HookView, None]:
                hooks = world.hooks[node.name]
                views = (
                    hooks.before(service, peer="a")
                    if hook is Moment.BEFORE
                    else hooks.after(service)
                )
                async for view in views:
                    if node.name in world.cut:
                        raise PeerUnavailable("the cable is cut")
                    yield view

        return Peer()

    # -- a test's part ----------------------------------------------------------------------------

    async def move(self, node: str = "b", **changes: Any) -> ServiceMoveProgress:
        """Move the service; the last thing that is reported."""
        last = None
        async for progress in self.services.move("ci", node, wish=replace(WISH, **changes)):
            last = progress
        assert last is not None
        return last

    def executed(self) -> list[str]:
        """The hooks that were run: where, in which container, and what."""
        return [
            f"{name} {container} {command}"
            for name, engine in sorted(self.engines.items())
            for container, command in engine.executed
        ]

    def unchanged(self) -> bool:
        """Whether the service is as it was, and runs where it did."""
        here = self.running()
        assert here is not None
        service = self.service()
        return (service.constraints, service.labels, here.id) == ((LABEL,), {}, "t1")


def whats(progress: ServiceMoveProgress) -> list[str]:
    return [step.what for step in progress.steps]


async def test_a_service_moves_with_hooks_in_order_and_its_own_constraints_come_back(
    tmp_path: Path,
) -> None:
    async with ServiceWorld(tmp_path) as world:
        end = await world.move()
        assert whats(end) == [
            "ci runs on a; its volumes are copied to b",
            "copied: home, ci-cache (0 sent)",
            "pre-move hook in ci.1.t1 on a",
            "pre-move hook done",
            "Swarm is told to run it on b",
            "the container on a has ended",
            "ci runs on b",
            "its constraints are as before",
            "post-move hook in ci.1.t2 on b",
            "post-move hook done",
        ]
        assert end.pause_seconds == pytest.approx(1.0, abs=0.3)
        assert world.said == [
            f"constraints {LABEL} node.hostname==b",
            "id-a ended",
            "id-b started",
            f"constraints {LABEL}",
        ]
        assert (world.service().constraints, world.service().labels) == ((LABEL,), {})
        await asyncio.sleep(60)
        assert world.executed() == ["a c-t1 quiet", "b c-t2 loud"]


async def test_a_service_stays_tied_where_that_is_asked_for(tmp_path: Path) -> None:
    async with ServiceWorld(tmp_path) as world:
        await world.move(stay=True, now=True)
        assert world.service().constraints == (LABEL, "node.hostname==b")
        assert world.executed() == ["b c-t2 loud"]
        (view,) = await world.services.all()
        assert (view.nodes, view.tied_to) == (["b"], "node.hostname==b")
        again = await world.move()
        assert again.phase == "done"
        assert world.service().constraints == (LABEL,)


async def test_a_node_without_a_copy_gets_the_label_before_the_constraint_returns(
    tmp_path: Path,
) -> None:
    async with ServiceWorld(tmp_path) as world:
        moving = asyncio.create_task(world.move("c"))
        await asyncio.sleep(20)
        assert world.service().constraints == ("node.hostname==c",)
        node = world.swarms.node("c")
        world.swarms.swarm.put(replace(node, labels={volume_label("home"): "copy"}))
        await moving
        assert (world.service().constraints, world.service().labels) == ((LABEL,), {})


async def test_without_that_label_it_stays_tied_and_says_so(tmp_path: Path) -> None:
    async with ServiceWorld(tmp_path) as world:
        end = await world.move("c")
        assert any("stays tied to c" in what for what in whats(end))
        assert world.service().constraints == ("node.hostname==c",)


async def test_a_service_that_is_there_is_left_alone(tmp_path: Path) -> None:
    async with ServiceWorld(tmp_path) as world:
        end = await world.move("a")
        assert (end.phase, end.steps) == ("done", [])
        assert world.unchanged()
        assert world.executed() == []


# -- refusals ---------------------------------------------------------------------------------------


async def test_what_is_in_the_way_is_told_before_anything_happens(tmp_path: Path) -> None:
    async with ServiceWorld(tmp_path) as world:
        world.in_use_by = [*world.in_use_by, "container backup"]
        with pytest.raises(VolumeInUse, match="also in use on node a by container backup"):
            await world.move()
        world.in_use_by = []
        world.free_bytes = 11_999
        with pytest.raises(PoolFull):
            await world.move("c")
        assert world.unchanged()
        assert world.said == []


async def test_a_worker_names_the_managers(tmp_path: Path) -> None:
    async with ServiceWorld(tmp_path) as world:
        world.services.swarm = FakeSwarm(world.swarms.swarm, node="id-b")
        with pytest.raises(Conflict, match="no manager of its Swarm") as caught:
            await world.move()
        assert caught.value.remedy == "do it on a"


async def test_a_label_that_means_nothing_is_told_before_anything_happens(tmp_path: Path) -> None:
    async with ServiceWorld(tmp_path, labels={"pannier.hook.premove": "true"}) as world:
        with pytest.raises(PannierError, match="premove"):
            await world.move()
        assert world.said == []


# -- hooks that fail --------------------------------------------------------------------------------


async def test_a_pre_move_hook_that_fails_changes_nothing_and_is_undone(tmp_path: Path) -> None:
    async with ServiceWorld(tmp_path) as world:
        world.engines["a"].commands["quiet"] = Executed(7, "jobs are running\n")
        with pytest.raises(Conflict, match=r"exit status 7 \(jobs are running\)") as caught:
            await world.move()
        assert "nothing was changed" in caught.value.remedy
        await asyncio.sleep(30)
        assert world.unchanged()
        assert world.executed() == ["a c-t1 quiet", "a c-t1 loud"]
        assert world.said == ["home is not wanted any more", "ci-cache is not wanted any more"]
        world.engines["a"].commands["quiet"] = Executed(0, "")
        assert (await world.move()).phase == "done"


async def test_a_pre_move_hook_that_hangs_ends_at_its_timeout(tmp_path: Path) -> None:
    async with ServiceWorld(tmp_path) as world:
        del world.engines["a"].commands["quiet"]
        with pytest.raises(Conflict, match="it was ended after its 30 s"):
            await world.move()
        await asyncio.sleep(30)
        assert world.unchanged()
        assert world.executed() == ["a c-t1 quiet", "a c-t1 loud"]


async def test_a_pre_move_hook_may_fail_where_its_label_says_so(tmp_path: Path) -> None:
    labels = QUIET | {"pannier.hook.pre-move.on-failure": "continue"}
    async with ServiceWorld(tmp_path, labels=labels) as world:
        world.engines["a"].commands["quiet"] = Executed(7, "")
        end = await world.move()
        assert "the pre-move hook failed: exit status 7" in whats(end)
        assert end.phase == "done"


async def test_a_post_move_hook_that_fails_is_told_and_the_service_stays(tmp_path: Path) -> None:
    async with ServiceWorld(tmp_path) as world:
        world.engines["b"].commands["loud"] = Executed(1, "")
        assert whats(await world.move())[-1] == "the post-move hook failed: exit status 1"
    labels = QUIET | {"pannier.hook.post-move.on-failure": "abort"}
    async with ServiceWorld(tmp_path / "again", labels=labels) as world:
        world.engines["b"].commands["loud"] = Executed(1, "")
        with pytest.raises(Conflict, match="runs on b, but the post-move hook failed"):
            await world.move()


# -- interruptions ----------------------------------------------------------------------------------


async def test_a_move_that_nobody_watches_any_more_is_given_up_and_undone(tmp_path: Path) -> None:
    async with ServiceWorld(tmp_path) as world:
        del world.engines["a"].commands["quiet"]
        watching = asyncio.create_task(world.move())
        while world.executed() != ["a c-t1 quiet"]:
            await asyncio.sleep(0.1)
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)
        await asyncio.sleep(30)
        assert world.unchanged()
        assert world.executed() == ["a c-t1 quiet", "a c-t1 loud"]


async def test_once_swarm_is_told_a_move_goes_on_unwatched(tmp_path: Path) -> None:
    async with ServiceWorld(tmp_path) as world:
        watching = asyncio.create_task(world.move())
        while not world.said:
            await asyncio.sleep(0.1)
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)
        await asyncio.sleep(30)
        assert world.executed() == ["a c-t1 quiet", "b c-t2 loud"]
        assert world.service().constraints == (LABEL,)


async def test_who_asks_again_sees_the_same_move_and_who_asks_for_another_is_refused(
    tmp_path: Path,
) -> None:
    async with ServiceWorld(tmp_path) as world:
        first = asyncio.create_task(world.move())
        await asyncio.sleep(1)
        with pytest.raises(Conflict, match="on its way to node b"):
            await world.move("c")
        assert (await world.move()).phase == (await first).phase == "done"
        assert world.executed() == ["a c-t1 quiet", "b c-t2 loud"]


async def test_what_a_dead_daemon_has_begun_is_brought_to_its_end_by_the_same_command(
    tmp_path: Path,
) -> None:
    async with ServiceWorld(tmp_path) as world:
        moving = asyncio.create_task(world.move())
        while not world.said:
            await asyncio.sleep(0.1)
        await world.services.close()
        await asyncio.gather(moving, return_exceptions=True)
        await asyncio.sleep(30)
        assert world.service().constraints == (LABEL, "node.hostname==b")
        assert (await world.move()).phase == "done"
        assert world.service().constraints == (LABEL,)
        assert world.executed()[-1] == "b c-t2 loud"


async def test_a_hook_s_node_undoes_it_when_its_daemon_was_killed(tmp_path: Path) -> None:
    async with ServiceWorld(tmp_path) as world:
        views = world.hooks["a"].before("ci", peer="a")
        async for view in views:
            if view.ended:
                break
        assert world.executed() == ["a c-t1 quiet"]
        after = Hooks(
            node="a",
            engine=world.engines["a"],
            catalog=world.swarms.catalogs["a"],
            file=UnsyncedFile(tmp_path / "a.json"),
            pace=Pace().swarm,
        )
        running = asyncio.create_task(after.run())
        await asyncio.sleep(1)
        assert world.executed() == ["a c-t1 quiet", "a c-t1 loud"]
        running.cancel()
        assert (tmp_path / "a.json").read_text() == '{"format":1,"containers":[]}'
        await views.aclose()


async def test_the_old_container_s_node_is_lost_before_swarm_is_told(tmp_path: Path) -> None:
    async with ServiceWorld(tmp_path) as world:
        await world.move(now=True)  # to b, where the manager's daemon is not
        world.copy_seconds = 0.0
        world.cut.add("b")
        with pytest.raises(PeerUnavailable, match="cable is cut"):
            await world.move("a")
        here = world.running()
        assert here is not None
        assert here.node == "id-b"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"mounts": (ServiceMount(source="home"),)}, "it has other volumes now"),
        ({"id": "id-anew"}, "it has other volumes now"),
        ({"replicas": 2}, "has 2 replicas"),
        ({"constraints": ("node.hostname==a",)}, "excludes it"),
    ],
)
async def test_a_service_that_was_changed_meanwhile_is_looked_at_again(
    tmp_path: Path, change: dict[str, Any], words: str
) -> None:
    async with ServiceWorld(tmp_path) as world:
        moving = asyncio.create_task(world.move())
        await asyncio.sleep(1)
        world.swarms.swarm.services[0] = changed = replace(world.service(), version=9, **change)
        with pytest.raises(Conflict, match=words):
            await moving
        await asyncio.sleep(30)
        assert world.service() == changed
        assert world.executed() == ["a c-t1 quiet", "a c-t1 loud"]


async def test_a_node_whose_room_was_taken_while_it_copied_is_refused(tmp_path: Path) -> None:
    async with ServiceWorld(tmp_path) as world:
        services, tasks = world.swarms.swarm.services, world.swarms.swarm.tasks
        services[0] = replace(world.service(), host_ports=("8080/tcp",))
        moving = asyncio.create_task(world.move())
        await asyncio.sleep(1)
        services.append(replace(services[0], id="id-other", name="other", mounts=()))
        other = SwarmTask(id="o1", service="id-other", node="id-b", state="running", wanted=True)
        tasks.append(other)
        with pytest.raises(Conflict, match="on b service other does so already"):
            await moving
        tasks.remove(other)
        await asyncio.sleep(30)
        assert world.unchanged()
        assert world.executed() == ["a c-t1 quiet", "a c-t1 loud"]


async def test_a_container_that_was_replaced_after_its_hook_is_not_moved(tmp_path: Path) -> None:
    async with ServiceWorld(tmp_path) as world:
        del world.engines["a"].commands["quiet"]
        world.labels = QUIET | {"pannier.hook.pre-move.on-failure": "continue"}
        world._run("t1", "a")
        moving = asyncio.create_task(world.move())
        while not world.executed():
            await asyncio.sleep(0.1)
        world._put(replace(world.swarms.swarm.tasks[0], state="failed", wanted=False))
        world._run("t2", "a")
        with pytest.raises(Conflict, match="its container is another one now"):
            await moving


@pytest.mark.parametrize(
    "mishap",
    [
        Stale("somebody was faster"),
        OutcomeUnknown("no answer came"),
        EngineUnavailable("there is no leader"),
    ],
)
async def test_a_change_that_is_refused_or_unanswered_is_looked_at_and_done(
    tmp_path: Path, mishap: Exception
) -> None:
    async with ServiceWorld(tmp_path) as world:
        world.swarm.mishaps = [mishap]
        end = await world.move()
        assert end.phase == "done"
        assert world.said.count(f"constraints {LABEL} node.hostname==b") == 1
        assert world.service().constraints == (LABEL,)
        assert ("by" in world.service().labels) is isinstance(mishap, Stale), "their change stays"


@pytest.mark.parametrize(("seconds", "ends"), [(50.0, True), (70.0, False)])
async def test_a_swarm_that_loses_its_leader_after_it_was_told_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seconds: float, ends: bool
) -> None:
    async with ServiceWorld(tmp_path) as world:
        real, now = world.swarm.tasks, asyncio.get_running_loop().time
        back_at = None

        async def tasks(*, service: str | None = None) -> list[SwarmTask]:
            nonlocal back_at
            if world.said and back_at is None and any("node.hostname==b" in w for w in world.said):
                back_at = now() + seconds
            if back_at is not None and now() < back_at:
                raise EngineUnavailable("there is no leader")
            return await real(service=service)

        monkeypatch.setattr(world.swarm, "tasks", tasks)
        if ends:
            assert (await world.move()).phase == "done"
        else:
            with pytest.raises(Unavailable, match="there is no leader"):
                await world.move()


async def test_a_service_that_does_not_come_up_says_why_and_how_to_go_back(tmp_path: Path) -> None:
    async with ServiceWorld(tmp_path) as world:
        world.fate["b"] = "rejected"
        with pytest.raises(Unavailable, match="Swarm says: no such image") as caught:
            await world.move()
        assert "go back: pannier service move ci a --now" in caught.value.remedy
        world.fate["b"] = "running"
        await asyncio.sleep(30)
        end = await world.move()
        assert end.phase == "done"
        assert world.service().constraints == (LABEL,)
