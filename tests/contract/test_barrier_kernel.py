"""The barrier and the kernel: what is received, answered, withdrawn, restarted, and taken up again."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import resource
import signal
import socket
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
from barrier_kernel_world import Caller, World, new_world, until, volumes

from pannier.barrier import barrier, kernel, pending, reach, syncwrites
from pannier.barrier.arrivals import readable
from pannier.barrier.keeping import Keeping
from pannier.barrier.pending import Pending
from pannier.barrier.reach import HostDevices, Reach
from pannier.core.volume import UnheldWrites
from pannier.host.activation import unix_listener
from pannier.host.mountinfo import OwnMounts, locate, own_mounts

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root: mounts and /proc of others"),
]

WAIT_KILLABLE_RECV = 32


@pytest.fixture
async def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
    with volumes(tmp_path):
        async with new_world(tmp_path, monkeypatch) as world:
            yield world


async def test_a_call_waits_until_its_volume_is_durable(world: World) -> None:
    async with world.running() as barrier:
        caller = await world.caller()
        thread = await caller.sync(world.file())
        await world.waiting(1)
        await until(lambda: world.gate.groups)  # it begins a moment later
        assert barrier.containers("one") == {"c"}
        ((volume, (call,)),) = world.gate.groups
        assert (volume, call.container, call.pid, call.name) == ("one", "c", thread, "fsync")
        assert call.fd is not None
        world.gate.open()
        assert await caller.outcome() == "ok"
        assert barrier.waiting("one").calls == 0


async def test_calls_that_come_later_form_the_next_group(world: World) -> None:
    async with world.running():
        caller = await world.caller()
        await caller.sync(world.file())
        await world.waiting(1)
        for call in ("os.fsync", "os.fdatasync"):
            await caller.sync(world.file(), call)
        await world.waiting(3)
        world.gate.open()
        for _ in range(3):
            assert await caller.outcome() == "ok"
        assert [len(calls) for _volume, calls in world.gate.groups] == [1, 2]


async def test_a_call_concerns_the_volume_of_its_file(world: World, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").write_bytes(bytes(4096))
    async with world.running() as barrier:
        caller = await world.caller("one", "two")
        await caller.sync(tmp_path / "elsewhere")
        assert await caller.outcome() == "ok"
        await caller.sync(world.file("two"))
        await world.waiting(1, "two")
        assert barrier.waiting("one").calls == 0
        await caller.sync_all(tmp_path / "elsewhere")
        await world.waiting(1, "one")
        await world.waiting(2, "two")
        world.gate.open()
        assert [await caller.outcome() for _ in range(2)] == ["ok", "ok"]


async def test_a_call_about_which_the_kernel_says_something_else_concerns_all_volumes(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was taken: nobody else would ever answer it."""
    monkeypatch.setattr(reach, "fdinfo", lambda tid, fd: {b"pos:": b"0"})
    async with world.running():
        caller = await world.caller("one", "two")
        await caller.sync(world.file("one"))
        await world.waiting(1, "one")
        await world.waiting(1, "two")
        world.gate.open()
        assert await caller.outcome() == "ok"


async def test_who_passes_by_waits_for_the_held_volumes_that_are_there(
    world: World, tmp_path: Path
) -> None:
    """As a container with the machine's root: it sees what is mounted after its start, too."""
    (tmp_path / "elsewhere").write_bytes(bytes(4096))
    async with world.running() as barrier:
        caller = await world.caller("*")
        await caller.sync(world.file())
        assert await caller.outcome() == "ok"  # nothing is held yet
        barrier.hold("one", UnheldWrites.WARN)
        assert barrier.containers("one") == {"c"}
        await caller.sync(world.file())
        await world.waiting(1)
        await caller.sync(world.file("two"))
        assert await caller.outcome() == "ok"
        world.gate.open()
        assert await caller.outcome() == "ok"
        world.gate.shut()
        await caller.sync_all(tmp_path / "elsewhere")
        await world.waiting(1)
        world.gate.open()
        assert await caller.outcome() == "ok"


async def test_who_passes_by_is_told_so_again_after_a_restart_of_the_daemon(world: World) -> None:
    async with world.running() as barrier:
        barrier.hold("one", UnheldWrites.WARN)
        caller = await world.caller("*")
        await caller.sync(world.file())
        await world.waiting(1)
    async with world.running() as barrier:
        await world.waiting(1)
        assert barrier.containers("one") == {"c"}
        world.gate.open()
        assert await caller.outcome() == "ok"


