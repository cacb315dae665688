"""The Jenkins stack: its node loses power, and it is moved with a large home.

The controller is Hudson 1.398, as in the tests.
"""

from __future__ import annotations

import http.client
import itertools
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime

from demo import jenkins, jenkins_image

from bench.figures import Figure, Result, Rounds, Target
from bench.world import BUSYBOX, MOUNTS, POOL, BenchError, Wish, World, laboratory
from pannier.lab import LabError

_MANAGER = "node1"  # leads the Swarm, and stays
_DOOR = 8080
_BESIDE = ("bench-beside", 8001)  # the service without a volume
_COLD = 8090
_GLANCE_SECONDS = 0.05
_ANSWER_SECONDS = 180
_HEARTBEAT = "docker swarm update --dispatcher-heartbeat 1s"

_LOSS = "power cut to HTTP 200"
_MOVE = "{:,} MiB: from the last HTTP 200 to the first on the other node"

_STACK = (
    "The controller is Hudson 1.398 of the Jenkins stack as it is shipped: copies=2, "
    "durability=fsync; three nodes, Swarm's heartbeat 1 s. It is asked through the door of a node that "
    f"stays, each {_GLANCE_SECONDS * 1000:.0f} ms."
)
_ONCE = {"Connection": "close"}
"""Hudson's web server keeps one of its 40 threads for each connection that could be used again."""


def measure(wish: Wish) -> Result:
    """`pannier service move` of a large home."""
    collected = Rounds()
    mebibytes, rounds = wish.pick(5120, 256), wish.pick(3, 1)
    with hudson_lab(wish, disks="plain") as world:
        _move(world, rounds, mebibytes, collected)
    return _result_of_moves(collected, mebibytes, rounds)


def _result_of_moves(collected: Rounds, mebibytes: int, rounds: int) -> Result:
    what = _MOVE.format(mebibytes)
    return Result(
        title="Jenkins is moved",
        reference="`docker service update --force` of the same service on one node.",
        how=(
            f"{_STACK} {rounds} moves by `pannier service move`, each to a node that has no copy, so "
            f"that the whole home is sent while the controller runs."
        ),
        figures=tuple(_beyond(collected, what, "of these beyond its own stop and start")),
    )


def measure_loss(wish: Wish) -> Result:
    """The controller's node loses power."""
    collected = Rounds()
    losses = wish.pick(3, 1)
    with hudson_lab(wish, disks="cuttable") as world:
        _lose_power(world, losses, collected)
    return Result(
        title="Jenkins' node loses power",
        reference=(
            "a service without a volume, on the same node in the same loss, plus the controller's cold "
            "start on a copy of the same home."
        ),
        how=(
            f"{_STACK} {losses} power cuts of disks that forget what was not flushed, under a running "
            f"build; the service beside it has the same constraint and restart delay; the cold start "
            f"is from the container's start to its own HTTP 200, with nothing else going on."
        ),
        figures=(
            *_beyond(collected, _LOSS, "of these beyond the other service and the cold start"),
            Figure(what="the cold start alone", ours=collected.of("cold", "ours")),
        ),
    )


def _beyond(collected: Rounds, what: str, rest: str) -> Iterator[Figure]:
    ours, theirs = collected.of(what, "ours"), collected.of(what, "theirs")
    yield Figure(what=what, ours=ours, theirs=theirs)
    more = tuple(a - b for a, b in zip(ours, theirs, strict=True))
    yield Figure(what=rest, ours=more, target=Target(at_most=2.0, of="value"))


@contextmanager
def hudson_lab(wish: Wish, *, disks: str) -> Iterator[World]:
    with laboratory("bench-jenkins", say=wish.say, nodes=3, disks=disks) as lab:
        world = World(lab, wish.quick, wish.say)
        lab.build_busybox(BUSYBOX)
        jenkins_image.load(lab)
        world.sh(_MANAGER, _HEARTBEAT)
        yield world


def start_controller(world: World, node: str, name: str, home: str, port: int) -> None:
    """A controller of its own, without Swarm."""
    run = f"docker run -d --name {name} -p {port}:8080 -v {home}:/var/jenkins_home"
    world.sh(node, f"{run} {jenkins_image.CONTROLLER} >/dev/null")


# -- asking ------------------------------------------------------------------------------------------


