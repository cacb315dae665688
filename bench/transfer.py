"""A generation from one node to another: Pannier's transport against a bare pipe."""

from __future__ import annotations

import shutil
import subprocess
import time
from dataclasses import dataclass

from bench.figures import Figure, Result, Rounds, Target, turns
from bench.world import POOL, World

_INCOMING = f"{POOL}/bench-incoming"


@dataclass(frozen=True, slots=True)
class _Content:
    """What a volume is filled with."""

    title: str
    volume: str
    files: int
    file_bytes: int


def measure(world: World) -> Result:
    """See the module."""
    rounds = world.pick(5, 2)
    large = world.pick(1024, 128)
    count = world.pick(20_000, 2_000)
    contents = (
        _Content(f"one file of {large} MiB", "bench-large", 1, large << 20),
        _Content(f"{count:,} files of 4 KiB", "bench-small", count, 4096),
    )
    collected = Rounds()
    for content in contents:
        _measure_one(world, content, rounds, collected)
    _measure_differences(world, collected)
    target = Target(at_least=0.9)
    figures = []
    for content in contents:
        ours = collected.of(content.title, "ours")
        pipe, durable = (collected.of(content.title, leg) for leg in ("pipe", "durable"))
        figures += [
            Figure(what=content.title, ours=ours, theirs=durable, target=target, invert=True),
            Figure(
                what="the same, against a pipe that leaves the data in memory",
                ours=ours,
                theirs=pipe,
                invert=True,
            ),
        ]
    figures.append(
        Figure(
            what="a generation with 8 KiB changed, made and sent",
            ours=collected.of("difference", "ours"),
            theirs=collected.of("difference", "bare"),
            target=Target(at_most=1.3),
        )
    )
    return Result(
        title="Sending a generation to another node",
        reference=(
            "`btrfs send | btrfs receive` between the same two pools, a bare pipe without network "
            "and encryption, and then `sync -f`. For the last row: `btrfs subvolume snapshot -r` and "
            "`btrfs send -p | btrfs receive` between two pools on one machine, which leaves the data "
            "in memory."
        ),
        how=(
            f"Pannier's TransportClient on one machine sends a whole generation over mutual TLS to "
            f"the pannierd of another one, which verifies it and makes it durable before it "
            f"confirms. {rounds} rounds after one to warm up; what was received is deleted and all "
            f"is written out in between. The ratio is of speed. Both ends share one machine's "
            f"processors. For the last row, 8 KiB of a file of 16 MiB are overwritten before each of "
            f"{world.pick(60, 10)} rounds, and the ratio is of time."
        ),
        figures=tuple(figures),
        notes=(_cipher_note(world),),
    )


def _measure_one(world: World, content: _Content, rounds: int, collected: Rounds) -> None:
    source, target = world.nodes[0], world.nodes[1]
    world.volume(source, content.volume)
    root = world.mount(source, content.volume)
    world.probe(source, "fill", root, content.files, content.file_bytes)
    world.sh(target, f"mkdir -p {_INCOMING}")
    shown = world.json(source, "pannier", "volume", "show", content.volume, "-o", "json")
    tree = ""
    for number, leg in enumerate(turns(rounds + 1, "ours", "pipe")):
        world.settle()
        if leg == "ours":
            (sent,) = world.product_probe(source, "send", content.volume, target)
            world.product_probe(target, "forget", shown["id"], sent["generation"])
            tree = f"{POOL}/volumes/{shown['id']}/generations/{sent['generation']}/tree"
            found = {"ours": sent["seconds"]}
        else:
            found = _bare_pipe(world, source, target, tree)
        _clean(world, target)
        if number >= 2:
            for each, seconds in found.items():
                collected.add(content.title, each, seconds)
    world.sh(target, f"rmdir {_INCOMING}")
    world.sh(source, f"docker volume rm {content.volume}")


def _measure_differences(world: World, collected: Rounds) -> None:
    source, target, volume = world.nodes[0], world.nodes[1], "bench-difference"
    world.volume(source, volume)
    world.mount(source, volume)
    for found in world.product_probe(source, "difference", volume, target, world.pick(60, 10)):
        collected.add("difference", found["leg"], found["seconds"])
    world.sh(source, f"docker volume rm {volume}")


def _bare_pipe(world: World, source: str, target: str, tree: str) -> dict[str, float]:
    began = time.monotonic()
    world.pipe(
        source, ["btrfs", "send", "-q", tree], target, ["btrfs", "receive", "-q", "-e", _INCOMING]
    )
    piped = time.monotonic() - began
    world.lab.run(target, ["sync", "--file-system", POOL])
    durable = time.monotonic() - began
    world.sh(target, f"btrfs subvolume delete {_INCOMING}/tree >/dev/null")
    return {"pipe": piped, "durable": durable}


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
