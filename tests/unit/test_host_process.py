"""The one door for programs."""

from __future__ import annotations

import asyncio
import os

import pytest

from pannier.core.errors import PoolMissing, ProgramFailed, StorageError
from pannier.host.process import Failing, has_reader, open_pipe, run, start
from pannier.storage import commands


async def test_output_and_status_come_back() -> None:
    finished = await run(["sh", "-c", "echo out; echo err >&2; exit 3"], timeout_s=10, check=False)
    assert (finished.status, finished.stdout, finished.stderr) == (3, "out\n", "err\n")


async def test_lines_are_told_when_they_come_and_only_the_others_are_kept() -> None:
    told: list[str] = []
    script = "echo one; read -r _; echo 2; printf last; head -c 1000000 /dev/zero >&2"
    reader, writer = os.pipe()

    def tell(line: str) -> bool:
        told.append(line)
        os.write(writer, b"go on\n")  # it writes no more before the first line was told
        return line == "one"

    try:
        finished = await run(
            ["sh", "-c", f"exec </proc/{os.getpid()}/fd/{reader}; {script}"],
            timeout_s=10,
            told=tell,
        )
    finally:
        os.close(reader)
        os.close(writer)
    assert told == ["one", "2"]
    assert (finished.stdout, len(finished.stderr)) == ("2\nlast", 1_000_000)


async def test_a_failure_names_the_command_and_its_last_line() -> None:
    with pytest.raises(ProgramFailed, match=r"`sh .*` failed: the last line"):
        await run(
            ["sh", "-c", "echo noise >&2; echo the last line >&2; echo >&2; exit 1"], timeout_s=10
        )


async def test_a_silent_failure_still_says_something() -> None:
    with pytest.raises(ProgramFailed, match="exit status 7, no message"):
        await run(["sh", "-c", "exit 7"], timeout_s=10)


async def test_a_missing_program_is_named() -> None:
    with pytest.raises(ProgramFailed, match="pannier-no-such-program is not installed"):
        await run(["pannier-no-such-program"], timeout_s=10)


async def test_who_runs_it_says_what_a_failure_means() -> None:
    failing = Failing(remedy="look there", slow="wait")
    with pytest.raises(ProgramFailed) as failed:
        await run(["false"], timeout_s=10, failing=failing)
    assert failed.value.remedy == "look there"
    with pytest.raises(ProgramFailed) as slow:
        await run(["sleep", "1000"], timeout_s=0.05, failing=failing)
    assert slow.value.remedy == "wait"


async def test_storage_commands_fail_with_storage_errors() -> None:
    with pytest.raises(StorageError):
        await commands.run(["false"], timeout_s=10)
    running = await commands.start(["sleep", "1000"])
    with pytest.raises(StorageError) as slow:
        await running.wait(timeout_s=0.05)
    assert "dmesg" in slow.value.remedy
    for go in (
        commands.run(["pannier-no-such-program"], timeout_s=10),
        commands.start(["pannier-no"]),
    ):
        with pytest.raises(PoolMissing, match="not installed") as missing:
            await go
        assert "btrfs-progs" in missing.value.remedy


async def test_what_takes_too_long_is_killed() -> None:
    with pytest.raises(ProgramFailed, match="did not end within"):
        await run(["sleep", "1000"], timeout_s=0.05)
    running = await start(["sleep", "1000"])
    with pytest.raises(ProgramFailed, match="did not end within"):
        await running.wait(timeout_s=0.05)


async def test_cancelling_kills_the_command() -> None:
    reader, writer = open_pipe()
    running = await start(["sh", "-c", "echo ready; exec sleep 1000"], stdout=writer)
    os.close(writer)
    await asyncio.to_thread(os.read, reader, 6)
    waiting = asyncio.create_task(running.wait(timeout_s=1000))
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert os.read(reader, 1) == b"", "nobody holds the other end any more"
    os.close(reader)


async def test_much_stderr_does_not_block_and_its_end_is_kept() -> None:
    running = await start(
        ["sh", "-c", "yes noise | head -c 2000000 >&2; echo >&2; echo end >&2; exit 1"]
    )
    finished = await running.wait(timeout_s=30)
    assert finished.last_words == "end"
    assert len(finished.stderr) < 100_000


def test_a_pipe_knows_whether_it_has_a_reader() -> None:
    reader, writer = open_pipe()
    assert has_reader(writer)
    os.close(reader)
    assert not has_reader(writer)
    os.close(writer)
