"""Killing processes that were found by their numbers: one contract for the kernel's and for the simulation's.

The kernel's part runs in a process namespace of its own, where a number can be given again at once.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[1] / "simulation"))

from stepping import Table

from pannier.host.killing import kill

# Runs with CASE as its argument, as the first process of a namespace; prints what it has found.
PROGRAM = """
import os, signal, sys
from pathlib import Path
from pannier.host.killing import kill

def begin(number=None):
    if number is not None:
        Path("/proc/sys/kernel/ns_last_pid").write_text(str(number - 1))
    pid = os.fork()
    if pid == 0:
        signal.pause()
        os._exit(0)
    assert number in (None, pid), (number, pid)
    return pid

def end(pid):
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)

def runs(pid):
    return os.waitpid(pid, os.WNOHANG) == (0, 0)

def died(pid):
    return os.WTERMSIG(os.waitpid(pid, 0)[1]) == signal.SIGKILL

def reused(again):
    def look():
        end(pid)
        begin(pid)
        return [pid] if again else []
    pid = begin()
    assert kill([pid], found=look) == []
    assert runs(pid)

case = sys.argv[1]
if case == "reused":
    reused(again=False)
elif case == "reused by another user":
    reused(again=True)
elif case == "still":
    one, other = begin(), begin()
    assert kill([one, other], found=lambda: [one]) == [one]
    assert died(one) and runs(other)
elif case == "ended":
    pid = begin()
    end(pid)
    assert kill([pid], found=lambda: [pid]) == []
elif case == "nobody":
    assert kill([], found=lambda: sys.exit("it looked for nothing")) == []
print("done")
"""
CASES = ("still", "ended", "nobody", "reused", "reused by another user")


@pytest.mark.parametrize("case", CASES)
def test_who_has_the_number_of_a_found_process_is_not_killed_for_it(case: str) -> None:
    unshared = ("unshare", "--pid", "--fork", "--mount-proc", "--kill-child")
    found = subprocess.run(
        [*unshared, sys.executable, "-c", PROGRAM, case],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (found.returncode, found.stdout) == (0, "done\n"), found.stderr


def test_the_simulations_kills_the_same() -> None:
    table = Table()
    table.containers.update(one=Path("/a"), other=Path("/b"))
    pids = {user.container: user.pid for user in table.users_of([Path("/a"), Path("/b")])}
    assert table.kill(pids.values(), found=lambda: [pids["one"]]) == [pids["one"]]
    assert table.containers == {"other": Path("/b")}
    assert table.kill(list(pids.values()), found=lambda: [pids["one"]]) == [], "it has ended"
    assert table.kill([], found=lambda: [pids["other"]]) == []
    assert table.containers == {"other": Path("/b")}


def test_descriptors_are_closed() -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    child = subprocess.Popen(["sleep", "60"])
    try:
        with pytest.raises(RuntimeError):
            kill([child.pid], found=_fails)
        assert child.poll() is None
        assert kill([child.pid], found=lambda: [child.pid]) == [child.pid]
    finally:
        child.kill()
        child.wait()
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def _fails() -> list[int]:
    raise RuntimeError("it cannot look")
