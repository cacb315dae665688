"""Snapshots between hooks, snapshots of a whole service as of one moment, and a service that is stopped to go back."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from cluster_world import IMAGE, World
from demo import looks, story

from pannier.lab.errors import LabError

pytestmark = [pytest.mark.system, pytest.mark.timeout(300)]

ASKED = "node1"
"""A Swarm manager."""
WRITE = (
    "i=0; while :; do i=$((i+1)); read now _ </proc/uptime; "
    "echo $now $i >>/one/numbers; echo $now $i >>/two/numbers; sleep 0.02; done"
)
"""The same numbers to two volumes, one after the other, each with the time since boot, which is that of all machines of a lab."""
KINDS = ("one", "two")


def names(world: World, node: str, volume: str) -> list[str]:
    return [each["name"] for each in world.printed(node, "volume", "snapshot", "ls", volume)]


def test_a_database_is_quiet_while_its_snapshot_is_made(three: World) -> None:
    """The snapshot has what the first hook wrote, and not what the second did. A hook that hangs ends it, and is undone."""
    name = three.create("node1", copies="2")
    hooks = {
        "pre-snapshot": "echo quiet >>/data/state; [ ! -e /data/hang ] || sleep 1000",
        "pre-snapshot.timeout": "2s",
        "post-snapshot": "echo loud >>/data/state",
    }
    labels = [f"--label=pannier.hook.{key}={text}" for key, text in hooks.items()]
    command = three.docker_run(name, "-d", *labels)
    database = three.run("node1", *command, "sleep", "1000").strip()
    made = three.printed("node3", "volume", "snapshot", "create", name, "first")
    assert made["hook_failures"] == []
    assert three.former("node1", name, "state", tree=made["generation"]) == "quiet\n"
    three.run("node1", "docker", "exec", database, "touch", "/data/hang")
    three.refused(
        "node2", "pannier", "volume", "snapshot", "create", name, "second",
        says=["pre-snapshot hook failed", "ended after its 2 s", "node1", "on-failure=continue"], status=4,
    )  # fmt: skip
    assert names(three, "node1", name) == ["first"]
    state = three.run("node1", "docker", "exec", database, "cat", "/data/state")
    assert state.split() == ["quiet", "loud"] * 2
    three.run("node1", "docker", "rm", "-f", database)


class Pair:
    """A service of two tasks on two nodes, each with two volumes of its own."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.name = world.name("pair")
        self.volumes = [f"{self.name}-{kind}-{slot}" for slot in (1, 2) for kind in KINDS]
        world.volumes += self.volumes
        mounts = [
            f"type=volume,source={self.name}-{kind}-{{{{.Task.Slot}}}},target=/{kind},volume-driver=pannier"
            for kind in KINDS
        ]
        world.run(
            ASKED, "docker", "service", "create", "--detach", "--no-resolve-image", "--name", self.name,
            "--endpoint-mode", "dnsrr", "--replicas", "2", "--replicas-max-per-node", "1", "--stop-grace-period", "0s",
            "--container-label", "pannier.hook.pre-snapshot=echo quiet >>/one/hooks; [ ! -e /one/fail ] || exit 3",
            "--container-label", "pannier.hook.post-snapshot=echo loud >>/one/hooks",
            *(part for mount in mounts for part in ("--mount", mount)), IMAGE, "sh", "-c", WRITE,
        )  # fmt: skip
        story.wait_until("both tasks run", lambda: self.running() == 2, seconds=60)
        self.holders = {volume: world.holder(volume) for volume in self.volumes}
        story.wait_until("they write", lambda: min(len(self.lines(v)) for v in self.volumes) > 20)

    def running(self) -> int:
        """How many of its tasks run."""
        engine = looks.engine(self.world.lab, ASKED)
        tasks = [each for each in engine.get("/tasks") if each["DesiredState"] == "running"]
        spec = {each["ID"]: each["Spec"]["Name"] for each in engine.get("/services")}
        ours = [each for each in tasks if spec.get(each["ServiceID"]) == self.name]
        return sum(each["Status"]["State"] == "running" for each in ours)

    def at(self, volume: str, *command: str) -> str:
        """What a command prints that is run where the volume is mounted, on its holder."""
        place = f"/var/lib/pannier/mounts/{volume}"
        return self.world.run(self.holders[volume], "env", "-C", place, *command)

    def hooks(self, volume: str) -> list[str]:
        """The hooks that have run in its container."""
        return self.at(volume, "sh", "-c", "cat hooks 2>/dev/null || true").split()

    def lines(self, volume: str, *, tree: str = "") -> list[tuple[float, int]]:
        """What is in a volume, or in a former state of it: times and numbers."""
        if tree:
            text = self.world.former(self.holders[volume], volume, "numbers", tree=tree)
        else:
            text = self.at(volume, "cat", "numbers")
        pairs = [line.split() for line in text.splitlines() if line.count(" ") == 1]
        return [(float(now), int(number)) for now, number in pairs]

    def has_more(self, volume: str, *, than: int) -> bool:
        """Whether a volume has more lines, wherever its task runs by now: Swarm may have started it on another node."""
        try:
            self.holders[volume] = self.world.holder(volume)
            return len(self.lines(volume)) > than
        except LabError:  # it is just on its way
            return False

    def spec(self) -> dict[str, object]:
        spec = looks.engine(self.world.lab, ASKED).get(f"/services/{self.name}")["Spec"]
        return {"mode": spec["Mode"], "labels": spec["Labels"]}


