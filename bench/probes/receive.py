"""Gives each connection's stream to `btrfs receive`, and makes what arrived durable. Runs on a machine.

Arguments: directory, port. Answers ``r`` when the stream is received, ``s`` when it is synced, and
closes the connection when the snapshot before it is deleted.
"""

import ctypes
import os
import socket
import subprocess
import sys

libc = ctypes.CDLL(None, use_errno=True)

directory, port = sys.argv[1], int(sys.argv[2])
os.makedirs(directory, exist_ok=True)
folder = os.open(directory, os.O_RDONLY)
server = socket.create_server(("", port))
while True:
    connection, _ = server.accept()
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    before = os.listdir(directory)
    done = subprocess.run(["btrfs", "receive", "-q", "-e", directory], stdin=connection.fileno())
    if done.returncode == 0:
        connection.sendall(b"r")
        if libc.syncfs(folder) == 0:
            connection.sendall(b"s")
            for name in sorted(before)[:-1]:
                subprocess.run(
                    ["btrfs", "subvolume", "delete", f"{directory}/{name}"],
                    stdout=subprocess.DEVNULL,
                )
    connection.close()
