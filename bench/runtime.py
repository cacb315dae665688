"""Containers that use no volume of Pannier: what `pannier-runtime` costs them."""

from __future__ import annotations

from bench.figures import Figure, Result, Rounds, Target
from bench.world import BUSYBOX, BenchError, World

_VOLUME = "bench-runtime"


def measure(world: World) -> Result:
    """See the module."""
    rounds = world.pick(40, 6)
    node, _ = world.volume_in_sync(_VOLUME, durability="fsync")
    world.mount(node, _VOLUME)  # from here on the runtime has to look at each container
    default = world.engine(node).get("/info")["DefaultRuntime"]
    if default != "pannier":
        raise BenchError(f"the default runtime is {default}")
    collected = Rounds()
    for line in world.probe(node, "run", BUSYBOX, rounds):
        collected.add(line["operation"], line["leg"], line["seconds"])
    world.sh(node, f"docker volume rm {_VOLUME}")
    return Result(
        title="Containers that use no volume of Pannier",
        reference="the same with `--runtime runc`.",
        how=(
            f"`docker run --rm --network none` of busybox's `true`, {rounds} rounds after one to warm "
            f"up. pannier-runtime is the engine's default, and the node holds a volume with "
            f"durability=fsync, so that every container is looked at."
        ),
        figures=(
            Figure(
                what="docker run",
                ours=collected.of("docker run", "ours"),
                theirs=collected.of("docker run", "theirs"),
                target=Target(at_most=1.05),
            ),
        ),
    )
