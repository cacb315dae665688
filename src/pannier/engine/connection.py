"""The Docker engine's API on its unix socket: one call at a time, each with a time limit.

Paths carry no API version, so the engine uses its newest one. What is used here has the same form in
all versions from Docker 20.10 on.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import TypeVar

import aiohttp
import msgspec

from pannier.core.errors import EngineUnavailable, OutcomeUnknown

T = TypeVar("T")


class EngineConnection:
    """Calls to one engine. To be used in one event loop, then closed; a later call opens it anew."""

    def __init__(self, socket: Path) -> None:
        self._socket = socket
        self._session: aiohttp.ClientSession | None = None

    def open(self) -> aiohttp.ClientSession:
        """The session itself, for answers that do not end."""
        if self._session is None or self._session.closed:
            self._session = aiohttp.ClientSession(
                base_url="http://docker",
                connector=aiohttp.UnixConnector(path=str(self._socket)),
            )
        return self._session

    async def events(
        self, kind: str, *, retry_seconds: float, timeout_seconds: float
    ) -> AsyncIterator[bytes]:
        """What the engine says of things of one kind, for ever; raises nothing.

        Yields nothing (``b""``) each time the engine has come up, then each piece of its stream, which may be more or less
        than one event.

        Args:
            retry_seconds: between two attempts to reach the engine again.
            timeout_seconds: for the beginning of its answer.
        """
        while True:
            with contextlib.suppress(aiohttp.ClientError, OSError, TimeoutError):
                async with asyncio.timeout(timeout_seconds):
                    response = await self.open().get(
                        "/events",
                        params={"filters": as_filters({"type": [kind]})},
                        timeout=aiohttp.ClientTimeout(total=None),
                    )
                async with response:
                    if response.status == 200:
                        yield b""
                        while piece := await response.content.readany():
                            yield piece
            await asyncio.sleep(retry_seconds)

    async def close(self) -> None:
        """Close the connections."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    async def get(
        self,
        path: str,
        kind: type[T],
        *,
        timeout_seconds: float,
        **query: str,
    ) -> T | None:
        """The answer, decoded; None where the engine says 404.

        Raises:
            EngineUnavailable: any other status, no answer in time, or one that cannot be decoded.
        """
        try:
            status, content = await self._exchange("GET", path, query, None, timeout_seconds)
            if status == 404:
                return None
            if status != 200:
                raise self.refused(path, status, content)
            return msgspec.json.decode(content, type=kind)
        except TimeoutError as error:
            raise self._no_answer(path, timeout_seconds) from error
        except (aiohttp.ClientError, OSError) as error:
            raise self._unreachable(error) from error
        except (msgspec.MsgspecError, UnicodeError) as error:
            raise self.unavailable(f"gave an answer to {path} that is not its: {error}") from error

    async def post(self, path: str, body: object, *, timeout_seconds: float, **query: str) -> bytes:
        """Ask for a change; returns the answer as it came.

        Raises:
            EngineUnavailable: it was not made: the engine refused, or was not reached.
            OutcomeUnknown: no answer came; it may have been made.
        """
        status, content = await self._change("POST", path, query, body, timeout_seconds)
        if status not in (200, 201, 204):
            raise self.refused(path, status, content)
        return content

    async def delete(self, path: str, *, timeout_seconds: float) -> bool:
        """Remove something; returns whether it is gone. It is not where the engine says that it is in use.

        Raises:
            As :meth:`post`.
        """
        status, content = await self._change("DELETE", path, {}, None, timeout_seconds)
        if status not in (204, 404, 409):
            raise self.refused(path, status, content)
        return status != 409

    async def _change(
        self, method: str, path: str, query: Mapping[str, str], body: object, seconds: float
    ) -> tuple[int, bytes]:
        try:
            return await self._exchange(method, path, query, body, seconds)
        except aiohttp.ClientConnectorError as error:
            raise self._unreachable(error) from error
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            raise OutcomeUnknown(
                f"the Docker engine at {self._socket} was asked for {path} and did not answer "
                f"within {seconds:g} s",
                remedy="look whether it was done, and ask again if not",
            ) from error

    async def _exchange(
        self, method: str, path: str, query: Mapping[str, str], body: object, seconds: float
    ) -> tuple[int, bytes]:
        async with self.open().request(
            method,
            path,
            params=query,
            data=None if body is None else msgspec.json.encode(body),
            headers={} if body is None else {"Content-Type": "application/json"},
            timeout=aiohttp.ClientTimeout(total=seconds),
        ) as response:
            return response.status, await response.read()

    def unavailable(self, what: str) -> EngineUnavailable:
        """The error for an engine that does not work as it should; ``what`` follows its name there."""
        return EngineUnavailable(
            f"the Docker engine at {self._socket} {what}",
            remedy="see systemctl status docker on this node",
        )

    def _no_answer(self, path: str, seconds: float) -> EngineUnavailable:
        return self.unavailable(f"did not answer {path} within {seconds:g} s")

    def _unreachable(self, error: Exception) -> EngineUnavailable:
        return self.unavailable(f"cannot be reached: {error}")

    def refused(self, path: str, status: int, content: bytes) -> EngineUnavailable:
        """The error for a call that the engine refused."""
        return self.unavailable(f"answered {status} to {path}: {_message(content)}")


def as_filters(filters: Mapping[str, list[str]]) -> str:
    """Filters as a query's value."""
    return msgspec.json.encode(filters).decode()


def _message(content: bytes) -> str:
    try:
        return msgspec.json.decode(content, type=dict[str, str])["message"]
    except (msgspec.MsgspecError, UnicodeError, KeyError):
        return content[:200].decode("utf-8", "replace")
