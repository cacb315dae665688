"""Work in threads: what may take for ever has one of its own, and threads are used again."""

from __future__ import annotations

import asyncio
import signal
import threading
import weakref
from functools import partial

import pytest

from pannier.storage.blocking import in_own_thread


async def test_threads_are_used_again_one_after_the_other() -> None:
    used = set()
    for _ in range(50):
        used.add(await in_own_thread(threading.get_ident))
        await asyncio.sleep(0.001)  # it is free a moment after its answer
    assert len(used) < 10


async def test_nobody_waits_for_work_that_hangs() -> None:
    go_on = threading.Event()
    hanging = [in_own_thread(go_on.wait) for _ in range(60)]  # more than are kept
    try:
        assert await in_own_thread(lambda: "here") == "here"
    finally:
        go_on.set()
    assert await asyncio.gather(*hanging) == [True] * 60


def fail() -> None:
    raise ValueError("no")


async def test_an_error_is_told_and_ends_no_thread() -> None:
    with pytest.raises(ValueError, match="no"):
        await in_own_thread(fail)
    assert await in_own_thread(lambda: 1) == 1


def blocked_signals() -> set[int]:
    return set(signal.pthread_sigmask(signal.SIG_BLOCK, []))


async def test_signals_are_for_the_main_thread() -> None:
    for _ in range(2):  # in a new thread, and in one that is used again
        assert {signal.SIGTERM, signal.SIGINT} <= await in_own_thread(blocked_signals)
        await asyncio.sleep(0.01)


class Large:
    """What a piece of work is about."""


async def test_a_thread_that_waits_for_more_keeps_nothing_of_what_it_did() -> None:
    large = Large()
    seen = weakref.ref(large)
    await in_own_thread(partial(id, large))
    del large
    await asyncio.sleep(0.05)
    assert seen() is None


async def test_an_answer_that_nobody_waits_for_any_more_is_dropped(
    caplog: pytest.LogCaptureFixture,
) -> None:
    go_on = threading.Event()
    given_up = in_own_thread(go_on.wait)
    given_up.cancel()
    go_on.set()
    assert await in_own_thread(lambda: "here") == "here"
    await asyncio.sleep(0)
    assert not caplog.records
