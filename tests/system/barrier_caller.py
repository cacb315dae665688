"""Makes sync calls in a container, and prints for each: what, seconds, and how it ended.

Each word is a call on a file of the container's: ``fsync``, or ``fsync:/two`` for one in that
directory. ``sleep`` sleeps for ever, ``timer`` sends itself 100 signals a second from then on, and
``threads:N`` makes N threads call fsync at once.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import signal
import socket
import sys
import threading
import time

libc = ctypes.CDLL(None, use_errno=True)
MS_ASYNC, MS_SYNC = 1, 4


def opened(directory: str, flags: int = 0) -> int:
    fd = os.open(f"{directory}/{socket.gethostname()}", os.O_RDWR | os.O_CREAT | flags, 0o666)
    os.pwrite(fd, os.urandom(4096), 0)
    return fd


def checked(result: int) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def msync(directory: str, flags: int) -> None:
    fd = opened(directory)
    memory = mmap.mmap(fd, 4096)
    memory[0] = 1
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    checked(libc.msync(ctypes.c_void_p(address), 4096, flags))


def i386_sync(_directory: str) -> None:
    """The call of a 32-bit program: push rbx; mov eax, 36; int 0x80; pop rbx; ret."""
    code = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    code.write(bytes.fromhex("53b824000000cd805bc3"))
    address = ctypes.addressof(ctypes.c_char.from_buffer(code))
    checked(ctypes.CFUNCTYPE(ctypes.c_int)(address)())


def overlay(directory: str) -> None:
    """A file system that is made here, out of a volume: what an engine in a container does."""
    for name in ("lower", "upper", "work", "merged"):
        os.makedirs(f"{directory}/engine/{name}", exist_ok=True)
    top = f"{directory}/engine"
    options = f"lowerdir={top}/lower,upperdir={top}/upper,workdir={top}/work"
    checked(libc.mount(b"overlay", f"{top}/merged".encode(), b"overlay", 0, options.encode()))
    os.fsync(opened(f"{top}/merged"))


def own_tmpfs(_directory: str) -> None:
    os.makedirs("/own", exist_ok=True)
    checked(libc.mount(b"tmpfs", b"/own", b"tmpfs", 0, b""))
    os.fsync(opened("/own"))


CALLS = {
    "fsync": lambda d: os.fsync(opened(d)),
    "fdatasync": lambda d: os.fdatasync(opened(d)),
    "sync": lambda _: os.sync(),
    "syncfs": lambda d: checked(libc.syncfs(opened(d))),
    "directory": lambda d: os.fsync(os.open(d, os.O_RDONLY)),
    "msync": lambda d: msync(d, MS_SYNC),
    "msync-async": lambda d: msync(d, MS_ASYNC),
    "pipe": lambda _: os.fsync(os.pipe()[0]),
    "closed": lambda _: os.fsync(99),
    "io_uring": lambda _: checked(libc.syscall(425, 1, 0)),
    "i386": i386_sync,
    "overlay": overlay,
    "own-tmpfs": own_tmpfs,
    "synchronous": lambda d: os.fsync(opened(d, os.O_DSYNC)),
    "openat2": lambda _: checked(libc.syscall(437, -1, None, None, 0)),
    "pwritev2": lambda _: checked(libc.syscall(328, -1, None, 0, 0, 0, 0)),
    "io_setup": lambda _: checked(libc.syscall(206, 0, ctypes.byref(ctypes.c_ulong()))),
}


def call(word: str) -> None:
    name, _, directory = word.partition(":")
    begin = time.monotonic()
    try:
        CALLS[name](directory or "/one")
        how = "ok"
    except OSError as error:
        how = errno.errorcode[error.errno or 0]
    line = f"{word} {time.monotonic() - begin:.4f} {how}\n"
    os.write(1, line.encode())  # whole, whatever other threads say


def main() -> None:
    for word in sys.argv[1:]:
        if word == "sleep":
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            while True:
                time.sleep(3600)
        elif word == "timer":
            signal.signal(signal.SIGALRM, lambda *_: None)
            signal.siginterrupt(signal.SIGALRM, False)
            signal.setitimer(signal.ITIMER_REAL, 0.01, 0.01)
        elif word.startswith("threads:"):
            threads = [threading.Thread(target=call, args=("fsync",)) for _ in range(int(word[8:]))]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        else:
            call(word)


main()
