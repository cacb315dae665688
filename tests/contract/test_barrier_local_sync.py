"""The local sync of a group, with real callers, a real ext4 in an image, and a pool that refuses its writes."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from barrier_kernel_world import Caller, until
from barrier_local_world import (
    FAILURES,
    LEAST_BYTES,
    MIB,
    SYNCFS,
    Local,
    local,
    opened_as,
    own_files,
    stacked,
    told,
    wrote,
)

from pannier.barrier import local_sync
from pannier.barrier.calls import Answer, SyncCall
from pannier.core.errors import StorageError
from pannier.host.mountinfo import locate, own_mounts
from pannier.host.together import sync_files

__all__ = ["local"]
pytestmark = pytest.mark.root

# -- only what is named ----------------------------------------------------------------------------


MSYNC = "m = mmap.mmap(50, 4096); m[:5] = os.urandom(5); m.flush()"


@pytest.mark.parametrize("line", ["os.fdatasync(50)", "os.fsync(50)", MSYNC])
async def test_what_others_wrote_is_not_waited_for(local: Local, line: str) -> None:
    await opened_as(caller := await local.world.caller(), 50, local.make("mine", 4096))
    written = []
    for number in range(
        3
    ):  # another program on this machine may sync everything in the midst of it
        local.dirty(f"others-{number}", 100 * MIB)
        await wrote(caller, 50, 4096)
        before = local.alone.written()
        assert await told(caller, line) == "ok"
        written.append(local.alone.written() - before)
        if written[-1] < LEAST_BYTES:
            break
    assert 4096 <= min(written) < LEAST_BYTES
    assert not any(said.whole for said in local.alone.said)


async def test_it_is_told_when_the_disk_has_everything_and_only_has_to_flush_it(
    local: Local, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of all files; a sync of everything is never told."""
    caller = await local.world.caller()
    flushing, flush = threading.Event(), threading.Event()

    def held(
        files: Sequence[int], *, data_only: Sequence[bool], meanwhile: Callable[[], None] | None
    ) -> list[int]:
        flushing.set()
        if meanwhile is not None:
            meanwhile()
        assert flush.wait(30)
        return sync_files(files, data_only=data_only)

    monkeypatch.setattr(local_sync, "sync_files", held)
    local.alone.waits = True
    for number in range(6):
        await opened_as(caller, 50 + number, local.make(str(number)))
    before = local.alone.written()
    for number in range(6):
        await wrote(caller, 50 + number)
    for number in range(6):
        await caller.begin(f"os.fdatasync({50 + number})")
    await local.world.waiting(6)
    local.alone.gate.set()
    await until(lambda: flushing.is_set() and local.alone.given)
    assert local.alone.said == []
    flush.set()
    assert [await caller.outcome() for _ in range(6)] == ["ok"] * 6
    assert len(local.alone.given) == len(local.alone.said) == 2
    assert local.alone.given[1] - before >= 6 * MIB
    assert await told(caller, "libc.syncfs(50)") == "ok"
    assert len(local.alone.given) == 2


@pytest.mark.parametrize("line", ["os.sync()", "libc.syncfs(50)"])
async def test_a_sync_of_everything_syncs_everything(local: Local, line: str) -> None:
    await opened_as(caller := await local.world.caller(), 50, local.make("mine", 4096))
    before = local.alone.written()
    local.dirty("others", 100 * MIB)
    assert await told(caller, line) == "ok"
    assert local.alone.written() - before >= 100 * MIB


async def test_all_files_of_a_group_are_synced(local: Local) -> None:
    caller = await local.world.caller()
    local.alone.waits = True
    for number in range(20):
        await opened_as(caller, 50 + number, local.make(str(number)))
    before = local.alone.written()  # the kernel may write some of it by itself
    for number in range(20):
        await wrote(caller, 50 + number)
    for number in range(20):
        await caller.begin(f"os.fdatasync({50 + number})")
    await local.world.waiting(20)
    local.alone.gate.set()
    assert [await caller.outcome() for _ in range(20)] == ["ok"] * 20
    assert local.alone.written() - before >= 20 * MIB
    assert not any(said.whole for said in local.alone.said)
    groups = [len(said.answers) for said in local.alone.said]
    assert (len(groups), sum(groups)) == (
        2,
        20,
    )  # those that came before the first group began, and the rest


