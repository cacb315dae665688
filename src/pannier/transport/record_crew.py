"""The threads that take in the records of one connection.

One thread reads. The one that has read a record takes it to the gate itself, and another one reads on: so no record
waits until a thread wakes up for it, and records that come close together share a flush of the journal.
"""

from __future__ import annotations

import asyncio
import threading
from dataclasses import dataclass

import structlog

from pannier.core.errors import Corrupt, InvalidInput, PannierError
from pannier.core.line import LinePlace, decode
from pannier.transport.base import RecordGate
from pannier.transport.channel import TransportTiming
from pannier.transport.record_frames import (
    RecordHead,
    RecordKind,
    failed_frame,
    split_record,
    taken_frame,
)
from pannier.transport.wire import RecordWire, WireStopped

_MOST_AT_GATE = 31
"""Records of a connection that are at the gate at the same time: so many volumes share a flush of the journal. Each
takes a thread; threads are started as they are needed."""
_MOST_AT_GATE_BYTES = 16 << 20
"""And their bytes, since they are in memory. What is beyond stays with the sender. One record may always be there."""
_FIRST_THREADS = 2
"""One reads while the other is at the gate."""

_log = structlog.get_logger("pannier.transport")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Arrived:
    """A record that was read.

    Attributes:
        number: of the request.
        length: of the frame's body, in bytes: what it counts for.
        before: is released when the volume's record before this one has left the gate; None if there is none.
        gone: to be released when this one has.
    """

    number: int
    length: int
    volume_name: str
    place: LinePlace
    encoded: memoryview
    before: threading.Lock | None
    gone: threading.Lock


class RecordCrew:
    """Takes in one connection's records. Only the event loop calls the public methods."""

    def __init__(
        self, wire: RecordWire, gate: RecordGate, *, peer: str, timing: TransportTiming
    ) -> None:
        """Prepare; :meth:`start` begins to read. The crew closes ``wire``."""
        self._wire = wire
        self._gate = gate
        self._peer = peer
        self._patience = timing.stall / 8
        self._loop = asyncio.get_running_loop()
        self._ended: asyncio.Future[None] = self._loop.create_future()
        self._reading = threading.Lock()
        self._state = threading.Condition()
        """Over what follows."""
        self._over = False
        self._dismissal: PannierError | None = None
        self._threads: list[threading.Thread] = []
        self._working = 0
        self._at_gate = 0
        self._at_gate_bytes = 0
        self._last: dict[str, threading.Lock] = {}

    def start(self) -> None:
        """Begin to read."""
        with self._state:
            for _ in range(_FIRST_THREADS):
                self._engage()

    def dismiss(self, error: PannierError) -> None:
        """Tell the sender that it may send nothing any more, and take nothing. It is to close the connection."""
        self._dismissal = error
        if not self._threads:
            self.start()
        if not self._ended.done():
            self._wire.post([failed_frame(0, error)])

    def stop(self) -> None:
        """End it now. A record that is at the gate stays there, and gets no answer."""
        if self._ended.done():
            return
        if not self._threads:
            self._close()
            return
        with self._state:
            self._over = True
            self._state.notify_all()
        self._wire.stop()

    async def ended_within(self, seconds: float) -> bool:
        """Whether the connection is closed and the threads have ended, now or within this time."""
        done, _ = await asyncio.wait([self._ended], timeout=seconds)
        return bool(done)

    # -- a thread ------------------------------------------------------------------------------

    def _engage(self) -> None:
        """Start a thread. Called with the state's lock."""
        thread = threading.Thread(target=self._work, name=f"records-from-{self._peer}", daemon=True)
        self._threads.append(thread)
        self._working += 1
        thread.start()

    def _work(self) -> None:
        try:
            while (arrived := self._read_on()) is not None:
                failure = self._take(arrived)
                self._answer(arrived.number, arrived.length, failure)
        finally:
            with self._state:
                self._working -= 1
                last = self._working == 0
            if last:
                self._loop.call_soon_threadsafe(self._close)

    def _close(self) -> None:
        for thread in self._threads:
            thread.join()
        self._wire.close(abort=True)
        self._ended.set_result(None)

    def _take(self, arrived: _Arrived) -> PannierError | None:
        """Take a record to the gate, after those of its volume that came before; why it was refused, if it was."""
        if arrived.before is not None:
            arrived.before.acquire()
        try:
            if self._dismissal is not None:
                return self._dismissal
            self._gate.take(
                arrived.place,
                arrived.encoded,
                volume_name=arrived.volume_name,
                peer=self._peer,
            )
        except PannierError as error:
            return error
        except Exception:
            _log.exception("transport.bug", peer=self._peer)
            return PannierError(
                "taking a record failed in a way that was not foreseen",
                remedy="see the log of pannierd there",
            )
        finally:
            with self._state:
                if self._last.get(arrived.place.volume) is arrived.gone:
                    del self._last[arrived.place.volume]
            arrived.gone.release()
        return None

    def _answer(self, number: int, length: int, failure: PannierError | None) -> None:
        self._wire.post([failed_frame(number, failure) if failure else taken_frame(number)])
        with self._state:
            self._at_gate -= 1
            self._at_gate_bytes -= length
            self._state.notify_all()

    # -- the thread that reads -----------------------------------------------------------------

    def _read_on(self) -> _Arrived | None:
        """The next record, once it is this thread's turn to read; None when nothing more will be read."""
        with self._reading:
            if self._over:
                return None
            try:
                return self._next()
            except WireStopped:
                pass
            except PannierError as error:
                _log.info("transport.records_ended", peer=self._peer, reason=str(error))
                self._wire.post([failed_frame(0, error)])
                self._wire.linger()
            except Exception:
                _log.exception("transport.bug", peer=self._peer)
            self._over = True
            return None

    def _next(self) -> _Arrived:
        while True:
            head = self._wire.next_head()
            if head.kind is not RecordKind.RECORD:
                raise InvalidInput(
                    f"{self._wire.peer} said {head.kind.name} where a record was due",
                    remedy="check that both nodes run the same version",
                )
            self._wait_for_room(head.length)
            body = memoryview(bytearray(head.length))
            self._wire.read(body)
            volume_name, encoded = split_record(body)
            try:
                place = decode(encoded).place
            except Corrupt as error:
                self._answer(head.number, head.length, error)
                continue
            return self._arrive(head, volume_name, place, encoded)

    def _wait_for_room(self, length: int) -> None:
        """Wait until few enough records are at the gate, and count one more."""
        with self._state:
            while self._at_gate and (
                self._at_gate >= _MOST_AT_GATE or self._at_gate_bytes + length > _MOST_AT_GATE_BYTES
            ):
                if self._over:
                    raise WireStopped
                self._wire.stay()
                self._state.wait(self._patience)
            self._at_gate += 1
            self._at_gate_bytes += length

    def _arrive(
        self, head: RecordHead, volume_name: str, place: LinePlace, encoded: memoryview
    ) -> _Arrived:
        """Put a record behind those of its volume, and see to it that another thread reads on."""
        gone = threading.Lock()
        gone.acquire()
        with self._state:
            before = self._last.get(place.volume)
            self._last[place.volume] = gone
            if self._at_gate == self._working:
                self._engage()
        return _Arrived(
            number=head.number,
            length=head.length,
            volume_name=volume_name,
            place=place,
            encoded=encoded,
            before=before,
            gone=gone,
        )
