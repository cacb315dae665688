"""Overwrites a file at random places, each time with a sync call. Runs in a container.

Arguments: directory, MiB of the file, seconds, seconds of each piece of that time. Prints a line for each
piece: ``{"calls", "seconds"}``.
"""

import json
import os
import random
import sys
import time

PAGE = os.urandom(4096)

root, mebibytes = sys.argv[1], int(sys.argv[2])
seconds, piece = float(sys.argv[3]), float(sys.argv[4])
pages = mebibytes << 20 >> 12
places = random.Random(1)
fd = os.open(f"{root}/file", os.O_RDWR | os.O_CREAT)
for number in range(mebibytes):
    os.pwrite(fd, os.urandom(1 << 20), number << 20)
os.fsync(fd)
for _ in range(round(seconds / piece)):
    calls = 0
    began = now = time.monotonic()
    while now < began + piece:
        os.pwrite(fd, PAGE, places.randrange(pages) * len(PAGE))
        os.fdatasync(fd)
        calls += 1
        now = time.monotonic()
    print(json.dumps({"calls": calls, "seconds": now - began}), flush=True)
os.close(fd)
