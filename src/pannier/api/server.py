"""The API's server: reads requests, asks the use cases, answers with their values or errors."""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
import structlog
from aiohttp import web

from pannier.api.caller import (
    ACTOR_HEADER,
    Caller,
    Identify,
    NodeCaller,
    actor_of,
    describe_caller,
)
from pannier.api.ndjson import KEEPALIVE_SECONDS
from pannier.api.routes import ALLOWED, DOCUMENT, ROUTES
from pannier.api.streams import Streams
from pannier.contract import bodies
from pannier.contract.operation import (
    API_HEADER,
    API_VERSION,
    PATH_PARAMETERS,
    VERSION_PATTERN,
    Access,
    Operation,
)
from pannier.contract.operations import OperationsBy
from pannier.contract.peers import PeerBy
from pannier.contract.views import ErrorView
from pannier.core.errors import Denied, InvalidInput, NotFound, PannierError

BODY_LIMIT_BYTES = 64 * 1024
"""Far more than any request needs; a larger body is refused with 413."""

_log = structlog.get_logger("pannier.api")
_NOTES = web.RequestKey("notes", dict[str, str])
_Handle = Callable[[web.Request], Awaitable[web.StreamResponse]]
_Target = Callable[[Operation, Caller, str], object]


def build_application(
    operations: OperationsBy,
    *,
    peers: PeerBy,
    identify: Identify,
    keepalive_seconds: float = KEEPALIVE_SECONDS,
) -> web.Application:
    """The application for one socket; sockets that identify callers differently need one each.

    Args:
        operations: what an actor may ask for.
        peers: what the node of that name may ask for.
        identify: who the caller is; may raise Denied.
        keepalive_seconds: a stream that has nothing to say sends a blank line this often.
    """
    application = web.Application(client_max_size=BODY_LIMIT_BYTES, middlewares=[_answer_errors])
    streams = Streams(_describe_error, keepalive_seconds=keepalive_seconds)

    async def stop_streams(_: web.Application) -> None:
        streams.stop()

    application.on_shutdown.append(stop_streams)
    application.on_response_prepare.append(_tell_version)

    def target(operation: Operation, caller: Caller, actor: str) -> object:
        if operation is DOCUMENT:
            return _Document()
        if operation.access is Access.PEER:
            return peers(_node_name(caller))
        return operations(actor)

    for operation in ROUTES:
        handle = _handle(operation, target, identify, streams)
        application.router.add_route(operation.method, operation.path, handle)
    return application


class _Document:
    async def openapi(self) -> dict[str, Any]:
        from pannier.api.openapi import document

        return document()


def _node_name(caller: Caller) -> str:
    """The asking node: always the name in its certificate."""
    if isinstance(caller, NodeCaller):
        return caller.name
    raise Denied("this route is for nodes only")


async def _tell_version(request: web.Request, response: web.StreamResponse) -> None:
    response.headers[API_HEADER] = str(API_VERSION)


def _handle(operation: Operation, target: _Target, identify: Identify, streams: Streams) -> _Handle:
    async def handle(request: web.Request) -> web.StreamResponse:
        caller, actor = _admit(request, operation, identify)
        path = {
            name: PATH_PARAMETERS[name].check(text) for name, text in request.match_info.items()
        }
        request[_NOTES].update(path)
        flags = _read_flags(request, operation)
        body = await _read_body(request, operation)
        called = operation.call(target(operation, caller, actor), path=path, flags=flags, body=body)
        if operation.stream:
            return await streams.send(request, called)
        answer = await called
        if operation.answer is None:
            return web.Response(status=operation.status)
        return _json(answer, status=operation.status)

    return handle


def _admit(request: web.Request, operation: Operation, identify: Identify) -> tuple[Caller, str]:
    """The caller, and who is to be recorded as having asked.

    Raises:
        Denied: the caller may not use this operation.
        InvalidInput: a header has an invalid value.
    """
    notes = request[_NOTES]
    notes["operation"] = operation.name
    caller = identify(request)
    notes["caller"] = describe_caller(caller)
    if type(caller) not in ALLOWED[operation.access]:
        raise _denial(operation, describe_caller(caller))
    actor = actor_of(caller, request.headers.get(ACTOR_HEADER))
    if actor != notes["caller"]:
        notes["actor"] = actor
    version = request.headers.get(API_HEADER, str(API_VERSION))
    if not re.fullmatch(VERSION_PATTERN, version):
        raise InvalidInput(
            f"the header {API_HEADER} cannot be a version", remedy=f"this node's is {API_VERSION}"
        )
    if version != str(API_VERSION):
        notes["api"] = version
    return caller, actor


