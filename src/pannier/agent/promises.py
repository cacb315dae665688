"""What this node has promised others about their volumes.

First, a holder that cannot reach the store is promised that its volume is not taken over for some
time. Second, a node that begins a takeover confirms and promises nothing more for the old epoch: what
the holder acknowledged by such a confirmation would be missing in the new epoch.

The first is kept in memory: after a start nothing is taken over for as long as an earlier run could
have promised. The second is on disk before the store is asked for the change, since the change may
happen long after this run has ended, or may have happened unknown to this node. It ends only when the
store's record shows that the change did not happen and cannot happen any more, or when the volume was
purged long ago.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace

from pannier.core.errors import OutcomeUnknown, PannierError, StorageError
from pannier.core.record import Part, Record
from pannier.core.volume import Volume
from pannier.host.clock import Clock
from pannier.host.records import encode, read_file
from pannier.host.state_files import StateFile


@dataclass(frozen=True, slots=True)
class Refusal(Part):
    """A takeover was begun: ``epoch`` is what it would end, ``revision`` the record's before it."""

    epoch: int
    revision: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Takeovers(Record):
    """The file of :class:`Promises`: the takeovers that were begun, by volume id."""

    begun: dict[str, Refusal] = field(default_factory=dict)


class Promises:
    """Times are seconds since boot.

    Args:
        file: keeps the takeovers that were begun, also after this run or a power cut.
        longest: how long a promise lasts at most, in seconds. After a start nothing is taken over for
            that long, since an earlier run may have promised it.
    """

    def __init__(self, *, file: StateFile, clock: Clock, longest: float) -> None:
        self._clock = clock
        self._file = file
        self._longest = longest
        self._not_before = clock.now() + longest
        self._until: dict[str, float] = {}
        self._saved = self._load()
        self._refused = dict(self._saved.begun)
        self._saving = asyncio.Lock()

    def promise(self, volume_id: str, *, epoch: int, seconds: float) -> bool:
        """Promise not to take the volume over from its holder at ``epoch``; False if it is too late."""
        if self.refuses(volume_id, epoch=epoch):
            return False
        until = self._clock.now() + min(seconds, self._longest)
        self._until[volume_id] = max(self._until.get(volume_id, until), until)
        return True

    def seconds_left(self, volume_id: str) -> float:
        """For how long this node may not take the volume over; 0.0 where it may."""
        until = max(self._not_before, self._until.get(volume_id, 0.0))
        return max(until - self._clock.now(), 0.0)

    @asynccontextmanager
    async def taking(self, volume: Volume, *, revision: int) -> AsyncIterator[None]:
        """Confirm nothing of the volume's present epoch, or an earlier one, from here on, while the
        block tries to change the record that was read at ``revision``.

        This ends if the block raises an error that says that nothing was changed. It stays after
        every other outcome: success, OutcomeUnknown, or a cancelled block.

        Raises:
            StorageError: this cannot be written to disk; the block was not entered.
        """
        before = self._refused.get(volume.id)
        self._refused[volume.id] = Refusal(volume.grant.epoch, revision)
        try:
            await self._save()
            yield
        except OutcomeUnknown:
            raise
        except PannierError:
            if before != self._refused.get(volume.id):  # if not, an earlier try may be on its way
                await self._restore(volume.id, before)
            raise

    async def _restore(self, volume_id: str, refusal: Refusal | None) -> None:
        if refusal is None:
            self._refused.pop(volume_id, None)
        else:
            self._refused[volume_id] = refusal
        await self._save()

    async def settle(self, volume: Volume, *, revision: int) -> None:
        """Confirm again, if a record just read from the store shows that the takeover did not happen.

        A takeover from the record's epoch that was begun at another revision did not happen, and
        cannot any more. One from a later epoch was undone, since an older store was restored.

        Raises:
            StorageError: this cannot be written to disk.
        """
        found = self._refused.get(volume.id)
        if found is not None and found.epoch >= volume.grant.epoch and found.revision != revision:
            await self._restore(volume.id, None)

    async def forget(self, volume_ids: Collection[str]) -> None:
        """Drop what is kept of volumes that were purged everywhere: nobody offers anything of them any more.

        Raises:
            StorageError: this cannot be written to disk.
        """
        gone = self._refused.keys() & set(volume_ids)
        if gone:
            for volume_id in gone:
                del self._refused[volume_id]
            await self._save()

    def refuses(self, volume_id: str, *, epoch: int) -> bool:
        """Whether a generation that was offered at this epoch must not be confirmed."""
        found = self._refused.get(volume_id)
        return found is not None and found.epoch >= epoch

    def _load(self) -> Takeovers:
        """What is on disk.

        Raises:
            StorageError: it cannot be read; without it nothing may be confirmed.
        """
        remedy = "remove it only while this node reaches the store and no volume is taken over"
        return read_file(self._file, Takeovers, remedy=remedy) or Takeovers()

    async def _save(self) -> None:
        async with self._saving:  # older content must not overwrite newer
            content = encode(replace(self._saved, begun=self._refused))
            try:
                await asyncio.to_thread(self._file.write, content)
            except OSError as error:
                raise StorageError(
                    f"{self._file.path} cannot be written: {error}", remedy="see the disk"
                ) from error
