"""What the system tests do on a lab's machines, in the words of a user: commands, texts, bytes."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import shlex
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, TypeVar

import pytest
from demo import looks, story

from pannier.lab import Lab, LabError

IMAGE = "localhost:5000/busybox:1"
MOUNTS = story.MOUNTS
IMAGES = "/var/lib/pannier/pool/images"
"""Where a node keeps its volumes, each in a directory with the volume's id."""
STAGING = "/run/pannier/images"
"""Where their file systems are mounted while they are used."""
PLUGIN_SOCKET = "/run/docker/plugins/pannier.sock"
DEADLINE_SECONDS = 150.0
"""For commands: beyond Docker's own patience of 120 s, so that a hang is told from an error."""
ALL_UP_SECONDS = 180.0
"""For all nodes to be up after a fault. A Swarm manager that comes back may make the leader step down, and
votes then fail for one to two minutes: its peers wait ever longer before they call it again."""

_numbers = itertools.count(1)
T = TypeVar("T")

_SERVICES = ("pannierd.socket", "pannierd.service", "docker.socket", "docker.service", "etcd")
_HEAL = """
systemctl --no-block start pannierd.socket docker.socket
systemctl kill --kill-who=main -s CONT pannierd.service 2>/dev/null
[ -e /etc/default/etcd ] && systemctl --no-block start etcd
systemctl start pannierd.service docker.service
services=$(docker service ls -q 2>/dev/null) && [ -n "$services" ] && docker service rm $services
containers=$(docker ps -aq) && [ -n "$containers" ] && docker rm -f $containers
exit 0
"""