async def test_a_failed_group_is_tried_again(world: World) -> None:
    async with world.running():
        caller = await world.caller()
        world.gate.failing = True
        await caller.sync(world.file())
        await until(lambda: len(world.gate.groups) == 3)
        assert world.barrier.waiting("one").calls == 1
        world.gate.failing = False
        world.gate.open()
        assert await caller.outcome() == "ok"


async def test_a_dead_caller_delays_nobody_and_leaves_nothing(world: World) -> None:
    async with world.running() as barrier:
        dead, alive = await world.caller(container="dead"), await world.caller()
        await dead.sync(world.file())
        await world.waiting(1)
        await alive.sync(world.file())
        await dead.end()
        await until(lambda: barrier.containers("one") == {"c"})
        world.gate.open()
        assert await alive.outcome() == "ok"
        assert len(world.systemd.listen()) == 1
        await alive.end()
        await until(lambda: not world.systemd.listen())
        assert not list((world.folder / "run/listeners").iterdir())


# -- signals ---------------------------------------------------------------------------------------


async def test_a_restarted_call_keeps_its_first_arrival(world: World) -> None:
    async with world.running():
        caller = await world.caller()
        thread = await caller.sync(world.file())
        await world.waiting(1)
        first = world.gate.groups[0][1][0]
        for _ in range(3):
            await world.restart_call(caller, thread)
        world.gate.open()
        assert await caller.outcome() == "ok"
        again = world.gate.groups[1][1][0]
        assert (again.arrival, again.pid, again.fd) == (first.arrival, thread, first.fd)


async def test_a_restarted_call_goes_on_when_nothing_was_written_since(world: World) -> None:
    async with world.running():
        caller = await world.caller()
        thread = await caller.sync(world.file())
        await world.waiting(1)
        await world.restart_call(caller, thread)
        world.gate.clean = True
        world.gate.open()
        assert await caller.outcome() == "ok"
        assert len(world.gate.groups) == 1


async def test_another_call_of_the_same_thread_is_no_restart(world: World) -> None:
    async with world.running():
        caller = await world.caller()
        fd = f"os.open({str(world.file())!r}, os.O_RDWR)"
        thread = await caller.begin(f"fds = {fd}, {fd}; libc.fsync(fds[0]); os.fsync(fds[1])")
        await world.waiting(1)
        await world.restart_call(caller, thread, signal.SIGUSR2)
        world.gate.clean = True
        world.gate.open()
        assert await caller.outcome() == "ok"
        (_volume, (first,)), (_volume, (second,)) = world.gate.groups
        assert second.arrival > first.arrival


async def test_a_call_is_not_interrupted_where_the_filter_says_so(world: World) -> None:
    async with world.running():
        try:
            caller = await world.caller(flags=WAIT_KILLABLE_RECV)
        except AssertionError:
            pytest.skip("this kernel is older than 5.19")
        thread = await caller.sync(world.file())
        await world.waiting(1)
        caller.interrupt(thread)
        await asyncio.sleep(0.05)
        world.gate.open()
        assert await caller.outcome() == "ok"
        assert len(world.gate.groups) == 1


# -- restarts of the daemon ------------------------------------------------------------------------


async def test_the_next_daemon_takes_up_what_waits(world: World) -> None:
    async with world.running():
        caller = await world.caller("one", "two")
        await caller.sync(world.file())
        await caller.sync(world.file())
        await world.waiting(2)
    world.gate.groups.clear()
    async with world.running():
        await world.waiting(2, "one")
        await world.waiting(2, "two")  # what it was is not known any more
        world.gate.open()
        assert [await caller.outcome() for _ in range(2)] == ["ok", "ok"]
        assert {call.name for _volume, calls in world.gate.groups for call in calls} == {"unknown"}
        await caller.sync(world.file())
        assert await caller.outcome() == "ok"


