"""Comparing all of a tree with its checksums, while it may be written, replaced and deleted."""

from __future__ import annotations

import asyncio
import threading

from pannier.core.generation import Generation
from pannier.storage.blocking import in_own_thread, in_thread, told_as_storage_error
from pannier.storage.btrfs.layout import Home
from pannier.storage.tree.check import check_tree


async def verify(home: Home, generation: Generation | None) -> None:
    """See :meth:`~pannier.storage.base.CheckedDriver.verify`."""
    what = f"generation {generation} of volume {home.volume}"
    if generation is None:
        what = f"volume {home.volume}"
    stop = threading.Event()
    with told_as_storage_error(f"read {what}"):
        try:
            tree = await in_thread(home.checked, generation)
            reading = in_own_thread(lambda: check_tree(tree, of=what, stop=stop))
            try:
                await asyncio.shield(reading)
            except asyncio.CancelledError:
                stop.set()
                await asyncio.wait([reading])
                reading.exception()  # retrieved, so that asyncio does not log it
                raise
        finally:
            await in_thread(home.discard_checked)
