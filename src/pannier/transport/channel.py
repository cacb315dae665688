"""One TLS connection, used by one thread at a time, that can always be stopped from another.

The socket never blocks. TLS works on memory (as in asyncio, but with half a megabyte at a time
instead of a record, which halves the system calls), so that reading, writing and waiting are
separate things: every wait also watches for :meth:`Channel.stop`, keeps the peer informed that
this end is alive, and gives up on a silent peer.
"""

from __future__ import annotations

import os
import select
import socket
import ssl
import struct
import time
from dataclasses import dataclass

from pannier.core.errors import PannierError, PeerUnavailable, StorageError
from pannier.pki.failures import explain_tls
from pannier.transport.frames import (
    FRAME_BYTES,
    HEADER,
    KEEPALIVE_FRAME,
    Failed,
    Kind,
    Message,
    check_header,
    decode,
    encode,
)

_LINGER_SECONDS = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class TransportTiming:
    """How long to wait for what. All in seconds.

    Attributes:
        connect: for the TCP connection and the TLS handshake together.
        stall: silence after which the peer counts as dead. A live peer says something at least four
            times in that time.
        quiet: how long a storage driver may give or take nothing. An incremental ``btrfs send`` is
            silent while it compares, and a receiving disk while it flushes. After this time the
            driver counts as hung.
        idle: how long a sender keeps a connection open for its next offer.
    """

    connect: float = 10.0
    stall: float = 30.0
    quiet: float = 300.0
    idle: float = 30.0


class ChannelStopped(Exception):
    """The channel was stopped from another thread. Never leaves the transport."""


