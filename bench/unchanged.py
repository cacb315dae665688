"""The check that nothing changed: its cost must not depend on what there is."""

from __future__ import annotations

from bench.figures import Figure, Result, Rounds, Target
from bench.world import MOUNTS, World

_FEW = 100


def measure(world: World) -> Result:
    """See the module."""
    node = world.nodes[0]
    rounds, many = world.pick(200, 50), world.pick(100_000, 10_000)
    volumes = {"bench-many-files": many, "bench-few-files": _FEW}
    for volume in volumes:
        world.volume(node, volume)
    collected = Rounds()
    with world.held(node, *volumes):
        for volume, files in volumes.items():
            world.probe(node, "fill", f"{MOUNTS}/{volume}", files, 100)
        world.settle()
        for line in world.product_probe(node, "unchanged", rounds, *volumes):
            collected.add(line["operation"], line["leg"], line["seconds"])
    world.sh(node, f"docker volume rm {' '.join(volumes)} >/dev/null")
    return Result(
        title="Seeing that nothing has changed",
        reference=f"the same with a volume of {_FEW} files.",
        how=(
            f"The driver's `snapshot` of a mounted volume that has not changed since its last "
            f"generation, {rounds} rounds. It must cost the same however many files there are."
        ),
        figures=(
            Figure(
                what=f"a volume of {many:,} files",
                ours=collected.of("unchanged", "ours"),
                theirs=collected.of("unchanged", "theirs"),
                target=Target(at_most=1.3),
            ),
        ),
    )
