"""Requests to a ``pannierd``, and what each kind of failure means for the caller."""

from __future__ import annotations

import asyncio
import os
import ssl
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import aiohttp
import msgspec

from pannier.api.caller import ACTOR_HEADER
from pannier.api.cut_off import CUT_OFF_SECONDS, bounded_socket
from pannier.api.ndjson import LineReader
from pannier.api.tls import ANY_NODE, WrongServer, check_nodes
from pannier.contract.operation import API_HEADER, API_VERSION
from pannier.contract.views import ErrorView
from pannier.core.errors import (
    DeadlineExceeded,
    Denied,
    OutcomeUnknown,
    PannierError,
    PeerUnavailable,
    from_code,
)
from pannier.core.node import API_PORT

CONNECT_SECONDS = 5.0
READ_SECONDS = 20.0
CHANGE_SECONDS = 60.0
"""Longer than the 50 s that the daemon takes at most for most of Docker's calls, so that it has the
time to answer why one failed."""
SILENCE_SECONDS = CUT_OFF_SECONDS
ANSWER_LIMIT_BYTES = 64 << 20
"""Far more than any answer has: the pieces of an image of 16 TiB take 26 MB, and 10,000 volumes 10 MB."""

Answer = TypeVar("Answer")
# A text that is not UTF-8 makes a ValueError, and one that is too deep a RecursionError.
_UNREADABLE = (msgspec.MsgspecError, ValueError, RecursionError)


@dataclass(frozen=True, slots=True)
class UnixEndpoint:
    """The daemon on this machine."""

    path: Path

    def __str__(self) -> str:
        return str(self.path)


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsEndpoint:
    """A daemon anywhere.

    Attributes:
        address: IP address or host name.
        context: has the cluster's CA and, except for joining, our certificate. It is changed to
            accept nodes only (:func:`~pannier.api.tls.check_nodes`): do not use it for etcd as well.
        node: whom the server's certificate must name; None accepts any node of the cluster.
    """

    address: str
    context: ssl.SSLContext
    port: int = API_PORT
    node: str | None = None

    def __str__(self) -> str:
        host = f"[{self.address}]" if ":" in self.address else self.address
        where = f"https://{host}:{self.port}"
        return f"{self.node} ({where})" if self.node else where


Endpoint = UnixEndpoint | TlsEndpoint


class _Lost(Exception):
    """The connection broke after the request may have been sent.

    aiohttp would send a GET or DELETE again on its own. A DELETE must not be: the first one may
    have been done, and the second one's "not found" would hide it.
    """


