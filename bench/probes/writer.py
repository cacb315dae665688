"""Writes into /data at a moderate rate until it is stopped. Runs in a container.

Arguments: this run's number, MiB per second. Notes in /data when it wrote first and last, on the
clock that all machines of the lab share, and reads what the run before it wrote last.
"""

import json
import os
import signal
import sys
import time

RECORD = 32 * 1024
RECORDS = 1024  # the file goes round in 32 MiB


def note(name: str, **facts: object) -> None:
    with open(f"/data/{name}.new", "w") as file:
        json.dump(facts, file)
    os.rename(f"/data/{name}.new", f"/data/{name}")


run, pause = int(sys.argv[1]), RECORD / (float(sys.argv[2]) * 2**20)
journal = os.open("/data/journal", os.O_RDWR | os.O_CREAT, 0o644)
number = 0
stopped = False


def stop(*_: object) -> None:
    global stopped
    stopped = True


def write() -> float:
    global number
    number += 1
    head = f"{run} {number} ".encode()
    os.pwrite(journal, head + os.urandom(64) * (RECORD // 64), number % RECORDS * RECORD)
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def last_of(run_before: int) -> int:
    """The highest number that the run before left in the journal; the newest slot is ours."""
    numbers = [0]
    for slot in range(RECORDS):
        words = os.pread(journal, 64, slot * RECORD).split(b" ", 2)
        if len(words) == 3 and words[0] == str(run_before).encode():
            numbers.append(int(words[1]))
    return max(numbers)


signal.signal(signal.SIGTERM, stop)
number = 0
if run > 1:
    with open(f"/data/stopped-{run - 1}") as file:
        number = json.load(file)["number"]
first = write()
seen = last_of(run - 1) if run > 1 else 0
note(f"started-{run}", first=first, seen=seen)
last = first
while not stopped:
    time.sleep(pause)
    last = write()
note(f"stopped-{run}", last=last, number=number)
