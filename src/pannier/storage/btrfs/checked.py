"""Reading all of a generation or live tree, while it may be written, replaced and deleted."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from pannier.core.generation import Generation
from pannier.storage.blocking import in_own_thread, in_thread, told_as_storage_error
from pannier.storage.btrfs.layout import Home

T = TypeVar("T")


async def checked(
    home: Home,
    generation: Generation | None,
    check: Callable[[Path, str, threading.Event], T],
    *,
    writable: bool = False,
) -> T:
    """Let ``check`` read a snapshot of a generation, or with None of the newest live tree.

    Args:
        writable: whether ``check`` may change the snapshot.
        check: gets the snapshot's path, what it is, and an event that is set when nobody waits any more.
    """
    what = f"generation {generation} of volume {home.volume}"
    if generation is None:
        what = f"volume {home.volume}"
    stop = threading.Event()
    with told_as_storage_error(f"read {what}"):
        try:
            tree = await in_thread(home.checked, generation, writable=writable)
            reading = in_own_thread(lambda: check(tree, what, stop))
            try:
                return await asyncio.shield(reading)
            except asyncio.CancelledError:
                stop.set()
                await asyncio.wait([reading])
                reading.exception()  # retrieved, so that asyncio does not log it
                raise
        finally:
            await in_thread(home.discard_checked, writable=writable)