# Appends "HOST NUMBER" lines, each synced before it is acknowledged on stdout. It goes on with the
# number after the last line it finds, so a lost line is a gap and a second writer a duplicate.
WRITER = """
trap 'exit 0' TERM
n=0
[ -s /data/log ] && n=$(tail -n 1 /data/log | cut -d ' ' -f 2)
while :; do
  n=$((n + 1))
  echo "$(hostname) $n" >>/data/log && sync /data/log && echo $n || exit 1
  sleep 0.1
done
"""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a command ended."""

    status: int
    out: str
    err: str

    @property
    def text(self) -> str:
        """All it said, on one line."""
        return " ".join(f"{self.out} {self.err}".split())


@dataclass(slots=True)
class World:
    """A lab as one test uses it.

    Attributes:
        volumes: what the test has made, for its clean-up.
    """

    lab: Lab
    volumes: list[str] = field(default_factory=list)
    _pool: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(max_workers=16))

    # -- commands --------------------------------------------------------------------------------

    @property
    def nodes(self) -> list[str]:
        return [node.name for node in self.lab.nodes]

    def others(self, *names: str) -> list[str]:
        """The nodes except for ``names``, in order."""
        return [name for name in self.nodes if name not in names]

    def sh(self, node: str, script: str, *, timeout: float = DEADLINE_SECONDS) -> str:
        """What a shell script prints on a machine; it must succeed."""
        return str(self.lab.run(node, ["sh", "-euc", script], timeout=timeout).stdout)

    def run(self, node: str, *command: str, input: str | None = None) -> str:
        """What a command prints on a machine; it must succeed."""
        done = self.lab.run(node, command, input=input, timeout=DEADLINE_SECONDS)
        return str(done.stdout)

    def attempt(self, node: str, *command: str, input: str | None = None) -> Outcome:
        """How a command ends on a machine, whatever it does."""
        done = self.lab.run(node, command, input=input, check=False, timeout=DEADLINE_SECONDS)
        return Outcome(done.returncode, done.stdout, done.stderr)

    def refused(self, node: str, *command: str, says: Sequence[str], status: int = 0) -> Outcome:
        """A command that must fail, with all of ``says`` in its words and no traceback."""
        outcome = self.attempt(node, *command)
        shown = f"{shlex.join(command)} ended with {outcome.status}: {outcome.text}"
        assert outcome.status != 0, shown
        assert "Traceback" not in outcome.text, shown
        if status:
            assert outcome.status == status, shown
        for words in says:
            assert words in outcome.text, f"{words!r} is not in: {shown}"
        return outcome

    def json(self, node: str, *words: str) -> Any:
        """What ``pannier WORDS... -o json`` shows, asked of the daemon itself: quick enough to wait by.

        Raises:
            LabError: the daemon does not answer or says no.
        """
        return looks.ask(self.lab, node, *words)

    def plugin(self, node: str, verb: str, body: str) -> dict[str, str]:
        """What the plugin answers to ``body`` as it stands."""
        path = f"/VolumeDriver.{verb}"
        _, said = looks.plugin(self.lab, node).exchange("POST", path, body.encode(), timeout=20)
        answer: dict[str, str] = json.loads(said)
        return answer

    def printed(self, node: str, *command: str) -> Any:
        """What ``pannier ... -o json`` prints."""
        return json.loads(self.run(node, "pannier", *command, "-o", "json"))

    def is_running(self, node: str, container: str) -> bool:
        """Whether the engine says that a container runs."""
        return looks.is_running(self.lab, node, container)

    def start(self, work: Callable[..., T], *args: Any, **kwargs: Any) -> Future[T]:
        """Let something go on beside the test."""
        return self._pool.submit(work, *args, **kwargs)

    def on_all(self, work: Callable[[str], T], nodes: Sequence[str] | None = None) -> list[T]:
        """The same on several nodes at once."""
        return list(self._pool.map(work, self.nodes if nodes is None else nodes))

    # -- volumes ---------------------------------------------------------------------------------

    def name(self, word: str = "v") -> str:
        """A volume name that no other test has."""
        made = f"{word}-{os.getpid()}-{next(_numbers)}"
        self.volumes.append(made)
        return made

    def create(self, node: str, word: str = "v", **options: str) -> str:
        """A new volume on ``node``."""
        name = self.name(word)
        body = {"name": name, "options": options}
        looks.daemon(self.lab, node).post("/v1/volumes", body, timeout=60)
        return name

    def volumes_known(self) -> set[str]:
        """The names of all volumes that any node knows."""
        listed = self.on_all(lambda node: self.json(node, "volume", "ls"))
        return {str(view["name"]) for views in listed for view in views}

    def check_not_created(
        self, name: str, options: Mapping[str, str], *, says: Sequence[str]
    ) -> None:
        """What people and what Docker ask for is refused, each with all of ``says``; nothing is made."""
        daemon = looks.daemon(self.lab, self.nodes[0])
        with pytest.raises(LabError) as caught:
            daemon.post("/v1/volumes", {"name": name, "options": dict(options)})
        told = f"{caught.value} {caught.value.remedy}"
        body = json.dumps({"Name": name, "Opts": dict(options)})
        answer = self.plugin(self.nodes[0], "Create", body)
        for words in says:
            assert words in told
            assert words in answer["Err"]
        assert name not in self.volumes_known()

    def filled(self, node: str, *, mebibytes: int = 1, files: int = 100, **options: str) -> str:
        """A new volume with bulk that does not compress and a tree of small files."""
        name = self.create(node, "bulk", **options)
        self.write(node, name, mebibytes=mebibytes, files=files)
        return name

    def write(self, node: str, name: str, *, mebibytes: int, files: int = 0) -> None:
        """New bulk for a volume, by a container on ``node``."""
        script = (
            f"dd if=/dev/urandom of=/data/bulk bs=1M count={mebibytes} 2>/dev/null; "
            f"mkdir -p /data/tree; i=0; while [ $i -lt {files} ]; do "
            "echo content $i $RANDOM >/data/tree/$i; i=$((i+1)); done; "
            "ln -sf tree/1 /data/link; chown 1000:1000 /data/tree; chmod 2750 /data/tree; sync -f /data"
        )
        self.container(node, name, "sh", "-c", script)

    def container(self, node: str, volume: str, *command: str, rm: bool = True) -> str:
        """Run a container with the volume at /data to its end; returns what it prints."""
        return self.run(node, *self.docker_run(volume, *([] if not rm else ["--rm"])), *command)

    def docker_run(
        self, volume: str, *flags: str, image: str = IMAGE, at: str = "/data"
    ) -> list[str]:
        """The command line, up to the command in the container."""
        mount = ["-v", f"{volume}:{at}", "--volume-driver", "pannier"]
        return ["docker", "run", "--network", "none", *flags, *mount, image]

    def holder(self, name: str) -> str:
        """The one node that holds the volume; all nodes that are up must say the same."""

        def agreed() -> str | None:
            asked = [node.name for node in self.lab.nodes if node.state == "running"]
            shown = self.on_all(lambda node: self.json(node, "volume", "show", name), asked)
            holders = {(view["holder"], view["epoch"]) for view in shown}
            return str(shown[0]["holder"]) if len(holders) == 1 else None

        return story.wait_until(f"all nodes agree who holds {name}", agreed, seconds=30)

    def former(self, node: str, name: str, file: str, *, tree: str) -> str:
        """What a file has in a former state of a volume, such as a stray."""
        at = f"/run/former-{next(_numbers)}"
        self.run(node, "mkdir", at)
        self.run(node, "pannier", "volume", "mount", f"{name}@{tree}", "--at", at)
        try:
            return self.run(node, "cat", f"{at}/{file}")
        finally:
            self.run(node, "umount", at)

    def manifest(self, node: str, name: str) -> list[str]:
        """Every entry of the volume with its bytes' hash, after a container has asked for it."""
        self.container(node, name, "true")
        return story.without(story.manifest(self.lab, node, name), "held")

    def move(self, name: str, target: str, *, at: str | None = None, wait: str = "60s") -> None:
        """Move a volume; it must succeed."""
        self.run(at or target, "pannier", "volume", "move", name, target, "--wait", wait)

    def moving(self, name: str, target: str, *, at: str, wait: str = "60s") -> Move:
        """Begin to move a volume."""
        return Move(self, name, target, at=at, wait=wait)

    # -- containers ------------------------------------------------------------------------------

    def sleeper(self, node: str, volume: str, name: str = "") -> str:
        """A container that holds a file of the volume open and does nothing; returns its name."""
        name = name or f"sleeper-{next(_numbers)}"
        script = "exec 3>>/data/held; trap 'exit 0' TERM; while :; do sleep 0.2; done"
        command = self.docker_run(volume, "-d", "--name", name, "--hostname", node)
        self.run(node, *command, "sh", "-c", script)
        return name

    def writer(self, node: str, volume: str, *flags: str) -> str:
        """A container that appends numbered, synced lines; returns its name."""
        name = f"writer-{next(_numbers)}"
        command = self.docker_run(volume, "-d", "--name", name, "--hostname", node, *flags)
        self.run(node, *command, "sh", "-c", WRITER)
        story.wait_until("the writer writes", lambda: self.acknowledged(node, name))
        return name

    def acknowledged(self, node: str, writer: str) -> int:
        """The last number that the writer was told is on disk."""
        said = looks.last_line(self.lab, node, writer)
        return int(said) if said else 0

    def has_more(self, node: str, writer: str, than: int) -> bool:
        """Whether the writer was told of a number above this one."""
        return self.acknowledged(node, writer) > than

    def stop(self, node: str, container: str) -> None:
        """Stop and remove a container in good order."""
        self.run(node, "docker", "stop", "-t", "5", container)
        self.run(node, "docker", "rm", container)

    def log(self, node: str, volume: str) -> list[tuple[str, int]]:
        """The lines that writers have left in a volume."""
        lines = self.container(node, volume, "cat", "/data/log").splitlines()
        pairs = [line.split() for line in lines]
        return [(host, int(number)) for host, number in pairs]

    # -- faults ----------------------------------------------------------------------------------

    def kill(self, node: str, service: str) -> None:
        """SIGKILL to a service's main process; systemd starts it again."""
        self.run(node, "systemctl", "kill", "--kill-who=main", "-s", "KILL", service)

    def stop_pannier(self, node: str) -> None:
        """Stop the daemon with its socket, which would else start it again at the first call."""
        self.run(node, "systemctl", "stop", "pannierd.socket", "pannierd.service")

    def start_pannier(self, node: str) -> None:
        self.run(node, "systemctl", "start", "pannierd.socket", "pannierd.service")
        self.wait_for_pannier(node)

    def wait_for_pannier(self, node: str) -> None:
        """Wait until the daemon on ``node`` answers."""

        story.wait_until(
            f"pannierd on {node} answers", lambda: not self._not_answering(node), seconds=60
        )

    def wait_until_all_up(self) -> None:
        """Wait until every node sees every node up, and all engines answer."""
        missing = "nothing was looked at"

        def everywhere() -> bool:
            nonlocal missing
            missing = "; ".join(filter(None, (*self.on_all(self._not_up), self._swarm_lacks())))
            # Nodes that were cut off for a moment may still be believed to be up, and then run out.
            missing = missing or "; ".join(filter(None, self.on_all(self.lease_lacks)))
            return not missing

        try:
            story.wait_until("all nodes are up", everywhere, seconds=ALL_UP_SECONDS)
        except story.StoryError as error:
            raise story.StoryError(f"{error}: {missing}") from None

    def _not_answering(self, node: str) -> str:
        """Why the daemon on ``node`` gives no answer; empty where it gives one."""
        try:
            self.json(node, "node", "ls")
        except LabError as error:
            return str(error)
        return ""

    def _not_up(self, node: str) -> str:
        """What one node does not see up; empty where it sees every node up."""
        try:
            seen = self.json(node, "node", "ls")
        except LabError as error:
            return f"{node} says: {error}"
        states = {view["name"]: view["state"] for view in seen}
        down = {name: states.get(name) for name in self.nodes if states.get(name) != "up"}
        return f"{node} sees {down}" if down else ""

    def lease_lacks(self, node: str) -> str:
        """What a node says of its own lease, if that is not renewed."""
        try:
            found = self.json(node, "doctor")
        except LabError as error:
            return f"{node} says: {error}"
        (lease,) = (each for each in found if each["subject"] == f"lease of node {node}")
        return "" if lease["level"] == "ok" else f"{node} says: {lease['what']}"

    def _swarm_lacks(self) -> str:
        """What keeps the Swarm, if there is one, from being whole: a leader, and all nodes ready."""
        try:
            engine = looks.engine(self.lab, self.nodes[0])
            if engine.get("/info")["Swarm"]["LocalNodeState"] != "active":
                return ""
            states = {
                node["Description"]["Hostname"]: node["Status"]["State"]
                for node in engine.get("/nodes")
            }
        except LabError as error:
            return f"the Swarm: {error}"
        late = [name for name in self.nodes if states.get(name) != "ready"]
        return f"the Swarm: {states}; {self.engine_says(*late)}" if late else ""

    def engine_says(self, *nodes: str) -> str:
        """What engines complained of last, for the words of a failure."""
        last = "journalctl -u docker --no-pager -o cat | grep -E 'level=(error|fatal)' | tail -n 5"
        said = {node: self.attempt(node, "sh", "-c", last) for node in nodes}
        return "; ".join(f"the engine of {node}: {each.text[-800:]}" for node, each in said.items())

    def wait_until_all_take_tasks(self) -> None:
        """Wait until the Swarm is whole, and give back what was lost and evacuated before, as a person may.

        A node that is lost again and again is kept drained for longer each time, up to many minutes.
        """
        self.wait_until_all_up()
        engine = looks.engine(self.lab, self.nodes[0])

        def all_active() -> bool:
            try:
                nodes = engine.get("/nodes")
            except LabError:  # its leader has just changed
                return False
            kept = [node for node in nodes if node["Spec"]["Availability"] != "active"]
            for node in kept:
                name = node["Description"]["Hostname"]
                update = ("docker", "node", "update", "--availability", "active", name)
                self.attempt(self.nodes[0], *update)  # refused while somebody else changes the node
            return not kept

        story.wait_until("all nodes take tasks", all_active, seconds=ALL_UP_SECONDS)

    @contextmanager
    def cut(self, *nodes: str) -> Iterator[None]:
        """Pull the cables of some nodes for a while."""
        for node in nodes:
            self.lab.cut(node)
        try:
            yield
        finally:
            for node in nodes:
                self.lab.mend(node)

    # -- the end ---------------------------------------------------------------------------------

    def clean_up(self) -> None:
        """Undo the faults, remove containers, and put the test's volumes into the trash."""
        for node in self.lab.nodes:
            if node.state == "cut":
                self.lab.mend(node.name)
            elif node.state == "paused":
                self.lab.resume(node.name)
            elif node.state == "crashed":
                self.lab.boot(node.name)
        self.on_all(self._heal)
        self.wait_until_all_up()
        for name in self.volumes:
            with suppress(LabError):
                looks.daemon(self.lab, self.nodes[0]).delete(f"/v1/volumes/{name}")
        self._pool.shutdown(cancel_futures=True)

    def _heal(self, node: str) -> None:
        """Bring a machine in order, if one look at it does not show that it is."""
        if not self._in_order(node):
            self.attempt(node, "sh", "-c", _HEAL)

    def _in_order(self, node: str) -> bool:
        """Whether every service runs and answers, and there is no container and no Swarm service."""
        try:
            looks.ask(self.lab, node, "node", "ls", timeout=3)
            engine = looks.engine(self.lab, node)
            left = engine.get("/containers/json?all=true", timeout=3)
            manages = engine.get("/info", timeout=3)["Swarm"]["ControlAvailable"]
            left += engine.get("/services", timeout=3) if manages else []
        except LabError:
            return False
        if left:
            return False
        shown = self.attempt(node, "systemctl", "is-active", *_SERVICES).out.split()
        return set(shown[:4]) == {"active"} and (
            shown[4:] == ["active"] or not self._has_etcd(node)
        )

    def _has_etcd(self, node: str) -> bool:
        """Whether the machine starts etcd when it boots."""
        wants = "etc/systemd/system/multi-user.target.wants/etcd.service"
        return (looks.root(self.lab, node) / wants).is_symlink()


