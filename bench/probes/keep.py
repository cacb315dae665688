"""Overwrites pieces of a file without copy-on-write, each durably. Runs on a machine until it is stopped.

Arguments: the file, its bytes, port. A piece comes as its place, its length, eight bytes each, and its
bytes; the answer is ``s`` when it is on the disk.
"""

import os
import socket
import subprocess
import sys

path, size, port = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
subprocess.run(["chattr", "+C", path], check=True)
os.pwrite(file, os.urandom(size), 0)
os.fsync(file)
server = socket.create_server(("", port))
while True:
    connection, _ = server.accept()
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    pieces = connection.makefile("rb")
    while head := pieces.read(16):
        at, length = (int.from_bytes(head[each : each + 8], "big") for each in (0, 8))
        os.pwrite(file, pieces.read(length), at)
        os.fdatasync(file)
        connection.sendall(b"s")
    connection.close()
