"""A node loses power: until a service answers elsewhere, with a volume and without one."""

from __future__ import annotations

import http.client
import itertools
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from bench.figures import Figure, Result, Rounds, Target
from bench.world import BUSYBOX, BenchError, Wish, World, laboratory
from pannier.lab import LabError

_NODES = 4  # three managers and a worker
_SERVICES = {"ours": 8001, "theirs": 8002, "tree": 8003}
_LINES = {"ours": 2, "theirs": 1, "tree": 2}
"""Of each service's file after the loss: the lost node's and the new one's, or the new one's alone."""
_ANSWER_SECONDS = 180
_READY_SECONDS = 120
_GLANCE_SECONDS = 0.02
_APPLICATION = (
    "mkdir -p /data; echo $(hostname) >>/data/hosts && sync /data/hosts &&"
    " exec httpd -f -h /data -p "
)


@dataclass(frozen=True, slots=True)
class _Settings:
    """Swarm's dispatcher heartbeat and a service's restart delay."""

    name: str
    heartbeat: str
    restart_delay: str


_DEFAULT = _Settings("default settings", "5s", "5s")
_RECOMMENDED = _Settings("heartbeat 1 s, restart delay 0", "1s", "0s")


@dataclass(frozen=True, slots=True)
class _Case:
    """Which node is lost, and how the cluster is set.

    Attributes:
        limit: at most so many seconds until the service with the volume answers.
    """

    lost: Literal["worker", "leader"]
    settings: _Settings
    evacuate: bool
    limit: float | None = None

    @property
    def title(self) -> str:
        evacuation = ", evacuation" if self.evacuate else ""
        return f"{self.lost} lost, {self.settings.name}{evacuation}"


_RECOMMENDED_CASES = (
    _Case("worker", _RECOMMENDED, evacuate=False),
    _Case("leader", _RECOMMENDED, evacuate=False),
)
_DEFAULT_CASES = (
    _Case("worker", _DEFAULT, evacuate=False),
    _Case("leader", _DEFAULT, evacuate=False),
    _Case("worker", _DEFAULT, evacuate=True),
    _Case("leader", _DEFAULT, evacuate=True, limit=25.0),
)


def measure(wish: Wish) -> Result:
    """With the settings that Pannier recommends, and makes where it deploys a Swarm."""
    return _measure(wish, "A node loses power", _RECOMMENDED_CASES, rounds=wish.pick(7, 1))


def measure_defaults(wish: Wish) -> Result:
    """With Swarm's default settings. Takes half an hour."""
    title = "A node loses power, with Swarm's default settings"
    return _measure(wish, title, _DEFAULT_CASES, rounds=wish.pick(5, 1))


def _measure(wish: Wish, title: str, cases: tuple[_Case, ...], *, rounds: int) -> Result:
    collected = Rounds()
    with laboratory("bench-power", say=wish.say, nodes=_NODES, disks="cuttable") as lab:
        lab.build_busybox(BUSYBOX)
        cluster = _Cluster(World(lab, wish.quick, wish.say))
        for case in cases:
            cluster.apply(case)
            for _ in range(rounds):
                for leg, seconds in cluster.lose(case).items():
                    collected.add(case.title, leg, seconds)
                    wish.say(f"   {case.title}: {leg} {seconds:.2f} s")
    return _result(title, cases, collected, rounds)


def _result(title: str, cases: tuple[_Case, ...], collected: Rounds, rounds: int) -> Result:
    return Result(
        title=title,
        reference="the same service without a volume, on the same node in the same loss.",
        how=(
            f"Four machines, three of them Swarm managers, with disks that forget what was not "
            f"flushed. Three services run on the node that is lost: one on a volume with copies=2 and "
            f"durability=fsync, one on such a volume with layout=tree, one without a volume; each "
            f"adds a synced line to a file and then serves it by HTTP. The time is from the power cut "
            f"to the first answer from another node, {rounds} rounds; the answer with a volume must "
            f"have the lost node's line. The services differ in nothing but their volumes: what one "
            f"takes beyond another is its volume's takeover and mount."
        ),
        figures=tuple(itertools.chain.from_iterable(_figures(case, collected) for case in cases)),
    )


