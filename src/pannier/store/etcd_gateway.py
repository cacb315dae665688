"""Requests to etcd's JSON gateway: several endpoints, one deadline, and what is known of a lost request.

Each try ends in one of three ways: an answer, :class:`Refused` (etcd said no, for certain), or
:class:`NoAnswer`, which knows whether the request may nevertheless have been carried out.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import aiohttp
import msgspec

from pannier.core.errors import OutcomeUnknown, StoreUnavailable
from pannier.store.etcd_wire import ErrorBody, Header, RangeResponse, decode

T = TypeVar("T")

_PAUSE_SECONDS: Final = 0.1
"""Between two rounds over all endpoints; an election takes one to two seconds."""

_HEADERS: Final = {
    "Content-Type": "application/json",
    # A member without a leader then says so at once, and ends its watches, instead of hanging.
    "Grpc-Metadata-hasleader": "true",
}

_CERTAIN_CODES: Final = frozenset({3, 5, 6, 7, 9, 11, 12, 16})
"""gRPC codes that say no for good: invalid argument, not found, already exists, permission denied,
failed precondition, out of range, unimplemented, unauthenticated."""

_NOT_BEGUN: Final = (
    "etcdserver: no leader",
    "etcdserver: not capable",
    "etcdserver: too many requests",
    "etcdserver: rpc not supported for learner",
    "etcdserver: corrupt cluster",
)
"""Errors raised before a request enters the log: another member may be asked.

Not among them: "mvcc: database space exceeded", which etcd also answers to the one write that
crosses the quota and is applied; timeouts; and "leader changed".
"""


_CERTIFICATE_ALERTS: Final = ("certificate", "unknown ca", "access denied")


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """How long to wait for etcd, in seconds."""

    deadline_seconds: float = 5.0
    """For a whole call, all tries included."""

    try_seconds: float = 1.0
    """For a connection, and for one try of a request that may be repeated."""

    quiet_seconds: float = 3.0
    """When a watch has been silent for this long, its member is asked whether it still works."""


class Refused(Exception):
    """etcd refused the request; nothing was changed.

    Attributes:
        message: etcd's own words.
    """

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class NoAnswer(Exception):
    """A try gave no usable answer.

    Attributes:
        reason: for people.
        may_have_happened: whether the request may have been carried out all the same.
        hopeless: whether trying the same endpoint again at once is useless.
    """

    def __init__(
        self, reason: str, *, may_have_happened: bool = True, hopeless: bool = False
    ) -> None:
        super().__init__(reason)
        self.reason = reason
        self.may_have_happened = may_have_happened
        self.hopeless = hopeless


@dataclass(slots=True)
class _Progress:
    """How far a request came; aiohttp's tracing fills it in."""

    sent: bool = False


