"""What imports and conversions have in common: the last pass that fills a draft, and how its progress is told."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine
from pathlib import Path
from typing import Any, TypeVar

from pannier.holding.imports import Draft, Imports
from pannier.storage.blocking import in_thread
from pannier.storage.tree import rsync
from pannier.storage.tree.fingerprint import Fingerprint, fingerprint
from pannier.storage.tree.flags import copy_flags

Step = TypeVar("Step")


async def fill(
    draft: Draft, source: Path, *, imports: Imports, comparing: Callable[[], None]
) -> Fingerprint:
    """Make a draft what a directory is that nobody writes to: what differs is copied, and all is read back and compared.

    Args:
        comparing: called when all is copied.

    Returns:
        What the directory was.

    Raises:
        Conflict: something was changed meanwhile. PoolFull: the draft has no room for it.
        StorageError: something cannot be read or written.
    """
    before = await in_thread(fingerprint, source)
    await rsync.copy(source, draft.path, in_use=False)
    await in_thread(copy_flags, source, draft.path)
    await imports.renew(draft)
    comparing()
    await rsync.check_same(source, draft.path)
    after = await in_thread(fingerprint, source)
    if what := after.changed_since(before):
        raise rsync.changed(source, what)
    return after


async def followed(
    work: Coroutine[Any, Any, None],
    *,
    name: str,
    progress: Callable[[], Awaitable[Step]],
    look: float,
    check: Callable[[], None] = lambda: None,
) -> AsyncGenerator[Step, None]:
    """Do something, and tell how far it is: every ``look`` seconds, and at the end. It ends when nobody reads any more.

    Args:
        name: of the task.
        check: may raise what ends the work.

    Raises:
        What the work raises.
    """
    task = asyncio.create_task(work, name=name)
    try:
        while not task.done():
            yield await progress()
            await asyncio.wait((task,), timeout=look)
            if not task.done():
                check()
        task.result()
        yield await progress()
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