class _Watch:
    """Asks one address again and again, and keeps when it answered 200; by the wall clock."""

    def __init__(self, address: str, port: int, path: str = "/login") -> None:
        self._where = (address, port, path)
        self._answers: list[float] = []
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._ask_on, daemon=True)

    def __enter__(self) -> _Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def first_after(self, moment: float) -> float:
        """Wait for the first answer to a question asked after ``moment``; when it came."""
        deadline = time.monotonic() + _ANSWER_SECONDS
        while time.monotonic() < deadline:
            found = next((when for when in list(self._answers) if when > moment), None)
            if found is not None:
                return found
            time.sleep(_GLANCE_SECONDS)
        address, port, _ = self._where
        raise BenchError(f"no answer of {address}:{port} within {_ANSWER_SECONDS} s")

    def longest_gap(self, since: float) -> float:
        """The longest time without an answer."""
        known = [when for when in self._answers if when > since]
        return max(after - before for before, after in itertools.pairwise(known))

    def _ask_on(self) -> None:
        while not self._ended.is_set():
            if answers(*self._where):
                self._answers.append(time.time())
            time.sleep(_GLANCE_SECONDS)


def answers(address: str, port: int, path: str) -> bool:
    connection = http.client.HTTPConnection(address, port, timeout=0.5)
    try:
        connection.request("GET", path, headers=_ONCE)
        response = connection.getresponse()
        response.read()
        return response.status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def address_of(world: World, node: str) -> str:
    return next(each.address for each in world.lab.nodes if each.name == node)


def _watch(world: World, node: str, port: int, path: str = "/login") -> _Watch:
    return _Watch(address_of(world, node), port, path)


# -- a power cut -------------------------------------------------------------------------------------


def _lose_power(world: World, rounds: int, collected: Rounds) -> None:
    stack = _deployed(world, at="node2")
    stack.create_job("proof", node=_MANAGER)
    stack.create_job("slow", node=_MANAGER, script=jenkins.SLOW)
    _wait_for_copies(world)
    world.wait("labels", lambda: _is_labelled(world, "node2"))
    stack.deploy(JENKINS_CONSTRAINT=f"node.labels.pannier.volume.{jenkins.HOME} == copy")
    for _ in range(rounds):
        if stack.task().node == _MANAGER:
            world.sh(_MANAGER, f"pannier service move {jenkins.CONTROLLER} node2 --now >/dev/null")
        stack.wait_for_agents(_MANAGER)
        stack.build("proof")
        stack.start_build("slow")
        stack.wait_for_generation()
        victim = stack.task().node
        _start_beside(world, victim)
        with _watch(world, _MANAGER, _DOOR) as door:
            at = time.time()
            world.lab.crash(victim)
            beside = _first_of(world, without=victim) - at
            after = stack.task(not_on=victim)
            answer = door.first_after(at + 0.5) - at
        cold = _cold_start(world, after.node)
        collected.add(_LOSS, "ours", answer)
        collected.add(_LOSS, "theirs", beside + cold)
        collected.add("cold", "ours", cold)
        world.say(f"   answers {answer:.2f} s, beside {beside:.2f} s, cold start {cold:.2f} s")
        world.sh(_MANAGER, f"docker service rm {_BESIDE[0]} >/dev/null")
        world.lab.boot(victim)
        world.wait("all nodes in the Swarm", lambda: _all_ready(world), seconds=120)
        stack.wait_for_agents(*world.nodes)
        _wait_for_copies(world)


def _is_labelled(world: World, node: str) -> bool:
    """Whether Swarm knows that the node has a copy of the home."""
    shown = world.sh(_MANAGER, f"docker node inspect -f '{{{{json .Spec.Labels}}}}' {node}")
    return f"pannier.volume.{jenkins.HOME}" in json.loads(shown)


def _start_beside(world: World, node: str) -> None:
    """A service without a volume beside the controller, free to go where that one may go."""
    name, port = _BESIDE
    pin = f"node.hostname=={node}"
    world.sh(
        _MANAGER,
        f"docker service create --detach --no-resolve-image --name {name} --endpoint-mode dnsrr"
        f" --network host --restart-delay 1s --constraint {pin}"
        f" --constraint node.labels.pannier.volume.{jenkins.HOME}==copy"
        f" {BUSYBOX} httpd -f -h /etc -p {port} >/dev/null",
    )
    address = address_of(world, node)
    world.wait("the service beside it", lambda: answers(address, port, "/passwd"))
    world.sh(_MANAGER, f"docker service update --detach --constraint-rm {pin} {name} >/dev/null")


