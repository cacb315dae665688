"""One TLS connection that several threads write to, while one thread at a time reads.

A sync call waits for what goes over it. So whoever has something to say encrypts and sends it in its own thread, if
it is small and the socket takes it; waking another thread would cost as much as all the rest. What the socket does
not take is sent by the thread that reads, while it waits.

As in :mod:`~pannier.transport.channel`, TLS works on memory and the socket never blocks.
"""

from __future__ import annotations

import os
import select
import socket
import ssl
import struct
import threading
import time
from collections import deque
from collections.abc import Sequence

from pannier.core.errors import PannierError, PeerUnavailable
from pannier.core.line import Buffer
from pannier.pki.failures import explain_tls
from pannier.transport.channel import TransportTiming
from pannier.transport.handshake import Secured
from pannier.transport.record_frames import HEAD, QUIET_FRAME, RecordHead, RecordKind, parse_head

_AT_ONCE_BYTES = 64 * 1024
"""A longer frame is encrypted by the thread that reads: the event loop is not kept from its work."""
_ENCRYPTED_BYTES = 256 * 1024
"""So much is encrypted before it is sent: larger pieces leave the CPU's cache, and answers wait longer."""
_RECEIVED_BYTES = 256 * 1024
_LINGER_SECONDS = 5.0


class WireStopped(Exception):
    """The connection was stopped by this end. Never leaves the transport."""


