"""`docker run` and `docker volume create`: Pannier's driver against Docker's own."""

from __future__ import annotations

from bench.figures import Figure, Result, Rounds, Target
from bench.world import BUSYBOX, World

_TARGETS = {
    "docker run, the volume is mounted": Target(at_most=1.15),
    "docker run, first attach": Target(at_most=1.3),
    "docker volume create": Target(at_most=2.0),
}


def measure(world: World) -> Result:
    """See the module."""
    node = world.nodes[0]
    runs, creations = world.pick(20, 4), world.pick(30, 5)
    collected = Rounds()
    for line in world.probe(node, "start", BUSYBOX, runs, creations):
        collected.add(line["operation"], line["leg"], line["seconds"])
    world.sh(node, "docker volume rm $(docker volume ls -q | grep ^bench-) >/dev/null")
    operations = dict.fromkeys(operation for operation, _ in collected.values)
    return Result(
        title="Starting a container, making a volume",
        reference="the same command with a volume of Docker's own driver `local`.",
        how=(
            f"`docker run --rm --network none` of busybox's `true` with a volume that exists, from "
            f"the command's start to its end, {runs} rounds; a network would take the same time on "
            f"both sides and only hide the difference. A volume stays mounted for half a minute after "
            f"its last use, and is so in the first row; in the second one it was made before, and no "
            f"container has used it since. `docker volume create` of a new name, "
            f"{creations} rounds; three nodes with etcd on each. The last row leaves out the "
            f"`docker` program itself, which costs both the same."
        ),
        figures=tuple(
            Figure(
                what=operation,
                ours=collected.of(operation, "ours"),
                theirs=collected.of(operation, "theirs"),
                target=_TARGETS.get(operation),
            )
            for operation in operations
        ),
    )
