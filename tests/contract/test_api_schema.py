"""The server keeps to the document that it serves, whatever it is sent."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Iterator
from http import HTTPStatus
from typing import Any

import pytest
import requests
import schemathesis
from aiohttp import web
from hypothesis import HealthCheck, settings
from schemathesis import Case
from schemathesis.checks import CheckFunction
from schemathesis.specs.openapi.checks import negative_data_rejection, positive_data_acceptance

from pannier.api.caller import Caller, NodeCaller
from pannier.api.listen import serve_socket
from pannier.api.openapi import document
from pannier.api.routes import ROUTES
from pannier.api.server import build_application
from pannier.contract.bodies import BackupTargetOrder, PeopleBody
from pannier.contract.operation import Access
from pannier.core.errors import PannierError
from pannier.testing.api import FakeCluster


class EndingCluster(FakeCluster):
    """Its streams end, its one volume comes back whatever is done to it, and nodes stay."""

    async def reset(self) -> None:
        self.__post_init__()
        self.removed.clear()
        self.volumes_by_name.clear()
        self.targets.clear()
        self.backups_made.clear()
        self.drills.clear()
        for name in ("data", "web"):
            await self.create_volume(name, {})
        await self.add_backup_target(
            BackupTargetOrder(name="offsite", url="/srv/backups", password="s3cret")
        )
        async for _ in self.back_up_volume("data", target="offsite"):
            pass
        self.past.clear()
        self.calls.clear()
        if self.more_events.empty():
            await self.more_events.put(None)


def identify(request: web.Request) -> Caller:
    """A node may use all routes, and its actor header counts."""
    return NodeCaller("node2")


@web.middleware
async def reset_first(request: web.Request, handler: Any) -> web.StreamResponse:
    await request.app[CLUSTER].reset()
    response: web.StreamResponse = await handler(request)
    return response


CLUSTER = web.AppKey("cluster", EndingCluster)


async def _serve(started: threading.Event, found: dict[str, Any]) -> None:
    stop = asyncio.Event()
    cluster = EndingCluster(strict=False)
    application = build_application(cluster.by, peers=cluster.by_node, identify=identify)
    application[CLUSTER] = cluster
    application.middlewares.append(reset_first)
    listener = socket.create_server(("127.0.0.1", 0))
    found.update(port=listener.getsockname()[1], stop=stop, loop=asyncio.get_running_loop())
    async with serve_socket(application, listener):
        started.set()
        await stop.wait()


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """A server in a thread of its own, since schemathesis' client blocks."""
    started = threading.Event()
    found: dict[str, Any] = {}
    thread = threading.Thread(target=lambda: asyncio.run(_serve(started, found)))
    thread.start()
    assert started.wait(10)
    yield f"http://127.0.0.1:{found['port']}"
    found["loop"].call_soon_threadsafe(found["stop"].set)
    thread.join(10)


schema = schemathesis.openapi.from_dict(document())


@schema.parametrize()
@settings(
    max_examples=25,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    derandomize=True,
    database=None,
)
def test_every_answer_is_in_the_document(case: Case, server: str) -> None:
    """No 5xx, no undocumented status, content type or body, no valid request refused for its form."""
    excluded: list[CheckFunction] = [positive_data_acceptance] if _whole_floats(case.body) else []
    response = case.call(base_url=server, timeout=10)
    if (
        response.status_code == HTTPStatus.REQUEST_ENTITY_TOO_LARGE
    ):  # it is refused, before anybody has read what it is
        excluded.append(negative_data_rejection)
    case.validate_response(response, excluded_checks=excluded)


def _whole_floats(body: Any) -> bool:
    """JSON Schema calls 3.0 an integer; we do not."""
    if isinstance(body, dict | list):
        return any(map(_whole_floats, body.values() if isinstance(body, dict) else body))
    return isinstance(body, float) and body.is_integer()


def test_document_is_served(server: str) -> None:
    assert requests.get(f"{server}/v1/openapi.json", timeout=10).json() == document()


# The document itself


def _operations() -> dict[str, Any]:
    return {
        operation["operationId"]: operation
        for path in document()["paths"].values()
        for operation in path.values()
    }


def test_document_lists_every_route() -> None:
    assert set(_operations()) == {route.name for route in ROUTES}


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: route.name)
def test_document_says_what_a_route_takes_and_answers(route: Any) -> None:
    operation = _operations()[route.name]
    assert str(route.status) in operation["responses"]
    assert ("requestBody" in operation) is (route.body is not None)
    assert (operation["security"] == []) is (route.access is Access.JOIN)
    for error in (*route.raises, PannierError):
        response = operation["responses"][str(error.http_status)]
        assert f"`{error.code}`" in response["description"]
        assert response["content"]["application/json"]["schema"] == {
            "$ref": "#/components/schemas/ErrorView"
        }


def test_what_people_send_is_read_strictly_and_what_newer_nodes_add_is_ignored() -> None:
    schemas = document()["components"]["schemas"]
    for route in ROUTES:
        if route.body is not None:
            strict = schemas[route.body.__name__].get("additionalProperties") is False
            assert (
                strict
                is issubclass(route.body, PeopleBody)
                is (route.access in (Access.CLUSTER, Access.LOCAL))
            )


def test_every_reference_leads_somewhere() -> None:
    schemas = document()["components"]["schemas"]

    def check(value: Any) -> None:
        if isinstance(value, dict):
            if "$ref" in value:
                assert value["$ref"].removeprefix("#/components/schemas/") in schemas
            for each in value.values():
                check(each)
        elif isinstance(value, list):
            for each in value:
                check(each)

    check(document())
