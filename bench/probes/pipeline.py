"""A small change made durable on two machines by hand: `btrfs send | btrfs receive`. Runs on a machine.

Arguments: directory on the pool, address and port of ``receive.py``, seconds. Prints a line for each
change, but for the first one: ``{"snapshot", "received", "synced"}``, the seconds since the write
after which each of these was done.
"""

import json
import os
import random
import socket
import subprocess
import sys
import time

BLOCK = os.urandom(8192)
APPEND = 4096


def btrfs(*words: str) -> None:
    subprocess.run(["btrfs", *words], check=True, stdout=subprocess.DEVNULL)


def wait_for(connection: socket.socket, answer: bytes) -> float:
    if connection.recv(1) != answer:
        raise SystemExit("the other end failed")
    return time.monotonic()


root, peer = sys.argv[1], (sys.argv[2], int(sys.argv[3]))
live = f"{root}/live"
os.makedirs(root, exist_ok=True)
btrfs("subvolume", "create", live)
fd = os.open(f"{live}/0", os.O_RDWR | os.O_CREAT)
size = os.pwrite(fd, BLOCK, 0)
places = random.Random(1)
until = time.monotonic() + float(sys.argv[4])
number, base = 0, ""
while time.monotonic() < until:
    if number % 2:
        os.pwrite(fd, BLOCK, places.randrange(max(size // APPEND - 1, 1)) * APPEND)
    else:
        size += os.pwrite(fd, BLOCK[:APPEND], size)
    number += 1
    name = f"{root}/{time.monotonic_ns():020}"  # an order that the other end knows
    began = time.monotonic()
    btrfs("subvolume", "snapshot", "-r", live, name)
    snapshot = time.monotonic()
    connection = socket.create_connection(peer)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    parent = ["-p", base] if base else []
    subprocess.run(["btrfs", "send", "-q", *parent, name], check=True, stdout=connection.fileno())
    connection.shutdown(socket.SHUT_WR)
    received = wait_for(connection, b"r")
    synced = wait_for(connection, b"s")
    if base:
        found = {"snapshot": snapshot, "received": received, "synced": synced}
        print(json.dumps({what: at - began for what, at in found.items()}))
        btrfs("subvolume", "delete", base)
    connection.recv(1)  # until the other end has cleaned up
    connection.close()
    base = name
os.close(fd)
btrfs("subvolume", "delete", live, base)
os.rmdir(root)
