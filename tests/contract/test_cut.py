"""Cuts of real loop devices by the kernel's real trace."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from cut_world import (
    EVENT,
    LIMIT,
    SIZE,
    Volume,
    mounted_volume,
    name,
    pool,
    program,
    raw,
    tracer,
    volume,
)

from pannier.core.errors import Conflict, InvalidInput
from pannier.core.line import Cut, Data, Zeros
from pannier.cut.cutter import Cutter
from pannier.cut.doubt import DoubtKind, TraceDoubt
from pannier.cut.spans import Written
from pannier.cut.tracefs import TRACEFS
from pannier.cut.tracer import Tracer
from pannier.storage.image import nocow
from pannier.storage.image.loopdevice import attached

__all__ = ["name", "pool", "raw", "tracer"]
pytestmark = pytest.mark.root
BLOCK = 4096
LATER = 20_000


def block(text: str) -> bytes:
    return text.encode().ljust(BLOCK, b".")


def instance(name: str) -> Path:
    return TRACEFS / "instances" / name


def reason(found: Cut | TraceDoubt) -> DoubtKind:
    assert isinstance(found, TraceDoubt), found
    return found.reason


def test_a_cut_has_what_was_written_and_the_next_one_does_not(raw: Volume) -> None:
    raw.write(8 * BLOCK, block("a") + block("b"))
    raw.write(7 * BLOCK, block("c"))
    found = raw.cut()
    assert found.ranges == (Data(7 * BLOCK, block("c") + block("a") + block("b")),)
    assert found.size == raw.image.stat().st_size
    assert raw.cut().ranges == ()
    assert raw.is_equal


def test_everything_written_after_the_beginning_is_told_in_order_of_its_place(raw: Volume) -> None:
    for k in (9, 3, 30, 3):
        raw.write(k * BLOCK, block(str(k)), sync=False)
    assert [one.start // BLOCK for one in raw.cut().ranges] == [3, 9, 30]
    assert raw.is_equal


def test_many_places_and_large_ones_are_read_whole(raw: Volume) -> None:
    """As many as are read at once, and more; some longer than what is read at once."""
    at = 0
    for number, blocks in enumerate((1, 200, 1, 3, 64, *[1] * 150, 65, 2)):
        raw.write(at * BLOCK, os.urandom(blocks * BLOCK), sync=number % 50 == 0)
        at += blocks + 1
    assert len(raw.cut().ranges) == 157
    assert raw.is_equal


def test_reads_and_flushes_are_not_told(raw: Volume) -> None:
    raw.device.path.read_bytes()[:0]
    subprocess.run(["blockdev", "--flushbufs", str(raw.device.path)], check=True)
    assert raw.cut().ranges == ()


def test_what_is_told_goes_to_the_volume_that_was_written(
    pool: Path, tracer: Tracer, raw: Volume
) -> None:
    with volume(pool, tracer) as other:
        raw.write(0, block("raw"))
        other.write(BLOCK, block("other"))
        assert [one.start for one in other.cut().ranges] == [BLOCK]
        assert [one.start for one in raw.cut().ranges] == [0]
    raw.write(BLOCK, block("more"))
    assert [one.start for one in raw.cut().ranges] == [BLOCK]


def test_too_much_is_a_doubt_and_is_not_forgotten(raw: Volume) -> None:
    raw.write(0, b"x" * (1 << 20))
    assert reason(raw.cutter.take((1 << 20) - BLOCK)) is DoubtKind.TOO_MUCH
    raw.write(4 << 20, block("later"))
    assert sum(one.end - one.start for one in raw.cut(2 << 20).ranges) == (1 << 20) + BLOCK
    assert raw.is_equal


def test_a_restart_forgets_what_the_generation_after_it_has(raw: Volume) -> None:
    raw.write(0, block("a"))
    raw.restart()
    assert raw.cut().ranges == ()
    assert raw.is_equal


def test_discarding_a_lot_costs_little(raw: Volume) -> None:
    raw.write(0, os.urandom(4 << 20))
    raw.restart()
    discard(raw, 0, raw.image.stat().st_size)
    assert raw.cut(0).ranges == (Zeros(0, raw.image.stat().st_size),)
    assert raw.is_equal


def test_a_block_written_after_its_discard_is_read(raw: Volume) -> None:
    raw.write(0, os.urandom(1 << 20))
    raw.cut()
    discard(raw, 0, 1 << 20)
    raw.write(16 * BLOCK, block("again"))
    found = raw.cut()
    assert [type(one) for one in found.ranges] == [Zeros, Data, Zeros]
    assert raw.is_equal


def test_a_block_discarded_after_it_was_written_is_zeros(raw: Volume) -> None:
    raw.write(16 * BLOCK, block("gone"))
    discard(raw, 0, 1 << 20)
    raw.cut()
    assert raw.is_equal


def test_a_block_written_after_its_discard_was_cut_is_read(raw: Volume) -> None:
    """The file's holes are looked for at once after each write: none may be seen where a write has ended. The whole
    range is read as if it had been discarded since, which a cut never does."""
    raw.cut()
    assert raw.cutter._source
    for k in range(200):
        discard(raw, 0, 1 << 20)
        raw.write(k * BLOCK, block(str(k)), sync=False)
        found = raw.cutter._source.read(Written(hollow=((0, 1 << 20),)))
        assert [one.content for one in found if isinstance(one, Data)] == [block(str(k))]


def test_zeroing_is_told(raw: Volume) -> None:
    raw.write(0, os.urandom(1 << 20))
    raw.cut()
    subprocess.run(["blkdiscard", "-f", "-z", "-l", str(1 << 20), str(raw.device.path)], check=True)
    assert raw.cut(0).ranges == (Zeros(0, 1 << 20),)
    assert raw.is_equal


def discard(volume: Volume, at: int, size: int) -> None:
    command = ["blkdiscard", "-f", "-o", str(at), "-l", str(size), str(volume.device.path)]
    subprocess.run(command, check=True)


DEPENDENT_WRITER = """
import mmap, os, sys
fd = os.open(sys.argv[1], os.O_WRONLY | os.O_DIRECT)
buffer, n = mmap.mmap(-1, 4096), 0
print("ready", flush=True)
while True:
    n += 1
    buffer[:8] = n.to_bytes(8, "big")
    os.pwrite(fd, buffer, 0)
    os.fsync(fd)
    os.pwrite(fd, buffer, 20_000 * 4096)