class ApiConnection:
    """An HTTP session with one daemon. Use it as an async context manager."""

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self._session: aiohttp.ClientSession | None = None
        self._server_name: str | None = None
        self._their_version = str(API_VERSION)
        match endpoint:
            case UnixEndpoint():
                self._base = "http://pannierd"
            case TlsEndpoint():
                host = f"[{endpoint.address}]" if ":" in endpoint.address else endpoint.address
                self._base = f"https://{host}:{endpoint.port}"
                check_nodes(endpoint.context)
                self._server_name = endpoint.node or ANY_NODE

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections; the object may be used again."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    async def ask(
        self,
        method: str,
        path: str,
        *,
        answer: type[Answer],
        body: Any = None,
        actor: str | None = None,
        timeout_seconds: float | None = None,
    ) -> Answer:
        """Send one request and return its answer, decoded as ``answer`` (NoneType: none expected).

        Raises:
            PannierError: what the server reported, as its own class.
            Denied: a certificate was not accepted, on either side, or the local socket is root's.
            PeerUnavailable: it could not be reached, or a reading request broke off: nothing happened.
            OutcomeUnknown: a changing request was sent and no answer came.
            DeadlineExceeded: a reading request took too long.
        """
        reading = method == "GET"
        limit = timeout_seconds or (READ_SECONDS if reading else CHANGE_SECONDS)
        timeout = aiohttp.ClientTimeout(total=limit, sock_connect=CONNECT_SECONDS)
        async with self._send(method, path, body=body, actor=actor, timeout=timeout) as response:
            content = await self._whole(response, reading=reading)
            if answer is type(None):
                return None
            try:
                return msgspec.json.decode(content, type=answer)
            except _UNREADABLE as error:
                raise self._nonsense(reading, error) from error

    async def stream(
        self,
        method: str,
        path: str,
        *,
        item: type[Answer],
        body: Any = None,
        actor: str | None = None,
    ) -> AsyncGenerator[Answer, None]:
        """Send one request and yield the values of its answer as they come.

        Raises:
            PannierError: as :meth:`ask`; also one that the server reports in mid-stream.
        """
        reading = method == "GET"
        # No limit for the whole: a stream may take any time. A live server sends blank lines.
        timeout = aiohttp.ClientTimeout(
            total=None, sock_connect=CONNECT_SECONDS, sock_read=SILENCE_SECONDS
        )
        lines = LineReader()
        async with self._send(method, path, body=body, actor=actor, timeout=timeout) as response:
            async for chunk in response.content.iter_any():
                for line in lines.feed(chunk):
                    yield self._item(line, item, reading=reading)

    def _item(self, line: bytes, item: type[Answer], *, reading: bool) -> Answer:
        try:
            return msgspec.json.decode(line, type=item)
        except _UNREADABLE as error:
            raise _reported(line) or self._nonsense(reading, error) from error

    async def _whole(self, response: aiohttp.ClientResponse, *, reading: bool) -> bytes:
        """All of an answer. The other node decides how long it is, and must not decide how much memory we have."""
        content = bytearray()
        async for chunk in response.content.iter_any():
            content += chunk
            if len(content) > ANSWER_LIMIT_BYTES:
                longer = ValueError(f"the answer has more than {ANSWER_LIMIT_BYTES} bytes")
                raise self._nonsense(reading, longer)
        return bytes(content)

    @asynccontextmanager
    async def _send(
        self,
        method: str,
        path: str,
        *,
        body: Any,
        actor: str | None,
        timeout: aiohttp.ClientTimeout,
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        headers = {
            "Accept": "application/json, application/x-ndjson",
            "Accept-Encoding": "identity",
            API_HEADER: str(API_VERSION),
        }
        if actor is not None:
            headers[ACTOR_HEADER] = actor
        if body is not None:
            headers["Content-Type"] = "application/json"
        try:
            async with self._open().request(
                method,
                self._base + path,
                data=None if body is None else msgspec.json.encode(body),
                headers=headers,
                timeout=timeout,
                server_hostname=self._server_name,
                allow_redirects=False,
            ) as response:
                self._their_version = response.headers.get(API_HEADER, "1")
                if response.status >= 300:
                    content = await self._whole(response, reading=method == "GET")
                    status = ValueError(f"HTTP status {response.status}")
                    raise _reported(content) or self._nonsense(method == "GET", status)
                yield response
        except (aiohttp.ClientError, TimeoutError, _Lost) as error:
            raise self._translate(error, reading=method == "GET") from error

    def _open(self) -> aiohttp.ClientSession:
        if self._session is None:
            connector: aiohttp.BaseConnector
            match self.endpoint:
                case UnixEndpoint(path):
                    connector = aiohttp.UnixConnector(str(path))
                case TlsEndpoint(context=context):
                    connector = aiohttp.TCPConnector(ssl=context, socket_factory=bounded_socket)
            self._session = aiohttp.ClientSession(
                connector=connector,
                middlewares=(_send_once,),
                trust_env=False,
                auto_decompress=False,  # no pannierd compresses, and what is compressed may be of any size
            )
        return self._session

    def _translate(self, error: Exception, *, reading: bool) -> PannierError:
        tls = _tls_error(error)
        if tls is not None:
            return self._insecure(tls)
        match error:
            case aiohttp.ConnectionTimeoutError() | aiohttp.ClientConnectorError():
                return self._unreachable(error)
            case _ if not reading:
                return self._unknown(error)
            case TimeoutError():
                return DeadlineExceeded(
                    f"{self.endpoint} did not answer in time",
                    remedy="try again; 'pannier doctor' shows what is slow or down",
                )
        return PeerUnavailable(
            f"the connection to {self.endpoint} broke off: {_cause(error)}",
            remedy="try again; nothing was changed",
        )

    def _insecure(self, error: ssl.SSLError) -> PannierError:
        if isinstance(error, WrongServer):
            return Denied(
                f"{self.endpoint} is not the one that is meant: {error}; nothing was sent to it",
                remedy="check the nodes' addresses with 'pannier node ls'",
            )
        from pannier.pki.failures import explain_tls

        return explain_tls(error, peer=str(self.endpoint))

    def _unreachable(self, error: Exception) -> PannierError:
        match self.endpoint:
            case UnixEndpoint(path):
                if isinstance(getattr(error, "os_error", None), PermissionError):
                    return Denied(
                        f"you may not use {path}, which is root's",
                        remedy="use sudo, or --host and --certificates with a user's certificate",
                    )
                return PeerUnavailable(
                    f"pannierd does not answer at {path}: {_cause(error)}",
                    remedy="see whether it runs: systemctl status pannierd",
                )
            case TlsEndpoint():
                return PeerUnavailable(
                    f"{self.endpoint} cannot be reached: {_cause(error)}",
                    remedy="check the address, that pannierd runs there, and the certificates",
                )

    def _unknown(self, error: Exception) -> PannierError:
        return OutcomeUnknown(
            f"{self.endpoint} was asked, and no answer came: {_cause(error)}",
            remedy="it may or may not have been done: look before you ask again",
        )

    def _nonsense(self, reading: bool, error: Exception) -> PannierError:
        if not reading:
            return self._unknown(error)
        told = ""
        if self._their_version != str(API_VERSION):
            told = (
                f" (it speaks version {self._their_version[:20]} of the API, this is {API_VERSION})"
            )
        return PeerUnavailable(
            f"{self.endpoint} does not answer as a pannierd does: {error}{told}",
            remedy="check the address, and that all nodes run the same version",
        )


async def _send_once(
    request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType
) -> aiohttp.ClientResponse:
    try:
        return await handler(request)
    except aiohttp.ClientConnectorError:
        raise
    except (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError) as error:
        raise _Lost(str(error)) from error


def _reported(content: bytes) -> PannierError | None:
    try:
        view = msgspec.json.decode(content, type=ErrorView)
    except _UNREADABLE:
        return None
    return from_code(view.code, view.message, remedy=view.remedy)


def _tls_error(error: BaseException | None) -> ssl.SSLError | None:
    """The failed handshake or the server's refusal of our certificate behind ``error``, if any."""
    while error is not None:
        # aiohttp's own errors are of ssl's classes too, but lack their fields: the original is inside.
        wrapped = (getattr(error, "certificate_error", None), getattr(error, "os_error", None))
        for candidate in (*wrapped, error):
            if isinstance(candidate, ssl.SSLError) and not isinstance(
                candidate, aiohttp.ClientError
            ):
                return candidate
        error = error.__cause__
    return None


def _cause(error: Exception) -> str:
    if isinstance(error, aiohttp.ClientConnectorError):
        inner = error.os_error
        # asyncio puts a text of its own in place of the system's.
        known = os.strerror(inner.errno) if inner.errno and inner.errno > 0 else inner.strerror
        return known or str(inner) or type(inner).__name__
    if isinstance(error, asyncio.TimeoutError):
        return "no answer in time"
    return str(error) or type(error).__name__