class Channel:
    """Frames over TLS. Only :meth:`stop` may be called from another thread.

    All methods raise PeerUnavailable when the connection broke or the peer is silent, Denied when
    the peer refuses our certificate, InvalidInput when it sends something that is not of the protocol,
    and ChannelStopped. An error that ended the connection is kept in :attr:`failure`, and whatever is
    said afterwards raises it again.
    """

    def __init__(
        self,
        sock: socket.socket,
        *,
        tls: ssl.SSLObject,
        incoming: ssl.MemoryBIO,
        outgoing: ssl.MemoryBIO,
        peer: str,
        timing: TransportTiming,
        listens: bool,
    ) -> None:
        """Take over ``sock`` (non-blocking) after the handshake.

        Args:
            sock: the connection; :meth:`close` closes it.
            tls: TLS between the two buffers.
            incoming: what came from the network and is not decrypted yet.
            outgoing: what is encrypted and not sent yet.
            peer: who is there, as errors name it: ``node alder``.
            timing: how long to wait for what.
            listens: read what the peer says while sending. The sender does, since it may get a failure
                in the middle of its stream. The receiver does not: it would read the stream.
        """
        self.peer = peer
        self._sock = sock
        self._tls = tls
        self._incoming = incoming
        self._outgoing = outgoing
        self._timing = timing
        self._listens = listens
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._stopped = False
        self.failure: PannierError | None = None
        """What ended the connection, or what the peer reported in the middle of our stream."""
        self.parted = False
        """The peer closed the connection, or it broke. False if the peer is only silent."""
        self._cipher = memoryview(bytearray(FRAME_BYTES))
        self._frame_buffer = memoryview(bytearray(HEADER.size + FRAME_BYTES))
        self.body = self._frame_buffer[HEADER.size :]
        """What :meth:`say_data` sends from and :meth:`hear` puts DATA into."""
        self._header = memoryview(bytearray(HEADER.size))
        self._header_got = 0
        self._heard = self._said = time.monotonic()

    def stop(self) -> None:
        """Make the thread that uses the channel raise ChannelStopped, now and for ever.

        The peer notices at once, even while the driver on this side is still ending.
        """
        self._stopped = True
        os.eventfd_write(self._wake, 1)
        try:
            self._sock.shutdown(socket.SHUT_RDWR)
        except OSError:
            return  # the connection is gone already

    def close(self, *, abort: bool) -> None:
        """Close it; no thread may be using it. ``abort`` tells the peer that this end broke off."""
        if abort:
            # With a reset, what is still queued is dropped and the peer notices at once.
            self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._sock.close()
        os.close(self._wake)

    def say(self, message: Message) -> None:
        """Send a message."""
        self._write(memoryview(encode(message)))

    def say_data(self, size: int) -> None:
        """Send the first ``size`` bytes of :attr:`body`.

        Raises:
            PannierError: what the peer reported in the middle of the stream.
        """
        HEADER.pack_into(self._frame_buffer, 0, Kind.DATA, size)
        self._write(self._frame_buffer[: HEADER.size + size])
        self._check_reply()

    def keepalive(self) -> None:
        """Tell the peer that this end is alive, if it has not heard us lately. Never waits.

        If the socket is full, the peer has something to read already.
        """
        if time.monotonic() < self._keepalive_due:
            return
        poller = select.poll()
        poller.register(self._sock, select.POLLOUT)
        if poller.poll(0):
            self._write(memoryview(KEEPALIVE_FRAME))

    def hear(self) -> Message | int:
        """Wait for the next message, or for DATA: then the number of bytes put into :attr:`body`."""
        self.keepalive()
        while True:
            frame = self._frame(wait=True)
            if frame is not None:
                return frame

    def usable(self) -> bool:
        """Whether an idle connection can take another offer: only keepalives came, and the last one
        is recent. So nobody waits for a peer that vanished silently.
        """
        try:
            frame = self._frame(wait=False)
            self.keepalive()
        except (PannierError, ChannelStopped):
            return False
        return frame is None and time.monotonic() < self._heard + self._timing.stall / 2

    def unexpected(self, frame: Message | int) -> PannierError:
        """The error for a frame that was not due: the failure that it reports, or a protocol error."""
        if isinstance(frame, Failed):
            return frame.error(peer=self.peer)
        what = "data" if isinstance(frame, int) else type(frame).__name__
        return PeerUnavailable(
            f"{self.peer} said {what} where it was not due",
            remedy="check that both nodes run the same version",
        )

    def wait_pipe(self, pipe: int, *, events: int) -> None:
        """Wait until the driver gives (POLLIN) or takes (POLLOUT) something.

        Meanwhile the sender hears what the receiver reports, and the receiver notices that the
        sender is gone.

        Raises:
            StorageError: the driver did nothing for ``TransportTiming.quiet``.
        """
        limit = time.monotonic() + self._timing.quiet
        watched = select.POLLIN if self._listens else select.POLLRDHUP
        while True:
            self.keepalive()
            silent_at = self._heard + self._timing.stall if self._listens else limit
            sock, ready = self._poll(
                watched, until=min(limit, silent_at), pipe=pipe, pipe_events=events
            )
            if ready:
                return
            if sock and self._listens:
                self._check_reply()
            elif sock:
                raise self._closed()
            elif time.monotonic() >= limit:
                raise StorageError(
                    f"the storage driver did nothing for {self._timing.quiet:g} s",
                    remedy="look at the disk: dmesg, and processes in state D",
                )
            elif time.monotonic() >= silent_at:
                raise self._silent()

    def linger(self) -> None:
        """Let the peer read our last message before the connection closes.

        Closing with its bytes unread would reset the connection and could destroy that message.
        """
        until = time.monotonic() + _LINGER_SECONDS
        try:
            self._sock.shutdown(socket.SHUT_WR)
            while time.monotonic() < until:
                sock, _ = self._poll(select.POLLIN, until=until)
                if sock and not self._sock.recv_into(self._cipher):
                    return
        except (OSError, ChannelStopped):
            return

    # -- writing -------------------------------------------------------------------------------

    @property
    def _keepalive_due(self) -> float:
        return self._said + self._timing.stall / 4

    def _write(self, plain: memoryview) -> None:
        if self.failure is not None:
            raise self.failure
        try:
            while plain:
                plain = plain[self._tls.write(plain) :]
            left = memoryview(self._outgoing.read())
            while left:
                self._check_stopped()
                try:
                    left = left[self._sock.send(left) :]
                    self._said = time.monotonic()
                except BlockingIOError:
                    self._wait_writable()
        except ssl.SSLError as error:
            raise self._failed(explain_tls(error, peer=self.peer)) from error
        except OSError as error:
            raise self._broken(error) from error

    def _wait_writable(self) -> None:
        """Wait for room in the socket. A peer that takes nothing must at least send something."""
        began = time.monotonic()
        watched = select.POLLOUT | (select.POLLIN if self._listens else 0)
        while True:
            limit = max(self._heard, began) + self._timing.stall
            sock, _ = self._poll(watched, until=limit)
            if sock & ~select.POLLIN:
                return
            if sock:
                self._check_reply()
            elif time.monotonic() >= limit:
                raise self._silent()

    # -- reading -------------------------------------------------------------------------------

    def _check_reply(self) -> None:
        """Look, without waiting, whether the peer reports a failure in our stream, and raise it."""
        frame = self._frame(wait=False)
        if frame is not None:
            raise self._failed(self.unexpected(frame))

    def _frame(self, *, wait: bool) -> Message | int | None:
        """The next frame other than a keepalive; None if there is none yet and ``wait`` is False."""
        while True:
            while self._header_got < HEADER.size:
                got = self._read(self._header[self._header_got :], wait=wait)
                if got == 0:
                    return None
                self._header_got += got
            self._header_got = 0
            number, length = HEADER.unpack(self._header)
            match check_header(number, length):
                case Kind.KEEPALIVE:
                    continue
                case Kind.DATA if self._listens:
                    raise self.unexpected(length)
                case Kind.DATA:
                    self._read_all(self.body[:length])
                    return int(length)
                case Kind.MESSAGE:
                    body = bytearray(length)
                    self._read_all(memoryview(body))
                    return decode(memoryview(body))

    def _read_all(self, view: memoryview) -> None:
        while view:
            view = view[self._read(view, wait=True) :]

    def _read(self, view: memoryview, *, wait: bool) -> int:
        """Read decrypted bytes, as many as are there; 0 if there are none yet and ``wait`` is False."""
        got, size, read = 0, len(view), self._tls.read
        while True:
            try:
                while got < size:
                    # Reads one record. The type stubs do not know that it returns a number of bytes.
                    piece: int = read(size - got, view[got:])  # type: ignore[assignment]
                    if piece == 0:
                        break
                    got += piece
                if got == 0:
                    raise self._closed()
                return got
            except ssl.SSLWantReadError:
                if got or not self._fill(wait=wait):
                    return got
            except ssl.SSLError as error:
                raise self._failed(explain_tls(error, peer=self.peer)) from error

    def _fill(self, *, wait: bool) -> bool:
        """Take in what the network has; False if that is nothing and ``wait`` is False."""
        while True:
            self._check_stopped()
            try:
                got = self._sock.recv_into(self._cipher)
            except BlockingIOError:
                if not wait:
                    return False
                self._wait_readable()
                continue
            except OSError as error:
                raise self._broken(error) from error
            if got == 0:
                raise self._closed()
            self._incoming.write(self._cipher[:got])
            self._heard = time.monotonic()
            return True

    def _wait_readable(self) -> None:
        while True:
            limit = self._heard + self._timing.stall
            sock, _ = self._poll(select.POLLIN, until=limit)
            if sock:
                return
            if time.monotonic() >= limit:
                raise self._silent()
            self.keepalive()

    # -- waiting and failing -------------------------------------------------------------------

    def _poll(
        self, events: int, *, until: float, pipe: int = -1, pipe_events: int = 0
    ) -> tuple[int, int]:
        """Events of the socket and of the pipe; none when it is time for a keepalive or ``until``."""
        self._check_stopped()
        poller = select.poll()
        poller.register(self._wake, select.POLLIN)
        poller.register(self._sock, events)
        if pipe >= 0:
            poller.register(pipe, pipe_events)
        now = time.monotonic()
        due = min(until, max(self._keepalive_due, now + self._timing.stall / 16))
        ready = dict(poller.poll(max(0.0, due - now) * 1000))
        self._check_stopped()
        return ready.get(self._sock.fileno(), 0), ready.get(pipe, 0)

    def _check_stopped(self) -> None:
        if self._stopped:
            raise ChannelStopped

    def _failed(self, error: PannierError) -> PannierError:
        self.failure = self.failure or error
        return error

    def _broken(self, error: OSError) -> PannierError:
        self.parted = True
        return self._failed(
            PeerUnavailable(
                f"the connection to {self.peer} broke: {error.strerror or error}",
                remedy="try again; check the network if it repeats",
            )
        )

    def _closed(self) -> PannierError:
        self.parted = True
        return self._failed(
            PeerUnavailable(
                f"{self.peer} closed the connection in the middle of the transfer",
                remedy="see its log for the reason, and try again",
            )
        )

    def _silent(self) -> PannierError:
        return self._failed(
            PeerUnavailable(
                f"{self.peer} has been silent for {self._timing.stall:g} s",
                remedy="check that the node is up and the network between; then try again",
            )
        )
