"""The lab that the benchmarks run on, and the few things that they do with it."""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pannier.lab import Lab
from pannier.lab.engine import MachineEngine

T = TypeVar("T")

BUSYBOX = "localhost:5000/busybox:1"
PYTHON = "localhost:5000/bench:1"
CONTAINER = ("docker", "run", "--rm", "-i", "--network", "none")
"""The begin of a command that runs a probe in a container."""
POOL = "/var/lib/pannier/pool"
MOUNTS = "/var/lib/pannier/mounts"
_PROBES = Path(__file__).parent / "probes"
_PRODUCT_PYTHON = "/opt/pannier/venv/bin/python"
_PYTHON_FILES = (
    "cd /; tar -c --exclude __pycache__ --exclude 'usr/lib/python3*/test'"
    " bin lib lib64 usr/bin/env usr/bin/python3 usr/bin/python3.* usr/lib/python3.*"
    " usr/lib64 usr/lib/*-linux-gnu/ld-linux* usr/lib/*-linux-gnu/libc.so.6"
    " usr/lib/*-linux-gnu/libm.so.6 usr/lib/*-linux-gnu/libz.so.1*"
    " usr/lib/*-linux-gnu/libexpat.so.1* usr/lib/*-linux-gnu/libffi.so.*"
)


class BenchError(Exception):
    """A benchmark could not be measured, or saw something that must not be."""


@dataclass(frozen=True, slots=True)
class Wish:
    """How a benchmark with machines of its own, or none, shall run.

    Attributes:
        quick: small sizes and few rounds.
        say: told what happens.
    """

    quick: bool
    say: Callable[[str], None]

    def pick(self, full: T, quick: T) -> T:
        """The first in a full run, the second in a quick one."""
        return quick if self.quick else full


@dataclass(frozen=True, slots=True)
class World:
    """Three machines with Docker, Swarm, etcd and Pannier.

    Attributes:
        quick: small sizes and few rounds.
        say: told what happens.
    """

    lab: Lab
    quick: bool
    say: Callable[[str], None]

    def pick(self, full: T, quick: T) -> T:
        """The first in a full run, the second in a quick one."""
        return quick if self.quick else full

    @property
    def nodes(self) -> list[str]:
        """The machines' names."""
        return [node.name for node in self.lab.nodes]

    def engine(self, node: str) -> MachineEngine:
        """A machine's Docker engine, asked through its socket."""
        return self.lab.machine(node).engine

    def sh(self, node: str, script: str, *, timeout: float = 300) -> str:
        """What a shell script prints on a machine."""
        return str(self.lab.run(node, ["sh", "-ec", script], timeout=timeout).stdout)

    def json(self, node: str, *command: str) -> Any:
        """The JSON that a command prints on a machine."""
        return json.loads(self.lab.run(node, command, timeout=120).stdout)

    def probe(
        self, node: str, name: str, *arguments: object, within: tuple[str, ...] = ()
    ) -> list[Any]:
        """Run a script of ``bench/probes`` on a machine; returns its lines, which are JSON.

        Args:
            within: command before ``python3``, such as ``docker run IMAGE``.
        """
        return self._probe(node, name, [*within, "python3"], arguments)

    def product_probe(self, node: str, name: str, *arguments: object) -> list[Any]:
        """As :meth:`probe`, with Pannier's own classes importable."""
        return self._probe(node, name, [_PRODUCT_PYTHON], arguments)

    def _probe(
        self, node: str, name: str, python: list[str], arguments: tuple[object, ...]
    ) -> list[Any]:
        script = (_PROBES / f"{name}.py").read_text()
        command = [*python, "-", *(str(argument) for argument in arguments)]
        done = self.lab.run(node, command, input=script, timeout=900)
        return [json.loads(line) for line in str(done.stdout).splitlines() if line.strip()]

    def background(self, node: str, name: str, *arguments: object) -> str:
        """Start a script of ``bench/probes`` on a machine and let it run; the unit to stop."""
        unit = f"bench-{name}"
        script = (_PROBES / f"{name}.py").read_text()
        start = ["systemd-run", "--quiet", "--collect", "--unit", unit, "python3", "-c", script]
        self.lab.run(node, [*start, *(str(argument) for argument in arguments)], timeout=30)
        return unit

    def pipe(self, source: str, send: list[str], target: str, receive: list[str]) -> None:
        """Run two commands on two machines with a bare pipe between them."""
        first, second = self.lab.machine(source), self.lab.machine(target)
        sender = subprocess.Popen(
            first.entering(send), env=first.environment(), stdout=subprocess.PIPE
        )
        receiver = subprocess.Popen(
            second.entering(receive), env=second.environment(), stdin=sender.stdout
        )
        assert sender.stdout is not None
        sender.stdout.close()
        if receiver.wait() or sender.wait():
            raise BenchError(f"{send} | {receive} failed")

    def settle(self) -> None:
        """Write out what is dirty in the pools, so that no leg pays for the one before."""
        for node in self.nodes:
            self.lab.run(node, ["sync", "--file-system", POOL])

    def volume(self, node: str, name: str, driver: str = "pannier", **options: str) -> None:
        """Make a Docker volume."""
        body = {"Name": name, "Driver": driver, "DriverOpts": options}
        self.engine(node).post("/volumes/create", body)

    def volume_in_sync(self, name: str, *, copies: int = 2, **options: str) -> tuple[str, ...]:
        """Make a volume and wait for all its copies; the nodes that have one, the holder first."""
        holder, *others = self.nodes[:copies]
        self.volume(holder, name, copies=str(copies), nodes=",".join([holder, *others]), **options)

        def in_sync() -> bool:
            shown = self.json(holder, "pannier", "volume", "show", name, "-o", "json")
            return set(shown["in_sync"]) == set(others)

        self.wait(f"all copies of {name} in sync", in_sync)
        return holder, *others

    def mount(self, node: str, name: str) -> Path:
        """Have a volume mounted there, as after a container's end; where it is."""
        self.sh(node, f"docker run --rm --network none -v {name}:/data {BUSYBOX} true")
        return Path(MOUNTS) / name

    def wait(self, what: str, look: Callable[[], T | None], *, seconds: float = 120) -> T:
        """Look again and again until there is something to see."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if found := look():
                return found
            time.sleep(0.1)
        raise BenchError(f"{what}: not within {seconds:.0f} s")


@contextmanager
def cluster(wish: Wish) -> Iterator[World]:
    """Three machines, gone afterwards whatever happens."""
    with laboratory("bench", say=wish.say, nodes=3) as lab:
        world = World(lab, wish.quick, wish.say)
        lab.build_busybox(BUSYBOX)
        _load_python(lab)
        yield world


@contextmanager
def laboratory(name: str, *, say: Callable[[str], None], **wish: Any) -> Iterator[Lab]:
    """A lab that is gone afterwards."""
    lab = Lab(name, report=say)
    lab.down()
    try:
        lab.up(**wish)
        yield lab
    finally:
        lab.down()


def _load_python(lab: Lab) -> None:
    """An image with the machine's own Python: containers run the same program as machines do."""
    folder = Path(tempfile.mkdtemp(prefix="bench-"))
    try:
        packed = folder / "python.tar"
        with packed.open("wb") as out:
            lab.run(lab.nodes[0].name, ["sh", "-c", _PYTHON_FILES], stdout=out)
        lab.load_image(packed, tag=PYTHON)
    finally:
        shutil.rmtree(folder)
