"""A connection of the API whose two ends are cut off from each other, without a word: each end notices. Needs root."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from pannier.api import cut_off
from pannier.host.listening import tcp_listener

pytestmark = pytest.mark.root

SECONDS = 1
HERE, THERE = "169.254.77.1", "169.254.77.2"
LINK = f"pcut{os.getpid() % 100000}"
CLIENT = (
    "import socket, sys\n"
    "with socket.create_connection((sys.argv[1], int(sys.argv[2]))) as wire:\n"
    "    while wire.recv(100): pass\n"
)


@pytest.fixture
def elsewhere() -> Iterator[list[str]]:
    """What runs a command on another machine, as the network sees it."""
    with subprocess.Popen(["unshare", "--net", "sleep", "300"]) as other:
        inside = ["nsenter", "--net", "-t", str(other.pid)]
        ours = os.readlink("/proc/self/ns/net")
        while os.readlink(f"/proc/{other.pid}/ns/net") == ours:
            time.sleep(0.01)
        try:
            for command in (
                f"ip link add {LINK} type veth peer name away netns {other.pid}",
                f"ip addr add {HERE}/30 dev {LINK}",
                f"ip link set {LINK} up",
            ):
                subprocess.run(command.split(), check=True)
            for command in (f"ip addr add {THERE}/30 dev away", "ip link set away up"):
                subprocess.run([*inside, *command.split()], check=True)
            yield inside
        finally:
            other.kill()
            subprocess.run(["ip", "link", "del", LINK], stderr=subprocess.DEVNULL, check=False)


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """A second takes the place of half a minute."""
    changed = {
        socket.TCP_USER_TIMEOUT: SECONDS * 1000,
        socket.TCP_KEEPIDLE: SECONDS,
        socket.TCP_KEEPINTVL: SECONDS,
    }
    options = tuple(
        (level, option, changed.get(option, value) if level == socket.IPPROTO_TCP else value)
        for level, option, value in cut_off._OPTIONS
    )
    monkeypatch.setattr(cut_off, "_OPTIONS", options)


@contextlib.contextmanager
def connected(elsewhere: list[str]) -> Iterator[socket.socket]:
    """Our end of a connection that somebody elsewhere has made to a listener of the API."""
    listener = cut_off.bounded(tcp_listener(HERE, 0))
    listener.setblocking(True)
    port = str(listener.getsockname()[1])
    command = [*elsewhere, sys.executable, "-c", CLIENT, HERE, port]
    with listener, subprocess.Popen(command) as client:
        wire, _ = listener.accept()
        try:
            with wire:
                yield wire
        finally:
            client.kill()


@pytest.mark.usefixtures("short")
@pytest.mark.parametrize("says", [True, False], ids=["it-sends", "it-waits"])
def test_it_ends(elsewhere: list[str], says: bool) -> None:
    with connected(elsewhere) as wire:
        wire.sendall(b"\n")
        wire.settimeout(15)
        subprocess.run([*elsewhere, "ip", "link", "set", "away", "down"], check=True)
        ended = sent_until_it_ends(wire) if says else read_until_it_ends(wire)
    assert ended.errno, "the kernel ended it, and not this test's patience"


def sent_until_it_ends(wire: socket.socket) -> OSError:
    for _ in range(300):
        try:
            wire.send(b"\n")
        except OSError as error:
            return error
        time.sleep(0.05)
    return OSError()


def read_until_it_ends(wire: socket.socket) -> OSError:
    try:
        wire.recv(1)
    except OSError as error:
        return error
    return OSError()