"""


def test_no_cut_has_a_write_without_what_was_flushed_before_it(raw: Volume) -> None:
    """Block 20,000 is written after the flush that covers block 0. What others write between the two makes the reading
    long, and it is read last: whoever reads once sees it alone, within a second."""
    busy = 0
    with program(DEPENDENT_WRITER, str(raw.device.path)), others(raw), others(raw):
        began = time.monotonic()
        while busy <= 50 or time.monotonic() < began + 4:  # on a busy machine it takes longer
            assert time.monotonic() < began + 60, f"only {busy} cuts were taken under writers"
            time.sleep(0.01)
            found = raw.cutter.take(SIZE)
            if isinstance(found, TraceDoubt):
                assert found.reason in (DoubtKind.RESTLESS, DoubtKind.MISMATCH)
                raw.restart()
            else:
                raw.apply(found)
                busy += len(found.ranges) > 10
            flushed = int.from_bytes(raw.replica[:8], "big")
            dependent = int.from_bytes(raw.replica[LATER * BLOCK : LATER * BLOCK + 8], "big")
            assert dependent <= flushed
    raw.cut(SIZE)
    assert raw.is_equal


BUSY_WRITER = """
import mmap, os, random, sys
fd = os.open(sys.argv[1], os.O_WRONLY | os.O_DIRECT)
buffer = mmap.mmap(-1, 4096)
print("ready", flush=True)
while True:
    os.pwrite(fd, buffer, random.randrange(1000, 19_000) * 4096)
