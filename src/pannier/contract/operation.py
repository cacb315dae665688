"""One operation of the API: its row in the table, and how a call becomes a request and back.

A table is a protocol class. Each of its methods is an operation, and the decorator above it
(:func:`cluster`, :func:`joining`, :func:`local`, :func:`peer`) holds what the signature does not say. The server, the clients,
the OpenAPI document and the tests read the rows; nothing else knows a path or a parameter.
"""

from __future__ import annotations

import inspect
import re
import typing
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Generic, Protocol, TypedDict, TypeVar, Unpack, cast
from urllib.parse import quote

from pannier.contract import bodies
from pannier.core.backups import TARGET_PATTERN, check_target_name
from pannier.core.errors import PannierError
from pannier.core.node import check_node_name
from pannier.core.schedules import check_policy_name
from pannier.core.snapshots import SNAPSHOT_PATTERN, check_snapshot_name
from pannier.core.swarm import check_service_name
from pannier.core.volume import check_name

API_VERSION = 1
"""Rises when a field changes its meaning or is removed. Added fields and words do not raise it: a node
ignores fields that it does not know, and keeps such words as they are."""
API_HEADER = "X-Pannier-Api"
"""Carries the sender's API_VERSION, in requests and in answers. Without this header it is 1."""
VERSION_PATTERN = "[1-9][0-9]{0,8}"

Method = TypeVar("Method", bound=Callable[..., Any])
Side = TypeVar("Side")
_ROW = "__pannier_operation__"


class Access(StrEnum):
    """Kinds of operations, by who may call them."""

    JOIN = "join"
    CLUSTER = "cluster"
    LOCAL = "local"
    PEER = "peer"


@dataclass(frozen=True, slots=True, kw_only=True)
class PathParameter:
    """What stands in a path: its meaning, its pattern for the document, and the check."""

    meaning: str
    pattern: str
    check: Callable[[str], str]


