"""One thread for one channel, driven step by step from a coroutine."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from typing import TypeVar

from pannier.core.errors import PannierError
from pannier.transport.channel import Channel, ChannelStopped, TransportTiming

T = TypeVar("T")


class Lane:
    """Runs a channel's blocking work in a thread of its own, and keepalives between the steps.

    While the coroutine waits for something else (the gate, a driver that verifies and flushes), the
    peer keeps hearing from this end. Cancelling a step stops the channel; the step has ended before
    the cancellation is passed on.
    """

    def __init__(self, channel: Channel, *, timing: TransportTiming, name: str) -> None:
        """``name`` names the thread in debuggers."""
        self.channel = channel
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix=name)
        self._loop = asyncio.get_running_loop()
        self._interval = timing.stall / 4
        self._steps = 0
        self._timer = self._loop.call_later(self._interval, self._tick)

    async def run(self, step: Callable[[], T]) -> T:
        """Run ``step`` in the thread.

        Raises:
            PannierError: what the step raised.
        """
        self._steps += 1
        future = self._pool.submit(step)
        try:
            return await asyncio.wrap_future(future)
        except asyncio.CancelledError:
            # No call in the thread blocks, so a stopped one ends within about a millisecond:
            # waiting for it here is simpler, and safer, than being cancelled again meanwhile.
            self.channel.stop()
            wait([future])
            raise
        finally:
            self._steps -= 1

    def close(self, *, abort: bool) -> None:
        """End the thread and close the channel. ``abort``: see :meth:`Channel.close`."""
        self._timer.cancel()
        self.channel.stop()
        self._pool.shutdown(wait=True, cancel_futures=True)
        self.channel.close(abort=abort)

    def _tick(self) -> None:
        if self._steps == 0:  # a running step keeps the connection alive itself
            try:
                self.channel.keepalive()
            except (PannierError, ChannelStopped):
                # The channel remembers it: the next step raises it.
                return
        self._timer = self._loop.call_later(self._interval, self._tick)