def _figures(case: _Case, collected: Rounds) -> Iterator[Figure]:
    ours, theirs, tree = (collected.of(case.title, leg) for leg in _SERVICES)
    limit = Target(at_most=case.limit, of="value") if case.limit else None
    yield Figure(what=case.title, ours=ours, theirs=theirs, target=limit)
    if not case.evacuate:
        yield Figure(
            what="of these beyond the service without a volume",
            ours=_beyond(ours, theirs),
            target=Target(at_most=2.0, of="value"),
        )
        yield Figure(
            what="takeover, power cut to mounted: an image beyond a tree",
            ours=_beyond(ours, tree),
            target=Target(at_most=0.3, of="value"),
        )


def _beyond(ours: tuple[float, ...], theirs: tuple[float, ...]) -> tuple[float, ...]:
    return tuple(a - b for a, b in zip(ours, theirs, strict=True))


class _Cluster:
    """The machines, whose power is cut again and again."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._numbers = itertools.count(1)
        self._addresses = {node.name: node.address for node in world.lab.nodes}

    # -- settings --------------------------------------------------------------------------------

    def apply(self, case: _Case) -> None:
        """Bring the cluster to a case's settings."""
        self._wait_until_whole()
        evacuate = str(case.evacuate).lower()
        for node in self._world.nodes:
            edit = f"sed -i 's/^evacuate = .*/evacuate = {evacuate}/' /etc/pannier/pannierd.toml"
            self._world.sh(node, f"{edit}; systemctl restart pannierd")
        heartbeat = f"docker swarm update --dispatcher-heartbeat {case.settings.heartbeat}"
        self._world.sh(self._leader(), heartbeat)
        self._wait_until_whole()
        self._world.lab.flush()

    # -- a loss ----------------------------------------------------------------------------------

    def lose(self, case: _Case) -> dict[str, float]:
        """Seconds from the loss to the answer, for each service."""
        self._wait_until_whole()
        managers = self._world.nodes[:3]
        victim = self._leader() if case.lost == "leader" else self._world.nodes[-1]
        copy, asked = [node for node in managers if node != victim][:2]
        volume = f"bench-power-{next(self._numbers)}"
        self._start(case.settings, volume, victim=victim, copy=copy, asked=asked)
        began = time.monotonic()
        self._world.lab.crash(victim)
        others = [node for node in self._world.nodes if node != victim]
        found = self._first_answers(others, began)
        self._check(found)
        self._world.sh(asked, f"docker service rm {' '.join(_SERVICES)}")
        self._world.wait("the end of all services", lambda: not self._any_answers(others))
        self._world.lab.boot(victim)
        self._wait_until_whole()
        if case.evacuate:
            self._forget_evacuations(asked)
        return {leg: seconds for leg, (seconds, _) in found.items()}

    def _forget_evacuations(self, node: str) -> None:
        """As fifteen quiet minutes would: else the lost node waits longer each time to be given back."""
        pki = "/etc/etcd/pki"
        files = f"--cacert {pki}/ca.crt --cert {pki}/tls.crt --key {pki}/tls.key"
        endpoint = f"--endpoints https://{self._addresses[node]}:2379"
        prefix = "/pannier/v1/evacuated/"
        self._world.sh(node, f"ETCDCTL_API=3 etcdctl {files} {endpoint} del --prefix {prefix}")

    def _start(
        self, settings: _Settings, volume: str, *, victim: str, copy: str, asked: str
    ) -> None:
        """All services on the node that shall be lost, and free to go elsewhere."""
        world = self._world
        volumes = {"ours": volume, "tree": f"{volume}-tree"}
        layouts = {"ours": "image", "tree": "tree"}
        for leg, name in volumes.items():
            body = {"copies": "2", "durability": "fsync", "nodes": f"{victim},{copy}"}
            world.volume(victim, name, layout=layouts[leg], **body)
        for name in volumes.values():
            world.wait("labels", partial(self._labelled, name, victim, copy))
        with self._only(victim, asked=asked):
            for leg, port in _SERVICES.items():
                own = volumes.get(leg)
                mount = f"type=volume,volume-driver=pannier,source={own},target=/data"
                world.lab.run(
                    asked,
                    [
                        "docker", "service", "create", "--detach", "--no-resolve-image",
                        "--name", leg, "--endpoint-mode", "dnsrr", "--network", "host",
                        "--restart-delay", settings.restart_delay,
                        "--constraint", f"node.labels.pannier.volume.{own or volume}==copy",
                        *(["--mount", mount] if own else []),
                        BUSYBOX, "sh", "-c", f"{_APPLICATION}{port}",
                    ],
                    timeout=60,
                )  # fmt: skip
            self._first_answers([victim], time.monotonic())

    @contextmanager
    def _only(self, node: str, *, asked: str) -> Iterator[None]:
        """Let Swarm start tasks on one node only, for a while."""
        others = [name for name in self._world.nodes if name != node]
        self._make(others, "pause", asked=asked)
        try:
            yield
        finally:
            self._make(others, "active", asked=asked)

    def _make(self, nodes: Iterable[str], availability: str, *, asked: str) -> None:
        update = f"docker node update --availability {availability}"
        for node in nodes:  # it is refused while somebody else changes the node
            self._world.sh(asked, f"until {update} {node} >/dev/null 2>&1; do sleep 0.2; done")

    def _first_answers(self, nodes: list[str], began: float) -> dict[str, tuple[float, list[str]]]:
        """For each service: seconds since ``began`` until it answered, and the lines it served."""
        found: dict[str, tuple[float, list[str]]] = {}
        while len(found) < len(_SERVICES):
            for leg, node in itertools.product(_SERVICES.keys() - found.keys(), nodes):
                lines = _ask(self._addresses[node], _SERVICES[leg])
                if lines is not None:
                    found[leg] = (time.monotonic() - began, lines)
            if time.monotonic() > began + _ANSWER_SECONDS:
                missing = ", ".join(_SERVICES.keys() - found.keys())
                raise BenchError(f"no answer within {_ANSWER_SECONDS} s: {missing}")
            time.sleep(_GLANCE_SECONDS)
        return found

    def _any_answers(self, nodes: list[str]) -> bool:
        """Whether a container still serves: it is told to stop, and has ten seconds."""
        asked = itertools.product(nodes, _SERVICES.values())
        return any(_ask(self._addresses[node], port) is not None for node, port in asked)

    def _check(self, found: Mapping[str, tuple[float, list[str]]]) -> None:
        lines = {leg: len(found[leg][1]) for leg in _SERVICES}
        if lines != _LINES:
            raise BenchError(f"the services' files have {lines} lines")

    # -- looking ---------------------------------------------------------------------------------

    def _leader(self) -> str:
        def leads() -> str | None:
            for node in self._swarm_nodes():
                if (node.get("ManagerStatus") or {}).get("Leader"):
                    return str(node["Description"]["Hostname"])
            return None

        return self._world.wait("a leader", leads)

    def _labelled(self, volume: str, *nodes: str) -> bool:
        """Whether Swarm knows that these nodes have a copy."""
        labelled = {
            node["Description"]["Hostname"]
            for node in self._swarm_nodes()
            if node["Spec"]["Labels"].get(f"pannier.volume.{volume}") == "copy"
        }
        return labelled.issuperset(nodes)

    def _swarm_nodes(self) -> list[dict[str, Any]]:
        for node in self._world.nodes[:3]:
            try:
                return list(self._world.engine(node).get("/nodes", timeout=5))
            except LabError:
                continue
        return []

    def _wait_until_whole(self) -> None:
        """Wait until Swarm and Pannier see every node up, and Swarm may use each."""

        def whole() -> bool:
            nodes = self._swarm_nodes()
            able = [
                node
                for node in nodes
                if node["Status"]["State"] == "ready" and node["Spec"]["Availability"] == "active"
            ]
            if len(able) != _NODES:
                return False
            shown = self._world.json(self._world.nodes[0], "pannier", "node", "ls", "-o", "json")
            return [node["state"] for node in shown] == ["up"] * _NODES

        def attempt() -> bool:
            try:
                return whole()
            except LabError:
                return False

        self._world.wait("all nodes are up", attempt, seconds=_READY_SECONDS)


def _ask(address: str, port: int) -> list[str] | None:
    """The lines that a service serves there; None where nobody answers."""
    connection = http.client.HTTPConnection(address, port, timeout=0.5)
    try:
        connection.request("GET", "/hosts")
        response = connection.getresponse()
        return response.read().decode().splitlines() if response.status == 200 else None
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()
