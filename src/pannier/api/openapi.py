"""The API's description, built from the routes and the types that they carry."""

from __future__ import annotations

from functools import cache
from typing import Any

import msgspec

import pannier
from pannier.api import ndjson
from pannier.api.caller import ACTOR_HEADER
from pannier.api.routes import DOCUMENT, ROUTES
from pannier.contract import bodies
from pannier.contract.operation import (
    API_HEADER,
    PATH_PARAMETERS,
    VERSION_PATTERN,
    Access,
    Operation,
)
from pannier.contract.views import ErrorView
from pannier.core import errors
from pannier.core.errors import PannierError

# 3.2 is the first version that can describe a stream by its items.
VERSION = "3.2.0"
_REF = "#/components/schemas/{name}"
_ANYWHERE = (errors.StoreUnavailable, errors.PeerUnavailable, errors.OutcomeUnknown)
_WORDS = {
    Access.JOIN: "For anybody, without a certificate.",
    Access.CLUSTER: "For users, nodes, and root on the local socket.",
    Access.LOCAL: "For root on the local socket only.",
    Access.PEER: "For nodes only; the asking node is the one that its certificate names.",
}


@cache
def document() -> dict[str, Any]:
    """The OpenAPI document, as plain values. Callers share it and must not change it."""
    types = {route.answer for route in ROUTES if route.answer is not None and not _bare(route)}
    types |= {route.body for route in ROUTES if route.body is not None}
    _, components = msgspec.json.schema_components(
        [*sorted(types, key=str), ErrorView], ref_template=_REF
    )
    paths: dict[str, dict[str, Any]] = {}
    for route in ROUTES:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route)
    return {
        "openapi": VERSION,
        "info": {
            "title": "Pannier",
            "version": pannier.__version__,
            "description": "Docker volumes that follow their containers between hosts. Callers are "
            "known by their client certificate, or by the local socket, which only root may open.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "paths": paths,
        "components": {
            "schemas": components,
            "securitySchemes": {"certificate": {"type": "mutualTLS"}},
        },
    }


def _bare(route: Operation) -> bool:
    """Whether the answer is free-form, which needs no component."""
    return route is DOCUMENT


def _operation(route: Operation) -> dict[str, Any]:
    operation: dict[str, Any] = {
        "operationId": route.name,
        "summary": route.summary,
        "description": _WORDS[route.access],
        "tags": [route.access.value],
        "security": [] if route.access is Access.JOIN else [{"certificate": []}],
        "parameters": _parameters(route),
        "responses": _responses(route),
    }
    if route.body is not None:
        operation["requestBody"] = {
            "required": not bodies.may_be_left_out(route.body),
            "content": {"application/json": {"schema": _schema(route.body)}},
        }
    return operation


def _schema(kind: Any) -> dict[str, Any]:
    (schema,), _ = msgspec.json.schema_components([kind], ref_template=_REF)
    return schema


def _parameters(route: Operation) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for name in route.in_path:
        parameter = PATH_PARAMETERS[name]
        found.append(
            {
                "name": name,
                "in": "path",
                "required": True,
                "description": parameter.meaning,
                "schema": {"type": "string", "pattern": parameter.pattern},
            }
        )
    for name in route.flags:
        schema_of_flag = {"type": "boolean", "default": False}
        found.append({"name": name, "in": "query", "schema": schema_of_flag})
    if route.access is Access.CLUSTER:
        found.append(
            {
                "name": ACTOR_HEADER,
                "in": "header",
                "description": "From a node: the user whose request it passes on. Else ignored.",
                "schema": {"type": "string", "pattern": f"^{bodies.ACTOR_PATTERN}$"},
            }
        )
    if route.access is Access.PEER:
        found.append(
            {
                "name": API_HEADER,
                "in": "header",
                "description": "The version of the API that the asking node speaks; 1 without it.",
                "schema": {"type": "string", "pattern": f"^{VERSION_PATTERN}$"},
            }
        )
    return found


def _responses(route: Operation) -> dict[str, Any]:
    responses: dict[str, Any] = {str(route.status): _success(route)}
    meanings: dict[int, list[str]] = {}
    for kind in _errors_of(route):
        meanings.setdefault(kind.http_status, []).append(kind.code)
    for status, codes in sorted(meanings.items()):
        responses[str(status)] = _failure("`, `".join(dict.fromkeys(codes)))
    if route.body is not None:
        responses["413"] = _failure(errors.InvalidInput.code)
    return responses


def _errors_of(route: Operation) -> tuple[type[PannierError], ...]:
    common: tuple[type[PannierError], ...] = (errors.InvalidInput, errors.Denied, PannierError)
    if route is not DOCUMENT:
        common = (*common, *_ANYWHERE, errors.DeadlineExceeded)
    return (*common, *route.raises)


def _success(route: Operation) -> dict[str, Any]:
    if route.answer is None:
        return {"description": "Done."}
    if route.stream:
        item = {"anyOf": [_schema(route.answer), _schema(ErrorView)]}
        return {
            "description": "One JSON value per line, and blank lines to show life. "
            "A stream that fails ends with an ErrorView.",
            "content": {ndjson.CONTENT_TYPE: {"itemSchema": item}},
        }
    schema = {"type": "object"} if _bare(route) else _schema(route.answer)
    return {"description": "Done.", "content": {"application/json": {"schema": schema}}}


def _failure(codes: str) -> dict[str, Any]:
    return {
        "description": f"`{codes}`",
        "content": {"application/json": {"schema": _schema(ErrorView)}},
    }
