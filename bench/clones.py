"""A clone of a large volume: how long it takes, and how many bytes it takes."""

from __future__ import annotations

from bench.figures import Figure, Result, Rounds, Target
from bench.timed import run_timed
from bench.world import IMAGES, MOUNTS, POOL, World

_VOLUME = "bench-clone-source"
_BY_HAND = f"{POOL}/bench-by-hand"
_FILE_MEBIBYTES = 64
_USED = f"""
sync; btrfs filesystem sync {POOL}; btrfs subvolume sync {POOL} >/dev/null
btrfs filesystem df -b {POOL} | grep -o 'used=[0-9]*' | cut -d = -f 2
"""


def measure(world: World) -> Result:
    """See the module."""
    rounds, mebibytes = world.pick(5, 2), world.pick(5120, 512)
    holder, other = world.volume_in_sync(_VOLUME)
    live = f"{IMAGES}/{world.volume_id(holder, _VOLUME)}/live-1"
    collected = Rounds()
    with world.held(holder, _VOLUME):
        root = f"{MOUNTS}/{_VOLUME}"
        world.probe(holder, "fill", root, mebibytes // _FILE_MEBIBYTES, _FILE_MEBIBYTES << 20)
        world.sh(holder, f"mkdir {_BY_HAND}; sync")
        _wait_in_sync(world, holder, _VOLUME, other)
        for number in range(-1, rounds):
            seconds, more = _clone(world, holder, other, number)
            (by_hand,) = run_timed(
                world, holder, ["btrfs", "subvolume", "snapshot", live, f"{_BY_HAND}/{number}"]
            )
            if number >= 0:
                collected.add("clone", "ours", seconds)
                collected.add("clone", "theirs", by_hand.seconds)
                for where, mebibytes_more in more.items():
                    collected.add(where, "ours", mebibytes_more)
    names = " ".join(map(_name, range(-1, rounds)))
    world.sh(holder, f"btrfs subvolume delete {_BY_HAND}/* >/dev/null; rmdir {_BY_HAND}")
    world.sh(holder, f"docker volume rm {_VOLUME} {names} >/dev/null")
    return Result(
        title="Clones",
        reference="a writable `btrfs subvolume snapshot` of the same image, with the start of that program.",
        how=(
            f"`pannier volume clone` of a volume of {mebibytes:,} MiB with copies=2, which is in use and whose copy is in sync; the "
            f"clone has copies=2, too. {rounds} rounds after one to warm up. New bytes are what `btrfs filesystem df` counts more "
            f"when the clone's copy is in sync than before the clone, data and metadata."
        ),
        figures=(
            Figure(
                what=f"`volume clone` of {mebibytes:,} MiB",
                ours=collected.of("clone", "ours"),
                theirs=collected.of("clone", "theirs"),
                target=Target(at_most=1.0, of="value"),
            ),
            *(
                Figure(
                    what=f"new bytes in the pool of the {where}",
                    ours=collected.of(where, "ours"),
                    unit="MiB",
                    target=Target(at_most=1.0, of="value"),
                )
                for where in ("holder", "copy")
            ),
        ),
    )


def _name(number: int) -> str:
    return f"bench-clone-{number + 1}"


def _clone(world: World, holder: str, other: str, number: int) -> tuple[float, dict[str, float]]:
    """Make one. Returns the command's seconds, and the MiB that it took on each node's pool."""
    before = {"holder": _used(world, holder), "copy": _used(world, other)}
    command = ["pannier", "volume", "clone", _VOLUME, _name(number)]
    (timed,) = run_timed(world, holder, command)
    _wait_in_sync(world, holder, _name(number), other)
    after = {"holder": _used(world, holder), "copy": _used(world, other)}
    return timed.seconds, {where: (after[where] - before[where]) / 2**20 for where in before}


def _used(world: World, node: str) -> int:
    return sum(map(int, world.sh(node, _USED).split()))


def _wait_in_sync(world: World, holder: str, volume: str, other: str) -> None:
    def in_sync() -> bool:
        shown = world.json(holder, "pannier", "volume", "show", volume, "-o", "json")
        return other in shown["in_sync"]

    world.wait(f"the copy of {volume} is in sync", in_sync)
