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
IMAGES = f"{POOL}/images"
"""Where a node keeps its volumes, each in a directory with the volume's id."""
STAGING = "/run/pannier/images"
"""Where their file systems are mounted while they are used, and half a minute longer."""
MOUNTS = "/var/lib/pannier/mounts"
_PROBES = Path(__file__).parent / "probes"
_PROBE_SECONDS = 900
"""How long a probe may take: longer than any but those that say otherwise."""
_SETTLE = f"""
for place in {STAGING}/*; do sync --file-system $place 2>/dev/null || :; done
sync --file-system {POOL}
"""
"""An image that is just being unmounted needs no sync."""
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
        self,
        node: str,
        name: str,
        *arguments: object,
        within: tuple[str, ...] = (),
        timeout: float = _PROBE_SECONDS,
    ) -> list[Any]:
        """Run a script of ``bench/probes`` on a machine; returns its lines, which are JSON.

        Args:
            within: command before ``python3``, such as ``docker run IMAGE``.
        """
        return self._probe(node, name, [*within, "python3"], arguments, timeout)

    def product_probe(self, node: str, name: str, *arguments: object) -> list[Any]:
        """As :meth:`probe`, with Pannier's own classes importable."""
        return self._probe(node, name, [_PRODUCT_PYTHON], arguments, _PROBE_SECONDS)

    def _probe(
        self,
        node: str,
        name: str,
        python: list[str],
        arguments: tuple[object, ...],
        timeout: float,
    ) -> list[Any]:
        script = (_PROBES / f"{name}.py").read_text()
        command = [*python, "-", *(str(argument) for argument in arguments)]
        done = self.lab.run(node, command, input=script, timeout=timeout)
        return [json.loads(line) for line in str(done.stdout).splitlines() if line.strip()]

    def background(self, node: str, name: str, *arguments: object) -> str:
        """Start a script of ``bench/probes`` on a machine and let it run; the unit to stop."""
        unit = f"bench-{name}"
        start = ["systemd-run", "--quiet", "--collect", "--unit", unit]
        self.lab.run(node, [*start, *probe_command(name, *arguments)], timeout=30)
        return unit

    def pipe(self, source: str, send: list[str], target: str, receive: list[str]) -> str:
        """Run two commands on two machines with a bare pipe between them; what the second one prints."""
        first, second = self.lab.machine(source), self.lab.machine(target)
        sender = subprocess.Popen(
            first.entering(send), env=first.environment(), stdout=subprocess.PIPE
        )
        receiver = subprocess.Popen(
            second.entering(receive),
            env=second.environment(),
            stdin=sender.stdout,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert sender.stdout is not None
        sender.stdout.close()
        said, _ = receiver.communicate()
        if receiver.returncode or sender.wait():
            raise BenchError(f"the pipe from {source} to {target} failed")
        return said

    def settle(self) -> None:
        """Write out what is dirty in the images and in the pools, so that no leg pays for the one before."""
        for node in self.nodes:
            self.sh(node, _SETTLE)

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
        """Have a volume mounted there, as after a container's end; where it is. Half a minute later it
        is not any more, unless something has it open.
        """
        self.sh(node, f"docker run --rm --network none -v {name}:/data {BUSYBOX} true")
        return Path(MOUNTS) / name

    @contextmanager
    def held(self, node: str, *names: str) -> Iterator[str]:
        """Keep volumes mounted for as long as the block lasts, by one container that does nothing.

        Yields the container. It has the volumes at ``/v/0``, ``/v/1`` and so on.
        """
        mounts = " ".join(f"-v {name}:/v/{number}" for number, name in enumerate(names))
        run = f"docker run -d --network none {mounts} {BUSYBOX} sleep 86400"
        container = self.sh(node, run).strip()
        try:
            yield container
        finally:
            self.sh(node, f"docker rm -f {container} >/dev/null")

    def volume_id(self, node: str, name: str) -> str:
        """The id of a volume, by which its node keeps it."""
        shown = self.json(node, "pannier", "volume", "show", name, "-o", "json")
        return str(shown["id"])

    def address(self, node: str) -> str:
        """A machine's address in the lab's network."""
        return next(each.address for each in self.lab.nodes if each.name == node)

    def wait(self, what: str, look: Callable[[], T | None], *, seconds: float = 120) -> T:
        """Look again and again until there is something to see."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if found := look():
                return found
            time.sleep(0.1)
        raise BenchError(f"{what}: not within {seconds:.0f} s")


def probe_command(name: str, *arguments: object) -> list[str]:
    """A script of ``bench/probes`` as a command, for what is not waited for by :meth:`World.probe`."""
    script = (_PROBES / f"{name}.py").read_text()
    return ["python3", "-c", script, *(str(argument) for argument in arguments)]


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
