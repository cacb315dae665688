"""Reading and writing in a container: a Pannier volume against a bind mount on the same pool."""

from __future__ import annotations

from bench.figures import Figure, Result, Rounds, Target
from bench.world import POOL, PYTHON, World

VOLUME = "bench-files"
PLAIN = f"{POOL}/bench-plain"


def measure(world: World) -> Result:
    """See the module."""
    node = world.nodes[0]
    rounds, mebibytes = world.pick(8, 2), world.pick(512, 64)
    operations, files = world.pick(2048, 256), world.pick(20_000, 2_000)
    world.volume(node, VOLUME)
    world.sh(node, f"mkdir {PLAIN}")
    container = ["docker", "run", "--rm", "-i", "--network", "none"]
    container += ["-v", f"{VOLUME}:/pannier", "-v", f"{PLAIN}:/plain", PYTHON]
    sizes = (rounds, mebibytes, operations, files)
    found = world.probe(node, "load", "/pannier", "/plain", *sizes, within=tuple(container))
    world.sh(node, f"rm -r {PLAIN}; docker volume rm {VOLUME}")
    collected = Rounds()
    for line in found:
        collected.add(line["operation"], line["leg"], line["seconds"])
    return Result(
        title="Reading and writing in a container",
        reference="a bind mount of a directory in the same pool, in the same container.",
        how=(
            f"One container has both; one Python program works in one and then in the other, "
            f"operation by operation, {rounds} rounds after one to warm up; what is dirty is "
            f"written out before each. The large file has {mebibytes} MiB and leaves the page "
            f"cache before it is read; {operations:,} random writes, {operations * 4:,} random "
            f"reads; {files:,} small files of 3,000 bytes in folders of 100. The ratio is of speed."
        ),
        figures=tuple(
            Figure(
                what=operation,
                ours=collected.of(operation, "ours"),
                theirs=collected.of(operation, "theirs"),
                target=Target(at_least=1.0, accepted=0.97),
                invert=True,
            )
            for operation in dict.fromkeys(line["operation"] for line in found)
        ),
    )
