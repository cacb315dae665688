"""Writes a little and makes it durable, again and again, with some writers at once. Runs in a container.

Arguments: directory, what each writer does, seconds, number of writers. Each writer is a process with files of
its own. What it does:

- ``overwrite``: 8 KiB at a random place of a file of 16 MiB, and fdatasync;
- ``append``: 4 KiB at the end of a file, and fdatasync;
- ``replace``: 4 KiB in a new file, fsync, a rename over the one before, and fsync of the directory.

Prints ``{"calls", "seconds", "median", "p99"}``: how often that was done in how many seconds, and the seconds that
it took once.
"""

import array
import json
import os
import random
import sys
import time

BLOCK = os.urandom(8192)
SMALL = BLOCK[:4096]
BLOCKS = 2048  # of the file that is overwritten


def overwriting(path):
    fd = os.open(path, os.O_RDWR | os.O_CREAT)
    if os.fstat(fd).st_size < BLOCKS * len(BLOCK):
        for number in range(BLOCKS):
            os.pwrite(fd, BLOCK, number * len(BLOCK))
        os.fsync(fd)
    places = random.Random(path)

    def overwrite():
        os.pwrite(fd, BLOCK, places.randrange(BLOCKS) * len(BLOCK))
        os.fdatasync(fd)

    return overwrite


def appending(path):
    fd = os.open(f"{path}.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND)
    os.fsync(fd)

    def append():
        os.write(fd, SMALL)
        os.fdatasync(fd)

    return append


def replacing(path):
    os.makedirs(f"{path}.d", exist_ok=True)
    folder = os.open(f"{path}.d", os.O_RDONLY)

    def replace():
        fd = os.open(f"{path}.d/new", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.write(fd, SMALL)
        os.fsync(fd)
        os.close(fd)
        os.rename(f"{path}.d/new", f"{path}.d/file")
        os.fsync(folder)

    return replace


PREPARE = {"overwrite": overwriting, "append": appending, "replace": replacing}


def repeat(once):
    """How long each took."""
    found = array.array("d")
    now = time.monotonic()
    until = now + SECONDS
    while now < until:
        began = now
        once()
        now = time.monotonic()
        found.append(now - began)
    return found


def writer(number):
    """A process that says one byte when it is ready, waits until all may begin, and says what it found."""
    said, say = os.pipe()
    if os.fork():
        os.close(say)
        return said
    os.close(LET_GO)
    once = PREPARE[WORK](f"{ROOT}/{number}")
    with os.fdopen(say, "wb", buffering=0) as out:
        out.write(b".")
        os.read(GO, 1)
        # A pipe is not longer than 64 KiB; what does not fit waits.
        rest = memoryview(repeat(once).tobytes())
        while rest:
            rest = rest[out.write(rest) :]
    os._exit(0)


ROOT, WORK = sys.argv[1], sys.argv[2]
SECONDS, WRITERS = float(sys.argv[3]), int(sys.argv[4])
os.makedirs(ROOT, exist_ok=True)
GO, LET_GO = os.pipe()
pipes = [writer(number) for number in range(WRITERS)]
if any(os.read(pipe, 1) != b"." for pipe in pipes):
    raise SystemExit("a writer could not prepare its files")
os.close(LET_GO)
latencies: list[float] = []
for pipe in pipes:
    with os.fdopen(pipe, "rb") as found:
        latencies += array.array("d", found.read())
if any(os.wait()[1] for _ in pipes):
    raise SystemExit("a writer failed")
latencies.sort()
count = len(latencies)
print(
    json.dumps(
        {
            "calls": count,
            "seconds": sum(latencies) / WRITERS,
            "median": latencies[count // 2],
            "p99": latencies[count * 99 // 100],
        }
    )
)
