"""Writes 8 KiB at random places of a file of 16 MiB, again and again, until it is stopped. Runs in a container.

Arguments: directory, ``write`` or ``sync``, which makes each durable, and seconds. Prints ``ready``, and at its end a JSON list of
``[began, seconds]`` of all that took longer than so many seconds, on the clock that all machines share.
"""

import json
import os
import random
import signal
import sys
import time

BLOCK = os.urandom(8192)
BLOCKS = 2048
PAUSE_SECONDS = 0.0005
"""Between two: it shall be there at each moment, and not take the processor from what is measured."""

LEAST = float(sys.argv[3])
stopped = False


def stop(*_: object) -> None:
    global stopped
    stopped = True


signal.signal(signal.SIGTERM, stop)
fd = os.open(f"{sys.argv[1]}/file", os.O_RDWR | os.O_CREAT)
for number in range(BLOCKS):
    os.pwrite(fd, BLOCK, number * len(BLOCK))
os.fsync(fd)
print("ready", flush=True)
found = []
while not stopped:
    place = random.randrange(BLOCKS) * len(BLOCK)
    began = time.monotonic()
    os.pwrite(fd, BLOCK, place)
    if sys.argv[2] == "sync":
        os.fdatasync(fd)
    seconds = time.monotonic() - began
    if seconds > LEAST:
        found.append((began, seconds))
    time.sleep(PAUSE_SECONDS)
print(json.dumps(found))
