"""Sockets from systemd, and sockets made at a path."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from pannier.core.errors import AlreadyExists, InvalidInput
from pannier.host.activation import (
    InheritedFd,
    fd_named,
    inherited_fds,
    listening_socket,
    unix_listener,
)

_CHILD = """
import os, sys
os.dup2(int(sys.argv[1]), 3); os.dup2(int(sys.argv[2]), 4)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS="2", LISTEN_FDNAMES="plugin:kept")
from pannier.host.activation import inherited_fds, listening_socket
found = inherited_fds(os.environ, pid=os.getpid())
print([(item.fd, item.name, os.get_inheritable(item.fd)) for item in found])
print(sorted(name for name in os.environ if name.startswith("LISTEN")))
with listening_socket(3) as listener:
    print(listener.getsockname())
try:
    listening_socket(4)
except Exception as error:
    print(type(error).__name__)
os.fstat(4)
"""


def test_takes_what_systemd_hands_down(tmp_path: Path) -> None:
    with (
        unix_listener(tmp_path / "s") as listener,
        open(os.devnull) as other,
    ):
        fds = (listener.fileno(), other.fileno())
        run = subprocess.run(
            [sys.executable, "-c", _CHILD, *map(str, fds)],
            pass_fds=fds,
            capture_output=True,
            text=True,
            check=True,
        )
    assert run.stdout.splitlines()[:2] == ["[(3, 'plugin', False), (4, 'kept', False)]", "[]"]
    assert run.stdout.splitlines()[3] == "InvalidInput"


@pytest.mark.parametrize("environ", [{}, {"LISTEN_PID": "1", "LISTEN_FDS": "1"}])
def test_takes_nothing_that_is_not_for_it(environ: dict[str, str]) -> None:
    before = dict(environ)
    assert inherited_fds(environ, pid=99) == ()
    assert environ == before


def test_takes_none_of_none() -> None:
    assert inherited_fds({"LISTEN_PID": "7", "LISTEN_FDS": "0"}, pid=7) == ()


@pytest.mark.parametrize(
    "variables",
    [
        {"LISTEN_FDS": "x"},
        {},
        {"LISTEN_FDS": "-1"},
        {"LISTEN_FDS": "2", "LISTEN_FDNAMES": "one"},
        {"LISTEN_FDS": "100000"},
    ],
)
def test_refuses_a_contradiction(variables: dict[str, str]) -> None:
    with pytest.raises(InvalidInput):
        inherited_fds({"LISTEN_PID": "7", **variables}, pid=7)


def test_names_are_optional(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "set_inheritable", lambda fd, inheritable: None)
    found = inherited_fds({"LISTEN_PID": "7", "LISTEN_FDS": "1"}, pid=7)
    assert found == (InheritedFd(3, "unknown"),)


def test_a_socket_that_does_not_listen_is_refused() -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as idle:
        with pytest.raises(InvalidInput, match="not a listening unix stream socket"):
            listening_socket(idle.fileno())
        idle.getsockname()  # still open


def test_listens_with_its_mode_and_cleans_up(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "er" / "s"
    with unix_listener(path, mode=0o660) as listener:
        assert path.stat().st_mode & 0o777 == 0o660
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))
        assert not listener.getblocking()
    assert not list(path.parent.iterdir())


def test_replaces_a_leftover(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as old:
        old.bind(str(path))
    with unix_listener(path), socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))


def test_does_not_take_the_place_of_the_living(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with unix_listener(path):
        with pytest.raises(AlreadyExists), unix_listener(path):
            pass
        assert path.is_socket()
    path.write_text("a file")
    with pytest.raises(AlreadyExists), unix_listener(path):
        pass
    assert path.read_text() == "a file"


def test_leaves_a_successor_s_socket_alone(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with unix_listener(path), socket.socket(socket.AF_UNIX) as successor:
        path.unlink()
        successor.bind(str(path))
    assert path.is_socket()


def test_descriptors_are_told_apart_by_their_names() -> None:
    """Their order is systemd's, and what it has kept comes among them."""
    fds = [InheritedFd(3, "listener-1"), InheritedFd(4, "barrier"), InheritedFd(5, "plugin")]
    assert (fd_named(fds, "plugin"), fd_named(fds, "barrier")) == (5, 4)
    assert fd_named(fds, "other") is None
