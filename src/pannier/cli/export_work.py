"""What `pannier volume export` does.

A snapshot is made and mounted as `pannier volume mount` does it; the mount is taken away while this program still has its
directory open. So whatever ends the program, no mount is left, and the snapshot goes by itself after a day.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import shutil
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, chdir, contextmanager, suppress
from pathlib import Path

from pannier.cli import output
from pannier.cli.exporting import Target
from pannier.cli.move import Line
from pannier.cli.session import Session
from pannier.contract.operations import Operations
from pannier.core.errors import AlreadyExists, Conflict, NotFound, StorageError
from pannier.host import process
from pannier.host.files import sync_directory, sync_filesystem_of
from pannier.host.process import Failing
from pannier.storage.image.ext4 import unmount
from pannier.storage.tree import rsync
from pannier.storage.tree.flags import copy_flags

KEEP_SECONDS = 86_400.0
"""For how long the snapshot stays if this program is killed: longer than any export should take."""
_LOOK_SECONDS = 0.5
_CHUNK_BYTES = 1 << 20
_LONGEST_SECONDS = 30 * 24 * 3600.0
"""Of one export: whoever waits for it ends it sooner."""
_TAR = Failing(error=StorageError, missing=StorageError, install="apt install tar")
_TAR_OPTIONS = (
    "--create",
    "--format=posix",
    "--xattrs",
    "--xattrs-include=*",
    "--acls",
    "--sparse",
    "--numeric-owner",
)
"""All that an archive can say of a file. It has no words for sockets and for the flags of chattr."""


async def export(session: Session, name: str, target: Target) -> int:
    """Write the files of a volume to where nothing is yet. Returns the bytes of the archive; 0 for a directory.

    Raises:
        VolumeNotFound, Conflict: there is no such volume, it can have no snapshot, or this node has no copy of it.
        AlreadyExists, StorageError: the target; nothing is left of it.
    """
    async with session.client() as client, _tree(client, name) as tree:
        with Line(live=not session.json and sys.stderr.isatty()) as line:
            line.show(f"exporting {name}", key=("exporting",))
            if target.path is None:
                return await _archive(tree, sys.stdout.fileno(), name=name, line=line)
            if target.directory:
                await _directory(tree, target.path, name=name)
                return 0
            with _new_file(target.path) as file:
                return await _archive(tree, file, name=name, line=line)


@asynccontextmanager
async def _tree(client: Operations, name: str) -> AsyncIterator[Path]:
    """The files of a state of the volume, read-only, in the block."""
    snapshot = f"export-{secrets.token_hex(4)}"
    made = await client.create_snapshot(
        name, snapshot, keep_seconds=KEEP_SECONDS, labels={"for": "export"}
    )
    try:
        at = tempfile.mkdtemp(prefix="pannier-export-", dir="/run")
        try:
            try:
                await client.show_tree(name, tree=made.generation, at=at)
            except NotFound as error:
                raise Conflict(
                    f"this node has no copy of volume {name}",
                    remedy=f"give the command on {output.show_names(made.on or [])}",
                ) from error
            try:
                tree = os.open(at, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            finally:
                unmount(Path(at), detach=True)
        finally:
            os.rmdir(at)
        try:
            yield Path(f"/proc/{os.getpid()}/fd/{tree}")
        finally:
            os.close(tree)
    finally:
        await client.remove_snapshot(name, snapshot)


async def _archive(tree: Path, to: int, *, name: str, line: Line) -> int:
    """Write an archive to a file descriptor. Returns its bytes."""
    reader, writer = process.open_pipe()
    try:
        try:
            running = await process.start(
                ("tar", *_TAR_OPTIONS, "-C", str(tree), "."), stdout=writer, failing=_TAR
            )
        finally:
            os.close(writer)
        written = [0]
        copying = asyncio.ensure_future(asyncio.to_thread(_pour, reader, to, written))
        try:
            while not copying.done():
                await asyncio.wait((copying,), timeout=_LOOK_SECONDS)
                shown = output.show_size(written[0])
                line.show(f"exporting {name}: {shown}", key=("exporting",))
            copying.result()
            ended = await running.wait(timeout_s=_LONGEST_SECONDS)
        finally:
            await running.stop()
            await asyncio.wait((copying,))  # it comes to its end with tar
    finally:
        os.close(reader)
    if ended.status:
        raise ended.error(remedy="see what it says; nothing was kept of the archive")
    if "socket ignored" in ended.stderr:
        output.print_hint("sockets are not in the archive: a program makes its own when it starts")
    return written[0]


def _pour(reader: int, to: int, written: list[int]) -> None:
    """Copy a pipe to its end, counting."""
    while chunk := os.read(reader, _CHUNK_BYTES):
        rest = memoryview(chunk)
        while rest:
            done = os.write(to, rest)
            written[0] += done
            rest = rest[done:]


async def _directory(tree: Path, path: Path, *, name: str) -> None:
    """Make a directory that has all of it, or none."""
    draft = path.parent / f".{path.name}.{secrets.token_hex(4)}"
    with _told(path):
        draft.mkdir(mode=0o700)
    try:
        await rsync.copy(tree, draft, in_use=False, called=f"volume {name}")
        with _told(path):
            await asyncio.to_thread(sync_filesystem_of, draft)
            draft.rename(path)  # the kernel refuses if something is there by now
            sync_directory(path.parent)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise
    with chdir(tree):  # a walk follows no link at its beginning, as the path of a descriptor is one
        copy_flags(Path("."), path)


@contextmanager
def _new_file(path: Path) -> Iterator[int]:
    """A file that gets its name at the end of the block, durable, if nothing has that name; nothing is left otherwise."""
    draft = path.parent / f".{path.name}.{secrets.token_hex(4)}"
    with _told(path):
        file = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            yield file
            os.fsync(file)
            os.link(draft, path)
            sync_directory(path.parent)
        finally:
            os.close(file)
            with suppress(FileNotFoundError):
                os.unlink(draft)


@contextmanager
def _told(path: Path) -> Iterator[None]:
    try:
        yield
    except FileExistsError as error:
        raise AlreadyExists(
            f"{path} is there by now; nothing was exported", remedy="name something new"
        ) from error
    except OSError as error:
        raise StorageError(
            f"{path} cannot be written: {error.strerror or error}",
            remedy="make room there, or name another place; nothing was exported",
        ) from error
