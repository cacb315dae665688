"""What a device or file holds, looked at before anything is written to it."""

from __future__ import annotations

import asyncio
import errno
import json
import os
from dataclasses import dataclass
from pathlib import Path

from pannier.core.errors import ForeignData, StorageError
from pannier.storage.commands import run

LABEL = "pannier"
_PROBE_S = 30.0
_DEVICE_HEAD_BYTES = 1 << 20
_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Signature:
    """One thing found; ``type`` is libblkid's word (ext4, gpt, crypto_LUKS, ...) or ``data``."""

    type: str
    label: str = ""


def describe(found: tuple[Signature, ...]) -> str:
    """The signatures as people read them: ``ext4 "home" and gpt``."""
    names = (f'{s.type} "{s.label}"' if s.label else s.type for s in found)
    return " and ".join(dict.fromkeys(names))


async def find_signatures(source: Path) -> tuple[Signature, ...]:
    """Everything recognisable on a device or in a file, or else ``data`` where it is not blank.

    A file must be all zeros to count as blank. Of a device only the first MiB must be: reading it
    all would take hours, and a raw database or a header-less cipher has data there.

    Raises:
        ForeignData: a device is in use by something; StorageError: it cannot be read.
    """
    await asyncio.to_thread(_refuse_busy, source)
    finished = await run(["wipefs", "--no-act", "--json", "--", str(source)], timeout_s=_PROBE_S)
    found = _parse(finished.stdout)
    if not found and not await asyncio.to_thread(_is_blank, source):
        return (Signature("data"),)
    return found


def _parse(output: str) -> tuple[Signature, ...]:
    if not output.strip():
        return ()
    entries = json.loads(output)["signatures"]
    return tuple(Signature(entry["type"], entry.get("label") or "") for entry in entries)


def _refuse_busy(source: Path) -> None:
    """An exclusive open fails while a mount, swap, RAID or device mapper has the device."""
    if not source.is_block_device():
        return
    try:
        os.close(os.open(source, os.O_RDONLY | os.O_EXCL | os.O_CLOEXEC))
    except OSError as error:
        if error.errno == errno.EBUSY:
            raise ForeignData(
                f"{source} is in use by a mount, swap, RAID, LVM or another program",
                remedy="see `lsblk` for who uses it, or choose another device",
            ) from error
        raise StorageError(
            f"{source} cannot be opened: {error.strerror}", remedy="see `dmesg`"
        ) from error


def _is_blank(source: Path) -> bool:
    zeros = bytes(_CHUNK_BYTES)
    limit = _DEVICE_HEAD_BYTES if source.is_block_device() else None
    with source.open("rb") as content:
        position = 0
        while limit is None or position < limit:
            try:
                if limit is None:  # jump over the holes of a sparse file
                    position = os.lseek(content.fileno(), position, os.SEEK_DATA)
            except OSError:
                return True
            content.seek(position)
            chunk = content.read(_CHUNK_BYTES)
            if not chunk:
                return True
            if chunk != zeros[: len(chunk)]:
                return False
            position += len(chunk)
    return True
