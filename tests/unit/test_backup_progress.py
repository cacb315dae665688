"""How far work with backups is, and who hears of it."""

from __future__ import annotations

import asyncio
from contextlib import aclosing

import pytest

from pannier.backups.progress import Followed, Report, Status, percent_of, share_of, status_of
from pannier.cli.backup_progress import describe_work
from pannier.contract.backup_progress import BackupProgress
from pannier.contract.words import BackupPhase
from pannier.core.errors import BackupFailed

DONE = BackupProgress(phase=BackupPhase.DONE, node="n1")
READING = BackupProgress(phase=BackupPhase.READING, node="n1", done_bytes=225_809_439, percent=71)


@pytest.mark.parametrize(
    ("line", "status"),
    [
        (
            '{"message_type":"status","seconds_elapsed":1,"percent_done":0.7178,"total_files":3,'
            '"bytes_done":225809439,"current_files":["/data/big"]}',
            Status(225_809_439, 71),
        ),
        ('{"message_type":"status","percent_done":0,"total_files":1}', Status(0, 0)),
        ('{"message_type":"status","percent_done":1.2}', Status(0, 99)),  # it is still looking
        ('{"message_type":"status","percent_done":"much"}', None),
        ('{"message_type":"status"', None),
        ('{"message_type":"summary","files_new":2}', None),
        ("", None),
    ],
)
def test_what_restic_says_of_a_backup(line: str, status: Status | None) -> None:
    assert status_of(line) == status


@pytest.mark.parametrize(
    ("line", "percent"),
    [
        ("[0:05] 12.50%  1 / 8 packs", 12),
        ("[1:10:05] 100.00%  8 / 8 packs", 99),
        ("[0:00] 100.00%  4 / 4 snapshots", None),
        ("read all data", None),
    ],
)
def test_what_restic_says_of_a_check(line: str, percent: int | None) -> None:
    assert percent_of(line) == percent


def test_shares() -> None:
    assert [share_of(*each) for each in ((1, 2), (3, 2), (0, 0), (1, None))] == [50, 99, None, None]


def test_a_step_in_words() -> None:
    assert describe_work("data", READING) == "data: reading on n1, 71 %, 215.3M"
    snapshot = BackupProgress(phase=BackupPhase.SNAPSHOT, node="n1")
    assert describe_work("data", snapshot) == "data: a snapshot is made on n1"


async def test_the_last_line_is_what_came_of_it() -> None:
    seen = asyncio.Event()

    async def work(report: Report) -> BackupProgress:
        report(READING)
        await seen.wait()
        return DONE

    steps = []
    async for step in Followed(node="n1").follow(BackupPhase.SNAPSHOT, work):
        steps.append(step)
        seen.set()
    assert steps == [READING, DONE]


async def test_what_fails_at_once_is_no_stream() -> None:
    async def work(report: Report) -> BackupProgress:
        raise BackupFailed("no")

    with pytest.raises(BackupFailed):
        await anext(Followed(node="n1").follow(BackupPhase.SNAPSHOT, work))


async def test_work_goes_on_when_nobody_looks_any_more() -> None:
    let, done = asyncio.Event(), asyncio.Event()

    async def work(report: Report) -> BackupProgress:
        await let.wait()
        done.set()
        return DONE

    followed = Followed(node="n1")
    async with aclosing(followed.follow(BackupPhase.SNAPSHOT, work)) as steps:
        assert (await anext(steps)).phase is BackupPhase.SNAPSHOT
    let.set()
    await asyncio.wait_for(done.wait(), 5)
