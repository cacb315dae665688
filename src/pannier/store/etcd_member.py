"""The etcd member on this machine, as systemd runs it, and the certificates that it refuses.

``pannier ca refused`` writes its list before each of its starts: so the list says with what the running one was
started, and which connections it can still have open. Nothing else writes it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import structlog

from pannier.core.errors import StorageError
from pannier.host.process import Failing, run
from pannier.pki.refusal import refused_by

REFUSED: Final = Path("/etc/etcd/pki/refused.crl")
"""The list of a member that `pannier deploy` has set up. Without it no member here has one."""

DROP_IN: Final = f"""\
[Unit]
After=network-online.target

[Service]
# As root. Without its list etcd lets nobody in.
ExecStartPre=+/usr/local/bin/pannier ca refused --out {REFUSED}
"""
"""What systemd is told of etcd's unit."""

_UNIT: Final = "etcd.service"
_RESTART_SECONDS: Final = 50.0
"""It ends, writes its list and waits until it is one of the others again: about 2 s."""

log = structlog.get_logger(__name__)


class SystemdMember:
    """See :class:`~pannier.node.removing.StoreMember`."""

    def lets_in(self, serials: frozenset[int]) -> bool:
        """See :class:`~pannier.node.removing.StoreMember`."""
        try:
            return not serials <= refused_by(REFUSED.read_bytes())
        except FileNotFoundError:
            return False
        except OSError as error:
            raise StorageError(
                f"{REFUSED} cannot be read: {error}", remedy="see the disk"
            ) from error

    async def start_again(self, serials: frozenset[int]) -> None:
        """See :class:`~pannier.node.removing.StoreMember`. One that does not run reads its list when it starts."""
        log.info("etcd.starts-again", why="to refuse removed nodes")
        failing = Failing(
            remedy=f"see `journalctl -u {_UNIT}`, then do the same again",
            slow="see whether most of etcd's members run, then do the same again",
            install="etcd is started by systemd",
        )
        await run(["systemctl", "try-restart", _UNIT], timeout_s=_RESTART_SECONDS, failing=failing)
        running = ["systemctl", "is-active", "--quiet", _UNIT]
        done = await run(running, timeout_s=_RESTART_SECONDS, check=False)
        if done.status == 0 and self.lets_in(serials):
            raise StorageError(
                f"etcd was started again, and {REFUSED} does not name all nodes that were removed",
                remedy=f"see `systemctl cat {_UNIT}`: before its start it must run `pannier ca refused --out {REFUSED}`",
            )
