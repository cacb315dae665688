"""Writes what ``give.py`` gives into a new file without copy-on-write, durably. Runs on a machine.

Arguments: the file. Prints ``{"bytes", "seconds"}``; the time is from the first byte to the end of fdatasync.
"""

import fcntl
import json
import os
import subprocess
import sys
import time

PIPE_BYTES = 1 << 20
PIECE = memoryview(bytearray(1 << 20))


def read(count):
    """The next bytes, exactly so many; fewer only at the end."""
    found = 0
    while found < count and (more := os.readv(0, [PIECE[found:count]])):
        found += more
    return PIECE[:found]


def number(content):
    return int.from_bytes(content, "big")


path = sys.argv[1]
file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
subprocess.run(["chattr", "+C", path], check=True)
fcntl.fcntl(0, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
size = number(read(8))
began = time.monotonic()
os.ftruncate(file, size)
written = 0
while head := bytes(read(16)):
    at, length = number(head[:8]), number(head[8:])
    content = read(length)
    if len(content) < length:
        raise SystemExit("the pipe ended too soon")
    written += os.pwrite(file, content, at)
os.fdatasync(file)
print(json.dumps({"bytes": written, "seconds": time.monotonic() - began}))
