"""Commands for disks and file systems: :mod:`pannier.host.process`, with storage errors."""

from __future__ import annotations

from functools import partial

from pannier.core.errors import PoolMissing, StorageError
from pannier.host import process

_FAILING = process.Failing(
    error=StorageError,
    missing=PoolMissing,
    slow="see `dmesg` for errors of the disk",
    install="install btrfs-progs and util-linux, or use driver=directory",
)

run = partial(process.run, failing=_FAILING)
"""See :func:`pannier.host.process.run`; raises StorageError, and PoolMissing for a missing program."""
start = partial(process.start, failing=_FAILING)
"""See :func:`pannier.host.process.start`; raises as :data:`run`."""
