"""Reading and writing in a container: a Pannier volume against an ext4 image made by hand."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from bench.figures import Figure, Result, Rounds, Target
from bench.world import CONTAINER, IMAGES, POOL, PYTHON, World

VOLUME, REPLICATED = "bench-files", "bench-files-two"
SIZE = "4G"
"""Of the volumes, so that the image made by hand can be as large."""
_PLAIN = "/var/lib/bench-plain"
_IMAGE, _SEED = f"{POOL}/bench-plain.img", "/var/lib/bench-seed"
_FEATURES = (
    "none,has_journal,ext_attr,resize_inode,dir_index,filetype,extent,64bit,flex_bg,sparse_super,"
    "large_file,huge_file,dir_nlink,extra_isize,metadata_csum"
)
_MKFS = (
    f"mkfs.ext4 -q -F -b 4096 -I 256 -i 8192 -m 0 -J size=64 -O {_FEATURES}"
    " -E nodiscard,assume_storage_prezeroed=1"
)
"""The file system that a volume of this size has (src/pannier/storage/image/ext4.py)."""


def measure(world: World) -> Result:
    """See the module."""
    load = Load.full(world)
    world.volume(world.nodes[0], VOLUME, size=SIZE)
    figures = compare(world, VOLUME, load, target=Target(at_least=0.97))
    world.volume_in_sync(REPLICATED, durability="interval", size=SIZE)
    replicated = compare(world, REPLICATED, load, prefix="copies=2: ")
    return Result(
        title="Reading and writing in a container",
        reference=(
            "an ext4 made by hand with the same features, in a file of the same size without "
            "copy-on-write in the same pool, on a loop device with direct I/O, bind mounted in the "
            "same container."
        ),
        how=(
            f"One container has both; one Python program works in one and then in the other, "
            f"operation by operation, {load.rounds} rounds after one to warm up; what is dirty is "
            f"written out before each. The large file has {load.mebibytes} MiB and leaves the page "
            f"cache before it is read; {load.operations:,} random writes, {load.operations * 4:,} "
            f"random reads; {load.files:,} small files of 3,000 bytes in folders of 100. The ratio "
            f"is of speed. The first rows are of a volume with one copy. With copies=2 (and "
            f"durability=interval, so that no sync call waits for the copy) the other machine "
            f"receives all that is written, on the same disk and the same processors."
        ),
        figures=(*figures, *replicated),
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


def compare(
    world: World,
    volume: str,
    load: Load,
    *,
    target: Target | None = None,
    prefix: str = "",
) -> tuple[Figure, ...]:
    """The volume against an image made by hand, on the first node; the volume is removed.

    Args:
        volume: of :data:`SIZE`.
        prefix: of each row's name.
    """
    node = world.nodes[0]
    sizes = (load.rounds, load.mebibytes, load.operations, load.files)
    with _made_by_hand(world, node, like=volume) as plain:
        within = (*CONTAINER, "-v", f"{volume}:/pannier", "-v", f"{plain}:/plain", PYTHON)
        found = world.probe(node, "load", "/pannier", "/plain", *sizes, within=within)
    world.sh(node, f"docker volume rm {volume} >/dev/null")
    collected = Rounds()
    for line in found:
        collected.add(line["operation"], line["leg"], line["seconds"])
    return tuple(
        Figure(
            what=f"{prefix}{operation}",
            ours=collected.of(operation, "ours"),
            theirs=collected.of(operation, "theirs"),
            target=target,
            invert=True,
        )
        for operation in dict.fromkeys(line["operation"] for line in found)
    )


@contextmanager
def _made_by_hand(world: World, node: str, *, like: str) -> Iterator[str]:
    """An ext4 in a file as large as a volume's, mounted outside of the pool; yields a directory in it.

    It is gone afterwards, whatever happens.
    """
    image = f"{IMAGES}/{world.volume_id(node, like)}/live-1/image"
    size = world.sh(node, f"stat -c %s {image}").strip()
    with ExitStack() as undo:
        undo.callback(world.sh, node, f"rm -rf {_IMAGE} {_SEED}")
        world.sh(node, f"touch {_IMAGE}; chattr +C {_IMAGE}; truncate -s {size} {_IMAGE}")
        world.sh(node, f"mkdir -p {_SEED}/data; {_MKFS} -d {_SEED} {_IMAGE}")
        world.settle()
        attach = "losetup --find --show --direct-io=on --sector-size 4096"
        device = world.sh(node, f"{attach} {_IMAGE}").strip()
        undo.callback(world.sh, node, f"losetup -d {device}")
        # What an earlier user of the number has left would make it faster, and lose data.
        settings = f"/sys/block/{device.removeprefix('/dev/')}"
        world.sh(node, f"grep -qx 1 {settings}/loop/dio")
        world.sh(node, f"grep -qx 'write back' {settings}/queue/write_cache")
        world.sh(node, f"mkdir -p {_PLAIN}; mount -t ext4 -o noatime {device} {_PLAIN}")
        undo.callback(world.sh, node, f"umount {_PLAIN}; rmdir {_PLAIN}")
        yield f"{_PLAIN}/data"
