"""A planned move under a writer: how long nobody can write, beyond the container's stop and start."""

from __future__ import annotations

import json
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.figures import Figure, Result, Target
from bench.world import MOUNTS, PYTHON, BenchError, World
from pannier.core.pace import HoldingPace

_RATE = 4  # MiB per second
_LOCAL = "/var/lib/docker/volumes"
_WRITER = (Path(__file__).parent / "probes" / "writer.py").read_text()


@dataclass(slots=True)
class _Application:
    """A container that writes into a volume, and where it has been.

    Attributes:
        at: the node on which it runs or ran last.
        gaps: seconds without any write, one for each change of container.
        moves: the last line of each `pannier volume move`.
    """

    world: World
    volume: str
    driver: str
    at: str
    runs: int = 0
    container: str = ""
    gaps: list[float] = field(default_factory=list)
    moves: list[dict[str, Any]] = field(default_factory=list)

    def start(self, node: str) -> None:
        """As `docker run --detach`."""
        self.runs += 1
        engine = self.world.engine(node)
        body = {
            "Image": PYTHON,
            "Cmd": ["python3", "-c", _WRITER, str(self.runs), str(_RATE)],
            "HostConfig": {
                "NetworkMode": "none",
                "Mounts": [
                    {
                        "Type": "volume",
                        "Source": self.volume,
                        "Target": "/data",
                        "VolumeOptions": {"DriverConfig": {"Name": self.driver}},
                    }
                ],
            },
        }
        self.container = engine.post("/containers/create", body, timeout=120)["Id"]
        engine.post(f"/containers/{self.container}/start", None, timeout=120)
        self.at = node

    def stop(self) -> None:
        """As `docker stop`; the writer ends at once."""
        self.world.engine(self.at).post(f"/containers/{self.container}/stop?t=10", None)

    def change_container(self, node: str) -> None:
        """Stop the container and start another one there; notes the gap, and that nothing is gone."""
        self.stop()
        self.start(node)
        started = self.world.wait("the writer goes on", lambda: self._note(f"started-{self.runs}"))
        stopped = self._note(f"stopped-{self.runs - 1}")
        if stopped is None or started["seen"] != stopped["number"]:
            raise BenchError(f"{self.volume}: the last write was {stopped}, found is {started}")
        self.gaps.append(started["first"] - stopped["last"])

    def _note(self, name: str) -> dict[str, Any] | None:
        root = f"{_LOCAL}/{self.volume}/_data" if self.driver == "local" else self._mount
        found = self.world.lab.run(self.at, ["cat", f"{root}/{name}"], check=False)
        note: dict[str, Any] | None = json.loads(found.stdout) if found.returncode == 0 else None
        return note

    @property
    def _mount(self) -> str:
        return f"{MOUNTS}/{self.volume}"

    def move(self, target: str, *, beside: _Application) -> None:
        """`pannier volume move`, and the container follows when the bulk is there.

        The container ``beside`` it, whose volume stays, changes just before: on the same machine,
        as busy as that is after so much was copied.
        """
        lab, source = self.world.lab, self.at
        with tempfile.TemporaryFile() as steps:
            command = ["pannier", "volume", "move", self.volume, target, "--wait", "90s"]
            mover = threading.Thread(
                target=lab.run,
                args=(source, [*command, "-o", "json"]),
                kwargs={"stdout": steps, "check": False, "timeout": 300},
            )
            mover.start()
            self.world.wait("the bulk is copied", lambda: _phase(steps.fileno(), "waiting"))
            beside.change_container(beside.at)
            self.change_container(target)
            mover.join()
            done = _phase(steps.fileno(), "done")
        if done is None:
            raise BenchError(f"the move of {self.volume} from {source} to {target} failed")
        self.moves.append(done)


