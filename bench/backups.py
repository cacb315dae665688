"""Backups and restoring, against restic by hand."""

from __future__ import annotations

from bench.figures import Figure, Result, Rounds, Target, turns
from bench.timed import run_timed
from bench.world import MOUNTS, World

_TARGET = "bench"
_PASSWORD = "of-the-benchmark"
_OURS, _THEIRS = "/var/lib/bench-repository", "/var/lib/bench-by-hand"
_CACHE = "/var/lib/bench-cache"
_FILE_MEBIBYTES = 64


def measure(world: World) -> Result:
    """A second backup, of which little has changed."""
    node, volume = world.nodes[0], "bench-backup"
    rounds = world.pick(5, 2)
    files, size = world.pick((20_000, 256 << 10), (4_000, 64 << 10))
    collected = Rounds()
    world.volume(node, volume)
    _add_target(world, node)
    world.sh(node, f"mkdir -p {_THEIRS}")
    tree = f"{MOUNTS}/{volume}"
    run_timed(world, node, _restic(_THEIRS, "init"))
    commands = {
        "ours": ["pannier", "backup", "run", volume],
        "theirs": _restic(_THEIRS, "backup", tree),
    }
    with world.held(node, volume):
        world.probe(node, "fill", tree, files, size)
        for number in range(-1, rounds):  # the first one reads everything, and does not count
            world.probe(node, "rewrite", tree, files, number + 1)
            for leg in list(commands) if number % 2 else reversed(list(commands)):
                world.settle()
                (timed,) = run_timed(world, node, commands[leg])
                collected.add("first" if number < 0 else "second", leg, timed.seconds)
    _remove(world, node, volume)
    mebibytes = files * size >> 20
    return Result(
        title="Backups",
        reference="`restic backup` of the mounted volume into a repository of its own on the same disk.",
        how=(
            f"A volume with {files:,} files of {size >> 10} KiB, {mebibytes:,} MiB, of which each hundredth was written anew "
            f"since the backup before; {rounds} rounds. `pannier backup run` is timed as it is typed: it checks the "
            f"repository, makes a snapshot, mounts it, has restic read it, and removes it. The target is a directory of "
            f"the holder's."
        ),
        figures=(
            Figure(
                what="the first backup",
                ours=collected.of("first", "ours"),
                theirs=collected.of("first", "theirs"),
            ),
            Figure(
                what="a second backup, 1 % changed",
                ours=collected.of("second", "ours"),
                theirs=collected.of("second", "theirs"),
                target=Target(at_most=1.2),
            ),
        ),
    )


def measure_restore(world: World) -> Result:
    """A large volume, brought back."""
    node, volume = world.nodes[0], "bench-restore"
    rounds, mebibytes = world.pick(3, 2), world.pick(5120, 512)
    collected = Rounds()
    world.volume(node, volume)
    _add_target(world, node)
    with world.held(node, volume):
        root = f"{MOUNTS}/{volume}"
        world.probe(node, "fill", root, mebibytes // _FILE_MEBIBYTES, _FILE_MEBIBYTES << 20)
    run_timed(world, node, ["pannier", "backup", "run", volume])
    for number, leg in enumerate(turns(rounds, "ours", "theirs", "verified")):
        world.settle()
        new = f"{volume}-{number}"
        seconds = _restore(
            world, node, volume, new, by_hand=leg != "ours", verify=leg == "verified"
        )
        collected.add("restore", leg, seconds)
        world.sh(node, f"docker volume rm {new} >/dev/null; pannier trash rm {new} >/dev/null")
    _remove(world, node, volume)
    return Result(
        title="Restoring a backup",
        reference=(
            "`restic restore` of the same backup into a volume that was made and mounted before, on the same node."
        ),
        how=(
            f"A volume of {mebibytes:,} MiB; {rounds} rounds; what was restored is removed for ever in between. `pannier backup "
            f"restore` makes the volume, and has restic compare all that it has written with the backup (`--verify`). Both "
            f"read the same repository, which is on the same disk."
        ),
        figures=tuple(
            Figure(
                what=f"restoring {mebibytes:,} MiB, against restic alone{more}",
                ours=collected.of("restore", "ours"),
                theirs=collected.of("restore", leg),
                target=target,
            )
            for leg, more, target in (
                ("theirs", "", Target(at_most=1.2)),
                ("verified", " with `--verify`", None),
            )
        ),
    )


def _restore(
    world: World, node: str, volume: str, new: str, *, by_hand: bool, verify: bool
) -> float:
    """Bring the newest backup back; the seconds that the command took.

    Args:
        by_hand: by restic, into a new volume that is mounted.
        verify: have restic compare everything, by hand.
    """
    if not by_hand:
        (timed,) = run_timed(world, node, ["pannier", "backup", "restore", volume, new])
        return timed.seconds
    world.volume(node, new)
    with world.held(node, new):
        words = ["restore", "latest", "--target", f"{MOUNTS}/{new}"]
        (timed,) = run_timed(world, node, _restic(_OURS, *words, *(["--verify"] if verify else [])))
    return timed.seconds


def _restic(repository: str, *words: str) -> list[str]:
    """A command with restic alone, with a cache of its own."""
    settings = [f"RESTIC_PASSWORD={_PASSWORD}", f"RESTIC_CACHE_DIR={_CACHE}"]
    return ["env", *settings, "restic", "-q", "-r", repository, *words]


def _add_target(world: World, node: str) -> None:
    world.sh(
        node,
        f"mkdir -p {_OURS}; echo {_PASSWORD} |"
        f" pannier backup target add {_TARGET} {_OURS} --password-file - >/dev/null",
    )


def _remove(world: World, node: str, volume: str) -> None:
    world.sh(
        node,
        f"pannier backup target rm {_TARGET} >/dev/null; rm -rf {_OURS} {_THEIRS} {_CACHE};"
        f" docker volume rm {volume} >/dev/null",
    )
