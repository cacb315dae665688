"""Taking in a generation from another pool: verified and durable, or not there at all."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from pannier.core.errors import Corrupt
from pannier.core.generation import Generation
from pannier.storage.blocking import in_thread, told_as_storage_error
from pannier.storage.btrfs import ioctl
from pannier.storage.btrfs.apply import apply
from pannier.storage.btrfs.layout import Home, existing_tree, is_whole
from pannier.storage.btrfs.stream import receive_stream
from pannier.storage.regular import is_real_directory
from pannier.storage.streams import swallow_stream


@asynccontextmanager
async def receive(
    home: Home, generation: Generation, *, base: Generation | None, quotas: bool
) -> AsyncIterator[int]:
    """See :meth:`pannier.storage.base.Driver.receive`."""
    intake = _Intake(home, generation, base)
    if not await in_thread(intake.prepare, quotas=quotas):
        async with swallow_stream() as writer:
            yield writer
        return
    try:
        async with receive_stream(intake) as writer:
            yield writer
    except BaseException:
        # Shielded: what a cancelled transfer leaves behind would stay until a restart.
        await asyncio.shield(in_thread(home.discard_incoming, generation))
        raise


class _Intake:
    """How one generation is taken in: see :class:`pannier.storage.btrfs.stream.Intake`."""

    def __init__(self, home: Home, generation: Generation, base: Generation | None) -> None:
        self._home = home
        self._generation = generation
        self._base = base
        self._what = f"generation {generation} of volume {home.volume}"

    def prepare(self, *, quotas: bool) -> bool:
        """Prepare to receive the generation. False if it is here already."""
        home = self._home
        with told_as_storage_error(f"receive {self._what}"):
            if is_whole(home.tree(self._generation)):
                return False
            self._parent()
            home.make(quotas=quotas)
            home.discard_incoming(self._generation)
            return True

    def apply_small(self, stream: bytes) -> None:
        """Apply a small stream to the workbench, and make the generation as a snapshot of that.

        The snapshot flushes what was written and commits, so the generation is there as a whole or
        not at all. Until then only the workbench changes, and it is discarded after an error.
        """
        home, parent = self._home, self._parent()
        with told_as_storage_error(f"take in {self._what}"):
            try:
                work = home.prepare_workbench(parent)
                origin = apply(stream, into=work, base=parent)
                if not is_real_directory(work / "data"):
                    raise Corrupt(
                        f"the stream of {self._what} was of something else", remedy="send it again"
                    )
                ioctl.set_received(work, uuid=origin.uuid, ctransid=origin.ctransid)
                tree = home.tree(self._generation)
                tree.parent.mkdir(exist_ok=True)
                ioctl.create_snapshot(work, target=tree, read_only=True)
                self._check_base()
            except BaseException:
                home.discard_workbench()
                raise

    def begin_large(self) -> Path:
        """Make the directory for ``btrfs receive``."""
        with told_as_storage_error(f"receive {self._what}"):
            # It is marked as a copy of the newest generation, and could be mistaken for that one.
            self._home.discard_workbench()
            incoming = self._home.incoming(self._generation)
            incoming.mkdir()
            return incoming

    def accept_large(self) -> None:
        """Verify what ``btrfs receive`` made, make it durable, and only then give it its name."""
        parent, what = self._parent(), self._what
        with told_as_storage_error(f"take in {what}"):
            incoming = self._home.incoming(self._generation)
            tree = incoming / "tree"
            if os.listdir(incoming) != ["tree"] or not ioctl.is_subvolume(tree):
                raise Corrupt(f"the stream of {what} was of something else", remedy="send it again")
            found = ioctl.subvolume_info(tree)
            if (
                not found.read_only
                or not found.received_uuid
                or not is_real_directory(tree / "data")
            ):
                raise Corrupt(f"the stream of {what} was not complete", remedy="send it again")
            expected = ioctl.subvolume_info(parent).uuid if parent is not None else ""
            if found.parent_uuid != expected:
                raise Corrupt(
                    f"the stream of {what} is not the difference to the base that was agreed",
                    remedy="send it whole",
                )
            ioctl.sync_filesystem(tree)
            place = self._home.tree(self._generation).parent
            if place.exists():
                place.rmdir()  # the number of a deleted generation, which now comes back
            incoming.rename(place)
            self._check_base()
            ioctl.sync_filesystem(place)

    def _check_base(self) -> None:
        """Drop the new generation again if its base was put into quarantine meanwhile.

        Raises:
            Corrupt: it was.
        """
        try:
            self._parent()
        except Corrupt:
            self._home.drop_generation(self._generation)
            raise

    def _parent(self) -> Path | None:
        return None if self._base is None else existing_tree(self._home, self._base)