async def test_a_call_that_was_received_but_not_yet_stored_is_taken_up(world: World) -> None:
    """As if the daemon had been killed in between."""
    world.gate.open()
    async with world.running():
        caller = await world.caller()
        await caller.sync(world.file())
        assert await caller.outcome() == "ok"
    ((_name, listener),) = world.systemd.listen().items()
    await caller.sync(world.file())
    assert await asyncio.to_thread(kernel.receive, listener)
    async with world.running():
        assert await caller.outcome() == "ok"


async def test_calls_wait_in_the_kernel_while_no_daemon_runs(world: World) -> None:
    world.gate.open()
    async with world.running():
        first = await world.caller(container="first")
    second = await world.caller(container="second")
    await first.sync(world.file())
    await second.sync(world.file())
    async with world.running() as barrier:
        assert [await first.outcome(), await second.outcome()] == ["ok", "ok"]
        assert barrier.containers("one") == {"first", "second"}


async def test_a_listener_of_which_nothing_is_known_holds_all_volumes(world: World) -> None:
    """The daemon was killed after it had it kept, and before it had written down what it is."""
    async with world.running():
        caller = await world.caller()
        await until(lambda: len(world.systemd.listen()) == 1)
    for file in (world.folder / "run/listeners").glob("*.json"):
        file.unlink()
    world.gate.open()
    (world.folder / "run/held/one").touch()
    (world.folder / "run/held/two").touch()
    async with world.running() as barrier:
        await caller.sync_all(world.file())
        assert await caller.outcome() == "ok"
        assert {volume for volume, _calls in world.gate.groups} == {"one", "two"}
        assert barrier.containers("two")


async def test_more_calls_than_can_be_remembered_wait_in_the_kernel(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pending, "_SLOTS", 5)
    monkeypatch.setattr(pending, "_BYTES", 40)
    async with world.running() as barrier:
        caller = await world.caller()
        for _ in range(5):
            await caller.sync(world.file())
        await world.waiting(3)
        await asyncio.sleep(0.05)
        assert barrier.waiting("one").calls == 3
        world.gate.open()
        assert [await caller.outcome() for _ in range(5)] == ["ok"] * 5


# -- the hand-over ---------------------------------------------------------------------------------


@pytest.mark.parametrize("text", [b"", b"nonsense", b'{"fds": [], "pid": 1, "state": {"id": "x"}}'])
async def test_a_bad_hand_over_is_refused_and_leaves_nothing(world: World, text: bytes) -> None:
    async with world.running() as barrier:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(str(world.folder / "sock"))
            if text:
                socket.send_fds(connection, [text], [world.server.fileno()])
            connection.shutdown(socket.SHUT_WR)
            connection.setblocking(False)
            assert await asyncio.get_running_loop().sock_recv(connection, 1) == b""
        await until(lambda: not world.systemd.listen())
        world.gate.open()
        caller = await world.caller()
        await caller.sync(world.file())
        assert await caller.outcome() == "ok"
        assert barrier.containers("one") == {"c"}