def _denial(operation: Operation, caller: str) -> Denied:
    if operation.access is Access.PEER:
        return Denied(
            f"{operation.method} {operation.path} is for nodes only, not for {caller}",
            remedy="use the routes outside /v1/peer",
        )
    if operation.access is Access.LOCAL:
        return Denied(
            f"{operation.method} {operation.path} is for root on the node's own socket only, not for {caller}",
            remedy="type the command on that node, without --host",
        )
    return Denied(
        f"{operation.method} {operation.path} needs a certificate of this cluster",
        remedy="show a user's or node's certificate, or use the local socket as root",
    )


def _read_flags(request: web.Request, operation: Operation) -> dict[str, bool]:
    values = {"true": True, "false": False}
    for name, text in request.query.items():
        if name not in operation.flags:
            known = ", ".join(operation.flags)
            raise InvalidInput(
                f"{operation.method} {operation.path} has no parameter {name[:40]!r}",
                remedy=f"its parameters are: {known}" if known else "it takes none",
            )
        if text not in values or len(request.query.getall(name)) > 1:
            raise InvalidInput(f"{name}={text[:40]} is not allowed", remedy="use true or false")
    return {name: values[request.query.get(name, "false")] for name in operation.flags}


async def _read_body(request: web.Request, operation: Operation) -> bodies.Body | None:
    if operation.body is None:
        return None
    # The content type is not looked at: what matters is whether the bytes are the JSON we need.
    return parse_body(await request.read(), operation.body, f"{operation.method} {operation.path}")


def parse_body(content: bytes, kind: type[bodies.Body], request: str) -> bodies.Body:
    """The body of a request.

    Raises:
        InvalidInput: it is not what the operation takes.
    """
    if not content and bodies.may_be_left_out(kind):
        content = b"{}"
    try:
        body = msgspec.json.decode(content, type=kind)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise InvalidInput(
            f"the body of {request} cannot be accepted: {error}",
            remedy="send JSON as GET /v1/openapi.json describes it",
        ) from error
    body.check()
    return body


def _json(value: Any, *, status: int) -> web.Response:
    return web.Response(
        body=msgspec.json.encode(value),
        status=status,
        content_type="application/json",
        headers={"Cache-Control": "no-store"},
    )


@web.middleware
async def _answer_errors(request: web.Request, handler: _Handle) -> web.StreamResponse:
    """Turn every failure into an ErrorView, and write the request's one log line."""
    notes = request[_NOTES] = {}
    started = time.monotonic()
    try:
        response = await handler(request)
    except web.HTTPException as refusal:
        response = _refuse(request, refusal)
    except PannierError as error:
        notes["code"] = error.code
        response = _json(_describe_error(error), status=error.http_status)
    except Exception as error:
        # Unforeseen: its text may reveal anything, so it goes to the log and not to the caller.
        response = _json(_describe_error(error), status=500)
    write = _log.debug if request.method == "GET" and response.status < 500 else _log.info
    write(
        "request",
        method=request.method,
        path=request.path,
        status=response.status,
        seconds=round(time.monotonic() - started, 4),
        **notes,
    )
    return response


def _describe_error(error: Exception) -> ErrorView:
    if isinstance(error, PannierError):
        return ErrorView(code=error.code, message=error.message, remedy=error.remedy)
    reference = secrets.token_hex(4)
    _log.error("unexpected error", reference=reference, exc_info=error)
    return ErrorView(
        code=PannierError.code,
        message=f"an unexpected error occurred (reference {reference})",
        remedy=f"look for {reference} in the daemon's log: journalctl -u pannierd",
    )


def _refuse(request: web.Request, refusal: web.HTTPException) -> web.Response:
    """The server's own refusals: an unknown path, a wrong method, a body that is too large."""
    asked = f"{request.method} {request.path[:200]}"
    kind: type[PannierError] = NotFound if refusal.status == 404 else InvalidInput
    match refusal.status:
        case 404:
            message, remedy = f"there is no {asked}", "GET /v1/openapi.json lists what there is"
        case 405:
            allowed = refusal.headers.get("Allow", "")
            message, remedy = f"{asked} is not possible", f"use {allowed}"
        case 413:
            message = f"the body of {asked} is too large"
            remedy = f"send at most {BODY_LIMIT_BYTES} bytes"
        case _:
            message, remedy = f"{asked} was refused: {refusal.reason}", ""
    answer = _json(ErrorView(code=kind.code, message=message, remedy=remedy), status=refusal.status)
    if "Allow" in refusal.headers:
        answer.headers["Allow"] = refusal.headers["Allow"]
    return answer