async def test_a_deleted_file_and_a_directory_are_synced(local: Local) -> None:
    caller = await local.world.caller()
    await opened_as(caller, 50, local.make("gone"))
    await opened_as(caller, 51, local.data, "os.O_RDONLY")
    (local.data / "gone").unlink()
    before = local.alone.written()
    await wrote(caller, 50, 4 * MIB)
    assert await told(caller, "os.fsync(50)") == "ok"
    assert local.alone.written() - before >= 4 * MIB
    assert await told(caller, "os.fsync(51)") == "ok"
    assert [said.answers for said in local.alone.said] == [[Answer(0)], [Answer(0)]]


async def test_what_cannot_be_synced_fails_as_by_the_kernel_and_is_no_loss(local: Local) -> None:
    caller = await local.world.caller()
    os.mkfifo(local.data / "fifo")
    await opened_as(caller, 50, local.make("file"), "os.O_PATH")
    await opened_as(caller, 51, local.data / "fifo")
    await caller.begin(
        "r, w = os.pipe(); s = socket.socketpair(); os.dup2(w, 52); os.dup2(s[0].fileno(), 53)"
    )
    assert await caller.outcome() == "ok"
    wanted = {
        50: errno.EBADF,
        51: errno.EINVAL,
        52: errno.EINVAL,
        53: errno.EINVAL,
        54: errno.EBADF,
    }
    for number, error in wanted.items():
        assert (number, await told(caller, f"os.fsync({number})")) == (number, str(error))
    assert len(local.alone.said) == 2  # the others are of no volume
    assert not any(said.lost for said in local.alone.said)
    assert await local.alone.driver.failed() == frozenset()


async def test_a_file_system_in_a_file_of_the_volume_is_brought_into_it_first(local: Local) -> None:
    inner = local.data / "inner"
    with stacked(local.data / "image", inner):
        caller = await local.world.caller()
        await opened_as(caller, 50, inner / "file", "os.O_RDWR | os.O_CREAT")
        before = local.alone.written()
        await wrote(caller, 50, 8 * MIB)
        assert await told(caller, "os.fdatasync(50)") == "ok"
        assert local.alone.began[0] - before >= 8 * MIB
        assert await told(caller, "os.close(50)") == "ok"