def _first_of(world: World, *, without: str) -> float:
    """When the service beside it answers on any other node."""
    _, port = _BESIDE
    addresses = [address_of(world, node) for node in world.nodes if node != without]

    def moment() -> float | None:
        return time.time() if any(answers(a, port, "/passwd") for a in addresses) else None

    return world.wait("the service beside it elsewhere", moment, seconds=_ANSWER_SECONDS)


def _cold_start(world: World, node: str) -> float:
    """The controller on a copy of its home, from the container's start to its HTTP 200."""
    copy = f"{POOL}/bench-home"
    world.sh(node, f"cp -a {MOUNTS}/{jenkins.HOME} {copy}; sync --file-system {copy}")
    start_controller(world, node, "bench-cold", copy, _COLD)
    world.wait("a cold start", lambda: answers(address_of(world, node), _COLD, "/login"))
    answer = time.time()
    began = world.sh(node, "docker inspect -f '{{.State.StartedAt}}' bench-cold").strip()
    world.sh(node, f"docker rm -f bench-cold >/dev/null; rm -r {copy}")
    return answer - datetime.fromisoformat(f"{began[:26].rstrip('Z')}+00:00").timestamp()


def _all_ready(world: World) -> bool:
    """Whether Swarm and Pannier see every node up; after a loss Swarm may not answer for a while."""
    try:
        shown = world.sh(_MANAGER, "docker node ls --format '{{.Status}} {{.Availability}}'")
        known = world.json(_MANAGER, "pannier", "node", "ls", "-o", "json")
    except LabError:
        return False
    ready = shown.splitlines() == ["Ready Active"] * len(world.nodes)
    return ready and all(node["state"] == "up" for node in known)


# -- a move ------------------------------------------------------------------------------------------


def _move(world: World, rounds: int, mebibytes: int, collected: Rounds) -> None:
    what = _MOVE.format(mebibytes)
    stack = _deployed(world, at="node2")
    task = stack.task()
    bulk = f"{MOUNTS}/{jenkins.HOME}/bulk"
    world.sh(task.node, f"dd if=/dev/urandom of={bulk} bs=1M count={mebibytes} status=none")
    stack.deploy(JENKINS_CONSTRAINT="node.platform.os == linux")
    with _watch(world, _MANAGER, _DOOR) as door:
        for number in range(rounds):
            _wait_for_copies(world)
            here = stack.task().node
            began = time.time()
            pin = f"node.hostname=={here}"
            update = f"docker service update --no-resolve-image --detach=false --quiet {jenkins.CONTROLLER}"
            world.sh(_MANAGER, f"{update} --force --constraint-add {pin} >/dev/null")
            door.first_after(time.time())
            own = door.longest_gap(began)
            world.sh(_MANAGER, f"{update} --constraint-rm {pin} >/dev/null")
            shown = world.json(_MANAGER, "pannier", "volume", "show", jenkins.HOME, "-o", "json")
            (target,) = set(world.nodes) - {here, *shown["in_sync"]}
            _wait_for_copies(world)
            began = time.time()
            world.sh(_MANAGER, f"pannier service move {jenkins.CONTROLLER} {target} >/dev/null")
            door.first_after(time.time())
            gap = door.longest_gap(began)
            if stack.task().node != target:
                raise BenchError(f"the controller is not on {target}")
            world.say(f"   move {number + 1}: {gap:.2f} s; its own stop and start {own:.2f} s")
            collected.add(what, "ours", gap)
            collected.add(what, "theirs", own)
    world.sh(_MANAGER, "docker stack rm jenkins >/dev/null")


def _deployed(world: World, *, at: str) -> jenkins.Stack:
    stack = jenkins.Stack(world.lab, manager=_MANAGER)
    stack.deploy(wait="5m", JENKINS_CONSTRAINT=f"node.hostname == {at}")
    stack.task()
    stack.wait_for_agents(*world.nodes)
    return stack


def _wait_for_copies(world: World) -> None:
    def in_sync() -> bool:
        shown = world.json(_MANAGER, "pannier", "volume", "show", jenkins.HOME, "-o", "json")
        return len(shown["in_sync"]) == 1

    world.wait("two copies of the home", in_sync, seconds=300)
