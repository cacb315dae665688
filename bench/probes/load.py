"""Reads and writes in two directories by turns. Runs in a container; needs nothing but Python.

Arguments: two directories, rounds, MiB of the large file, 4 KiB operations, small files. Prints a line for
each measurement: ``{"operation", "leg", "seconds"}``.
"""

import ctypes
import json
import os
import random
import sys
import time

BLOCK = os.urandom(1 << 20)
PAGE = 4096
BATCH = 32
SMALL = os.urandom(3000)

libc = ctypes.CDLL(None, use_errno=True)


def settle(root: str) -> None:
    """Write out what is dirty in the file system of root."""
    fd = os.open(root, os.O_RDONLY)
    if libc.syncfs(fd):
        raise OSError(ctypes.get_errno(), "syncfs")
    os.close(fd)


def forget(fd: int) -> None:
    """Drop a file's clean pages from the cache."""
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)


def large(root: str) -> str:
    return f"{root}/large"


def prepare_sequential_write(root: str) -> None:
    if os.path.exists(large(root)):
        os.unlink(large(root))


def sequential_write(root: str) -> None:
    fd = os.open(large(root), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for _ in range(MEBIBYTES):
        os.write(fd, BLOCK)
    os.fsync(fd)
    os.close(fd)


def prepare_read(root: str) -> None:
    fd = os.open(large(root), os.O_RDONLY)
    forget(fd)
    os.close(fd)


def sequential_read(root: str) -> None:
    fd = os.open(large(root), os.O_RDONLY)
    while os.read(fd, 1 << 20):
        pass
    os.close(fd)


def random_write(root: str) -> None:
    places = random.Random(1)
    pages = MEBIBYTES * 256
    fd = os.open(large(root), os.O_WRONLY)
    for number in range(1, OPERATIONS + 1):
        os.pwrite(fd, BLOCK[:PAGE], places.randrange(pages) * PAGE)
        if number % BATCH == 0:
            os.fdatasync(fd)
    os.close(fd)


def random_read(root: str) -> None:
    places = random.Random(2)
    pages = MEBIBYTES * 256
    fd = os.open(large(root), os.O_RDONLY)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)
    for _ in range(OPERATIONS * 4):
        os.pread(fd, PAGE, places.randrange(pages) * PAGE)
    os.close(fd)


def create_tree(root: str) -> None:
    os.mkdir(f"{root}/tree")
    for number in range(FILES):
        folder = f"{root}/tree/{number // 100}"
        if number % 100 == 0:
            os.mkdir(folder)
        fd = os.open(f"{folder}/{number}", os.O_WRONLY | os.O_CREAT)
        os.write(fd, SMALL)
        os.close(fd)
    settle(root)


def walk_tree(root: str) -> None:
    for folder, _, names in os.walk(f"{root}/tree"):
        for name in names:
            os.stat(f"{folder}/{name}")


def prepare_read_tree(root: str) -> None:
    for folder, _, names in os.walk(f"{root}/tree"):
        for name in names:
            prepare = os.open(f"{folder}/{name}", os.O_RDONLY)
            forget(prepare)
            os.close(prepare)


def read_tree(root: str) -> None:
    for folder, _, names in os.walk(f"{root}/tree"):
        for name in names:
            fd = os.open(f"{folder}/{name}", os.O_RDONLY)
            os.read(fd, 1 << 16)
            os.close(fd)


def delete_tree(root: str) -> None:
    for folder, _, names in os.walk(f"{root}/tree", topdown=False):
        for name in names:
            os.unlink(f"{folder}/{name}")
        os.rmdir(folder)
    settle(root)


STEPS = [
    ("sequential write and fsync", prepare_sequential_write, sequential_write),
    ("sequential read", prepare_read, sequential_read),
    ("random 4 KiB writes, fdatasync after each 32", None, random_write),
    ("random 4 KiB reads", prepare_read, random_read),
    ("small files: create, then sync", None, create_tree),
    ("small files: stat all", None, walk_tree),
    ("small files: read all", prepare_read_tree, read_tree),
    ("small files: delete all, then sync", None, delete_tree),
]


def measure(root: str, operation: str, prepare, work) -> float:
    settle(root)
    if prepare:
        prepare(root)
        settle(root)
    began = time.monotonic()
    work(root)
    return time.monotonic() - began


LEGS = {"ours": sys.argv[1], "theirs": sys.argv[2]}
ROUNDS, MEBIBYTES, OPERATIONS, FILES = (int(word) for word in sys.argv[3:7])

for number in range(-1, ROUNDS):  # the first one warms up and does not count
    for operation, prepare, work in STEPS:
        for leg in list(LEGS) if number % 2 else list(reversed(LEGS)):
            seconds = measure(LEGS[leg], operation, prepare, work)
            if number >= 0:
                found = {"operation": operation, "leg": leg, "seconds": seconds}
                print(json.dumps(found), flush=True)
