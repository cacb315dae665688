"""What a process wants of the processors, by real processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from pannier.host.processors import ProcessorDemand


@contextmanager
def process(code: str) -> Iterator[subprocess.Popen[str]]:
    program = [sys.executable, "-c", f"import time; print(flush=True); {code}"]
    with subprocess.Popen(program, stdout=subprocess.PIPE, text=True) as started:
        try:
            assert started.stdout is not None
            started.stdout.readline()
            yield started
        finally:
            started.kill()


def share(demand: ProcessorDemand) -> float:
    demand.share()
    time.sleep(0.3)
    return demand.share()


def test_who_computes_wants_a_processor_until_it_is_stopped() -> None:
    with process("exec('while True: pass')") as busy:
        demand = ProcessorDemand(busy.pid)
        assert share(demand) > 0.5
        os.kill(busy.pid, signal.SIGSTOP)
        assert share(demand) < 0.5


@pytest.mark.parametrize("others", [0, 8])
def test_who_waits_wants_none_however_many_others_do(others: int) -> None:
    spin = [sys.executable, "-c", "while True: pass"]
    programs = [subprocess.Popen(spin) for _ in range(others)]
    try:
        with process("time.sleep(60)") as waits:
            assert share(ProcessorDemand(waits.pid)) < 0.5
    finally:
        for program in programs:
            program.kill()
            program.wait()


def test_who_gets_a_processor_seldom_wants_it_all_the_time() -> None:
    one = {min(os.sched_getaffinity(0))}
    spin = [sys.executable, "-c", "while True: pass"]
    programs = [subprocess.Popen(spin) for _ in range(8)]
    try:
        for program in programs:
            os.sched_setaffinity(program.pid, one)
        with process("exec('while True: pass')") as starved:
            os.sched_setaffinity(starved.pid, one)
            assert share(ProcessorDemand(starved.pid)) > 0.5
    finally:
        for program in programs:
            program.kill()
            program.wait()


def test_who_has_ended_wants_nothing() -> None:
    with process("time.sleep(60)") as ends:
        demand = ProcessorDemand(ends.pid)
    assert share(demand) == 0
