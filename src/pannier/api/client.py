"""Clients: the operations of another daemon, as methods. The contract's tables say what is sent."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from types import NoneType, TracebackType
from typing import Any, Generic, TypeVar

from pannier.api.connection import ApiConnection, Endpoint
from pannier.contract.operation import Operation, OperationTable
from pannier.contract.operations import OPERATIONS, Operations
from pannier.contract.peers import PEER_OPERATIONS, Peer
from pannier.core.errors import OutcomeUnknown

Side = TypeVar("Side")


class Client(Generic[Side]):
    """A daemon elsewhere. As an async context manager it gives the operations, as ``calls`` does.

    The operations' errors are those of :meth:`~pannier.api.connection.ApiConnection.ask`, and the
    server's own. A stream of a move raises OutcomeUnknown where it stops before its last value.
    """

    def __init__(
        self, endpoint: Endpoint, table: OperationTable[Side], *, actor: str | None = None
    ) -> None:
        self._connection = ApiConnection(endpoint)
        self.calls: Side = table.stand_in(_Http(self._connection, actor=actor))

    async def __aenter__(self) -> Side:
        return self.calls

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections; the object may be used again."""
        await self._connection.close()


class ApiClient(Client[Operations]):
    """What people and their tools may ask.

    ``actor`` is for nodes that pass on a user's request; the server ignores it from anybody else.
    """

    def __init__(self, endpoint: Endpoint, *, actor: str | None = None) -> None:
        super().__init__(endpoint, OPERATIONS, actor=actor)


class PeerClient(Client[Peer]):
    """What nodes may ask of another node. Who asks is in our certificate."""

    def __init__(self, endpoint: Endpoint) -> None:
        super().__init__(endpoint, PEER_OPERATIONS)


class _Http:
    """Carries calls over a connection: see :class:`~pannier.contract.operation.Wire`."""

    def __init__(self, connection: ApiConnection, *, actor: str | None) -> None:
        self._connection = connection
        self._actor = actor

    async def ask(self, operation: Operation, values: Mapping[str, Any]) -> Any:
        return await self._connection.ask(
            operation.method,
            operation.address(values),
            body=operation.body_of(values),
            answer=NoneType if operation.answer is None else operation.answer,
            actor=self._actor,
            timeout_seconds=operation.answer_seconds,
        )

    async def stream(
        self, operation: Operation, values: Mapping[str, Any]
    ) -> AsyncGenerator[Any, None]:
        stream = self._connection.stream(
            operation.method,
            operation.address(values),
            body=operation.body_of(values),
            item=operation.answer,
            actor=self._actor,
        )
        last: Any = None
        async with aclosing(stream) as items:
            async for item in items:
                last = item
                yield item
        if operation.cut_off is not None and (last is None or not last.ended):
            said = "before its first report" if last is None else f"at {last.phase!r}"
            raise OutcomeUnknown(
                f"{self._connection.endpoint} stopped reporting {said}: it may go on, or not",
                remedy=operation.cut_off,
            )
