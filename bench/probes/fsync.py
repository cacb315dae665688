"""Writes a little and calls fdatasync, with some writers at once. Runs in a container.

Arguments: directory, seconds, numbers of writers. Each writer has a file of its own; by turns it
appends 4 KiB and overwrites 8 KiB of what is there. Prints a line for each number of writers:
``{"writers", "calls", "seconds", "latencies"}``, with each call's seconds in order of size.
"""

import json
import os
import random
import sys
import threading
import time

BLOCK = os.urandom(8192)
APPEND = 4096


def write(path: str, until: float, latencies: list[float]) -> None:
    places = random.Random(path)
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
    size = os.pwrite(fd, BLOCK, 0)
    os.fdatasync(fd)
    while time.monotonic() < until:
        if len(latencies) % 2:
            os.pwrite(fd, BLOCK, places.randrange(max(size // APPEND - 1, 1)) * APPEND)
        else:
            size += os.pwrite(fd, BLOCK[:APPEND], size)
        began = time.monotonic()
        os.fdatasync(fd)
        latencies.append(time.monotonic() - began)
    os.close(fd)


def load(root: str, writers: int, seconds: float) -> dict[str, object]:
    latencies: list[list[float]] = [[] for _ in range(writers)]
    began = time.monotonic()
    threads = [
        threading.Thread(target=write, args=(f"{root}/{number}", began + seconds, found))
        for number, found in enumerate(latencies)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    passed = time.monotonic() - began
    merged = sorted(latency for found in latencies for latency in found)
    return {"writers": writers, "calls": len(merged), "seconds": passed, "latencies": merged}


root, seconds = sys.argv[1], float(sys.argv[2])
for count in sys.argv[3:]:
    print(json.dumps(load(root, int(count), seconds)), flush=True)