"""


@contextmanager
def others(volume: Volume) -> Iterator[None]:
    """Others that write all the time: their events must not make up for one that was lost."""
    with program(BUSY_WRITER, str(volume.device.path)):
        yield


@pytest.mark.parametrize("lost_by", ["switch", "filter", "event", "trace", "clock"])
def test_one_lost_event_is_a_doubt_beside_other_writers(
    raw: Volume, name: str, lost_by: str
) -> None:
    """Somebody does something to the trace for a moment and puts it right again."""
    lose = {
        "switch": [("tracing_on", "0", "1")],
        "filter": [
            (f"{EVENT}/filter", "dev == 1", (instance(name) / f"{EVENT}/filter").read_text())
        ],
        "event": [(f"{EVENT}/enable", "0", "1")],
        "trace": [("trace", "", "")],
        "clock": [("trace_clock", "boot", "mono")],
    }[lost_by]
    with others(raw):
        for _ in range(5):
            assert_takes_cuts(raw)
            for file, wrong, _ in lose:
                (instance(name) / file).write_text(wrong)
            raw.write(0, block("lost"))
            for file, _, right in lose:
                (instance(name) / file).write_text(right)
            found = raw.cutter.take(SIZE)
            assert reason(found) in (DoubtKind.MISMATCH, DoubtKind.GAP)
            assert raw.cutter.take(SIZE) == found, "a gap stays a gap"
            raw.restart()
    raw.cut(SIZE)
    assert raw.is_equal


def assert_takes_cuts(volume: Volume) -> None:
    """A cut is taken, at once or after a restart: a busy device may cost a doubt."""
    for _ in range(5):
        found = volume.cutter.take(SIZE)
        if isinstance(found, Cut):
            volume.apply(found)
            return
        assert found.reason in (DoubtKind.MISMATCH, DoubtKind.RESTLESS)
        volume.restart()
    pytest.fail(f"no cut of a busy device: {found}")


@pytest.mark.parametrize(
    ("file", "wrong"),
    [
        ("tracing_on", "0"),
        (f"{EVENT}/enable", "0"),
        (f"{EVENT}/filter", "dev == 1"),
        ("trace_clock", "boot"),
    ],
)
def test_a_changed_trace_is_a_gap_of_all_volumes_and_a_restart_sets_it_up(
    pool: Path, tracer: Tracer, raw: Volume, name: str, file: str, wrong: str
) -> None:
    with volume(pool, tracer) as other:
        (instance(name) / file).write_text(wrong)
        assert reason(raw.cutter.take(LIMIT)) is DoubtKind.GAP
        raw.restart()
        raw.write(0, block("a"))
        raw.cut()
        assert raw.is_equal
        assert reason(other.cutter.take(LIMIT)) is DoubtKind.GAP


def test_a_ring_that_overruns_is_a_gap(raw: Volume, name: str) -> None:
    (instance(name) / "buffer_size_kb").write_text("8")
    with others(raw):
        until = time.monotonic() + 10
        while not overrun(name) and time.monotonic() < until:
            os.sched_yield()
        assert overrun(name)
        assert reason(raw.cutter.take(SIZE)) in (DoubtKind.GAP, DoubtKind.MISMATCH)
    raw.restart()
    raw.write(0, block("a"))
    raw.cut(SIZE)
    assert raw.is_equal


def test_events_that_found_no_place_are_a_gap_even_if_none_was_of_a_volume(
    raw: Volume, name: str
) -> None:
    (instance(name) / "options/overwrite").write_text("0")
    (instance(name) / "buffer_size_kb").write_text("8")
    for _ in range(1000):
        with suppress(OSError):
            (instance(name) / "trace_marker").write_text("x" * 200)
    found = raw.cutter.take(LIMIT)
    assert reason(found) is DoubtKind.GAP
    raw.restart()
    raw.write(0, block("a"))
    raw.cut()
    assert raw.is_equal


def overrun(name: str) -> bool:
    texts = [path.read_text() for path in instance(name).glob("per_cpu/*/stats")]
    return any("\noverrun: 0\n" not in text for text in texts)


def test_a_device_that_does_not_flush_is_a_doubt(raw: Volume) -> None:
    raw.setting("queue/write_cache").write_text("write through")
    try:
        raw.write(0, block("a"))
        assert reason(raw.cutter.take(LIMIT)) is DoubtKind.SETTINGS
    finally:
        raw.setting("queue/write_cache").write_text("write back")
    raw.write(BLOCK, block("b"))
    raw.cut()
    assert raw.is_equal


def test_a_device_that_does_not_count_is_a_doubt_also_when_it_counts_again(raw: Volume) -> None:
    raw.setting("queue/iostats").write_text("0")
    try:
        raw.write(0, block("a"))
        assert reason(raw.cutter.take(LIMIT)) is DoubtKind.SETTINGS
    finally:
        raw.setting("queue/iostats").write_text("1")
    assert reason(raw.cutter.take(LIMIT)) is DoubtKind.MISMATCH
    raw.restart()
    assert raw.cut().ranges == ()
    assert raw.is_equal


def test_a_detached_image_is_a_doubt_also_when_its_number_has_another(
    pool: Path, tracer: Tracer
) -> None:
    first, second = pool / "first", pool / "second"
    for image in (first, second):
        nocow.make_empty(image)
        os.truncate(image, SIZE)
    with attached(first) as device:
        cutter = Cutter(os.stat(device.path).st_rdev, first, tracer)
        cutter.begin()
    try:
        assert reason(cutter.take(LIMIT)) is DoubtKind.SETTINGS
        with attached(second):
            assert reason(cutter.take(LIMIT)) is DoubtKind.SETTINGS
    finally:
        cutter.close()
        first.unlink()
        second.unlink()


def test_a_cutter_that_has_not_begun_says_so(raw: Volume, tracer: Tracer) -> None:
    raw.cutter.close()
    assert reason(raw.cutter.take(LIMIT)) is DoubtKind.GAP
    with pytest.raises(InvalidInput):
        raw.cutter.restart()


def test_a_trace_has_one_user(tracer: Tracer, name: str) -> None:
    with pytest.raises(Conflict):
        Tracer(name)


def test_a_closed_trace_is_a_doubt_and_never_read_again(raw: Volume, tracer: Tracer) -> None:
    tracer.close()
    assert reason(raw.cutter.take(LIMIT)) is DoubtKind.GAP
    with pytest.raises(Conflict):
        raw.cutter.restart()


def test_volumes_are_cut_at_the_same_time(pool: Path, tracer: Tracer, raw: Volume) -> None:
    def use(made: Volume) -> bool:
        for k in range(200):
            made.write(k % 50 * BLOCK, block(str(k)))
            assert [one.start for one in made.cut().ranges] == [k % 50 * BLOCK]
        return made.is_equal

    with volume(pool, tracer) as other, ThreadPoolExecutor() as threads:
        assert list(threads.map(use, [raw, other])) == [True, True]


def test_as_many_devices_as_a_node_may_have_are_filtered(tracer: Tracer, raw: Volume) -> None:
    """More than fit into the kernel's page for a filter."""
    watches = [tracer.watch(os.makedev(7, 1000 + k)) for k in range(400)]
    raw.write(0, block("a"))
    raw.cut()
    assert raw.is_equal
    for watch in watches:
        tracer.unwatch(watch)
    raw.write(BLOCK, block("b"))
    raw.cut()
    assert raw.is_equal


