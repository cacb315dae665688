"""Trees that a damaged or hostile node sends: nothing but the directory that is being built, and no more than is said."""

from __future__ import annotations

import json
import os
import stat
import struct
import threading
import time
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pannier.core.errors import Corrupt
from pannier.storage.slow_reading import ReadingStopped
from pannier.storage.tree.manifest import (
    CHARACTER,
    DIRECTORY,
    FILE,
    LINK,
    SYMLINK,
    Manifest,
    TreeEntry,
    encode,
)
from pannier.storage.tree.stream import receive_tree

MAGIC = b"PANNIER-TREE 1\n"
ROOT = TreeEntry(path="", kind=DIRECTORY, mode=0o755)
NOTHING = TreeEntry(
    path="x", kind=FILE, sha256="e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
)
DEEP = b"[" * 200_000


def frame(kind: bytes, payload: bytes = b"") -> bytes:
    return struct.pack(">cI", kind, len(payload)) + payload


def header(manifest: Manifest) -> bytes:
    return frame(b"H", json.dumps({"base": None, "digest": manifest.digest()}).encode())


def stream(entries: list[TreeEntry], *content: bytes) -> bytes:
    """What a sender sends whose digest of the description is right."""
    start = MAGIC + header(Manifest.of(entries)) + frame(b"E", encode(entries))
    return start + b"".join(content) + frame(b"Z")


def receive(sent: bytes, root: Path, *, stop: threading.Event | None = None) -> Manifest:
    fd = os.memfd_create("stream")
    try:
        os.write(fd, sent)
        os.lseek(fd, 0, os.SEEK_SET)
        return receive_tree(fd, root=root, base=None, share=False, stop=stop or threading.Event())
    finally:
        os.close(fd)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    made = tmp_path / "root"
    made.mkdir()
    return made


def test_what_a_volume_needs_is_kept(root: Path) -> None:
    """Setuid, device nodes, and links that lead anywhere are content."""
    device = os.makedev(1, 3)
    receive(
        stream(
            [
                ROOT,
                replace(NOTHING, mode=0o4755, uid=7),
                TreeEntry(path="null", kind=CHARACTER, mode=0o666, rdev=device),
                TreeEntry(path="out", kind=SYMLINK, target="/etc/passwd"),
                TreeEntry(path="z", kind=LINK, target="x"),
            ],
            frame(b"F"),
        ),
        root,
    )
    assert stat.S_IMODE((root / "x").stat().st_mode) == 0o4755
    assert (root / "null").stat().st_rdev == device
    assert os.readlink(root / "out") == "/etc/passwd"
    assert (root / "z").samefile(root / "x")


@pytest.mark.parametrize(
    "change",
    [
        {"path": "n" * 256},
        {"path": "n" * 5000},
        {"path": "a\0b"},
        {"path": "\ud800"},
        {"path": "\udcc3\udca9"},  # another spelling of é
        {"path": "../x"},
        {"path": "/x"},
        {"mode": 1 << 20},
        {"mode": -1},
        {"uid": (1 << 32) - 1},
        {"uid": -1},
        {"gid": 1 << 64},
        {"size": 1 << 60},
        {"size": -1},
        {"mtime_ns": 1 << 200},
        {"rdev": -1},
        {"rdev": 1 << 64},
        {"xattrs": (("security.selinux", "00"),)},
        {"xattrs": (("user.\0", "00"),)},
        {"xattrs": (("user.\ud800", "00"),)},
        {"kind": SYMLINK, "target": ""},
        {"kind": SYMLINK, "target": "a\0b"},
        {"kind": SYMLINK, "target": "t" * 4096},
        {"kind": LINK, "target": "/etc/passwd"},
        {"kind": LINK, "target": ""},
        {"kind": "door"},
    ],
    ids=str,
)
def test_what_no_tree_has_is_refused_before_anything_is_written(
    root: Path, change: dict[str, Any]
) -> None:
    entry = replace(NOTHING, **change)
    with pytest.raises(Corrupt):
        receive(stream([ROOT, entry], frame(b"F")), root)
    assert os.listdir(root) == []


def test_nothing_is_put_into_what_is_no_directory(root: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    entries = [
        ROOT,
        TreeEntry(path="d", kind=SYMLINK, target=str(outside)),
        replace(NOTHING, path="d/x"),
    ]
    with pytest.raises(Corrupt):
        receive(stream(entries, frame(b"F")), root)
    assert os.listdir(outside) == []


def bomb() -> bytes:
    """A description of 1 GiB in 1 MiB."""
    squeezer = zlib.compressobj(9)
    pieces = [squeezer.compress(bytes(1 << 20)) for _ in range(1024)]
    return b"".join([*pieces, squeezer.flush()])


START = MAGIC + header(Manifest.of([ROOT]))


@pytest.mark.parametrize(
    "make",
    [
        lambda: START + frame(b"E", bomb()),
        lambda: START + frame(b"R", bomb()),
        lambda: START + frame(b"E", zlib.compress(DEEP)),
        lambda: START + frame(b"R", zlib.compress(DEEP)),
        lambda: START + frame(b"R", zlib.compress(b'[["a"]]')),
        lambda: START + frame(b"R", zlib.compress(b"[]")[:-1]),
        lambda: START + frame(b"R", zlib.compress(b"[]") + b"more"),
        lambda: MAGIC + frame(b"H", DEEP[: 60 << 10]),
        lambda: MAGIC + frame(b"H", b"9" * 5000),
        lambda: MAGIC + struct.pack(">cI", b"H", 0xFFFFFFFF),
        lambda: MAGIC + struct.pack(">cI", b"D", 3 << 20) + bytes(3 << 20),
        lambda: MAGIC + frame(b"?"),
    ],
    ids=range(12),
)
def test_a_description_takes_no_more_memory_than_is_allowed(
    root: Path, make: Callable[[], bytes]
) -> None:
    with pytest.raises(Corrupt):
        receive(make(), root)
    assert os.listdir(root) == []


def test_a_hole_is_not_read_to_its_end_for_a_sender_that_is_gone(root: Path) -> None:
    """Its digest takes hours, and its sender needs 200 bytes to ask for it."""
    stop = threading.Event()
    sent = stream([ROOT, replace(NOTHING, size=1 << 43)], frame(b"F"))
    threading.Timer(0.2, stop.set).start()
    began = time.monotonic()
    with pytest.raises(ReadingStopped):
        receive(sent, root, stop=stop)
    assert time.monotonic() - began < 10


@pytest.mark.parametrize("offset", [1, 1 << 60, (1 << 64) - 1])
def test_data_stays_within_its_file(root: Path, offset: int) -> None:
    data = frame(b"D", struct.pack(">Q", offset) + b"data")
    with pytest.raises(Corrupt):
        receive(stream([ROOT, replace(NOTHING, size=4)], data, frame(b"F")), root)
