"""What this node notes of imports and conversions until they have ended: their trees are on its disk, and the cluster does not know them."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping
from dataclasses import replace

from pannier.core.errors import Conflict, StorageError
from pannier.core.importing import ImportNote, ImportNotes
from pannier.host.records import encode, read_file
from pannier.host.state_files import StateFile


class BegunImports:
    """The notes, by the new volume's id. Each change is on the disk when its call returns.

    Args:
        file: outlasts a power cut.
    """

    def __init__(self, file: StateFile) -> None:
        self._file = file
        self._saved = read_file(
            file, ImportNotes, remedy="see pannier doctor for data of no volume"
        )
        self._begun = dict(self._saved.begun) if self._saved is not None else {}
        self._saving = asyncio.Lock()

    @property
    def ids(self) -> Collection[str]:
        """The ids of all of them."""
        return self._begun.keys()

    def all(self) -> Mapping[str, ImportNote]:
        """All of them as they are now."""
        return dict(self._begun)

    def check_free(self, name: str) -> None:
        """Raise Conflict where a volume of this name is being imported."""
        if any(note.name == name for note in self._begun.values()):
            raise Conflict(
                f"volume {name} is just being imported, restored from a backup or converted, on this node",
                remedy="wait until that has ended, or end it: Ctrl-C where it was asked for",
            )

    async def put(self, volume_id: str, note: ImportNote) -> None:
        """Note an import, or what has become of it.

        Raises:
            StorageError: it cannot be written; it is not noted then.
        """
        async with self._saving:  # older content must not overwrite newer
            await self._save({**self._begun, volume_id: note})

    async def drop(self, volume_id: str) -> None:
        """It has ended.

        Raises:
            StorageError: this cannot be written; the note stays.
        """
        async with self._saving:
            await self._save({key: note for key, note in self._begun.items() if key != volume_id})

    async def _save(self, begun: dict[str, ImportNote]) -> None:
        content = encode(replace(self._saved or ImportNotes(), begun=begun))
        try:
            await asyncio.to_thread(self._file.write, content)
        except OSError as error:
            raise StorageError(
                f"{self._file.path} cannot be written: {error}", remedy="see the disk"
            ) from error
        self._begun = begun
