"""Threads at the end of a pipe: nobody who gives up waits for what a thread would still do."""

from __future__ import annotations

import asyncio
import os
import threading

import pytest

from pannier.storage.slow_reading import ReadingStopped
from pannier.storage.streams import reading


def read_then_work(pipe: int, stop: threading.Event) -> None:
    """Read to the end, and then do what ends only when nobody waits."""
    while os.read(pipe, 1 << 16):
        pass
    stop.wait()
    raise ReadingStopped


async def test_who_gives_up_after_the_stream_stops_what_it_began() -> None:
    async def receive() -> None:
        async with reading(read_then_work) as (writer, _):
            os.write(writer, b"stream")

    receiving = asyncio.ensure_future(receive())
    await asyncio.sleep(0)
    receiving.cancel()
    async with asyncio.timeout(10):
        with pytest.raises(asyncio.CancelledError):
            await receiving


async def test_who_gives_up_in_the_stream_stops_what_it_began() -> None:
    async with asyncio.timeout(10):
        with pytest.raises(InterruptedError):
            async with reading(read_then_work):
                raise InterruptedError
