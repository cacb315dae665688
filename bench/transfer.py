"""A generation from one node to another: Pannier's transport against a bare pipe."""

from __future__ import annotations

import json
import shutil
import subprocess
from dataclasses import dataclass

from bench.figures import Figure, Result, Rounds, Target, turns
from bench.world import IMAGES, MOUNTS, POOL, World, probe_command

_TAKEN, _KEPT = f"{POOL}/bench-taken.img", f"{POOL}/bench-kept.img"
_PORT = 7777
_KEPT_MEBIBYTES = 16
"""Of the file that small changes are made to, in the volume and by hand."""


@dataclass(frozen=True, slots=True)
class _Content:
    """What a volume is filled with."""

    title: str
    volume: str
    files: int
    file_bytes: int


def measure(world: World) -> Result:
    """See the module."""
    rounds, changes = world.pick((5, 60), (2, 10))
    large = world.pick(1024, 128)
    count = world.pick(20_000, 2_000)
    contents = (
        _Content(f"one file of {large} MiB", "bench-large", 1, large << 20),
        _Content(f"{count:,} files of 4 KiB", "bench-small", count, 4096),
    )
    collected = Rounds()
    for content in contents:
        _measure_one(world, content, rounds, collected)
    _measure_differences(world, changes, collected)
    figures = [
        Figure(
            what=content.title,
            ours=collected.of(content.title, "ours"),
            theirs=collected.of(content.title, "pipe"),
            target=Target(at_least=0.9),
            invert=True,
        )
        for content in contents
    ]
    figures.append(
        Figure(
            what="a generation with 8 KiB changed, made and sent",
            ours=collected.of("difference", "ours"),
            theirs=collected.of("difference", "by hand"),
            target=Target(at_most=1.3),
        )
    )
    return Result(
        title="Sending a generation to another node",
        reference=(
            "what the same image has, without its holes, through a bare pipe without network and "
            "encryption into a file without copy-on-write in the other pool, and then fdatasync. For "
            "the last row: syncfs of the mounted volume, `btrfs subvolume snapshot -r`, the changed 8 "
            "KiB through an open TCP connection into such a file, and fdatasync; what has changed is "
            "known, and nothing there can be taken back."
        ),
        how=(
            f"Pannier's TransportClient on one machine sends a whole generation over mutual TLS to "
            f"the pannierd of another one, which verifies it and makes it durable before it "
            f"confirms. {rounds} rounds after one to warm up; what was received is deleted and all "
            f"is written out in between. The time of the pipe is from its first byte, that of "
            f"Pannier from before it connects. The ratio is of speed. Both ends share one machine's "
            f"processors. For the last row, 8 KiB of a file of {_KEPT_MEBIBYTES} MiB are overwritten "
            f"before each of {changes} rounds, and the ratio is of time; starting `btrfs` is part of "
            f"the reference. There Pannier's receiver commits its pool once, since a generation gets "
            f"its name as a snapshot: by hand, a snapshot took 3.6 ms on such a pool, and the "
            f"reference's fdatasync 0.9 ms."
        ),
        figures=tuple(figures),
        notes=(_cipher_note(world),),
    )


def _measure_one(world: World, content: _Content, rounds: int, collected: Rounds) -> None:
    source, target = world.nodes[0], world.nodes[1]
    world.volume(source, content.volume)
    volume = world.volume_id(source, content.volume)
    image = ""
    with world.held(source, content.volume):  # an unmount would change it
        root = f"{MOUNTS}/{content.volume}"
        world.probe(source, "fill", root, content.files, content.file_bytes)
        for number, leg in enumerate(turns(rounds + 1, "ours", "pipe")):
            world.settle()
            if leg == "ours":
                (sent,) = world.product_probe(source, "send", content.volume, target)
                world.product_probe(target, "forget", volume, sent["generation"])
                image = f"{IMAGES}/{volume}/generations/{sent['generation']}/tree/image"
                seconds = sent["seconds"]
            else:
                seconds = _bare_pipe(world, source, target, image)
            _clean(world, target)
            if number >= 2:
                collected.add(content.title, leg, seconds)
    world.sh(source, f"docker volume rm {content.volume} >/dev/null")


def _measure_differences(world: World, changes: int, collected: Rounds) -> None:
    source, target, volume = world.nodes[0], world.nodes[1], "bench-difference"
    size = _KEPT_MEBIBYTES << 20
    world.volume(source, volume)
    with world.held(source, volume):
        keeper = world.background(target, "keep", _KEPT, size, _PORT)
        try:
            arguments = (volume, target, size, _PORT, changes)
            for found in world.product_probe(source, "difference", *arguments):
                collected.add("difference", found["leg"], found["seconds"])
        finally:
            world.sh(target, f"systemctl stop {keeper}; rm -f {_KEPT}")
    world.sh(source, f"docker volume rm {volume} >/dev/null")


def _bare_pipe(world: World, source: str, target: str, image: str) -> float:
    give, take = probe_command("give", image), probe_command("take", _TAKEN)
    found = json.loads(world.pipe(source, give, target, take))
    world.sh(target, f"rm {_TAKEN}")
    return float(found["seconds"])


def _cipher_note(world: World) -> str:
    """How fast one core encrypts, which bounds what TLS may reach."""
    openssl = shutil.which("openssl")
    if openssl is None:
        return "TLS 1.3"
    command = [openssl, "speed", "-seconds", "1", "-bytes", "16384", "-evp", "aes-256-gcm"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    words = done.stdout.split()
    speed = words[-1].rstrip("k") if words else ""
    try:
        return f"one core encrypts {float(speed) / 1e6:.1f} GB/s with AES-256-GCM"
    except ValueError:
        return "TLS 1.3"


def _clean(world: World, node: str) -> None:
    """Wait until what was deleted is really gone; the first command wakes who does it."""
    world.sh(node, f"btrfs filesystem sync {POOL}; btrfs subvolume sync {POOL} >/dev/null")
