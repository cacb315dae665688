"""Writes small files without end and without sync calls. Runs in a container.

Arguments: directory, seconds, files per second; 0 is as many as can be. Each file replaces one of 2,000
by a rename, as programs do that save their state. Prints ``{"files", "seconds", "writing"}``; the last are
the seconds without the pauses.
"""

import json
import os
import sys
import time

SMALL = os.urandom(3000)
FILES = 2000

root, seconds, rate = sys.argv[1], float(sys.argv[2]), float(sys.argv[3])
for folder in range(FILES // 100):
    os.makedirs(f"{root}/{folder}", exist_ok=True)
number, writing = 0, 0.0
began = now = time.monotonic()
while now < began + seconds:
    path = f"{root}/{number % FILES // 100}/{number % 100}"
    with open(f"{path}.new", "wb", buffering=0) as file:
        file.write(SMALL)
    os.rename(f"{path}.new", path)
    number += 1
    done = time.monotonic()
    writing += done - now
    if rate:
        time.sleep(max(began + number / rate - done, 0.0))
    now = time.monotonic()
print(json.dumps({"files": number, "seconds": now - began, "writing": writing}))
