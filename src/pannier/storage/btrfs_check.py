"""Comparing a generation with its checksums, all of it, while it may be replaced and deleted."""

from __future__ import annotations

import asyncio
import threading

from pannier.core.generation import Generation
from pannier.storage.blocking import in_own_thread, in_thread, told_as_storage_error
from pannier.storage.btrfs_layout import Home
from pannier.storage.tree_check import check_tree


async def verify(home: Home, generation: Generation) -> None:
    """See :meth:`~pannier.storage.base.CheckedDriver.verify`."""
    what, stop = f"generation {generation} of volume {home.volume}", threading.Event()
    with told_as_storage_error(f"read {what}"):
        try:
            tree = await in_thread(home.checked, generation)
            reading = in_own_thread(lambda: check_tree(tree, of=what, stop=stop))
            try:
                await asyncio.shield(reading)
            except asyncio.CancelledError:
                stop.set()
                await asyncio.wait([reading])
                reading.exception()  # looked at
                raise
        finally:
            await in_thread(home.discard_checked)
