"""A file is overwritten at random places for long, while generations come and go: what is left of the
speed, and what the pool keeps of it."""

from __future__ import annotations

import re
import time

from bench.figures import Figure, Result, Target
from bench.world import CONTAINER, MOUNTS, POOL, PYTHON, Wish, World, cluster

_VOLUME = "bench-overwrites"
_SIZE = "256M"
"""Small, so that the journal is: it takes room in the pool, and ``df`` does not count it."""
_MEBIBYTES = 64
_USED = re.compile(r"^(?:Data|Metadata),.*used=([0-9]+)$", re.MULTILINE)
_TIDY_SECONDS = 15
"""Until generations that nobody needs are deleted: they are looked for each 4 s."""
_SLACK_SECONDS = 300
"""What the probe may take beyond its time, for the file that it writes first."""


def measure(wish: Wish) -> Result:
    """See the module."""
    seconds, piece, compared = wish.pick((1200, 10.0, 6), (40, 2.5, 4))
    with cluster(wish) as world:
        before = {node: _used(world, node) for node in world.nodes}
        holder, other = world.volume_in_sync(_VOLUME, durability="fsync", size=_SIZE)
        with world.held(holder, _VOLUME):
            rates = _overwrite(world, holder, seconds, piece)
            time.sleep(_TIDY_SECONDS)
            world.settle()
            grown = {node: _used(world, node) - before[node] for node in (holder, other)}
            files = _in_use(world, holder)
    minute = f"{piece * compared:.0f} s"
    return Result(
        title="Overwriting for long",
        reference=(
            f"for the speed, the first {minute} of the same run; for the pool, what the volume's own file "
            f"system has in use then, as `df` shows it."
        ),
        how=(
            f"In a container one writer overwrites 4 KiB of a file of {_MEBIBYTES} MiB at random places "
            f"and calls fdatasync each time, for {seconds} s; copies=2, durability=fsync, so that "
            f"each call is a record, and generations follow every few seconds. The speed is of pieces of {piece:g} s. The "
            f"growth is that of data and metadata of the whole pool since before the volume was made, "
            f"after generations that nobody needs were deleted. There were {sum(rates) * piece:,.0f} "
            f"overwrites; the file has {_MEBIBYTES << 8:,} blocks."
        ),
        figures=(
            Figure(
                what=f"overwrites per second, the last {minute}",
                ours=rates[-compared:],
                theirs=rates[:compared],
                unit="/s",
                target=Target(at_least=0.8),
            ),
            _growth("the holder's pool has grown by", grown[holder], files, Target(at_most=1.3)),
            _growth("the copy's pool has grown by", grown[other], files, None),
        ),
    )


def _growth(what: str, grown: int, files: int, target: Target | None) -> Figure:
    return Figure(what=what, ours=(grown / 1e6,), theirs=(files / 1e6,), unit="MB", target=target)


def _overwrite(world: World, node: str, seconds: int, piece: float) -> tuple[float, ...]:
    """Overwrites per second of each piece of the time."""
    within = (*CONTAINER, "-v", f"{_VOLUME}:/data", PYTHON)
    arguments = ("/data", _MEBIBYTES, seconds, piece)
    patience = seconds + _SLACK_SECONDS
    found = world.probe(node, "overwrites", *arguments, within=within, timeout=patience)
    return tuple(line["calls"] / line["seconds"] for line in found)


def _used(world: World, node: str) -> int:
    """Bytes of a node's pool, once what was deleted is really gone."""
    world.sh(node, f"btrfs filesystem sync {POOL}; btrfs subvolume sync {POOL} >/dev/null")
    shown = world.sh(node, f"btrfs filesystem df --raw {POOL}")
    return sum(int(used) for used in _USED.findall(shown))


def _in_use(world: World, node: str) -> int:
    """Bytes that the volume's own file system has in use."""
    return int(world.sh(node, f"df -B1 --output=used {MOUNTS}/{_VOLUME} | tail -n 1"))
