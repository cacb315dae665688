"""A watch on etcd that survives failed members: it resumes or begins again, and notices silence."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing
from typing import Any, Final

import aiohttp
import msgspec
import structlog

from pannier.store import keys
from pannier.store.base import Deleted, Entry, Put, WatchEvent
from pannier.store.etcd_gateway import Gateway, NoAnswer, Refused, error_of
from pannier.store.etcd_wire import Event, Header, RangeResponse, WatchMessage, WatchResult, decode
from pannier.store.snapshot import as_events

_log = structlog.get_logger(__name__)

_PAUSE_SECONDS: Final = (0.1, 2.0)
"""Between rounds over all endpoints: the first, and the longest; doubled each time."""

_KEEPALIVE: Final = ((socket.TCP_KEEPIDLE, 5), (socket.TCP_KEEPINTVL, 2), (socket.TCP_KEEPCNT, 3))
"""Seconds to the first probe, seconds between probes, and their number. A member that was rebooted
answers new connections but never closes the old one; its kernel resets that at the first probe."""


class _BeginAgain(Exception):
    """etcd no longer has all changes since the last one seen: list everything."""


class EtcdWatch:
    """One watch: all keys under ``prefix`` within ``namespace``, both as bytes."""

    def __init__(self, gateway: Gateway, *, namespace: bytes, prefix: bytes) -> None:
        self._gateway = gateway
        self._strip = len(namespace)
        self._range = range_of(namespace + prefix)
        self._revision = 0
        """All changes up to this one were yielded; 0 before the first list."""
        self._cluster = ""
        """Of which etcd cluster that is."""

    async def events(self) -> AsyncGenerator[WatchEvent, None]:
        """The watch's events, for ever."""
        pause, longest = _PAUSE_SECONDS
        while True:
            for endpoint in self._gateway.in_order():
                try:
                    async with aclosing(self._events_from(endpoint)) as events:
                        async for event in events:
                            pause = _PAUSE_SECONDS[0]
                            yield event
                except _BeginAgain:
                    self._revision = 0
                except (NoAnswer, Refused) as failure:
                    self._gateway.avoid(endpoint)
                    _log.warning(
                        "store watch moves on",
                        endpoint=endpoint,
                        reason=str(failure),
                        revision=self._revision,
                    )
            await asyncio.sleep(pause)
            pause = min(pause * 2, longest)

    async def _events_from(self, endpoint: str) -> AsyncGenerator[WatchEvent, None]:
        """Begin or resume at one endpoint, until it fails."""
        await self._check_history(endpoint)
        if not self._revision:
            present, header = await self._list(endpoint)
            for event in as_events(present):
                yield event
            # Only now: a consumer that stops half-way must get the whole list again.
            self._revision, self._cluster = header.revision, header.cluster_id
        async with aclosing(self._batches(endpoint)) as batches:
            async for batch in batches:
                for change in self._changes(batch):
                    yield change
                self._revision = batch[-1].kv.mod_revision

    async def _check_history(self, endpoint: str) -> None:
        """See that the member works, and that etcd was not restored from a backup: its revision may be higher by now."""
        header = await self._gateway.header_at(endpoint)
        if self._revision and (
            header.revision < self._revision or header.cluster_id != self._cluster
        ):
            raise _BeginAgain

    async def _list(self, endpoint: str) -> tuple[tuple[Entry, ...], Header]:
        seconds = self._gateway.timing.deadline_seconds
        answer = await self._gateway.post(
            endpoint, "kv/range", self._range, RangeResponse, seconds=seconds
        )
        return tuple(
            Entry(self._name(kv.key), kv.value, kv.mod_revision) for kv in answer.kvs
        ), answer.header

    async def _batches(self, endpoint: str) -> AsyncGenerator[list[Event], None]:
        request = self._range | {"start_revision": self._revision + 1}
        body = {"create_request": request}
        async with self._gateway.stream(endpoint, "watch", body) as response:
            _keep_alive(response)
            lines = _Lines()
            while True:
                try:
                    async with asyncio.timeout(self._gateway.timing.quiet_seconds):
                        chunk = await response.content.readany()
                except TimeoutError:
                    await self._check_history(endpoint)
                    continue
                if not chunk:
                    raise NoAnswer("the watch was ended")
                for line in lines.add(chunk):
                    if events := _result(line).events:
                        yield events

    def _changes(self, batch: list[Event]) -> Iterator[WatchEvent]:
        for event in batch:
            name = self._name(event.kv.key)
            if event.type == "DELETE":
                yield Deleted(name)
            else:
                yield Put(Entry(name, event.kv.value, event.kv.mod_revision))

    def _name(self, key: bytes) -> str:
        return keys.decode(key[self._strip :])


class _Lines:
    """Puts lines together. aiohttp's own reader refuses lines over 128 KiB."""

    def __init__(self) -> None:
        self._rest: list[bytes] = []

    def add(self, chunk: bytes) -> list[bytes]:
        """The lines that this chunk completes, without empty ones."""
        *complete, rest = chunk.split(b"\n")
        if complete:
            complete[0] = b"".join([*self._rest, complete[0]])
            self._rest = []
        self._rest.append(rest)
        return [line for line in complete if line.strip()]


def range_of(prefix: bytes) -> dict[str, Any]:
    """The part of a request that means "all keys with this prefix"."""
    # etcd's own sign for "to the very end" is a zero byte.
    return {"key": prefix, "range_end": keys.prefix_end(prefix) or b"\0"}


def _result(line: bytes) -> WatchResult:
    try:
        message = decode(line, WatchMessage)
    except msgspec.MsgspecError as error:
        raise NoAnswer(f"not an answer of etcd's: {error}") from error
    if message.error is not None:
        raise error_of(message.error)
    result = message.result or WatchResult()
    if result.compact_revision:
        raise _BeginAgain
    if result.canceled:
        raise NoAnswer(f"the watch was ended: {result.cancel_reason}")
    return result


def _keep_alive(response: aiohttp.ClientResponse) -> None:
    transport = response.connection.transport if response.connection else None
    wire = transport.get_extra_info("socket") if transport else None
    if wire is None:
        return
    wire.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in _KEEPALIVE:
        wire.setsockopt(socket.IPPROTO_TCP, option, value)
