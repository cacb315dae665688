"""The directory driver's stream: a tree, or its difference to another, through a pipe.

::

    "PANNIER-TREE 1\\n"
    H  {"base": digest or null, "digest": digest of the whole new manifest}
    R  names removed, compressed JSON        E  entries added or replaced (both in pieces)
    D  offset (8 bytes), data                F  end of a file; for each new file, in path order
    Z  the end

Each frame is a letter, a length (4 bytes, big-endian) and that many bytes. It is not tar: tar as
Python writes it would send the holes of sparse files as zeros, and needs private headers for half of
what a volume may contain. A receiver checks the manifest's digest before it writes to its disk, and
each file's digest while writing the file.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
import threading
import zlib
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pannier.core.errors import Corrupt, StorageError
from pannier.storage.regular import opened_regular
from pannier.storage.tree.build import Builder, data_ranges, hole
from pannier.storage.tree.manifest import (
    EMPTY,
    FILE,
    MOST_ENTRIES,
    Difference,
    Manifest,
    TreeEntry,
    apply,
    check,
    difference,
    lines,
    parse,
)
from pannier.storage.tree.walk import open_directory

_MAGIC = b"PANNIER-TREE 1\n"
_HEADER, _REMOVED, _ENTRIES, _DATA, _FILE_END, _END = b"H", b"R", b"E", b"D", b"F", b"Z"
_FRAME = struct.Struct(">cI")
_OFFSET = struct.Struct(">Q")
_DATA_BYTES = 1 << 20
_PIECE_BYTES = 1 << 20
"""Text of one R or E, before it is compressed, where more than one name is in it."""
_TEXT_BYTES = 64 << 20
"""The same at most: a receiver has it in memory. Older senders put 2000 entries into each, of any size."""
_ALL_TEXT_BYTES = 1 << 30
"""Text of all R and E. What most entries take is less than 256 bytes."""
_FRAME_BYTES = {
    _HEADER: 64 << 10,
    _REMOVED: _TEXT_BYTES,
    _ENTRIES: _TEXT_BYTES,
    _DATA: _OFFSET.size + _DATA_BYTES,
    _FILE_END: 0,
    _END: 0,
}
"""How long a frame may be."""


@dataclass(frozen=True, slots=True)
class Tree:
    """A tree on disk and its manifest."""

    root: Path
    manifest: Manifest


def send_tree(fd: int, *, tree: Tree, base: Manifest | None) -> None:
    """Write a tree to a pipe, whole or as the difference to ``base``.

    Raises:
        StorageError: a file is no longer what the manifest says, or there are more than can be sent; OSError.
    """
    if len(tree.manifest.entries) > MOST_ENTRIES:
        raise StorageError(
            f"the volume has more than {MOST_ENTRIES} files, and no more are sent out of a plain directory",
            remedy="make a volume with another driver, and copy them there",
        )
    changes = difference(base or EMPTY, tree.manifest)
    header = {"base": base.digest() if base else None, "digest": tree.manifest.digest()}
    _write_all(fd, _MAGIC)
    _write(fd, _HEADER, json.dumps(header).encode())
    for names in _pieces(json.dumps(name).encode() for name in changes.removed):
        _write(fd, _REMOVED, zlib.compress(b"[" + b",".join(names) + b"]", 1))
    for entries in _pieces(lines(changes.changed)):
        _write(fd, _ENTRIES, zlib.compress(b"".join(entries), 1))
    for entry in changes.changed:
        if entry.kind == FILE:
            _send_file(fd, tree.root, entry)
    _write(fd, _END, b"")


def _pieces(texts: Iterable[bytes]) -> Iterator[list[bytes]]:
    piece: list[bytes] = []
    size = 0
    for text in texts:
        if piece and size + len(text) > _PIECE_BYTES:
            yield piece
            piece, size = [], 0
        piece.append(text)
        size += len(text)
    if piece:
        yield piece


def _send_file(fd: int, root: Path, entry: TreeEntry) -> None:
    parent, _, name = entry.path.rpartition("/")
    sha256 = hashlib.sha256()
    position = 0
    with (
        open_directory(root, parent) as directory,
        opened_regular(name, place=directory) as file,
    ):
        for start, end in data_ranges(file):
            _hash_hole(sha256, start - position)
            position = start
            while position < end:
                data = os.pread(file, min(_DATA_BYTES, end - position), position)
                if not data:
                    break
                sha256.update(data)
                _write(fd, _DATA, _OFFSET.pack(position) + data)
                position += len(data)
        _hash_hole(sha256, os.fstat(file).st_size - position)
    if sha256.hexdigest() != entry.sha256:
        raise StorageError(
            f"{entry.path!r} was changed after the volume was sealed",
            remedy="find out who writes to it outside of its container, and seal it again",
        )
    _write(fd, _FILE_END, b"")


def _hash_hole(sha256: hashlib._Hash, size: int) -> None:
    for zeros in hole(size):
        sha256.update(zeros)


def _write(fd: int, kind: bytes, payload: bytes) -> None:
    _write_all(fd, _FRAME.pack(kind, len(payload)) + payload)


def _write_all(fd: int, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(fd, rest) :]


def receive_tree(
    fd: int, *, root: Path, base: Tree | None, share: bool, stop: threading.Event
) -> Manifest:
    """Build in the empty directory ``root`` what :func:`send_tree` writes; returns its manifest.

    Args:
        fd: read end of a pipe, read to its end.
        root: where to build.
        base: the tree that the stream is the difference to.
        share: hard-link unchanged files from the base instead of copying them.
        stop: set when nobody waits any more.

    Raises:
        Corrupt: the stream is damaged, cut short or does not fit ``base``. ReadingStopped: ``stop`` was set. OSError.
    """
    with closing(_Reader(fd)) as reader:
        manifest = _receive_manifest(reader, base=base.manifest if base else None)
        Builder(
            root,
            manifest=manifest,
            base=(base.root, base.manifest) if base else None,
            share=share,
            content=reader.content,
            stop=stop,
        ).build()
        reader.expect_end()
    return manifest


def _receive_manifest(reader: _Reader, *, base: Manifest | None) -> Manifest:
    header = reader.header()
    if header.get("base") != (base.digest() if base else None):
        raise Corrupt(
            "the stream is not the difference to the base that was agreed", remedy="send it whole"
        )
    removed: list[str] = []
    changed: list[TreeEntry] = []
    room = _ALL_TEXT_BYTES
    while reader.kind in (_REMOVED, _ENTRIES):
        text = _inflated(reader.take(), most_bytes=min(room, _TEXT_BYTES))
        room -= len(text)
        if reader.kind_taken == _ENTRIES:
            changed.extend(parse(text))
        else:
            removed.extend(_names(text))
        if max(len(removed), len(changed)) > MOST_ENTRIES:
            raise _damaged(f"it has more than {MOST_ENTRIES} names")
    manifest = apply(base or EMPTY, Difference(tuple(removed), tuple(changed)))
    if manifest.digest() != header.get("digest"):
        raise _damaged("the description of the tree is not what was sent")
    check(manifest)
    return manifest


def _inflated(payload: bytes, *, most_bytes: int) -> bytes:
    inflater = zlib.decompressobj()
    try:
        text = inflater.decompress(payload, most_bytes + 1)
    except zlib.error as error:
        raise _damaged("a part of the description cannot be read") from error
    if len(text) > most_bytes:
        raise _damaged("the description of the tree is too long")
    if not inflater.eof or inflater.unused_data:
        raise _damaged("a part of the description cannot be read")
    return text


def _names(text: bytes) -> list[str]:
    try:
        names = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _damaged("a list of names cannot be read") from error
    if not isinstance(names, list) or not all(type(name) is str for name in names):
        raise _damaged("a list of names is something else")
    return names


class _Reader:
    """Reads frames from a pipe, one ahead."""

    def __init__(self, fd: int) -> None:
        self._file = os.fdopen(os.dup(fd), "rb", buffering=1 << 20)
        self.kind = b""
        self.kind_taken = b""
        self._payload = b""

    def close(self) -> None:
        self._file.close()

    def header(self) -> dict[str, Any]:
        if self._exactly(len(_MAGIC)) != _MAGIC:
            raise _damaged("it is no stream of the directory driver")
        self._advance()
        try:
            header = json.loads(self._payload) if self.kind == _HEADER else None
        except (ValueError, RecursionError) as error:
            raise _damaged("its header cannot be read") from error
        if not isinstance(header, dict):
            raise _damaged("its header is missing")
        self._advance()
        return header

    def content(self, entry: TreeEntry) -> Iterator[tuple[int, bytes]]:
        """The data frames of one file."""
        while self.kind == _DATA:
            payload = self.take()
            if len(payload) < _OFFSET.size:
                raise _damaged("a frame is too short")
            yield _OFFSET.unpack_from(payload)[0], payload[_OFFSET.size :]
        if self.kind != _FILE_END:
            raise _damaged(f"the data of {entry.path!r} has no end")
        self._advance()

    def expect_end(self) -> None:
        if self.kind != _END or self._file.read(1):
            raise _damaged("there is something after the last file")

    def take(self) -> bytes:
        self.kind_taken, payload = self.kind, self._payload
        self._advance()
        return payload

    def _advance(self) -> None:
        self.kind, size = _FRAME.unpack(self._exactly(_FRAME.size))
        if size > _FRAME_BYTES.get(self.kind, -1):
            raise _damaged("a frame is too long, or of an unknown kind")
        self._payload = self._exactly(size)

    def _exactly(self, size: int) -> bytes:
        data = self._file.read(size)
        if len(data) != size:
            raise _damaged("it was cut short")
        return data


def _damaged(why: str) -> Corrupt:
    return Corrupt(f"the stream could not be received: {why}", remedy="send it again")
