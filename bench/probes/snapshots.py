"""Takes a read-only snapshot of an image each second, and keeps the last two. Runs until it is stopped.

Arguments: the image's subvolume, where it is mounted while it is used, a folder for the snapshots, and,
if each is to be sent, address and port of ``receive.py``.
"""

import itertools
import os
import socket
import subprocess
import sys
import time


def btrfs(*words: str) -> None:
    subprocess.run(["btrfs", "subvolume", *words], check=True, stdout=subprocess.DEVNULL)


def write_out(mounted: str) -> None:
    """Bring what was written into the image. It may be mounted later, or be unmounted just now."""
    if os.path.ismount(mounted):
        subprocess.run(["sync", "--file-system", mounted], stderr=subprocess.DEVNULL)


def connect(peer: tuple[str, int]) -> socket.socket:
    """The other end was started just before, and may not listen yet."""
    until = time.monotonic() + 10
    while True:
        try:
            return socket.create_connection(peer)
        except ConnectionRefusedError:
            if time.monotonic() > until:
                raise
            time.sleep(0.1)


def send(snapshot: str, parent: str, peer: tuple[str, int]) -> None:
    """Returns when the other end has made it durable and has cleaned up."""
    with connect(peer) as connection:
        base = ["-p", parent] if os.path.exists(parent) else []
        command = ["btrfs", "send", "-q", *base, snapshot]
        subprocess.run(command, check=True, stdout=connection.fileno())
        connection.shutdown(socket.SHUT_WR)
        while connection.recv(1):
            pass


subvolume, mounted, folder, *peer = sys.argv[1:]
os.makedirs(folder, exist_ok=True)
# An order of names that the other end knows, whatever it has kept of an earlier run.
first = time.monotonic_ns()
for number in itertools.count(first):
    begin = time.monotonic()
    new, last, oldest = (f"{folder}/{number - age:020}" for age in range(3))
    write_out(mounted)
    btrfs("snapshot", "-r", subvolume, new)
    if peer:
        send(new, last, (peer[0], int(peer[1])))
    if os.path.exists(oldest):
        btrfs("delete", oldest)
    time.sleep(max(0.0, begin + 1 - time.monotonic()))
