"""`pannier service move`: a service and all its volumes on another node, by one command.

The service writes to two volumes all the time. What it was told is on disk is there after each move,
each line once; and where a move fails or is interrupted, it is as if nobody had asked.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

import pytest
from cluster_world import IMAGE, Outcome, World, check_sequence
from demo import looks, story

from pannier.lab import LabError

pytestmark = [pytest.mark.system, pytest.mark.timeout(400)]

ASKED, FIRST, SECOND = "node1", "node2", "node3"

# Appends "HOST NUMBER" lines to both volumes, each synced before it is told, and goes on after the last.
_WRITE = """
trap 'exit 0' TERM
[ -s /home/bulk ] || dd if=/dev/urandom of=/home/bulk bs=1M count=40
line() {
  n=$(($(tail -n 1 $1/log 2>/dev/null | cut -d ' ' -f 2) + 1))
  echo "$(hostname) $n" >>$1/log && sync $1/log || exit 1
}
while :; do
  line /cache
  line /home
  echo $n >/told
  sleep 0.05
done
"""
_PRE = "echo pre-move on $(hostname) >>/home/hooks; if [ -e /home/pre ]; then . /home/pre; fi"
_POST = "echo post-move on $(hostname) >>/home/hooks"


@dataclass(slots=True)
class Service:
    """The service, with what a person types about it."""

    world: World
    name: str
    home: str
    cache: str

    def create(self, node: str) -> None:
        """Start it on ``node``, and then let it run wherever its own constraints allow."""
        pin = f"node.hostname=={node}"
        # By name, as `docker service update` sorts them: else its first use would restart the task.
        mounts = [
            f"type=volume,source={volume},target={path},volume-driver=pannier"
            for volume, path in ((self.cache, "/cache"), (self.home, "/home"))
        ]
        labels = [f"pannier.hook.pre-move={_PRE}", "pannier.hook.pre-move.timeout=8s"]
        labels += [f"pannier.hook.post-move={_POST}"]
        self.world.run(
            ASKED, "docker", "service", "create", "--detach", "--no-resolve-image",
            "--name", self.name, "--endpoint-mode", "dnsrr", "--restart-delay", "1s",
            "--update-monitor", "1s", "--hostname", "{{.Node.Hostname}}", "--constraint", pin,
            "--constraint", "node.platform.os==linux",
            *(part for mount in mounts for part in ("--mount", mount)),
            *(part for label in labels for part in ("--container-label", label)),
            IMAGE, "sh", "-c", _WRITE,
        )  # fmt: skip
        task = story.wait_until("it runs", self.task)
        story.wait_until("it writes", lambda: self.told(task) > 3)
        self.update("--constraint-rm", pin)

    def update(self, *words: str) -> None:
        """Change the service; a container that this replaces has been replaced when it returns."""
        command = ["docker", "service", "update", "--quiet", "--no-resolve-image"]
        self.world.run(ASKED, *command, "--detach=false", *words, self.name)

    def task(self) -> story.Task | None:
        return story.running_task(self.world.lab, self.name)

    def now(self) -> story.Task:
        """The container that runs."""
        return story.wait_until("it runs", self.task)

    def told(self, task: story.Task) -> int:
        """The last number that the container was told is on disk."""
        try:
            said = looks.text(looks.inside(self.world.lab, task.node, task.container, "/told"))
        except LabError:
            return 0
        return int(said) if said.strip() else 0

    def inside(self, script: str) -> str:
        task = self.now()
        return self.world.run(task.node, "docker", "exec", task.container, "sh", "-c", script)

    def hooks(self) -> list[str]:
        """The hooks that were run, one after the other, since this was asked last."""
        return self.inside("cat /home/hooks 2>/dev/null; rm -f /home/hooks").splitlines()

    def hook_was_run(self, word: str) -> bool:
        """Whether this hook has begun; the container may just be another one."""
        task = self.task()
        if task is None:
            return False
        try:
            hooks = looks.inside(self.world.lab, task.node, task.container, "/home/hooks")
        except LabError:
            return False
        return word in looks.text(hooks)

    def command(self, node: str, *flags: str) -> list[str]:
        return ["pannier", "service", "move", self.name, node, *flags]

    def move(self, node: str, *flags: str) -> list[dict[str, Any]]:
        """Move it; it must succeed. Returns all that was reported."""
        said = self.world.run(ASKED, *self.command(node, *flags, "-o", "json"))
        return [json.loads(line) for line in said.splitlines()]

    def moving(self, node: str, *flags: str) -> Future[Outcome]:
        """Begin to move it by a process whose number is kept in a file."""
        words = " ".join(self.command(node, *flags))
        script = f"{words} & echo $! >/run/service-move.pid; wait $!"
        return self.world.start(self.world.attempt, ASKED, "sh", "-c", script)

    def spec(self) -> dict[str, Any]:
        """Its constraints and its own labels, as Swarm has them."""
        spec = looks.engine(self.world.lab, ASKED).get(f"/services/{self.name}")["Spec"]
        return {
            "constraints": spec["TaskTemplate"]["Placement"]["Constraints"],
            "labels": spec["Labels"],
        }

    def check_whole(self, told: int) -> None:
        """Every line that it was told of is there, once; both volumes are where it runs."""
        task = self.now()
        for path in ("/home/log", "/cache/log"):
            lines = [line.split() for line in self.inside(f"cat {path}").splitlines()]
            numbers = [(host, int(number)) for host, number in lines]
            check_sequence(numbers)
            assert len(numbers) >= told
        for volume in (self.home, self.cache):
            assert self.world.holder(volume) == task.node


@pytest.fixture(scope="module")
def service(calm: World) -> Iterator[Service]:
    made = Service(calm, "keeper", calm.name("home"), calm.name("cache"))
    made.create(FIRST)
    yield made
    calm.run(ASKED, "docker", "service", "rm", made.name)


@pytest.fixture(autouse=True)
def settled(service: Service) -> None:
    """Each test finds the service on the first node, with hooks that succeed."""
    service.inside("rm -f /home/pre")
    if service.now().node != FIRST:
        service.move(FIRST, "--now")
    service.hooks()


def test_it_moves_with_both_volumes_and_its_hooks_in_order(service: Service) -> None:
    old, spec = service.now(), service.spec()
    bulk = service.inside("md5sum </home/bulk")
    told = service.told(old)
    said = service.move(SECOND)
    assert said[-1]["phase"] == "done"
    assert {step["phase"] for step in said} >= {"copying", "pre-move", "switching", "starting"}
    print("\n".join(f"{step['seconds']:6.2f} {step['what']}" for step in said[-1]["steps"]))
    print(f"pause {said[-1]['pause_seconds']:.2f} s")
    new = service.now()
    assert new.node == SECOND
    assert service.hooks() == [f"pre-move on {FIRST}", f"post-move on {SECOND}"]
    assert service.inside("md5sum </home/bulk") == bulk
    service.check_whole(told)
    assert service.spec() == spec, "its own constraints are back"
    later = service.told(new)
    story.wait_until("it writes on", lambda: service.told(new) > later + 60)
    assert service.now() == new, "taking the constraint back has not restarted it"
    again = service.world.run(ASKED, *service.command(SECOND))
    assert "runs on node3 already" in again
    assert service.now() == new


def test_without_its_pre_move_hook_and_tied_to_its_node(service: Service) -> None:
    service.inside("echo exit 3 >/home/pre")
    service.move(SECOND, "--now", "--stay")
    assert service.hooks() == [f"post-move on {SECOND}"]
    assert f"node.hostname=={SECOND}" in service.spec()["constraints"]
    (listed,) = service.world.json(ASKED, "service", "ls")
    assert (listed["nodes"], listed["tied_to"]) == ([SECOND], f"node.hostname=={SECOND}")
    service.inside("rm -f /home/pre")
    told = service.told(service.now())
    service.move(FIRST)
    assert service.spec()["constraints"] == ["node.platform.os==linux"]
    service.check_whole(told)


@pytest.mark.parametrize(
    ("script", "says"),
    [
        ("echo builds are running; exit 3", ["exit status 3", "builds are running"]),
        ("sleep 777 & sleep 778", ["it was ended after its 8 s"]),
    ],
    ids=["fails", "hangs"],
)
def test_a_pre_move_hook_that_does_not_succeed_changes_nothing(
    service: Service, script: str, says: list[str]
) -> None:
    old, spec = service.now(), service.spec()
    service.inside(f"echo '{script}' >/home/pre")
    says = [*says, f"service {service.name} was not moved", "nothing was changed"]
    service.world.refused(ASKED, *service.command(SECOND), says=says, status=4)
    story.wait_until("it is undone", lambda: service.hook_was_run("post"))
    assert service.hooks() == [f"pre-move on {FIRST}", f"post-move on {FIRST}"]
    assert (service.now(), service.spec()) == (old, spec)
    left = service.world.run(old.node, "docker", "top", old.container)
    assert "sleep 77" not in left


def test_what_is_in_the_way_is_told_before_anything_happens(service: Service) -> None:
    world, name = service.world, service.name
    old, spec = service.now(), service.spec()

    def refused(node: str, says: list[str], asked: str = name) -> None:
        words = ["pannier", "service", "move", asked, node]
        world.refused(ASKED, *words, says=says)

    refused(SECOND, ["has no service keper", "did you mean keeper?"], asked="keper")
    refused("node9", ["there is no node node9", "node1, node2, node3"])
    story.set_availability(world.lab, SECOND, "drain", asked=ASKED)
    refused(SECOND, [f"node {SECOND} is drained in the Swarm", "--availability active"])
    story.set_availability(world.lab, SECOND, "active", asked=ASKED)
    service.update("--constraint-add", f"node.hostname!={SECOND}")
    refused(SECOND, [f"its constraint node.hostname!={SECOND} excludes it"])
    service.update("--constraint-rm", f"node.hostname!={SECOND}")
    world.run(SECOND, "systemctl", "stop", "docker.socket", "docker.service")
    manager = looks.engine(world.lab, ASKED)
    story.wait_until(
        "it is down", lambda: manager.get(f"/nodes/{SECOND}")["Status"]["State"] == "down"
    )
    refused(SECOND, [f"node {SECOND} is down in the Swarm"])
    world.run(SECOND, "systemctl", "start", "docker.socket", "docker.service")
    world.wait_until_all_up()
    assert (service.now(), service.spec()) == (old, spec)
    assert service.hooks() == []


def test_a_node_without_room_for_the_container_is_refused(service: Service) -> None:
    """Swarm would end the old container, and find no place for the new one."""
    world, filler = service.world, service.world.name("filler")
    world.run(
        ASKED, "docker", "service", "create", "--detach", "--no-resolve-image", "--name", filler,
        "--endpoint-mode", "dnsrr", "--constraint", f"node.hostname=={SECOND}",
        "--reserve-memory", "20g", "--publish", "mode=host,published=8099,target=80",
        IMAGE, "sleep", "600",
    )  # fmt: skip
    story.wait_until("it runs", lambda: story.running_task(world.lab, filler))
    try:
        for change, says in (
            (["--reserve-memory", "8g"], ["reserves 8G of memory, and", f"left on node {SECOND}"]),
            (
                ["--reserve-memory", "0", "--publish-add", "mode=host,published=8099,target=80"],
                ["publishes 8099/tcp", f"on {SECOND} service {filler} does so already"],
            ),
        ):
            service.update(*change)
            spec = service.spec()
            world.refused(ASKED, *service.command(SECOND), says=says, status=4)
            assert service.spec() == spec
    finally:
        world.run(ASKED, "docker", "service", "rm", filler)
        service.update("--publish-rm", "80")


def test_a_command_that_is_killed_before_swarm_is_told_changes_nothing(service: Service) -> None:
    old, spec = service.now(), service.spec()
    service.inside("echo sleep 7 >/home/pre")
    moving = service.moving(SECOND)
    story.wait_until("its hook runs", lambda: service.hook_was_run("pre"))
    service.world.sh(ASKED, "kill -KILL $(cat /run/service-move.pid)")
    assert moving.result(timeout=60).status != 0
    story.wait_until("it is undone", lambda: service.hook_was_run("post"))
    assert (service.now(), service.spec()) == (old, spec)
    service.hooks()
    told = service.told(old)
    service.move(SECOND)
    assert service.hooks() == [f"pre-move on {FIRST}", f"post-move on {SECOND}"]
    service.check_whole(told)


@pytest.mark.parametrize("victim", ["command", "pannierd", "pannierd of the target"])
def test_what_is_killed_after_swarm_was_told_is_brought_to_its_end(
    service: Service, victim: str
) -> None:
    world, spec = service.world, service.spec()
    told = service.told(service.now())
    moving = service.moving(SECOND)
    story.wait_until("Swarm is told", lambda: len(service.spec()["constraints"]) > 1)
    if victim == "command":
        world.sh(ASKED, "kill -KILL $(cat /run/service-move.pid)")
    else:
        world.kill(ASKED if victim == "pannierd" else SECOND, "pannierd")
    moving.result(timeout=120)
    for node in world.nodes:
        world.wait_for_pannier(node)
    if victim == "pannierd":
        service.move(SECOND)
    story.wait_until("it runs there", lambda: service.now().node == SECOND)
    story.wait_until("its constraints are back", lambda: service.spec() == spec)
    story.wait_until("its hook was run", lambda: service.hook_was_run("post"))
    service.check_whole(told)
