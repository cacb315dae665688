"""Who may do what: the table itself, and every route asked by every kind of caller."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

from pannier.api.caller import (
    ACTOR_HEADER,
    Anonymous,
    Caller,
    LocalCaller,
    NodeCaller,
    UserCaller,
    actor_of,
    describe_caller,
)
from pannier.api.routes import ALLOWED, ROUTES
from pannier.api.server import build_application
from pannier.contract.operation import Access, Operation
from pannier.core.errors import Denied, InvalidInput
from pannier.testing.api import FakeCluster, NotedCall

CALLERS: dict[str, Caller] = {
    "anonymous": Anonymous(),
    "user": UserCaller("anna"),
    "local": LocalCaller(),
    "node": NodeCaller("node2"),
}
TABLE = {
    (Access.JOIN, "anonymous"): True,
    (Access.JOIN, "user"): True,
    (Access.JOIN, "local"): True,
    (Access.JOIN, "node"): True,
    (Access.CLUSTER, "anonymous"): False,
    (Access.CLUSTER, "user"): True,
    (Access.CLUSTER, "local"): True,
    (Access.CLUSTER, "node"): True,
    (Access.LOCAL, "anonymous"): False,
    (Access.LOCAL, "user"): False,
    (Access.LOCAL, "local"): True,
    (Access.LOCAL, "node"): False,
    (Access.PEER, "anonymous"): False,
    (Access.PEER, "user"): False,
    (Access.PEER, "local"): False,
    (Access.PEER, "node"): True,
}


@pytest.fixture
async def client() -> AsyncIterator[TestClient[web.Request, web.Application]]:
    cluster = FakeCluster()
    await cluster.more_events.put(None)

    def identify(request: web.Request) -> Caller:
        return CALLERS[request.headers["X-Test-Caller"]]

    application = build_application(cluster.by, peers=cluster.by_node, identify=identify)
    async with TestClient(TestServer(application)) as client:
        client.cluster = cluster  # type: ignore[attr-defined]
        yield client


@pytest.mark.parametrize(("access", "kind"), TABLE)
def test_table(access: Access, kind: str) -> None:
    assert (type(CALLERS[kind]) in ALLOWED[access]) is TABLE[access, kind]


def test_table_is_total() -> None:
    assert set(ALLOWED) == set(Access)
    assert set(TABLE) == {(access, kind) for access in Access for kind in CALLERS}


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: route.name)
def test_kind_of_route_follows_from_its_path(route: Operation) -> None:
    """Nobody opens a route to more callers by mistake in one line of the table."""
    expected = Access.CLUSTER
    if route.path in ("/v1/join", "/v1/certificates/renewal"):
        expected = Access.JOIN
    elif route.path.startswith("/v1/peer/"):
        expected = Access.PEER
    elif route.path.startswith("/v1/local/"):
        expected = Access.LOCAL
    assert route.access is expected


@pytest.mark.parametrize("kind", CALLERS)
@pytest.mark.parametrize("route", ROUTES, ids=lambda route: route.name)
async def test_each_route_with_each_caller(
    client: TestClient[web.Request, web.Application], route: Operation, kind: str
) -> None:
    path = route.path.format_map(
        {
            "node": "node1",
            "volume": "data",
            "name_or_id": "data",
            "service": "web",
            "snapshot": "early",
            "policy": "nightly",
            "target": "offsite",
        }
    )
    query = "?follow=true" if "follow" in route.flags else ""
    answer = await client.request(route.method, path + query, headers={"X-Test-Caller": kind})
    assert (answer.status == 403) is not TABLE[route.access, kind], await answer.text()
    if answer.status == 403:
        assert (await answer.json())["code"] == "denied"
        assert client.cluster.calls == []  # type: ignore[attr-defined]


def test_actors() -> None:
    assert actor_of(UserCaller("anna"), None) == "anna"
    assert actor_of(LocalCaller(), None) == "local"
    assert actor_of(NodeCaller("node2"), None) == "node/node2"


def test_only_a_node_may_speak_for_somebody() -> None:
    assert actor_of(NodeCaller("node2"), "anna") == "anna"
    assert actor_of(UserCaller("mallory"), "anna") == "mallory"
    assert actor_of(LocalCaller(), "anna") == "local"
    assert actor_of(Anonymous(), "anna") == "anonymous"


@pytest.mark.parametrize("claimed", ["", "x" * 129, "a\nb", "a\x1b[31m"])
def test_actor_must_be_a_name(claimed: str) -> None:
    with pytest.raises(InvalidInput, match="X-Pannier-Actor"):
        actor_of(NodeCaller("node2"), claimed)


@pytest.mark.parametrize(
    ("kind", "actor"), [("user", "anna"), ("local", "local"), ("node", "mallory")]
)
async def test_actor_header_reaches_the_use_case_from_nodes_only(
    client: TestClient[web.Request, web.Application], kind: str, actor: str
) -> None:
    await client.post(
        "/v1/volumes",
        json={"name": "data"},
        headers={"X-Test-Caller": kind, ACTOR_HEADER: "mallory"},
    )
    assert client.cluster.calls == [  # type: ignore[attr-defined]
        NotedCall("create_volume", "data", actor)
    ]


async def test_peer_is_the_certificates_name_whatever_the_request_says(
    client: TestClient[web.Request, web.Application],
) -> None:
    await client.get(
        "/v1/peer/node", headers={"X-Test-Caller": "node", ACTOR_HEADER: "node3", "Host": "node3"}
    )
    assert [call.peer for call in client.cluster.calls] == ["node2"]  # type: ignore[attr-defined]


async def test_identify_may_refuse() -> None:
    def refuse(request: web.Request) -> Caller:
        raise Denied("the certificate of node/node2 is not accepted any more")

    cluster = FakeCluster()
    application = build_application(cluster.by, peers=cluster.by_node, identify=refuse)
    async with TestClient(TestServer(application)) as client:
        answer = await client.get("/v1/peer/node")
        assert answer.status == 403
        assert "not accepted any more" in (await answer.json())["message"]


def test_callers_in_words() -> None:
    assert [describe_caller(caller) for caller in CALLERS.values()] == [
        "anonymous",
        "user/anna",
        "local",
        "node/node2",
    ]