class RecordWire:
    """Frames of records over TLS.

    Any thread may call :meth:`post`, :meth:`stay` and :meth:`stop`. Reading raises PeerUnavailable when the
    connection broke or the peer is silent, Denied when it refuses our certificate, InvalidInput when it sends what
    is no frame, and WireStopped. An error that ended the connection is raised again by whatever reads afterwards.
    """

    def __init__(
        self, secured: Secured, *, peer: str, timing: TransportTiming, listens: bool
    ) -> None:
        """Take over a connection after its handshake; :meth:`close` closes it.

        Args:
            secured: the connection.
            peer: who is there, as errors name it: ``node alder``.
            timing: how long to wait for what.
            listens: read while the socket takes nothing more. The sender does. The receiver does not: a sender
                that hears no answers must not make it keep ever more of them.
        """
        self.peer = peer
        self._sock = secured.sock
        self._tls = secured.tls
        self._incoming = secured.incoming
        self._outgoing = secured.outgoing
        self._timing = timing
        self._listens = listens
        self._lock = threading.Lock()
        """Over TLS, both its buffers and what is not sent yet."""
        self._outbox: deque[Buffer] = deque()
        self._unsent = memoryview(b"")
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._stopped = False
        self._failure: PannierError | None = None
        self._received = memoryview(bytearray(_RECEIVED_BYTES))
        self._head = memoryview(bytearray(HEAD.size))
        self._heard = self._said = time.monotonic()

    # -- from any thread -----------------------------------------------------------------------

    def post(self, pieces: Sequence[Buffer]) -> None:
        """Say one frame. Never waits, and says nothing of failures: the thread that reads learns of them.

        Args:
            pieces: they may not change until the peer has answered.
        """
        others_wait = bool(self._outbox)
        self._outbox.extend(pieces)  # in one step: frames of several threads do not mix
        at_once = not others_wait and sum(map(len, pieces)) <= _AT_ONCE_BYTES
        if at_once and self._lock.acquire(blocking=False):
            try:
                sent = self._pump()
            finally:
                self._lock.release()
            if sent:
                return
        self._rouse()

    def stay(self) -> None:
        """Tell the peer that this end is alive, if it has not heard us lately."""
        if time.monotonic() >= self._said + self._timing.stall / 4 and not self._outbox:
            self.post([QUIET_FRAME])

    def stop(self) -> None:
        """Make the thread that reads raise WireStopped, now and for ever. The peer notices at once."""
        self._stopped = True
        self._rouse()
        try:
            self._sock.shutdown(socket.SHUT_RDWR)
        except OSError:
            return  # the connection is gone already

    def close(self, *, abort: bool) -> None:
        """Close it; nobody may be using it. ``abort`` drops what is queued, and resets the connection."""
        if abort:
            self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._sock.close()
        os.close(self._wake)

    # -- from the thread that reads ------------------------------------------------------------

    def next_head(self) -> RecordHead:
        """The head of the next frame that is not a keepalive."""
        while True:
            self.read(self._head)
            head = parse_head(self._head)
            if head.kind is not RecordKind.KEEPALIVE:
                return head

    def read(self, view: memoryview) -> None:
        """Fill ``view``. Meanwhile what waits to be sent is sent, and the peer hears from this end."""
        while view:
            got = self._decrypt(view)
            view = view[got:]
            if not got:
                self._fill()

    def linger(self) -> None:
        """Say what waits, and let the peer read it before the connection closes.

        Closing with its bytes unread would reset the connection and could destroy that message.
        """
        until = time.monotonic() + _LINGER_SECONDS
        try:
            while not self._sent_all():
                if time.monotonic() >= until:
                    return
                self._poll(select.POLLOUT, until=until)
            self._sock.shutdown(socket.SHUT_WR)
            while time.monotonic() < until:
                if self._poll(select.POLLIN, until=until) and not self._sock.recv_into(
                    self._received
                ):
                    return
        except (OSError, PannierError, WireStopped):
            return

    # -- writing -------------------------------------------------------------------------------

    def _pump(self) -> bool:
        """Send some of what waits, if the socket takes it; whether nothing is left. Called with the lock."""
        if self._stopped or self._failure is not None:
            return False
        try:
            if self._encrypt():
                self._unsent = self._unsent[self._sock.send(self._unsent) :]
                self._said = time.monotonic()
        except BlockingIOError:
            return False
        except OSError as error:  # which TLS's errors are, too
            self._failure = self._explain(error)
            return False
        return not self._unsent and not self._outbox

    def _encrypt(self) -> bool:
        """Have something encrypted to send; False if there is nothing."""
        if self._unsent:
            return True
        while self._outbox and self._outgoing.pending < _ENCRYPTED_BYTES:
            piece = memoryview(self._outbox.popleft())
            part, rest = piece[:_ENCRYPTED_BYTES], piece[_ENCRYPTED_BYTES:]
            if rest:
                self._outbox.appendleft(rest)
            while part:
                part = part[self._tls.write(part) :]
        self._unsent = memoryview(self._outgoing.read())
        return bool(self._unsent)

    def _sent_all(self) -> bool:
        with self._lock:
            self._check()
            return self._pump()

    def _rouse(self) -> None:
        """Make the thread that reads look at what there is to send."""
        os.eventfd_write(self._wake, 1)

    # -- reading and waiting -------------------------------------------------------------------

    def _decrypt(self, view: memoryview) -> int:
        """Decrypt what is there into ``view``; the number of bytes, 0 if nothing is there."""
        got, size = 0, len(view)
        with self._lock:
            self._check()
            try:
                while got < size:
                    # Reads one packet. The type stubs do not know that it returns a number of bytes.
                    piece: int = self._tls.read(size - got, view[got:])  # type: ignore[assignment]
                    if piece == 0:
                        raise self._closed()
                    got += piece
            except ssl.SSLWantReadError:
                pass
            except ssl.SSLError as error:
                self._failure = self._explain(error)
                raise self._failure from error
        return got

    def _fill(self) -> None:
        """Wait for bytes from the network and take them in."""
        self._wait()
        try:
            got = self._sock.recv_into(self._received)
        except BlockingIOError:
            return
        except OSError as error:
            raise self._fail(self._explain(error)) from error
        if got == 0:
            raise self._fail(self._closed())
        with self._lock:
            self._incoming.write(self._received[:got])
        self._heard = time.monotonic()

    def _wait(self) -> None:
        """Wait until there is something to read, and send what waits meanwhile."""
        began = time.monotonic()
        while True:
            self.stay()  # also while bytes come without a pause
            sent = self._sent_all()
            limit = max(self._heard, began) + self._timing.stall
            events = select.POLLOUT * (not sent) | select.POLLIN * (sent or self._listens)
            ready = self._poll(events, until=limit)
            if ready & ~select.POLLOUT:
                return
            if not ready and time.monotonic() >= limit:
                raise self._fail(self._silent())

    def _poll(self, events: int, *, until: float) -> int:
        """Events of the socket; none when somebody roused us, it is time for a keepalive, or ``until``."""
        poller = select.poll()
        poller.register(self._wake, select.POLLIN)
        poller.register(self._sock, events)
        now = time.monotonic()
        due = max(self._said + self._timing.stall / 4, now + self._timing.stall / 16)
        ready = dict(poller.poll(max(0.0, min(until, due) - now) * 1000))
        if self._wake in ready:
            os.eventfd_read(self._wake)
        return ready.get(self._sock.fileno(), 0)

    # -- failing -------------------------------------------------------------------------------

    def _check(self) -> None:
        if self._stopped:
            raise WireStopped
        if self._failure is not None:
            raise self._failure

    def _fail(self, error: PannierError) -> PannierError:
        """What reading raises from now on. A stop of this end explains everything else."""
        self._check()
        self._failure = error
        return error

    def _explain(self, error: OSError) -> PannierError:
        if isinstance(error, ssl.SSLError):
            return explain_tls(error, peer=self.peer)
        return PeerUnavailable(
            f"the connection to {self.peer} broke: {error.strerror or error}",
            remedy="try again; check the network if it repeats",
        )

    def _closed(self) -> PannierError:
        return PeerUnavailable(
            f"{self.peer} closed the connection for records",
            remedy="see its log for the reason, and try again",
        )

    def _silent(self) -> PannierError:
        return PeerUnavailable(
            f"{self.peer} has been silent for {self._timing.stall:g} s",
            remedy="check that the node is up and the network between; then try again",
        )
