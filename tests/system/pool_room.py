"""Little room in a node's pool, for tests of what happens then."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from cluster_world import IMAGES, World

_FILLER = "/var/lib/pannier/pool/filler"


@contextmanager
def nearly_full(world: World, node: str, *, left: str) -> Iterator[None]:
    """Somebody else takes the pool's room, all but a little. There is nothing in the trash that could give way."""
    _empty_trash(world, node)
    free = f"df -B1 --output=avail {IMAGES} | tail -n 1"
    keep = f"$(numfmt --from=iec {left})"
    world.sh(node, f"fallocate -l $(($({free}) - {keep})) {_FILLER}; sync -f {_FILLER}")
    try:
        yield
    finally:
        world.sh(node, f"rm -f {_FILLER}; sync -f {IMAGES}")


def _empty_trash(world: World, node: str) -> None:
    """The pool has its room back on return."""
    removed = " ".join(each["id"] for each in world.json(node, "volume", "trash"))
    world.run(node, "pannier", "trash", "empty")
    world.sh(
        node,
        f"for id in {removed}; do while test -e {IMAGES}/$id; do sleep 0.1; done; done; "
        f"sync -f {IMAGES}; btrfs -q subvolume sync {IMAGES}",
    )