def test_a_device_has_one_watch(raw: Volume, tracer: Tracer) -> None:
    with pytest.raises(Conflict):
        tracer.watch(os.stat(raw.device.path).st_rdev)


DAEMON = """
import os, sys, time
from pannier.cut.tracer import Tracer
from pannier.storage.image import nocow
from pannier.storage.image.loopdevice import attached
tracer = Tracer(sys.argv[1])
tracer.watch(os.stat(sys.argv[2]).st_rdev)
print("ready", flush=True)
time.sleep(1000)
"""


def test_a_daemon_that_was_killed_leaves_its_trace_to_the_next_one(pool: Path, name: str) -> None:
    with program(DAEMON, name, "/dev/loop0"):
        with pytest.raises(Conflict):
            Tracer(name)
        assert (instance(name) / f"{EVENT}/enable").read_text().strip() == "1"
    assert (instance(name) / f"{EVENT}/enable").read_text().strip() == "1"
    tracer = Tracer(name)
    try:
        assert (instance(name) / f"{EVENT}/enable").read_text().strip() == "0"
        with volume(pool, tracer) as made:
            made.write(0, block("a"))
            made.cut()
            assert made.is_equal
    finally:
        tracer.close()


def test_a_closed_trace_costs_nothing_and_opens_again(name: str) -> None:
    Tracer(name).close()
    assert (instance(name) / f"{EVENT}/enable").read_text().strip() == "0"
    assert (instance(name) / "tracing_on").read_text().strip() == "0"
    Tracer(name).close()


