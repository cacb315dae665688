"""One machine at a time acts under a node's name, also where the machine was copied with all its files.

``alive/NODE`` in the store has the boot id of the machine that acts as the node, and lives as long as that machine's
lease. The kernel makes a boot id at each boot, so no two machines have the same. A machine that finds a living key with
another boot id waits: it was just started, and its lease from before has not run out yet; or another machine has the
name. That one renews its lease, so the wait has no end.

A machine that waits changes no record, sends nothing of its copies, takes nothing in, and serves no volume.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass

from pannier.core.errors import Unavailable
from pannier.core.node import Node
from pannier.storage.base import Driver
from pannier.store.base import Change, Entry, MemberHealth, Store, WatchEvent
from pannier.transport.base import (
    ChooseBase,
    ChoosingSender,
    Offer,
    Parcel,
    SendsRecords,
    Sent,
)

COPIED_REMEDY = (
    "after a restart of this machine it goes on by itself within seconds; if it is a copy of another machine, make it "
    "a node of its own: see 'A machine that was copied' in docs/operations"
)


@dataclass(frozen=True, slots=True)
class OwnName:
    """A node's name, as one boot of one machine has it.

    Attributes:
        node: the name.
        boot_id: of this machine's present boot.
    """

    node: str
    boot_id: str

    @property
    def key(self) -> str:
        """Where the store says who has the name."""
        return f"alive/{self.node}"

    @property
    def value(self) -> bytes:
        """What it says where this boot of this machine has it."""
        return self.boot_id.encode()

    def other_boot(self, entry: Entry | None) -> str:
        """The boot id of the machine that has the name instead; empty where none has, or this one does."""
        if entry is None or entry.value == self.value:
            return ""
        return entry.value.decode(errors="replace")


def taken_by(name: OwnName, boot_id: str) -> Unavailable:
    """The error for a name that another boot has."""
    return Unavailable(
        f"this machine (boot {name.boot_id}) does nothing as node {name.node}: boot {boot_id} has that name in the "
        f"store",
        remedy=COPIED_REMEDY,
    )


class StoreUnderName(Store):
    """The store, in which records are changed only by the machine that has the node's name.

    Args:
        check: raises where another machine has it, and where that cannot be known.
    """

    def __init__(self, store: Store, *, check: Callable[[], Awaitable[None]]) -> None:
        self._store = store
        self._check = check

    async def get(self, key: str) -> Entry | None:
        return await self._store.get(key)

    async def list(self, prefix: str) -> tuple[Entry, ...]:
        return await self._store.list(prefix)

    async def commit(self, *changes: Change) -> int:
        await self._check()
        return await self._store.commit(*changes)

    def watch(self, prefix: str) -> AsyncIterator[WatchEvent]:
        return self._store.watch(prefix)

    async def grant_lease(self, ttl_seconds: float) -> str:
        return await self._store.grant_lease(ttl_seconds)

    async def renew_lease(self, lease: str) -> None:
        await self._store.renew_lease(lease)

    async def revoke_lease(self, lease: str) -> None:
        await self._store.revoke_lease(lease)

    def session(self) -> AbstractAsyncContextManager[Store]:
        return self._store.session()

    async def health(self) -> dict[str, MemberHealth]:
        return await self._store.health()


class SenderUnderName(ChoosingSender):
    """Sends generations, unless another machine has the node's name or may have it.

    Args:
        check: raises where that is so.
    """

    def __init__(self, sender: ChoosingSender, *, check: Callable[[], Awaitable[None]]) -> None:
        self._sender = sender
        self._check = check

    async def send(
        self,
        offer: Offer,
        *,
        to: Node,
        driver: Driver,
        progress: Callable[[int], None] | None = None,
        may_wait: Callable[[], bool] | None = None,
        choose_base: ChooseBase | None = None,
    ) -> Sent:
        await self._check()
        return await self._sender.send(
            offer,
            to=to,
            driver=driver,
            progress=progress,
            may_wait=may_wait,
            choose_base=choose_base,
        )


class RecordsUnderName(SendsRecords):
    """Sends records, unless another machine has the node's name or may have it.

    Args:
        check: raises where that is so.
    """

    def __init__(self, sender: SendsRecords, *, check: Callable[[], Awaitable[None]]) -> None:
        self._sender = sender
        self._check = check

    async def send(self, parcel: Parcel, *, to: Node, volume_name: str) -> None:
        await self._check()
        await self._sender.send(parcel, to=to, volume_name=volume_name)
