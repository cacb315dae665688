"""Writes into a file without sync calls, at a rate, until it is stopped. Runs in a container.

Arguments: directory, MB per second. It goes round in 512 MiB. Prints ``{"rate"}`` at the end: the MB per second that it
came to.
"""

import json
import os
import signal
import sys
import time

PIECE = os.urandom(1_000_000)
PIECES = 536
stopped = False


def stop(*_):
    global stopped
    stopped = True


signal.signal(signal.SIGTERM, stop)
fd = os.open(f"{sys.argv[1]}/neighbour", os.O_WRONLY | os.O_CREAT)
pause = len(PIECE) / (float(sys.argv[2]) * 1e6)
number = 0
began = time.monotonic()
while not stopped:
    os.pwrite(fd, PIECE, number % PIECES * len(PIECE))
    number += 1
    time.sleep(max(began + number * pause - time.monotonic(), 0.0))
print(json.dumps({"rate": number * len(PIECE) / 1e6 / (time.monotonic() - began)}))
