"""A process whose sync calls are notified, as a container runtime would make it; no engine needed.

``python barrier_kernel_caller.py SOCKET CONTAINER VOLUMES FLAGS`` installs the filter, hands its listener to
SOCKET as runc does, says ``ready``, and then runs each line of its input as Python: in a thread of
its own, whose name and outcome it prints. ``FLAGS`` are more flags of the filter, as a number.
"""

from __future__ import annotations

import array
import ctypes
import json
import mmap  # noqa: F401  (for the lines that are run)
import os
import platform
import signal
import socket
import struct
import sys
import threading

libc = ctypes.CDLL(None, use_errno=True)
ALLOW, NOTIFY = 0x7FFF0000, 0x7FC00000
LOAD, EQUAL, RETURN = 0x20, 0x15, 0x06
NEW_LISTENER = 8
SYSCALL, SYNC_CALLS = {
    "x86_64": (317, (74, 75, 162, 306, 26)),
    "aarch64": (277, (82, 83, 81, 267, 227)),
}[platform.machine()]


def instruction(code: int, skip: int, otherwise: int, value: int) -> bytes:
    """struct sock_filter."""
    return struct.pack("=HBBI", code, skip, otherwise, value)


def install(flags: int) -> int:
    """Install a filter that notifies of the sync calls; returns its listener."""
    count = len(SYNC_CALLS)
    program = instruction(LOAD, 0, 0, 0)
    for index, number in enumerate(SYNC_CALLS):
        program += instruction(EQUAL, count - index, 0, number)
    program += instruction(RETURN, 0, 0, ALLOW) + instruction(RETURN, 0, 0, NOTIFY)
    buffer = ctypes.create_string_buffer(program, len(program))
    head = struct.pack("@HP", len(program) // 8, ctypes.addressof(buffer))
    libc.prctl(38, 1, 0, 0, 0)  # PR_SET_NO_NEW_PRIVS
    fd = libc.syscall(SYSCALL, 1, NEW_LISTENER | flags, ctypes.c_char_p(head))
    if fd < 0:
        raise OSError(ctypes.get_errno(), "seccomp")
    return int(fd)


def hand_over(path: str, listener: int, container: str, volumes: list[str]) -> None:
    state = {
        "ociVersion": "1.0.2",
        "fds": ["seccompFd"],
        "pid": os.getpid(),
        "metadata": json.dumps(
            {"volumes": [each for each in volumes if each != "*"], "passing": "*" in volumes}
        ),
        "state": {"ociVersion": "1.0.2", "id": container, "status": "creating", "bundle": "/"},
    }
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [listener]))]
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(path)
        connection.sendmsg([json.dumps(state).encode()], rights)
    os.close(listener)


def say(line: str) -> None:
    os.write(1, line.encode() + b"\n")  # whole, whatever other threads say


def perform(line: str) -> None:
    tid = threading.get_native_id()
    say(f"begins {tid}")
    try:
        exec(line, dict(globals()))
        say(f"ended {tid} ok")
    except OSError as error:
        say(f"ended {tid} {error.errno}")


def main() -> None:
    path, container, volumes, flags = sys.argv[1:]
    for number in (signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, lambda *_: None)
    signal.siginterrupt(signal.SIGUSR1, False)  # calls are restarted; with the other they fail
    hand_over(path, install(int(flags)), container, volumes.split(","))
    say("ready")
    for line in sys.stdin:
        threading.Thread(target=perform, args=(line,), daemon=True).start()
    os._exit(0)


main()