@pytest.fixture
def pair(three: World) -> Iterator[Pair]:
    made = Pair(three)
    yield made
    three.run(ASKED, "docker", "service", "rm", made.name)


def test_a_service_s_snapshots_are_of_one_moment_and_it_is_stopped_to_go_back(pair: Pair) -> None:
    """On two nodes. Where a hook fails on one, nothing is made on either, and both are loud again."""
    world = pair.world
    assert len(set(pair.holders.values())) == 2
    first, second = (f"{pair.name}-one-{slot}" for slot in (1, 2))
    pair.at(second, "touch", "fail")
    world.refused(
        ASKED, "pannier", "service", "snapshot", pair.name, "early", says=["exit status 3", pair.name], status=4,
    )  # fmt: skip
    story.wait_until("it is loud again", lambda: pair.hooks(second) == ["quiet", "loud"])
    story.wait_until("so is the other", lambda: pair.hooks(first) in ([], ["quiet", "loud"]))
    assert [names(world, ASKED, volume) for volume in pair.volumes] == [[]] * 4
    pair.at(second, "rm", "fail")
    said = world.printed(ASKED, "service", "snapshot", pair.name, "early", "--label", "by=me")
    made = {each["volume"]: each["generation"] for each in said}
    assert sorted(made) == sorted(pair.volumes)
    before = {volume: pair.lines(volume, tree=tree) for volume, tree in made.items()}
    for slot in (1, 2):
        one, two = (before[f"{pair.name}-{kind}-{slot}"][-1][1] for kind in KINDS)
        assert 0 <= one - two <= 1, "the numbers of a task's volumes are those of one moment"
    story.wait_until(
        "more", lambda: all(len(pair.lines(v)) > len(lines) + 2 for v, lines in before.items())
    )
    # The first line after a snapshot may have been begun before it, and waited.
    later = min(pair.lines(volume)[len(lines) + 1][0] for volume, lines in before.items())
    assert max(lines[-1][0] for lines in before.values()) <= later, "and so are those of both nodes"

    assert pair.hooks(second) == ["quiet", "loud"] * 2

    spec, back = pair.spec(), pair.volumes[0]
    world.refused(ASKED, "pannier", "volume", "rollback", back, "early", says=["--stop-service"])
    world.refused(
        ASKED, "pannier", "volume", "rollback", back, "none", "--stop-service", says=["no snapshot"]
    )
    assert pair.running() == 2
    world.run(ASKED, "pannier", "volume", "rollback", back, "early", "--stop-service")
    assert pair.spec() == spec
    story.wait_until("both tasks run again", lambda: pair.running() == 2, seconds=60)
    story.wait_until("it goes on", lambda: pair.has_more(back, than=len(before[back]) + 5))
    now = pair.lines(back)
    assert now[: len(before[back])] == before[back]
    assert now[len(before[back])][1] == 1, "by a new container"
    assert len(names(world, ASKED, back)) == 2