MOUNTS = """
from pannier.cut.tracefs import TRACEFS, mount
assert not (TRACEFS / "instances").exists()
mount()
mount()
assert (TRACEFS / "instances").exists()
"""
REFUSED = """
from pannier.core.errors import Unavailable
from pannier.cut.tracer import Tracer
try:
    Tracer("pannier-test-refused")
except Unavailable as error:
    assert "lockdown" in error.remedy
else:
    raise SystemExit(1)
"""


@pytest.mark.parametrize(
    ("text", "may_mount"), [(MOUNTS, True), (REFUSED, False)], ids=["mounted", "refused"]
)
def test_a_tracefs_that_is_not_mounted_is_mounted_or_not_to_be_had(
    text: str, may_mount: bool
) -> None:
    """In a namespace of mounts of its own, where something else hides it."""
    less = (
        [] if may_mount else ["setpriv", "--bounding-set", "-sys_admin", "--inh-caps", "-sys_admin"]
    )
    hide = f'mount -t tmpfs none {TRACEFS} && exec "$@"'
    command = ["unshare", "-m", "sh", "-c", hide, "sh", *less, sys.executable, "-c", text]
    subprocess.run(command, check=True)


def test_a_name_that_is_a_path_is_refused() -> None:
    with pytest.raises(InvalidInput):
        Tracer("../x")


def test_a_cpu_may_go_and_come_back(raw: Volume) -> None:
    switch = Path("/sys/devices/system/cpu/cpu1/online")
    try:
        switch.write_text("0")
    except OSError as error:
        pytest.skip(f"no CPU can be taken away here: {error}")
    try:
        raw.write(0, block("a"))
        raw.cut()
    finally:
        switch.write_text("1")
    with others(raw):
        for _ in range(20):
            assert_takes_cuts(raw)
    raw.cut(SIZE)
    assert raw.is_equal


def test_a_file_system_that_is_trimmed_costs_little(pool: Path, tracer: Tracer) -> None:
    with mounted_volume(pool, tracer) as (made, place):
        (place / "large").write_bytes(os.urandom(40 << 20))
        os.sync()
        (place / "large").unlink()
        os.sync()
        made.restart()
        subprocess.run(["fstrim", str(place)], check=True)
        found = made.cut()
        assert sum(one.end - one.start for one in found.ranges if isinstance(one, Zeros)) > 40 << 20
        assert sum(len(one.content) for one in found.ranges if isinstance(one, Data)) < 1 << 20
        assert made.is_equal
