"""The sender's end of one connection for records: what is under way on it, and the thread that hears the answers."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import structlog

from pannier.core.errors import InvalidInput, PannierError, PeerUnavailable
from pannier.transport.base import Parcel
from pannier.transport.record_frames import RecordKind, parse_failed, record_frame
from pannier.transport.wire import RecordWire, WireStopped

_MOST_UNANSWERED = 256
"""Records that are sent and not answered yet. A further one waits."""
_MOST_UNANSWERED_BYTES = 16 << 20
"""And their bytes, since they are kept in memory until they are sent. A single record may be longer."""

_log = structlog.get_logger("pannier.transport")


@dataclass(frozen=True, slots=True)
class _Unanswered:
    """A record under way. Its sender may have been cancelled; it counts until it is answered."""

    answer: asyncio.Future[None]
    size: int


class RecordLink:
    """One connection. Only the event loop calls the methods.

    Attributes:
        over: it takes no further records.
        useful: the receiver has answered a record.
        ended: done when nothing is left of it, with the reason; None if nobody needed it any more.
    """

    def __init__(
        self, name: str, connect: Callable[[], Awaitable[RecordWire]], *, idle: float
    ) -> None:
        """Begin to connect.

        Args:
            name: of the node, for debuggers.
            connect: opens the connection, or raises PannierError.
            idle: seconds without a record after which it ends.
        """
        self.over = False
        self.useful = False
        self._name = name
        self._connect = connect
        self._idle = idle
        self._loop = asyncio.get_running_loop()
        self._wire: RecordWire | None = None
        self._failure: PannierError | None = None
        self._unanswered: dict[int, _Unanswered] = {}
        self._bytes = 0
        self._count = 0
        self._used = self._loop.time()
        self._turn = asyncio.Lock()
        self._changed = asyncio.Event()
        self.ended = asyncio.create_task(self._live())

    async def send(self, parcel: Parcel, volume_name: str) -> None:
        """Send a record, after all that were given before, and wait for its answer."""
        size = parcel.size
        async with self._turn:
            wire = await self._room_for(size)
            self._count += 1
            answer: asyncio.Future[None] = self._loop.create_future()
            frame = record_frame(self._count, volume_name, parcel.pieces)
            self._unanswered[self._count] = _Unanswered(answer, size)
            self._bytes += size
            self._used = self._loop.time()
            wire.post(frame)
        await answer

    def stop(self) -> None:
        """End it, whatever it does; what is under way fails with PeerUnavailable."""
        self.over = True
        if self.ended.done():
            return
        if self._wire is None:
            self.ended.cancel()
        else:
            self._wire.stop()

    # -- in the event loop ---------------------------------------------------------------------

    async def _room_for(self, size: int) -> RecordWire:
        """The connection, once it is open and has room for a record of this size."""
        while True:
            if self._failure is not None:
                raise _again(self._failure)
            count, total = len(self._unanswered), self._bytes + size
            full = count >= _MOST_UNANSWERED or (count > 0 and total > _MOST_UNANSWERED_BYTES)
            if self._wire is not None and not full:
                return self._wire
            self._changed.clear()
            await self._changed.wait()

    async def _live(self) -> PannierError | None:
        """From the connection to its end; returns why it ended."""
        reason: PannierError | None = None
        try:
            wire = self._wire = await self._connect()
            try:
                reason = await self._carry(wire)
            finally:
                wire.close(abort=True)
        except PannierError as error:
            reason = error
        finally:
            self._finish(
                reason or PeerUnavailable("this node has closed its connection for records")
            )
        return reason

    async def _carry(self, wire: RecordWire) -> PannierError | None:
        """Let the thread hear answers until the connection breaks, is stopped, or was idle for long."""
        heard: asyncio.Future[PannierError | None] = self._loop.create_future()
        thread = threading.Thread(
            target=self._hear, args=(wire, heard), name=f"records-to-{self._name}", daemon=True
        )
        thread.start()
        self._changed.set()
        try:
            while not heard.done():
                spare = self._used + self._idle - self._loop.time()
                if not self._unanswered and spare <= 0:
                    self.stop()
                await asyncio.wait([heard], timeout=max(spare, self._idle / 4))
        finally:
            wire.stop()
            thread.join()
        return heard.result()

    def _finish(self, reason: PannierError) -> None:
        self.over = True
        self._failure = reason
        self._changed.set()
        for one in self._unanswered.values():
            if not one.answer.done():
                one.answer.set_exception(_again(reason))
        self._unanswered.clear()

    def _answered(self, number: int, failure: PannierError | None) -> None:
        one = self._unanswered.pop(number, None)
        if one is None:
            return  # an answer to nothing, or to a record that has failed already
        self.useful = True
        self._bytes -= one.size
        self._changed.set()
        if one.answer.done():
            return  # its sender was cancelled
        if failure is None:
            one.answer.set_result(None)
        else:
            one.answer.set_exception(failure)

    # -- in the thread -------------------------------------------------------------------------

    def _hear(self, wire: RecordWire, heard: asyncio.Future[PannierError | None]) -> None:
        reason: PannierError | None = None
        try:
            while True:
                number, failure = _next_answer(wire)
                self._loop.call_soon_threadsafe(self._answered, number, failure)
        except WireStopped:
            pass
        except PannierError as error:
            reason = error
        except Exception:
            _log.exception("transport.bug")
            reason = PeerUnavailable(
                f"hearing {wire.peer} failed in a way that was not foreseen",
                remedy="see the log of pannierd here",
            )
        self._loop.call_soon_threadsafe(heard.set_result, reason)


def _next_answer(wire: RecordWire) -> tuple[int, PannierError | None]:
    """The number of the record that the receiver answers next, and the failure it reports, if any.

    Raises:
        PannierError: the failure that ended the conversation.
    """
    head = wire.next_head()
    match head.kind:
        case RecordKind.TAKEN:
            return head.number, None
        case RecordKind.FAILED:
            body = bytearray(head.length)
            wire.read(memoryview(body))
            failure = parse_failed(body, peer=wire.peer)
            if head.number == 0:
                raise failure
            return head.number, failure
        case _:
            raise InvalidInput(
                f"{wire.peer} said {head.kind.name} where an answer was due",
                remedy="check that both nodes run the same version",
            )


def _again(error: PannierError) -> PannierError:
    """The same error for one more caller: an exception that several raise collects all their traces."""
    return type(error)(error.message, remedy=error.remedy)