def measure(world: World) -> Result:
    """See the module."""
    small, large = world.pick((100, 5120), (20, 512))
    rounds = world.pick(4, 2)
    first = world.nodes[0]
    local = _Application(world, "bench-local", "local", first)
    applications = {
        mebibytes: _Application(world, f"bench-{mebibytes}", "pannier", first)
        for mebibytes in (small, large)
    }
    for mebibytes, application in applications.items():
        world.volume(first, application.volume)
        root = world.mount(first, application.volume)
        world.probe(first, "fill", root, 10, mebibytes * 2**20 // 10)
    world.settle()
    for application in (local, *applications.values()):
        application.start(first)
    for number in range(rounds):
        target = world.nodes[(number + 1) % len(world.nodes)]
        for application in applications.values():
            application.move(target, beside=local)
            _let_them_tidy(world)
    for application in (local, *applications.values()):
        application.stop()
    return _result(world, applications[small], applications[large], local, (small, large))


def _let_them_tidy(world: World) -> None:
    """What a move leaves behind on both nodes is deleted later: not while another leg is measured."""
    time.sleep(HoldingPace().tidy_after + 2)
    world.settle()


def _result(
    world: World,
    small: _Application,
    large: _Application,
    local: _Application,
    sizes: tuple[int, int],
) -> Result:
    """The local application changed its container once with each move, by turns."""
    names = [f"{mebibytes:,} MiB" for mebibytes in sizes]
    extra_small, extra_large = (
        tuple(gap - own for gap, own in zip(app.gaps, local.gaps[turn::2], strict=True))
        for turn, app in enumerate((small, large))
    )
    told_small, told_large = (
        tuple(float(move["pause_seconds"]) for move in app.moves) for app in (small, large)
    )
    second = Target(at_most=1.0, of="value")
    copied = [move["sent_bytes"] / 2**20 for move in large.moves]
    return Result(
        title="A planned move",
        reference=(
            "for the gaps, the same container with a volume of Docker's driver `local`, stopped "
            "and started again on one node just before, when the bulk has been copied; for the "
            "last rows, the small volume."
        ),
        how=(
            f"A container writes {_RATE} MiB/s into the volume all the time. `pannier volume move` "
            f"copies the bulk meanwhile; when it waits, the container is stopped (it ends at once) "
            f"and started on the other node, through the engines' API. The gap is from the last "
            f"write in the old container to the first one in the new one; the new one also checks "
            f"that it finds that last write. {len(large.moves)} moves of each volume around three "
            f"nodes; those of the large one sent {min(copied):,.0f} to {max(copied):,.0f} MiB. "
            f"`pause_seconds` is what `pannier volume move` itself says."
        ),
        figures=(
            _gap(f"gap with {names[0]}", small, local.gaps[0::2]),
            _gap(f"gap with {names[1]}", large, local.gaps[1::2]),
            Figure(what=f"gap beyond stop and start, {names[0]}", ours=extra_small, target=second),
            Figure(what=f"gap beyond stop and start, {names[1]}", ours=extra_large, target=second),
            Figure(what=f"`pause_seconds`, {names[0]}", ours=told_small, target=second),
            Figure(what=f"`pause_seconds`, {names[1]}", ours=told_large, target=second),
            Figure(
                what=f"`pause_seconds`, {names[1]} against {names[0]}",
                ours=told_large,
                theirs=told_small,
                target=Target(at_most=1.3),
            ),
            Figure(
                what=f"the whole gap, {names[1]} against {names[0]}",
                ours=tuple(large.gaps),
                theirs=tuple(small.gaps),
                target=Target(at_most=1.3),
            ),
        ),
        notes=(
            f"the longest gap beyond stop and start was {max(extra_small + extra_large):.2f} s",
        ),
    )


def _gap(what: str, application: _Application, own: list[float]) -> Figure:
    return Figure(what=what, ours=tuple(application.gaps), theirs=tuple(own))


def _phase(file: int, wanted: str) -> dict[str, Any] | None:
    """The last step of this phase that the command has printed so far."""
    found = None
    with open(f"/proc/self/fd/{file}", "rb") as own:
        for line in own.read().splitlines():
            if not line.startswith(b"{"):
                continue
            step: dict[str, Any] = json.loads(line)
            if step.get("phase") == "failed" or "message" in step:
                raise BenchError(f"the move failed: {step}")
            if step.get("phase") == wanted:
                found = step
    return found