class Move:
    """A `pannier volume move` that goes on beside the test."""

    def __init__(self, world: World, name: str, target: str, *, at: str, wait: str) -> None:
        self._world = world
        self._at = at
        self._log = f"/run/move-{next(_numbers)}.ndjson"
        move = f"pannier volume move {name} {target} --wait {wait} -o json >{self._log} 2>&1"
        world.run(at, "touch", self._log)
        self._end = world.start(world.attempt, at, "sh", "-c", move)

    def steps(self) -> list[dict[str, Any]]:
        """What it has said up to now."""
        try:
            log = looks.root(self._world.lab, self._at) / self._log.lstrip("/")
        except LabError:
            return []
        lines = looks.text(log).splitlines()
        return [json.loads(line) for line in lines if line.startswith("{") and line.endswith("}")]

    def wait_for(self, phase: str, *, sent: int = 0) -> None:
        """Wait until it has reached ``phase`` and sent so many bytes, or has ended."""

        def reached() -> bool:
            return self._end.done() or any(
                step.get("phase") == phase and step.get("sent_bytes", 0) >= sent
                for step in self.steps()
            )

        story.wait_until(f"the move is {phase}", reached)

    @property
    def ended(self) -> bool:
        return self._end.done()

    def outcome(self) -> Outcome:
        """Wait for its end."""
        status = self._end.result(timeout=DEADLINE_SECONDS).status
        try:
            said = self._world.run(self._at, "cat", self._log)
        except LabError:
            said = ""
        return Outcome(status, said, "")


def check_sequence(lines: Sequence[tuple[str, int]]) -> None:
    """No gap, no duplicate, and never two writers at a time."""
    numbers = [number for _, number in lines]
    assert numbers == list(range(1, len(numbers) + 1)), "lines are lost or doubled"
    hosts = [host for host, _ in itertools.groupby(lines, key=lambda line: line[0])]
    assert len(hosts) == len([*_changes(hosts)]) + 1


def _changes(hosts: Sequence[str]) -> Iterator[tuple[str, str]]:
    return (pair for pair in itertools.pairwise(hosts) if pair[0] != pair[1])


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def journal(lab: Lab, node: str, unit: str, *, lines: int = 120) -> str:
    """The end of what a service on ``node`` has logged, for a failed test's report."""
    try:
        command = ["journalctl", "--unit", unit, "--no-pager", "-n", str(lines), "-o", "cat"]
        return lab.run(node, command, check=False, timeout=20).stdout
    except (LabError, subprocess.SubprocessError) as error:
        return f"(not readable: {error})"
