"""A real S3 server on loopback, which keeps its buckets as folders: versitygw."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

sys.path.append(str(Path(__file__).parents[2]))
from demo import go_program

_PACKAGE = "github.com/versity/versitygw/cmd/versitygw"
_VERSION = "v1.8.0"
_START_SECONDS = 30.0
KEY_ID, KEY = "backup-user", "of-the-server"


@contextmanager
def serving(buckets: Path) -> Iterator[str]:
    """A server for the time of the block. Returns its URL, as restic takes it.

    Args:
        buckets: a folder for each bucket is in it.
    """
    program = go_program.built("versitygw", _PACKAGE, _VERSION, recipe=Path(__file__), report=print)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    running = subprocess.Popen(
        [program, "--port", f"127.0.0.1:{port}", "--quiet", "posix", buckets],
        env={**os.environ, "ROOT_ACCESS_KEY": KEY_ID, "ROOT_SECRET_KEY": KEY},
        stdout=subprocess.DEVNULL,
    )
    try:
        _wait(running, port)
        yield f"s3:http://127.0.0.1:{port}"
    finally:
        running.terminate()
        running.wait()


def _wait(running: subprocess.Popen[bytes], port: int) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            assert running.poll() is None, "the server has ended"
            assert time.monotonic() < deadline, "the server does not answer"
            time.sleep(0.05)
        else:
            return