async def test_a_file_system_that_hangs_delays_only_its_own_calls(
    local: Local, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may be served by the container, which may need the others' calls to be answered for that."""
    go_on, real = threading.Event(), local_sync.sync_stacked

    def sync_stacked(call: SyncCall) -> int:
        go_on.wait()
        return real(call)

    monkeypatch.setattr(local_sync, "sync_stacked", sync_stacked)
    with stacked(local.data / "image", local.data / "inner"):
        caller = await local.world.caller()
        await opened_as(caller, 50, local.data / "inner/file", "os.O_RDWR | os.O_CREAT")
        await opened_as(caller, 51, local.make("file"))
        try:
            for _ in range(20):  # more than are synced at once
                await caller.begin("os.fsync(50)")
            assert await told(caller, "os.fsync(51)") == "ok"
        finally:
            go_on.set()
        assert [await caller.outcome() for _ in range(20)] == ["ok"] * 20
        assert await told(caller, "os.close(50)") == "ok"


# -- the caller's descriptor -------------------------------------------------------------------------


async def queued(local: Local, caller: Caller, file: Path) -> int:
    """A call on descriptor 50 that waits, and has something to write; how much was written before."""
    local.alone.waits = True
    await opened_as(caller, 50, file)
    before = local.alone.written()
    await wrote(caller, 50, 4 * MIB)
    await caller.begin("os.fdatasync(50)")
    await until(lambda: bool(local.alone.waiting))
    return before


@pytest.mark.parametrize("meanwhile", ["os.close(50)", "os.dup2(51, 50)"])
async def test_a_descriptor_that_is_closed_or_another_files_by_now(
    local: Local, meanwhile: str
) -> None:
    """What the call was about is synced, and it succeeds, as it would if it had begun a moment before."""
    caller = await local.world.caller()
    await opened_as(caller, 51, local.make("other"))
    before = await queued(local, caller, local.make("file"))
    assert await told(caller, meanwhile) == "ok"
    local.alone.gate.set()
    assert await caller.outcome() == "ok"
    (said,) = local.alone.said
    assert (said.whole, said.answers) == (True, [Answer(0)])
    assert local.alone.written() - before >= 4 * MIB


async def test_a_caller_that_was_killed_is_not_synced_and_pins_nothing(local: Local) -> None:
    caller = await local.world.caller()
    await queued(local, caller, local.make("file"))
    await caller.end()
    local.alone.gate.set()
    await until(lambda: bool(local.alone.said))
    assert [said.whole for said in local.alone.said] == [False]
    assert not any("mounts/one/file" in name for name in own_files())


async def test_a_descriptor_that_is_shared_over_fork_is_synced(local: Local) -> None:
    file = local.make("file")
    line = (
        f"fd = os.open({str(file)!r}, os.O_RDWR); child = os.fork() or (os.write(fd, bytes({4 * MIB})),"
        " os.fsync(fd), os._exit(7)); assert os.waitpid(child, 0)[1] == 7 << 8; os.fdatasync(fd)"
    )
    caller = await local.world.caller()
    before = local.alone.written()
    assert await told(caller, line) == "ok"
    assert local.alone.written() - before >= 4 * MIB
    assert local.alone.confirmed == 2


@pytest.mark.parametrize("error", [errno.EINVAL, errno.EPERM])
async def test_without_the_callers_own_descriptor_the_file_is_opened_anew(
    local: Local, monkeypatch: pytest.MonkeyPatch, error: int
) -> None:
    """As of a thread before Linux 6.9, and where a security module gives no descriptor away. The kernel performs
    the call then: it tells what the caller's descriptor has not been told.
    """

    def pidfd_open(pid: int, flags: int = 0) -> int:
        raise OSError(error, "no")

    monkeypatch.setattr(os, "pidfd_open", pidfd_open)
    caller = await local.world.caller()
    await opened_as(caller, 50, local.make("file"))
    before = local.alone.written()
    await wrote(caller, 50, 4 * MIB)
    assert await told(caller, "os.fdatasync(50)") == "ok"
    (said,) = local.alone.said
    assert (said.whole, said.answers) == (False, [Answer(None)])
    assert local.alone.written() - before >= 4 * MIB


# -- errors -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [errno.EIO, errno.ENOSPC])
@pytest.mark.parametrize("call", ["os.fsync", "os.fdatasync", "syncfs"])
async def test_an_error_is_the_calls_answer_and_nothing_is_confirmed_after_it(
    local: Local, call: str, error: int
) -> None:
    caller = await local.world.caller()
    await opened_as(caller, 50, await local.overwritten())
    await opened_as(caller, 51, local.make("other", 4096))
    local.refuse(error)
    await wrote(caller, 50, 64 * MIB)
    if call == "syncfs":  # which error it is told depends on the kernel
        assert await told(caller, SYNCFS) in FAILURES
    else:
        assert await told(caller, f"{call}(50)") == str(error)
    for number in (50, 51, 50):
        assert await told(caller, f"os.fsync({number})") in FAILURES
    assert local.alone.confirmed == 0
    assert await local.alone.driver.failed() == {local.alone.volume.id}
    with pytest.raises(StorageError):
        await local.alone.driver.snapshot(local.alone.volume.id, epoch=1)
    assert (local.pool / "images" / local.alone.volume.id / "lost-1").exists()


async def test_each_file_of_a_group_is_told_its_own_error(local: Local) -> None:
    """All are written out before the first is waited for, and that tells nobody's error to another."""
    caller = await local.world.caller()
    await opened_as(caller, 50, await local.overwritten())
    for number in (51, 52):
        await opened_as(caller, number, local.make(str(number), 4096))
    local.refuse(errno.ENOSPC)
    local.alone.waits = True
    await wrote(caller, 50, 64 * MIB)
    for number in (51, 50, 52):
        await caller.begin(f"os.fdatasync({number})")
    await local.world.waiting(3)
    local.alone.gate.set()
    outcomes = sorted([await caller.outcome() for _ in range(3)])
    assert str(errno.ENOSPC) in outcomes
    assert all(
        outcome in FAILURES for outcome in outcomes[:2]
    )  # the first call was in a group before
    assert local.alone.confirmed <= 1


async def test_a_full_pool_is_told_as_it_is(local: Local) -> None:
    caller = await local.world.caller()
    await opened_as(caller, 50, await local.overwritten())
    local.fill_up()
    await wrote(caller, 50, 64 * MIB)
    assert await told(caller, "os.fsync(50)") in (str(errno.ENOSPC), str(errno.EIO))
    assert await told(caller, "os.fsync(50)") != "ok"
    assert local.alone.confirmed == 0
    assert await local.alone.driver.failed() == {local.alone.volume.id}
    (local.pool / "ballast").unlink()


async def test_all_who_share_a_descriptor_are_told(local: Local) -> None:
    """The kernel tells one of them."""
    caller = await local.world.caller()
    await opened_as(caller, 50, await local.overwritten())
    await caller.begin("os.dup2(50, 51)")
    assert await caller.outcome() == "ok"
    local.refuse(errno.ENOSPC)
    await wrote(caller, 50, 64 * MIB)
    local.alone.waits = True
    for number in (50, 51, 50):
        await caller.begin(f"os.fdatasync({number})")
    await local.world.waiting(3)
    local.alone.gate.set()
    outcomes = sorted([await caller.outcome() for _ in range(3)])
    assert outcomes == [str(errno.ENOSPC), str(errno.EIO), str(errno.EIO)]
    assert local.alone.confirmed == 0


async def test_a_loss_that_was_told_to_somebody_else_is_found_by_the_next_generation(
    local: Local,
) -> None:
    """As to a write with O_SYNC, which is no sync call. The kernel does not tell it to who opens the file later."""
    file = await local.overwritten()
    local.refuse(errno.ENOSPC)
    with file.open("r+b", 0) as other:
        other.write(os.urandom(64 * MIB))
        with pytest.raises(OSError, match="No space"):
            os.fsync(other.fileno())
    with pytest.raises(StorageError):
        await local.alone.driver.snapshot(local.alone.volume.id, epoch=1)
    caller = await local.world.caller()
    await opened_as(caller, 50, file)
    assert await told(caller, "os.fdatasync(50)") == str(errno.EIO)
    assert local.alone.confirmed == 0


async def test_an_error_that_was_told_to_a_call_that_a_signal_ended_is_told_again(
    local: Local,
) -> None:
    caller = await local.world.caller()
    await opened_as(caller, 50, await local.overwritten())
    local.refuse(errno.ENOSPC)
    await wrote(caller, 50, 64 * MIB)
    local.alone.holds_answers = True
    thread = await caller.begin("os.fdatasync(50)")
    await until(lambda: bool(local.alone.said))
    await local.world.restart_call(caller, thread)
    local.alone.holds_answers = False
    local.alone.gate.set()
    assert await caller.outcome() == str(errno.EIO)
    assert [said.lost for said in local.alone.said] == [True, True]
    assert local.alone.confirmed == 0


async def test_it_was_a_volume_of_its_own_file_system(local: Local) -> None:
    """Else these tests would prove nothing."""
    place = locate(local.data, own_mounts())
    assert place.path == "/data"