async def test_a_listener_without_room_for_its_files_lets_its_calls_wait(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries, real = 0, Keeping.pending

    def no_room(self: Keeping, name: str) -> Pending:
        nonlocal tries
        tries += 1
        if tries < 4:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(self, name)

    monkeypatch.setattr(Keeping, "pending", no_room)
    monkeypatch.setattr(barrier, "_ROOM_SECONDS", 0.1)
    world.gate.open()
    async with world.running():
        caller = await world.caller()
        await caller.sync(world.file())
        assert await caller.outcome() == "ok"
        assert world.gate.groups
    assert tries == 4


def test_a_full_tmpfs_is_an_error_and_no_signal(tmp_path: Path) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", tmp_path], check=True)
    try:
        with contextlib.suppress(OSError), (tmp_path / "filler").open("wb", 0) as filler:
            while True:
                filler.write(bytes(4096))
        with pytest.raises(OSError, match="No space"):
            Pending(tmp_path / "ids")
    finally:
        subprocess.run(["umount", tmp_path], check=True)


# -- files that are written through ----------------------------------------------------------------


async def test_files_that_are_written_through_are_told_until_they_are_closed(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(barrier, "_SCAN_SECONDS", 0.05)
    (world.folder / "elsewhere").touch()
    async with world.running() as running:
        caller = await world.caller("one", "two", own_mounts=True)
        for flags, file in (
            ("os.O_SYNC", world.folder / "elsewhere"),
            ("os.O_CLOEXEC", world.file("two")),
            ("os.O_DSYNC", world.file()),
        ):
            await caller.begin(f"os.dup2(os.open({str(file)!r}, os.O_RDWR | {flags}), 77)")
            assert await caller.outcome() == "ok"
        await until(lambda: running.unheld_writers("one"))
        (found,) = running.unheld_writers("one")
        assert (found.container, found.pid, found.file) == ("c", caller.pid, str(world.file()))
        assert found.volumes == {"one"}
        assert found.command
        assert running.unheld_writers("two") == []
        await caller.begin("os.closerange(3, 100)")
        assert await caller.outcome() == "ok"
        await until(lambda: not running.unheld_writers("one"))


async def test_a_mark_says_what_is_refused(world: World) -> None:
    """Another container may be starting: the mark is never without its word."""
    async with world.running() as running:
        mark = world.folder / "run/held/one"
        for word in (UnheldWrites.WARN, UnheldWrites.REFUSE, UnheldWrites.REFUSE):
            with contextlib.ExitStack() as opened:
                before = opened.enter_context(mark.open()) if mark.exists() else None
                running.hold("one", word)
                assert mark.read_text() == word
                assert running.held() == {"one"}
                assert before is None or before.read()  # whoever had it open reads all of it


async def test_who_uses_linux_aio_is_told_until_the_container_ends(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it submits can be an fsync, and nobody sees whether it is."""
    monkeypatch.setattr(barrier, "_SCAN_SECONDS", 0.05)
    io_setup = {"x86_64": 206, "aarch64": 0}[os.uname().machine]
    async with world.running() as running:
        caller = await world.caller(own_mounts=True)
        await world.caller("two", container="d", own_mounts=True)
        await caller.begin(
            f"assert libc.syscall({io_setup}, 8, ctypes.byref(ctypes.c_ulong())) == 0"
        )
        assert await caller.outcome() == "ok"
        await until(lambda: running.unheld_writers("one"))
        (found,) = running.unheld_writers("one")
        assert (found.container, found.pid, found.file) == ("c", caller.pid, None)
        assert running.unheld_writers("two") == []
        await caller.end()
        await until(lambda: not running.unheld_writers("one"))


def test_one_file_of_each_volume_is_told(world: World) -> None:
    """The same one by each look, whatever else is open."""
    mounts = own_mounts()
    places = {name: locate(world.mounts / name, mounts) for name in ("one", "two")}
    seen = Reach(places, HostDevices(str(world.mounts)))
    with contextlib.ExitStack() as opened:
        for name in ("one", "one", "two"):
            fd = os.open(world.file(name), os.O_RDWR | os.O_DSYNC)
            opened.callback(os.close, fd)
        found = syncwrites.find({os.getpid(): syncwrites.ContainerSpace("c", seen)})
    told = [(each.volumes, each.file) for each in found if each.pid == os.getpid()]
    assert told == [({name}, str(world.file(name))) for name in ("one", "two")]


# -- what is kept of the containers' mounts -----------------------------------------------------------

_OWN_NAMESPACE = "assert libc.unshare(0x20000) == 0"  # CLONE_NEWNS, of this thread
_MOUNT = "assert libc.mount(b'{0}', b'{1}', b'{2}', {3}, None) == 0"
_PRIVATE, _BIND = 1 << 18 | 1 << 14, 1 << 12


async def test_a_mount_that_a_container_makes_counts_from_its_next_call_on(
    world: World, tmp_path: Path
) -> None:
    (point := tmp_path / "point").mkdir()
    (point / "x").touch()
    bind = _MOUNT.format(world.mounts / "one", point, "none", _BIND)
    sync = f"fd = os.open('{point}/x', os.O_RDWR); os.fsync(fd); os.close(fd)"
    lines = [
        _OWN_NAMESPACE,
        _MOUNT.format("none", "/", "none", _PRIVATE),
        *(sync, sync, bind, sync),
        f"assert libc.umount2(b'{point}', 2) == 0",  # MNT_DETACH
        sync,
    ]
    world.gate.open()
    async with world.running():
        caller = await world.caller()
        await caller.begin("; ".join(lines))
        assert await caller.outcome() == "ok"
    assert [volume for volume, _calls in world.gate.groups] == ["one"]


async def test_a_directory_that_is_renamed_into_a_volume_counts_from_the_next_call_on(
    world: World, tmp_path: Path
) -> None:
    """The kernel does not tell that what is mounted has another name."""
    (point := tmp_path / "point").mkdir()
    outside, inside = world.folder / "trees/outside", world.folder / "trees/one/inside"
    outside.mkdir()
    (outside / "x").touch()
    lines = [
        _OWN_NAMESPACE,
        _MOUNT.format("none", "/", "none", _PRIVATE),
        _MOUNT.format(outside, point, "none", _BIND),
        f"fd = os.open('{point}/x', os.O_RDWR); os.fsync(fd); os.fsync(fd)",
        f"os.rename('{outside}', '{inside}'); os.fsync(fd)",
    ]
    world.gate.open()
    async with world.running():
        caller = await world.caller()
        await caller.begin("; ".join(lines))
        assert await caller.outcome() == "ok"
    assert len(world.gate.groups) == 1


async def test_threads_in_several_namespaces_are_each_seen_with_their_own_mounts(
    world: World, tmp_path: Path
) -> None:
    (point := tmp_path / "point").mkdir()
    (point / "x").touch()
    bind = _MOUNT.format(world.mounts / "one", point, "none", _BIND)
    apart = [_OWN_NAMESPACE, _MOUNT.format("none", "/", "none", _PRIVATE), bind]
    sync = f"os.fsync(os.open('{point}/x', os.O_RDWR))"
    world.gate.open()
    async with world.running():
        caller = await world.caller()
        for number in range(3):
            await caller.begin(sync)
            assert await caller.outcome() == "ok"
            assert len(world.gate.groups) == number
            await caller.begin("; ".join([*apart, sync]))
            assert await caller.outcome() == "ok"
            assert len(world.gate.groups) == number + 1


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """An ext4 in a file."""
    image = tmp_path / "image"
    image.write_bytes(bytes(8 << 20))
    subprocess.run(["mkfs.ext4", "-q", image], check=True)
    return image


async def test_a_container_s_mounts_are_gone_when_it_has_ended(
    world: World, image: Path, tmp_path: Path
) -> None:
    """What is kept of its mounts keeps them from being unmounted, if it is kept too long."""
    (point := tmp_path / "point").mkdir()

    def attached() -> bool:
        asked = ["losetup", "--associated", str(image)]
        return bool(subprocess.run(asked, check=True, capture_output=True).stdout)

    async with world.running():
        caller = await world.caller()
        mount = f"import subprocess; subprocess.run(['mount', '-o', 'loop', {str(image)!r}, {str(point)!r}], check=True)"
        sync = f"os.fsync(os.open({str(world.file())!r}, os.O_RDWR))"
        private = _MOUNT.format("none", "/", "none", _PRIVATE)
        await caller.begin("; ".join([_OWN_NAMESPACE, private, mount, sync]))
        await world.waiting(1)
        assert attached()
        await caller.end()
        await until(lambda: not attached())


async def test_the_end_is_heard_of_while_there_is_no_room_for_calls(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pending, "_SLOTS", 3)
    monkeypatch.setattr(pending, "_BYTES", 24)
    async with world.running() as barrier:
        caller = await world.caller()
        for _ in range(3):
            await caller.sync(world.file())
        await world.waiting(1)
        await caller.end()
        await until(lambda: not barrier.containers("one"))
        assert barrier.waiting("one").calls == 0


# -- this machine's mounts ---------------------------------------------------------------------------


def test_a_mount_is_noticed_when_it_comes_and_when_it_goes(tmp_path: Path) -> None:
    mounts = OwnMounts()
    for _ in range(3):
        assert str(tmp_path) not in {mount.point for mount in mounts()}
        subprocess.run(["mount", "-t", "tmpfs", "none", tmp_path], check=True)
        try:
            assert str(tmp_path) in {mount.point for mount in mounts()}
        finally:
            subprocess.run(["umount", tmp_path], check=True)
    assert str(tmp_path) not in {mount.point for mount in mounts()}


async def test_a_hand_over_is_taken_although_the_daemon_ends(world: World) -> None:
    """Else its calls would return ENOSYS for as long as the container runs."""
    async with held_back(world) as (caller, send):
        async with world.running():
            connection = await connected(world)
            await settled()
            asyncio.get_running_loop().call_later(0.1, send, connection)
        assert len(world.systemd.listen()) == 1
        world.gate.open()
        async with world.running() as barrier:
            await caller.sync(world.file())
            assert await caller.outcome() == "ok"
            assert barrier.containers("one") == {"c"}, "what it is about is known, too"


async def test_a_hand_over_that_comes_with_the_end_of_the_daemon_is_the_next_ones(
    world: World,
) -> None:
    """It was not accepted yet, or just now: neither may be lost."""
    for turns in range(6):
        async with held_back(world) as (caller, send):
            async with world.running():
                send(await connected(world))
                for _ in range(turns):
                    await asyncio.sleep(0)
            world.gate.open()
            async with world.running() as barrier:
                await until(partial(barrier.containers, "one"))
                await caller.sync(world.file())
                assert await caller.outcome() == "ok"
        await caller.end()


async def test_a_hand_over_that_never_ends_does_not_delay_the_end_for_long(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(barrier, "_LAST_SECONDS", 0.2)
    async with world.running():
        connection = await connected(world)
        await settled()
    loop = asyncio.get_running_loop()
    assert await asyncio.wait_for(loop.sock_recv(connection, 1), 5) == b""
    connection.close()


@contextlib.asynccontextmanager
async def held_back(world: World) -> AsyncIterator[tuple[Caller, Callable[[socket.socket], None]]]:
    """A process that has made its filter, and what hands its listener over on a connection."""
    with unix_listener(world.folder / "late") as late:
        starting = asyncio.create_task(world.caller(door="late"))
        loop = asyncio.get_running_loop()
        arriving, _address = await loop.sock_accept(late)
        with arriving:
            await asyncio.wait_for(readable(arriving), 20)
            text, fds, _flags, _address = socket.recv_fds(arriving, 1 << 16, 1)

        def send(connection: socket.socket) -> None:
            with connection:
                socket.send_fds(connection, [text], fds)
            os.close(fds[0])

        yield await starting, send


async def connected(world: World) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX)
    connection.setblocking(False)
    await asyncio.get_running_loop().sock_connect(connection, str(world.folder / "sock"))
    return connection


async def settled() -> None:
    """Let the event loop do what it can do now."""
    for _ in range(20):
        await asyncio.sleep(0)


@pytest.fixture
def small_run(world: World) -> Iterator[Path]:
    """The barrier's files on a tmpfs that can be filled."""
    run = world.folder / "run"
    run.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", run], check=True)
    yield run
    subprocess.run(["umount", "-l", run], check=True)


def fill(file: Path) -> None:
    with contextlib.suppress(OSError), file.open("wb", buffering=0) as full:
        while True:
            full.write(bytes(4096))


async def test_a_full_run_directory_ends_nothing(
    world: World, small_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even over a restart of the daemon: all calls wait, and go on when there is room."""
    monkeypatch.setattr(barrier, "_ROOM_SECONDS", 0.05)
    (small_run / "held").mkdir()
    (small_run / "held/one").touch()
    (small_run / "listeners").mkdir()
    world.gate.open()
    fill(small_run / "much")
    async with world.running():
        first = await world.caller(container="first")
        await first.sync(world.file())
        await until(lambda: len(world.systemd.listen()) == 1)
    async with world.running() as second_run:
        second = await world.caller(container="second")
        await second.sync(world.file())
        await until(lambda: len(world.systemd.listen()) == 2)
        assert not second_run.containers("one")
    async with world.running() as third_run:
        (small_run / "much").unlink()
        assert [await first.outcome(), await second.outcome()] == ["ok", "ok"]
        await until(lambda: bool(third_run.containers("one")))
        await first.sync(world.file())
        assert await first.outcome() == "ok"


async def test_the_barrier_goes_on_after_it_was_out_of_descriptors(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    world.gate.open()
    async with world.running(), held_back(world) as (caller, send):
        connection = await connected(world)
        await settled()
        connection.close()
        connection = await connected(world)
        lowest = os.dup(0)
        os.close(lowest)
        resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, hard))
        try:
            await settled()
            await asyncio.sleep(0.05)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        send(connection)
        await caller.sync(world.file())
        assert await caller.outcome() == "ok"
