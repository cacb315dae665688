"""The etcd member on this machine, as systemd runs it, and the certificates that it refuses.

``pannier ca refused`` writes its list before each of its starts: so the list says with what the running one was
started, and which connections it can still have open. Nothing else writes it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final

import structlog
from cryptography import x509

from pannier.core.errors import NotFound, PannierError, StorageError
from pannier.host.process import Failing, run
from pannier.pki import files
from pannier.pki.identity import is_issued_by
from pannier.pki.key_files import KeyFiles
from pannier.pki.own import OwnCertificate
from pannier.pki.refusal import refused_by

PKI: Final = Path("/etc/etcd/pki")
"""Where its certificate is renewed. etcd reads it at each handshake."""
REFUSED: Final = PKI / "refused.crl"
"""The list of a member that `pannier deploy` has set up. Without it no member here has one."""

DROP_IN: Final = f"""\
[Unit]
After=network-online.target

[Service]
# As root. Without its list etcd lets nobody in.
ExecStartPre=+/usr/local/bin/pannier ca refused --out {REFUSED}
# A removal waits for its end. It bears to be killed.
TimeoutStopSec=15
"""
"""What systemd is told of etcd's unit."""

_UNIT: Final = "etcd.service"
_COMMAND_SECONDS: Final = 20.0
"""For systemd's answer; it takes milliseconds."""
_REFUSES_SECONDS: Final = 30.0
"""How long it may take to end (15 s, see above) and to write its list (7 s at most): about 2 s in all."""
_SERVES_SECONDS: Final = 15.0
"""How long it is then waited for until it serves: others may be down, and then it cannot. Both together, with the wait for
other members before them, are less than whoever removes a node waits for this one's answer (60 s)."""
_LOOK_SECONDS: Final = 0.2

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
        if await _state() in ("inactive", "failed"):
            return
        log.info("etcd.starts-again", why="to refuse removed nodes")
        failing = Failing(
            remedy=f"see `journalctl -u {_UNIT}`, then do the same again",
            slow="see whether systemd answers, then do the same again",
            install="etcd is started by systemd",
        )
        restart = ["systemctl", "--no-block", "try-restart", _UNIT]
        await run(restart, timeout_s=_COMMAND_SECONDS, failing=failing)
        # The list is written when the one that ran before has ended.
        if not await _within(_REFUSES_SECONDS, lambda: not self.lets_in(serials)):
            raise StorageError(
                f"etcd was to be started again, and {REFUSED} does not name all nodes that were removed",
                remedy=f"see `systemctl cat {_UNIT}`: before its start it must run `pannier ca refused --out {REFUSED}`",
            )
        with suppress(TimeoutError):
            async with asyncio.timeout(_SERVES_SECONDS):
                while await _state() == "activating":
                    await asyncio.sleep(_LOOK_SECONDS)
                return
        log.warning("etcd.serves-late", why="most of its members must run")


def member_certificate(*, store_ca: Path, directory: Path = PKI) -> OwnCertificate | None:
    """That of the member here; None where there is none that can be read, or another authority than ``store_ca`` issued it.

    What such a member shows is still looked at from outside: see :mod:`pannier.store.shown`.
    """
    at = KeyFiles(directory, "tls")
    try:
        found = x509.load_pem_x509_certificate(files.read(at.certificate_path).encode())
        authority = x509.load_pem_x509_certificate(files.read(store_ca).encode())
        return OwnCertificate(at) if is_issued_by(found, authority) else None
    except NotFound:
        return None
    except (PannierError, OSError, ValueError) as error:
        log.warning("etcd.certificate-not-read", error=str(error))
        return None


async def _state() -> str:
    """What systemd says: ``active`` once it serves."""
    command = ["systemctl", "is-active", _UNIT]
    return (await run(command, timeout_s=_COMMAND_SECONDS, check=False)).stdout.strip()


async def _within(seconds: float, is_so: Callable[[], bool]) -> bool:
    """Wait until something is so; False if that takes longer."""
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            while not is_so():
                await asyncio.sleep(_LOOK_SECONDS)
            return True
    return False