class Gateway:
    """The members of one etcd cluster. The first in order is the one that last worked.

    Args:
        endpoints: ``host:port`` of each member, preferred ones first.
        tls: with the client's certificate; None for plain HTTP.
        timing: how long to wait.
        namespace: the prefix of all keys; the key of that name is read to see that a member works.
    """

    def __init__(
        self,
        endpoints: Sequence[str],
        *,
        tls: ssl.SSLContext | None,
        timing: Timing,
        namespace: bytes,
    ) -> None:
        self.endpoints = tuple(endpoints)
        self.timing = timing
        self._order = list(endpoints)
        self._tls = tls
        self._namespace = namespace
        self._session: aiohttp.ClientSession | None = None

    @asynccontextmanager
    async def open(self) -> AsyncIterator[None]:
        """Connections live as long as the block."""
        if self._session is not None:
            raise RuntimeError("the store's session is already open")
        connector = aiohttp.TCPConnector(ssl=self._tls or True, limit=0)
        async with aiohttp.ClientSession(
            connector=connector, trace_configs=[_tracing()], headers=_HEADERS
        ) as session:
            self._session = session
            try:
                yield
            finally:
                self._session = None

    def in_order(self) -> tuple[str, ...]:
        """All endpoints, the one that last worked first."""
        return tuple(self._order)

    def avoid(self, endpoint: str) -> None:
        """Ask another endpoint first from now on."""
        if self._order[0] == endpoint:
            self._order.append(self._order.pop(0))

    async def repeat(self, attempt: Callable[[str, float], Awaitable[T]]) -> T:
        """Do something that may be done twice, on one endpoint after the other, until it succeeds.

        Args:
            attempt: gets the endpoint and the seconds it may take.

        Raises:
            StoreUnavailable: no endpoint answered before the deadline.
            Refused: from ``attempt``.
        """
        return await self._tries(attempt, repeatable=True)

    async def once(self, attempt: Callable[[str, float], Awaitable[T]]) -> T:
        """Do something that must not be done twice: tried again only where it cannot have happened.

        Raises:
            StoreUnavailable: it was not done.
            OutcomeUnknown: it may have been done.
            Refused: from ``attempt``.
        """
        return await self._tries(attempt, repeatable=False)

    async def _tries(self, attempt: Callable[[str, float], Awaitable[T]], *, repeatable: bool) -> T:
        clock = asyncio.get_running_loop().time
        end = clock() + self.timing.deadline_seconds
        problems: dict[str, str] = {}
        while True:
            hopeless = True
            for endpoint in self.in_order():
                left = end - clock()
                if left <= 0:
                    raise _unavailable(problems)
                limit = min(left, self.timing.try_seconds) if repeatable else left
                try:
                    return await attempt(endpoint, limit)
                except asyncio.CancelledError:
                    self.avoid(endpoint)  # the caller gave up on it: begin with another next time
                    raise
                except NoAnswer as failure:
                    self.avoid(endpoint)
                    problems[endpoint] = failure.reason
                    if failure.may_have_happened and not repeatable:
                        raise _unknown(endpoint, failure.reason) from failure
                    hopeless = hopeless and failure.hopeless
            if hopeless:
                raise _unavailable(problems)
            await asyncio.sleep(_PAUSE_SECONDS)

    async def post(
        self, endpoint: str, path: str, body: Mapping[str, Any], answer: type[T], *, seconds: float
    ) -> T:
        """One request to one endpoint.

        Raises:
            Refused: etcd said no; NoAnswer: no usable answer came.
        """
        timeout = aiohttp.ClientTimeout(
            total=seconds, connect=min(seconds, self.timing.try_seconds)
        )
        async with self._request(endpoint, path, body, timeout, seconds=seconds) as response:
            raw = await response.read()
            if response.status != 200:
                raise error_of(_decode(raw, ErrorBody))
            return _decode(raw, answer)

    @asynccontextmanager
    async def stream(
        self, endpoint: str, path: str, body: Mapping[str, Any]
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """A request with an answer that does not end; on a connection of its own.

        Raises:
            Refused, NoAnswer: on entering, and NoAnswer where the connection breaks in the block.
        """
        seconds = self.timing.try_seconds
        timeout = aiohttp.ClientTimeout(total=None, connect=seconds)
        async with self._request(endpoint, path, body, timeout, seconds=seconds) as response:
            if response.status != 200:
                raise error_of(_decode(await response.read(), ErrorBody))
            yield response

    async def header_at(self, endpoint: str) -> Header:
        """The store's revision and identity, if this endpoint is in touch with a majority: a linearizable read.

        Raises:
            Refused, NoAnswer: as :meth:`post`.
        """
        body = {"key": self._namespace, "limit": 1, "keys_only": True}
        seconds = self.timing.try_seconds
        answer = await self.post(endpoint, "kv/range", body, RangeResponse, seconds=seconds)
        return answer.header

    @asynccontextmanager
    async def _request(
        self,
        endpoint: str,
        path: str,
        body: Mapping[str, Any],
        timeout: aiohttp.ClientTimeout,
        *,
        seconds: float,
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """Send a request and wait for the head of its answer, for ``seconds`` at most."""
        if self._session is None:
            raise RuntimeError("the store is used outside its session() block")
        progress = _Progress()
        try:
            async with asyncio.timeout(seconds):
                response = await self._session.post(
                    f"{'https' if self._tls else 'http'}://{endpoint}/v3/{path}",
                    data=msgspec.json.encode(body),
                    timeout=timeout,
                    allow_redirects=False,
                    trace_request_ctx=progress,
                )
            async with response:
                yield response
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            raise _no_answer(error, sent=progress.sent) from error


def error_of(body: ErrorBody) -> Exception:
    """The Refused or NoAnswer that an error message from etcd means."""
    message = body.message or "an error without a message"
    if message.startswith(_NOT_BEGUN):
        return NoAnswer(message, may_have_happened=False)
    if (body.code or body.grpc_code) in _CERTAIN_CODES:
        return Refused(message)
    return NoAnswer(message)


def _tracing() -> aiohttp.TraceConfig:
    """Notes when a request is about to be written: before that, it cannot have been carried out."""

    async def on_headers(_session: aiohttp.ClientSession, context: Any, _what: object) -> None:
        context.trace_request_ctx.sent = True

    tracing = aiohttp.TraceConfig()
    tracing.on_request_headers_sent.append(on_headers)
    return tracing


def _no_answer(error: Exception, *, sent: bool) -> NoAnswer:
    if _certificate_refused(error):
        # In TLS 1.3 the server looks at our certificate only after we could already send; but it
        # reads nothing of what we sent.
        reason = "refuses this client's certificate"
        return NoAnswer(reason, may_have_happened=False, hopeless=True)
    if isinstance(error, TimeoutError):
        return NoAnswer("no answer in time", may_have_happened=sent)
    reason = str(error) or type(error).__name__
    connector = isinstance(error, aiohttp.ClientConnectorError)
    return NoAnswer(reason, may_have_happened=sent, hopeless=connector and not sent)


def _certificate_refused(error: BaseException | None) -> bool:
    """Whether the server sent a TLS alert about our certificate."""
    while error is not None:
        text = str(error).lower() if isinstance(error, OSError) else ""
        if "alert" in text and any(word in text for word in _CERTIFICATE_ALERTS):
            return True
        error = error.__cause__
    return False


def _decode(raw: bytes, type_: type[T]) -> T:
    try:
        return decode(raw, type_)
    except msgspec.MsgspecError as error:
        raise NoAnswer(f"not an answer of etcd's: {error}") from error


def _unavailable(problems: Mapping[str, str]) -> StoreUnavailable:
    each = ", ".join(f"{endpoint}: {reason}" for endpoint, reason in problems.items())
    return StoreUnavailable(
        f"no etcd endpoint gives an answer ({each})" if each else "etcd gives no answer in time",
        remedy="see `pannier doctor`; containers that run keep running",
    )


def _unknown(endpoint: str, reason: str) -> OutcomeUnknown:
    return OutcomeUnknown(
        f"etcd at {endpoint} did not confirm the change, which may have been made ({reason})",
        remedy="read the state again",
    )
