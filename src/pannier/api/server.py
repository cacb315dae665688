"""The API's server: reads requests, asks the use cases, answers with their values or errors."""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, cast

import msgspec
import structlog
from aiohttp import web

from pannier.api.caller import ACTOR_HEADER, Identify, actor_of, describe_caller
from pannier.api.handlers import Call, Handler, handlers_for
from pannier.api.ndjson import KEEPALIVE_SECONDS, Streams
from pannier.api.routes import ALLOWED, ROUTES, Access, Route
from pannier.contract import bodies
from pannier.contract.operations import Operations, PeerOperations
from pannier.contract.views import ErrorView
from pannier.core.errors import Denied, InvalidInput, NotFound, PannierError
from pannier.core.node import check_node_name
from pannier.core.swarm import check_service_name
from pannier.core.volume import check_name

BODY_LIMIT_BYTES = 64 * 1024
"""Far more than any request needs; a larger body is refused with 413."""

_log = structlog.get_logger("pannier.api")
_NOTES = web.RequestKey("notes", dict[str, str])
_CHECKS: dict[str, Callable[[str], str]] = {
    "volume": check_name,
    "name_or_id": check_name,
    "node": check_node_name,
    "service": check_service_name,
}
_Handle = Callable[[web.Request], Awaitable[web.StreamResponse]]


def build_application(
    operations: Operations,
    *,
    peers: PeerOperations,
    identify: Identify,
    keepalive_seconds: float = KEEPALIVE_SECONDS,
) -> web.Application:
    """The application for one socket; sockets with different ways to know callers need one each.

    Args:
        identify: who the caller is; may raise Denied.
        keepalive_seconds: a stream that has nothing to say sends a blank line this often.
    """
    application = web.Application(client_max_size=BODY_LIMIT_BYTES, middlewares=[_answer_errors])
    streams = Streams(_describe_error, keepalive_seconds=keepalive_seconds)

    async def stop_streams(_: web.Application) -> None:
        streams.stop()

    application.on_shutdown.append(stop_streams)
    handlers = handlers_for(operations, peers=peers)
    for route in ROUTES:
        handle = _handle(route, handlers[route.name], identify, streams)
        application.router.add_route(route.method, route.path, handle)
    return application


def _handle(route: Route, handler: Handler, identify: Identify, streams: Streams) -> _Handle:
    async def handle(request: web.Request) -> web.StreamResponse:
        call = await _read_call(request, route, identify)
        if route.stream:
            return await streams.send(request, cast("AsyncIterator[Any]", handler(call)))
        answer = await cast("Awaitable[Any]", handler(call))
        if route.answer is None:
            return web.Response(status=route.status)
        return _json(answer, status=route.status)

    return handle


async def _read_call(request: web.Request, route: Route, identify: Identify) -> Call:
    notes = request[_NOTES]
    notes["operation"] = route.name
    caller = identify(request)
    notes["caller"] = describe_caller(caller)
    if type(caller) not in ALLOWED[route.access]:
        raise _denial(route, describe_caller(caller))
    actor = actor_of(caller, request.headers.get(ACTOR_HEADER))
    if actor != notes["caller"]:
        notes["actor"] = actor
    path = {name: _CHECKS[name](text) for name, text in request.match_info.items()}
    notes.update(path)
    return Call(
        caller=caller,
        actor=actor,
        path=path,
        flags=_read_flags(request, route),
        body=await _read_body(request, route),
    )


def _denial(route: Route, caller: str) -> Denied:
    if route.access is Access.PEER:
        return Denied(
            f"{route.method} {route.path} is for nodes only, not for {caller}",
            remedy="use the routes outside /v1/peer",
        )
    return Denied(
        f"{route.method} {route.path} needs a certificate of this cluster",
        remedy="show a user's or node's certificate, or use the local socket as root",
    )


def _read_flags(request: web.Request, route: Route) -> dict[str, bool]:
    values = {"true": True, "false": False}
    for name, text in request.query.items():
        if name not in route.flags:
            known = ", ".join(route.flags)
            raise InvalidInput(
                f"{route.method} {route.path} has no parameter {name[:40]!r}",
                remedy=f"its parameters are: {known}" if known else "it takes none",
            )
        if text not in values or len(request.query.getall(name)) > 1:
            raise InvalidInput(f"{name}={text[:40]} is not allowed", remedy="use true or false")
    return {name: values[request.query.get(name, "false")] for name in route.flags}


async def _read_body(request: web.Request, route: Route) -> bodies.Body | None:
    if route.body is None:
        return None
    # The content type is not looked at: what matters is whether the bytes are the JSON we need.
    content = await request.read()
    try:
        body = msgspec.json.decode(content, type=route.body)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise InvalidInput(
            f"the body of {route.method} {route.path} cannot be accepted: {error}",
            remedy="send JSON as GET /v1/openapi.json describes it",
        ) from error
    if isinstance(body, bodies.VolumeOrder | bodies.PeerVolumeOrder):
        check_name(body.name)
    if isinstance(body, bodies.JoinOrder):
        check_node_name(body.name)
    if isinstance(body, bodies.MoveOrder | bodies.PeerMoveOrder | bodies.ServiceMoveOrder):
        check_node_name(body.node)
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
        # Nobody foresaw it, so nothing about it may reach the caller: it is logged instead.
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
