"""Reading and writing in a container: a Pannier volume against a bind mount on the same pool."""

from __future__ import annotations

from dataclasses import dataclass

from bench.figures import Figure, Result, Rounds, Target
from bench.world import CONTAINER, POOL, PYTHON, World

VOLUME = "bench-files"
PLAIN = f"{POOL}/bench-plain"


def measure(world: World) -> Result:
    """See the module."""
    world.volume(world.nodes[0], VOLUME)
    load = Load.full(world)
    figures = compare(world, VOLUME, load, sync=True)
    return Result(
        title="Reading and writing in a container",
        reference="a bind mount of a directory in the same pool, in the same container.",
        how=(
            f"One container has both; one Python program works in one and then in the other, "
            f"operation by operation, {load.rounds} rounds after one to warm up; what is dirty is "
            f"written out before each. The large file has {load.mebibytes} MiB and leaves the page "
            f"cache before it is read; {load.operations:,} random writes, {load.operations * 4:,} "
            f"random reads; {load.files:,} small files of 3,000 bytes in folders of 100. The ratio "
            f"is of speed."
        ),
        figures=figures,
    )


@dataclass(frozen=True, slots=True)
class Load:
    """How much is read and written: rounds, MiB of the large file, 4 KiB operations, small files."""

    rounds: int
    mebibytes: int
    operations: int
    files: int

    @classmethod
    def full(cls, world: World) -> Load:
        """Some minutes of it."""
        return world.pick(cls(16, 512, 2048, 20_000), cls(2, 64, 256, 2_000))


def compare(world: World, volume: str, load: Load, *, sync: bool) -> tuple[Figure, ...]:
    """The volume against a bind mount, on the first node; the volume is removed.

    Args:
        sync: whether the sync calls are part of what is measured, or made before.
    """
    node = world.nodes[0]
    world.sh(node, f"mkdir {PLAIN}")
    within = (*CONTAINER, "-v", f"{volume}:/pannier", "-v", f"{PLAIN}:/plain", PYTHON)
    sizes = (load.rounds, load.mebibytes, load.operations, load.files, "sync" if sync else "none")
    found = world.probe(node, "load", "/pannier", "/plain", *sizes, within=within)
    world.sh(node, f"rm -r {PLAIN}; docker volume rm {volume}")
    collected = Rounds()
    for line in found:
        collected.add(line["operation"], line["leg"], line["seconds"])
    return tuple(
        Figure(
            what=operation,
            ours=collected.of(operation, "ours"),
            theirs=collected.of(operation, "theirs"),
            target=Target(at_least=1.0, accepted=0.97),
            invert=True,
        )
        for operation in dict.fromkeys(line["operation"] for line in found)
    )