PATH_PARAMETERS: Mapping[str, PathParameter] = {
    "volume": PathParameter(
        meaning="a volume's name", pattern=bodies.VOLUME_PATTERN, check=check_name
    ),
    "snapshot": PathParameter(
        meaning="a snapshot's name", pattern=SNAPSHOT_PATTERN, check=check_snapshot_name
    ),
    "policy": PathParameter(
        meaning="a policy's name", pattern=SNAPSHOT_PATTERN, check=check_policy_name
    ),
    "target": PathParameter(
        meaning="a backup target's name", pattern=TARGET_PATTERN, check=check_target_name
    ),
    "name_or_id": PathParameter(
        meaning="name or id of a removed volume", pattern=bodies.VOLUME_PATTERN, check=check_name
    ),
    "service": PathParameter(
        meaning="a Swarm service's name", pattern=bodies.SERVICE_PATTERN, check=check_service_name
    ),
    "node": PathParameter(
        meaning="a node's name", pattern=bodies.NODE_PATTERN, check=check_node_name
    ),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """One row.

    Attributes:
        name: the method's name; also in the OpenAPI document and in log lines.
        path: has parameters of PATH_PARAMETERS in braces. The method's first arguments are for
            them, in their order.
        answer: type of the answer (of one line, for a stream), or None for an empty one.
        arguments: the method's arguments, without ``self``.
        body: its fields are arguments of the method, or it is the last argument itself.
        flags: the arguments that are boolean query parameters; absent means false.
        stream: the answer is one JSON value per line, with blank lines to show life.
        raises: the errors to expect besides those that every operation may answer.
        answer_seconds: how long a client waits for the answer; None: as long as usual for ``method``.
        cut_off: what a user is told to do if the stream stops before a value that has ``ended``. None
            for a stream that may stop anywhere.
    """

    name: str
    method: str
    path: str
    access: Access
    summary: str
    answer: Any
    arguments: tuple[str, ...] = ()
    status: int = 200
    body: type[bodies.Body] | None = None
    flags: tuple[str, ...] = ()
    stream: bool = False
    raises: tuple[type[PannierError], ...] = ()
    answer_seconds: float | None = None
    cut_off: str | None = None

    @property
    def in_path(self) -> dict[str, str]:
        """The path's parameters, each with the argument that stands there."""
        return dict(zip(_names_in(self.path), self.arguments, strict=False))

    @property
    def whole_body(self) -> str | None:
        """The argument that is the body itself, if there is one."""
        if self.body is None:
            return None
        elsewhere = {*self.in_path.values(), *self.flags, *self.body.__struct_fields__}
        others = [argument for argument in self.arguments if argument not in elsewhere]
        return others[0] if len(others) == 1 else None

    def address(self, values: Mapping[str, Any]) -> str:
        """Path and query of a call with these arguments."""
        path = self.path
        for parameter, argument in self.in_path.items():
            path = path.replace(f"{{{parameter}}}", quote(values[argument], safe=""))
        query = "&".join(f"{flag}=true" for flag in self.flags if values[flag])
        return f"{path}?{query}" if query else path

    def body_of(self, values: Mapping[str, Any]) -> bodies.Body | None:
        """The body of a call with these arguments. It is checked by whoever reads it, not here."""
        if self.body is None:
            return None
        if self.whole_body is not None:
            return cast("bodies.Body", values[self.whole_body])
        fields = {name: values[name] for name in self.body.__struct_fields__}
        return self.body(**{k: dict(v) if isinstance(v, Mapping) else v for k, v in fields.items()})

    def call(
        self,
        target: object,
        *,
        path: Mapping[str, str],
        flags: Mapping[str, bool],
        body: bodies.Body | None,
    ) -> Any:
        """Call ``target``'s method with what a request carried.

        Returns:
            An async iterator for a stream, else an awaitable.
        """
        values: dict[str, Any] = {argument: path[name] for name, argument in self.in_path.items()}
        values |= flags
        if self.whole_body is not None:
            values[self.whole_body] = body
        elif body is not None:
            values |= {name: getattr(body, name) for name in body.__struct_fields__}
        return getattr(target, self.name)(**values)


class Wire(Protocol):
    """Carries calls to the other side.

    Raises:
        PannierError: both methods: what the other side raised, as its own class.
        PeerUnavailable: both: it cannot be reached, or a reading call broke off. Nothing was changed.
        Denied: both: one side does not accept the other's certificate, or the socket is root's.
        OutcomeUnknown: both: a changing call was sent and no answer came; it may have been done.
        DeadlineExceeded: both: a reading call was not answered in time.
    """

    def ask(self, operation: Operation, values: Mapping[str, Any]) -> Awaitable[Any]:
        """Call an operation that is no stream, with these arguments by their names."""
        ...

    def stream(self, operation: Operation, values: Mapping[str, Any]) -> AsyncGenerator[Any, None]:
        """Call a stream, with these arguments by their names.

        Raises:
            OutcomeUnknown: also if the stream stops before its last value; see ``cut_off``.
        """
        ...


class OperationTable(Generic[Side]):
    """All operations of one protocol."""

    def __init__(self, protocol: type[Side]) -> None:
        functions = [each for each in vars(protocol).values() if hasattr(each, _ROW)]
        self.rows: tuple[Operation, ...] = tuple(map(_operation, functions))
        methods = {
            row.name: _method(row, each) for row, each in zip(self.rows, functions, strict=True)
        }
        self._remote = type(f"Remote{protocol.__name__}", (_Remote,), methods)

    def stand_in(self, wire: Wire) -> Side:
        """An object with the protocol's methods, whose calls go over ``wire``."""
        return cast("Side", self._remote(wire))


class _Remote:
    def __init__(self, wire: Wire) -> None:
        self.wire = wire


def _method(operation: Operation, function: Callable[..., Any]) -> Callable[..., Any]:
    signature = inspect.signature(function)

    def method(self: _Remote, /, *positional: Any, **named: Any) -> Any:
        bound = signature.bind(self, *positional, **named)
        bound.apply_defaults()
        values = {name: bound.arguments[name] for name in operation.arguments}
        carry = self.wire.stream if operation.stream else self.wire.ask
        return carry(operation, values)

    method.__name__ = operation.name
    method.__doc__ = function.__doc__
    return method


class _More(TypedDict, total=False):
    """What a row may have besides method, path and summary: see Operation."""

    status: int
    body: type[bodies.Body]
    flags: tuple[str, ...]
    raises: tuple[type[PannierError], ...]
    answer_seconds: float
    cut_off: str


def cluster(
    method: str, path: str, summary: str, **more: Unpack[_More]
) -> Callable[[Method], Method]:
    """An operation for users, nodes, and root on the local socket."""
    return _row(method=method, path="/v1" + path, summary=summary, access=Access.CLUSTER, **more)


def joining(
    method: str, path: str, summary: str, **more: Unpack[_More]
) -> Callable[[Method], Method]:
    """An operation for anybody, without a certificate."""
    return _row(method=method, path="/v1" + path, summary=summary, access=Access.JOIN, **more)


def local(
    method: str, path: str, summary: str, **more: Unpack[_More]
) -> Callable[[Method], Method]:
    """An operation for root on the local socket: it does something to the machine itself."""
    path = "/v1/local" + path
    return _row(method=method, path=path, summary=summary, access=Access.LOCAL, **more)


def peer(method: str, path: str, summary: str, **more: Unpack[_More]) -> Callable[[Method], Method]:
    """An operation for nodes only."""
    path = "/v1/peer" + path
    return _row(method=method, path=path, summary=summary, access=Access.PEER, **more)


def _row(**row: Any) -> Callable[[Method], Method]:
    def mark(function: Method) -> Method:
        setattr(function, _ROW, row)
        return function

    return mark


def _operation(function: Callable[..., Any]) -> Operation:
    """The operation of a decorated method; its signature says what it takes and answers.

    Raises:
        TypeError: the arguments are not those of the path, the flags and the body.
    """
    row: dict[str, Any] = dict(getattr(function, _ROW))
    answer = typing.get_type_hints(function)["return"]
    stream = typing.get_origin(answer) is AsyncGenerator
    if stream:
        answer = typing.get_args(answer)[0]
    if answer is type(None):
        answer = None
        row.setdefault("status", 204)
    arguments = tuple(inspect.signature(function).parameters)[1:]
    operation = Operation(
        name=function.__name__, answer=answer, stream=stream, arguments=arguments, **row
    )
    carried = {*operation.in_path.values(), *operation.flags}
    if operation.whole_body is not None:
        carried.add(operation.whole_body)
    elif operation.body is not None:
        carried |= set(operation.body.__struct_fields__)
    if carried != set(arguments):
        raise TypeError(f"{function.__qualname__}: a request does not carry {arguments}")
    return operation


def _names_in(path: str) -> list[str]:
    return re.findall(r"\{(\w+)\}", path)
