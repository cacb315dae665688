"""The pipes between the transport and a driver."""

from __future__ import annotations

import fcntl
import os

PIPE_BYTES = 1024 * 1024
"""Size of a pipe: 16 times the kernel's default, so that neither side waits for each little piece."""


def prepare_pipe(pipe: int) -> None:
    """Make our end of a driver's pipe non-blocking (the other end stays as it is) and roomy."""
    os.set_blocking(pipe, False)
    try:
        fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
    except OSError:
        # An unprivileged user has a limit; a smaller pipe is only slower.
        return
