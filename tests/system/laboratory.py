"""The labs of the system tests: one for each wish, up for as long as its tests run, in order between them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import barrier_world
import java_image
from cluster_world import IMAGE, World
from demo import image, jenkins_image, postgres_image

from pannier.lab import Lab, cluster


@dataclass(frozen=True, slots=True)
class Wish:
    """A lab that tests share.

    Attributes:
        word: what its name begins with.
        up: what :meth:`Lab.up` is asked for.
        prepare: what it has before the first test, images for instance.
        modules: whose tests use it, in this order: those that change most come last.
    """

    word: str
    up: dict[str, Any]
    prepare: Callable[[Lab], object] = field(default=lambda lab: lab.build_busybox(IMAGE))
    modules: tuple[str, ...] = ()


def _power(lab: Lab) -> None:
    lab.build_busybox(IMAGE)
    postgres_image.load(lab)


def _jenkins(lab: Lab) -> None:
    lab.build_busybox(IMAGE)
    jenkins_image.load(lab)


def _barrier(lab: Lab) -> None:
    lab.build_busybox(IMAGE)
    java_image.load(lab)
    for node in lab.nodes:
        barrier_world.Box(lab, node.name).set_up()


def _joinable(lab: Lab) -> None:
    """Only the first of the machines belongs to a cluster."""
    lab.build_busybox(IMAGE)
    machines = lab.machines()
    cluster.start_etcd(machines)
    cluster.start_pannier(machines[:1], store=f"etcd://{machines[0].node.address}:2379")


def _nothing(lab: Lab) -> None:
    pass


THREE = {"nodes": 3, "release": "mixed"}
CUTTABLE = {**THREE, "disks": "cuttable", "disk_size": "5G"}
"""A flush of a cuttable disk costs by its size."""

# In the order in which lanes take them: long ones first, and beside one that is busy one that waits.
WISHES = {
    "fault_lab": Wish(
        "f", CUTTABLE,
        modules=("daemons", "network", "replicas", "nodes", "disks", "swarm", "databases", "data", "restored", "offsite_cut"),
    ),
    "bare_lab": Wish(
        "y", {"nodes": 4, "release": "mixed", "bare": True}, _nothing, modules=("deploy",)
    ),
    "three_lab": Wish(
        "s", THREE, image.load,
        modules=("bad_input", "certificates", "cluster", "images", "story", "service_move", "move"),
    ),
    "jenkins_lab": Wish("j", CUTTABLE, _jenkins, modules=("jenkins",)),
    "power_lab": Wish("p", CUTTABLE, _power, modules=("copies", "trees", "power", "failover")),
    "guard_lab": Wish("u", THREE, image.load, modules=("guards", "snapshots", "quiet_snapshots", "clones", "encryption", "backups", "importing", "standing_still", "runtime")),
    "swarm_lab": Wish("e", {"nodes": 4, "release": "mixed"}, modules=("evacuation",)),
    "barrier_lab": Wish(
        "b", {"nodes": 2, "release": "mixed", "cluster_kind": "none"}, _barrier,
        modules=("barrier",),
    ),
    "host_lab": Wish(
        "g", {"nodes": 2, "release": "mixed", "cgroups": "host"}, modules=("cgroups",)
    ),
    "blank_lab": Wish("n", {"nodes": 2, "cluster_kind": "none"}, _joinable, modules=("join",)),
    "single_lab": Wish("o", {"nodes": 1, "store": "sqlite"}, modules=("single", "trash")),
    "directory_lab": Wish("d", {"nodes": 2, "driver": "directory"}, modules=("directory",)),
}  # fmt: skip


def wish_of(module: str) -> str:
    """What lab the tests of a module use; the module's own name where they make their own."""
    return next((wish for wish, each in WISHES.items() if module in each.modules), module)


_up: dict[str, Lab] = {}
"""The labs of this process that stand now, by what wished for them."""
_left: set[str] = set()
"""Names of labs whose last test has ended."""
_failed: dict[str, Exception] = {}
"""Why a lab did not come up: its tests fail, and do not try again."""


def have(wish: str) -> None:
    """Bring up the lab of a wish, if it does not stand; :func:`lab_of` tells what went wrong.

    For development the environment may name one that stands and stays, for instance
    ``PANNIER_THREE_LAB``. It must be what the wish asks for, and prepared.
    """
    if wish in _up or wish in _failed:
        return
    name = os.environ.get(f"PANNIER_{wish.upper()}")
    try:
        _up[wish] = Lab(name) if name else _bring_up(WISHES[wish])
    except Exception as error:
        _failed[wish] = error


def lab_of(wish: str) -> Lab:
    """The lab of a wish, which stands."""
    have(wish)
    if wish in _failed:
        raise _failed[wish]
    return _up[wish]


def _bring_up(wish: Wish) -> Lab:
    lab = Lab(f"{wish.word}{os.getpid() % 100000}")
    lab.down()
    try:
        lab.up(**wish.up)
        wish.prepare(lab)
    except BaseException:
        lab.down()
        raise
    return lab


def take_down(*but: str) -> None:
    """Remove the labs that stand, other than those of the wishes ``but``."""
    for wish in [each for each in _up if each not in but]:
        lab = _up.pop(wish)
        if not os.environ.get(f"PANNIER_{wish.upper()}"):
            lab.down()


def leave(wish: str) -> None:
    """The next thing that happens to a lab is its end: no test of it needs to find it in order."""
    if wish in _up and not os.environ.get(f"PANNIER_{wish.upper()}"):
        _left.add(_up[wish].name)


def open_labs() -> list[Lab]:
    """Those that stand now."""
    return list(_up.values())


@contextmanager
def world_on(lab: Lab) -> Iterator[World]:
    """A lab for one test, in order before and, if another test of it follows, after it."""
    world = World(lab)
    try:
        yield world
    finally:
        if lab.name not in _left:
            world.clean_up()
