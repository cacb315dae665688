"""A file system that programs use while it is cut: its replica mounts at any cut, and equals it when it is quiet."""

from __future__ import annotations

import os
import subprocess
import time
from collections import Counter
from contextlib import ExitStack
from pathlib import Path

import pytest
from cut_world import LIMIT, Volume, mounted_volume, name, pool, program, tracer

from pannier.core.line import Cut
from pannier.cut.tracer import Tracer
from pannier.storage.image import ext4
from pannier.storage.image.loopdevice import attached

__all__ = ["name", "pool", "tracer"]
pytestmark = pytest.mark.root
SECONDS = 12.0
LEAST = 125
"""Cuts, also on a machine that is busy: everything below happens twice."""

PROGRAM = """
import ctypes, mmap, os, random, sys, time
root, seed = sys.argv[1], int(sys.argv[2])
rng, libc, block = random.Random(seed), ctypes.CDLL(None), mmap.mmap(-1, 65536)
os.makedirs(root, exist_ok=True)
print("ready", flush=True)

def fallocate(fd, mode):
    libc.fallocate(fd, mode, ctypes.c_long(rng.randrange(300) * 4096), ctypes.c_long(rng.randrange(1, 40) * 4096))

while True:
    what, path = rng.randrange(14), f"{root}/{rng.randrange(30)}"
    flags = os.O_RDWR | os.O_CREAT | (os.O_DIRECT if what == 10 else 0)
    try:
        fd = os.open(path, flags)
        try:
            if what <= 1:
                os.pwrite(fd, os.urandom(rng.choice((10, 4096, 70_000))), rng.randrange(1 << 20))
            elif what == 2:
                os.lseek(fd, 0, os.SEEK_END)
                os.write(fd, os.urandom(5000))
            elif what == 3:
                os.ftruncate(fd, rng.randrange(1 << 20))
            elif what == 4:
                fallocate(fd, 3)         # punch a hole
            elif what == 5:
                fallocate(fd, 0)
            elif what == 6:
                fallocate(fd, 0x10)      # zero
            elif what == 7:
                os.ftruncate(fd, 1 << 20)
                with mmap.mmap(fd, 1 << 20) as mapped:
                    for _ in range(5):
                        at = rng.randrange(200) * 4096
                        mapped[at : at + 8] = os.urandom(8)
                    mapped.flush()
            elif what == 8:
                os.rename(path, f"{root}/{rng.randrange(30)}")
            elif what == 9:
                os.unlink(path)
            elif what == 10:
                block[:8] = os.urandom(8)
                os.pwrite(fd, block, rng.randrange(16) * 65536)
            elif what == 11:
                os.fsync(fd)
            elif what == 12:
                os.makedirs(f"{root}/d{rng.randrange(20)}/e", exist_ok=True)
            elif what == 13 and rng.random() < 0.1:
                os.sync()                # whoever syncs past the barrier
        finally:
            os.close(fd)
    except OSError:
        pass
    time.sleep(rng.expovariate(400))
"""


def test_a_replica_mounts_clean_at_any_cut_and_equals_the_image_when_it_is_quiet(
    pool: Path, tracer: Tracer
) -> None:
    seen: Counter[str] = Counter()
    with mounted_volume(pool, tracer) as (made, place), ExitStack() as programs:
        for seed in range(3):
            programs.enter_context(program(PROGRAM, f"{place}/p{seed}", str(seed)))
        log = os.open(place / "log", os.O_RDWR | os.O_CREAT | os.O_APPEND)
        programs.callback(os.close, log)
        until = time.monotonic() + SECONDS
        number = 0
        while time.monotonic() < until or number < LEAST:
            number += 1
            os.write(log, b"%d\n" % number)
            os.fsync(log)
            seen[take(made)] += 1
            if number % 40 == 0:
                check(made, pool.parent / f"taken-{number}.img", number)
                seen["checked"] += 1
            if number % 25 == 0:
                with ext4.frozen(place):
                    seen[take(made)] += 1
                    assert made.is_equal
                    seen["equal"] += 1
            if number % 60 == 0:
                made.restart()  # while all of them write
                seen["restarted"] += 1
            if number % 35 == 0:
                ext4.trim(place, 0)
                seen["trimmed"] += 1
    print(dict(seen))
    assert seen["cut"] > LEAST // 2
    assert min(seen[what] for what in ("checked", "equal", "trimmed", "restarted")) >= 2


def take(made: Volume) -> str:
    """A cut, or, after a doubt, a restart and a generation: how it was."""
    found = made.cutter.take(LIMIT)
    if isinstance(found, Cut):
        made.apply(found)
        return "cut"
    made.restart()
    return found.reason.value


def check(made: Volume, copy: Path, number: int) -> None:
    """Look at what a takeover would find: all that was acknowledged, in a clean file system."""
    copy.write_bytes(made.replica)
    place = copy.with_suffix(".mount")
    place.mkdir()
    try:
        with attached(copy, direct=False) as device:
            ext4.mount(device.path, place)
            try:
                lines = (place / "log").read_text().splitlines()
                assert lines == [str(k) for k in range(1, number + 1)]
            finally:
                ext4.unmount(place)
        found = subprocess.run(["e2fsck", "-fn", str(copy)], capture_output=True, text=True)
        assert found.returncode == 0, found.stdout
    finally:
        place.rmdir()
        copy.unlink()
