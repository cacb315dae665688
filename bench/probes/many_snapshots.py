"""Makes snapshots of a mounted volume, each after a small change, by the daemon's socket. Runs on the holder.

Arguments: directory, volume, number of snapshots. Each has a file of 4 KiB more than the one before.
"""

import http.client
import json
import os
import socket
import sys


class Daemon(http.client.HTTPConnection):
    """pannierd's API over its unix socket."""

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.connect("/run/pannier/api.sock")


root, volume, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
for number in range(count):
    with open(f"{root}/{number}", "wb") as file:
        file.write(os.urandom(4096))
    daemon = Daemon("localhost", timeout=60)
    body = json.dumps({"snapshot": f"number-{number:04}", "labels": {}})
    daemon.request(
        "POST", f"/v1/volumes/{volume}/snapshots", body, {"Content-Type": "application/json"}
    )
    answer = daemon.getresponse()
    said = answer.read()
    daemon.close()
    if answer.status != 201:
        raise SystemExit(f"{answer.status}: {said!r}")
