"""The server: routes, strict reading, errors and streams, over real HTTP."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

from pannier.api.caller import Caller, LocalCaller, NodeCaller
from pannier.api.ndjson import LineReader
from pannier.api.routes import ROUTES
from pannier.api.server import BODY_LIMIT_BYTES, build_application
from pannier.contract.views import EventView, MoveProgress
from pannier.contract.words import EventKind, MovePhase
from pannier.core.errors import PannierError, StoreUnavailable
from pannier.testing.api import FakeCluster

Client = TestClient[web.Request, web.Application]


def identify(request: web.Request) -> Caller:
    return NodeCaller("node2") if request.path.startswith("/v1/peer") else LocalCaller()


@pytest.fixture
def cluster() -> FakeCluster:
    return FakeCluster()


@pytest.fixture
async def client(cluster: FakeCluster) -> AsyncIterator[Client]:
    application = build_application(
        cluster.by, peers=cluster.by_node, identify=identify, keepalive_seconds=0.05
    )
    async with TestClient(TestServer(application)) as client:
        yield client


async def ask(client: Client, method: str, path: str, body: Any = None) -> tuple[int, Any]:
    answer = await client.request(method, path, json=body)
    text = await answer.text()
    if answer.content_type == "application/x-ndjson":
        return answer.status, [json.loads(line) for line in text.splitlines() if line]
    return answer.status, json.loads(text) if text else None


def test_no_name_and_no_path_is_there_twice() -> None:
    assert len({route.name for route in ROUTES}) == len(ROUTES)
    assert len({(route.method, route.path) for route in ROUTES}) == len(ROUTES)


async def test_life_of_a_volume(client: Client) -> None:
    order = {"name": "data", "options": {"size": "10G"}}
    status, volume = await ask(client, "POST", "/v1/volumes", order)
    assert (status, volume["name"], volume["options"]) == (201, "data", {"size": "10G"})
    status, volumes = await ask(client, "GET", "/v1/volumes")
    assert (status, [each["name"] for each in volumes]) == (200, ["data"])
    status, volume = await ask(client, "GET", "/v1/volumes/data")
    assert (status, volume["generation"]) == (200, "1.1")
    status, lines = await ask(client, "POST", "/v1/volumes/data/move", {"node": "node2"})
    assert status == 200
    assert [line["phase"] for line in lines] == ["copying", "copying", "switching", "done"]
    status, events = await ask(client, "GET", "/v1/volumes/data/history")
    assert (status, [each["kind"] for each in events]) == (200, ["volume.created", "volume.moved"])
    status, trashed = await ask(client, "DELETE", "/v1/volumes/data")
    assert (status, trashed["id"]) == (200, "id-data")
    assert (await ask(client, "GET", "/v1/trash"))[1] == [trashed]
    status, volume = await ask(client, "POST", "/v1/trash/id-data/restore")
    assert (status, volume["name"]) == (200, "data")
    assert (await ask(client, "POST", "/v1/volumes/data/clean", {"paths": ["old"]}))[0] == 204
    assert (await ask(client, "POST", "/v1/volumes/data/clean", {"paths": []}))[0] == 400
    await ask(client, "DELETE", "/v1/volumes/data")
    assert (await ask(client, "DELETE", "/v1/trash/data"))[0] == 200
    assert (await ask(client, "DELETE", "/v1/trash/data"))[0] == 404
    assert await ask(client, "DELETE", "/v1/trash") == (200, [])


async def test_nodes_tokens_and_the_rest(client: Client, cluster: FakeCluster) -> None:
    assert (await ask(client, "GET", "/v1/status"))[1]["cluster"] == "test"
    assert len((await ask(client, "GET", "/v1/nodes"))[1]) == 3
    assert (await ask(client, "GET", "/v1/nodes/node1"))[1]["name"] == "node1"
    status, node = await ask(client, "PATCH", "/v1/nodes/node1", {"drained": True})
    assert (status, node["state"]) == (200, "drained")
    assert await ask(client, "DELETE", "/v1/nodes/node3") == (204, None)
    status, token = await ask(client, "POST", "/v1/tokens", {"ttl_seconds": 60, "uses": 2})
    assert (status, token["uses"]) == (201, 2)
    assert await ask(client, "GET", "/v1/doctor") == (200, [])
    join = {"token": token["token"], "name": "node4", "address": "::1", "csr": "x", "version": "1"}
    assert (await ask(client, "POST", "/v1/join", join))[1]["cluster"] == "test"
    assert [call.operation for call in cluster.calls] == [
        "drain_node",
        "remove_node",
        "create_token",
    ]


async def test_peer_routes(client: Client, cluster: FakeCluster) -> None:
    assert (await ask(client, "GET", "/v1/peer/node"))[1]["name"] == "node1"
    order: dict[str, object] = {"name": "data", "options": {}, "actor": "anna"}
    assert (await ask(client, "POST", "/v1/peer/volumes", order))[0] == 201
    assert (await ask(client, "GET", "/v1/peer/volumes/data"))[1]["used_bytes"] == 4096
    order = {"node": "node3", "wait_seconds": 5, "actor": "anna"}
    status, lines = await ask(client, "POST", "/v1/peer/volumes/data/move", order)
    assert (status, lines[-1]["phase"]) == (200, "done")
    status, reply = await ask(client, "POST", "/v1/peer/volumes/data/handover", {"epoch": 2})
    assert reply == {"state": "given", "in_use_by": [], "sent_bytes": 0}
    order = {"volume_id": "id-data", "actor": "anna"}
    assert await ask(client, "POST", "/v1/peer/volumes/data/remove", order) == (204, None)
    peers = [call for call in cluster.calls if call.operation.startswith("peer")]
    assert {call.peer for call in peers} == {"node2"}
    assert {call.actor for call in peers} == {"anna", ""}


BAD_BODIES = [
    ("not JSON", b"drained=true", "malformed"),
    ("empty", b"", "truncated"),
    ("not an object", b"[true]", "Expected `object`"),
    ("wrong type", b'{"drained": "yes"}', "Expected `bool`, got `str`"),
    ("number for a boolean", b'{"drained": 1}', "Expected `bool`, got `int`"),
    ("missing field", b"{}", "missing required field `drained`"),
    ("unknown field", b'{"drained": true, "force": true}', "unknown field `force`"),
    ("trailing data", b'{"drained": true} {}', "malformed"),
    ("not UTF-8", b'{"\xff": true}', "utf-8"),
    ("deeply nested", b"[" * 60_000, "Expected `object`"),
]


@pytest.mark.parametrize(
    ("content", "words"), [case[1:] for case in BAD_BODIES], ids=[case[0] for case in BAD_BODIES]
)
async def test_bodies_are_read_strictly(
    client: Client, cluster: FakeCluster, content: bytes, words: str
) -> None:
    answer = await client.patch("/v1/nodes/node1", data=content)
    error = await answer.json()
    assert (answer.status, error["code"]) == (400, "invalid-input")
    assert words.lower() in error["message"].lower()
    assert "PATCH /v1/nodes/{node}" in error["message"]
    assert cluster.calls == []


async def test_content_type_does_not_matter(client: Client) -> None:
    answer = await client.patch(
        "/v1/nodes/node1", data=b'{"drained": true}', headers={"Content-Type": "text/plain"}
    )
    assert answer.status == 200


async def test_large_body_is_refused(client: Client) -> None:
    answer = await client.post("/v1/volumes", data=b" " * (BODY_LIMIT_BYTES + 1))
    assert (answer.status, (await answer.json())["code"]) == (413, "invalid-input")


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", "/v1/volumes", {"name": "-x"}),
        ("POST", "/v1/volumes", {"name": "a" * 129}),
        ("POST", "/v1/volumes", {"name": "data", "options": {"size": 5}}),
        ("POST", "/v1/volumes", {"name": "data", "options": {"sise": "5G"}}),
        ("POST", "/v1/volumes/data/move", {"node": "node_2"}),
        ("POST", "/v1/volumes/data/move", {"node": "node2", "wait_seconds": -1}),
        ("POST", "/v1/tokens", {"uses": 0}),
        ("POST", "/v1/tokens", {"ttl_seconds": 0}),
        ("GET", "/v1/volumes/..%2Fetc", None),
        ("GET", "/v1/volumes/%00a", None),
        ("GET", "/v1/nodes/a_b", None),
        ("GET", "/v1/events?follow=yes", None),
        ("GET", "/v1/events?follow=true&follow=false", None),
        ("GET", "/v1/events?folow=true", None),
        ("GET", "/v1/volumes?limit=1", None),
    ],
)
async def test_what_cannot_be_is_refused(client: Client, method: str, path: str, body: Any) -> None:
    status, error = await ask(client, method, path, body)
    assert (status, error["code"]) == (400, "invalid-input")
    assert error["remedy"]


async def test_errors_carry_code_message_remedy_and_status(client: Client) -> None:
    status, error = await ask(client, "GET", "/v1/volumes/none")
    assert status == 404
    assert error == {
        "code": "volume-not-found",
        "message": "there is no volume none",
        "remedy": "'pannier volume ls' shows what there is",
    }


async def test_unknown_path_and_wrong_method(client: Client) -> None:
    status, error = await ask(client, "GET", "/v1/volume")
    assert (status, error["code"]) == (404, "not-found")
    answer = await client.put("/v1/volumes/data")
    assert (answer.status, answer.headers["Allow"]) == (405, "DELETE,GET,PATCH")
    assert (await answer.json())["code"] == "invalid-input"


async def test_unexpected_errors_tell_nothing(
    client: Client, cluster: FakeCluster, capsys: pytest.CaptureFixture[str]
) -> None:
    cluster.failing["status"] = RuntimeError("the password is hunter2")
    status, error = await ask(client, "GET", "/v1/status")
    assert (status, error["code"]) == (500, "internal")
    assert "hunter2" not in json.dumps(error)
    reference = error["message"].split("reference ")[1].rstrip(")")
    logged = capsys.readouterr().out
    assert reference in logged
    assert "hunter2" in logged


async def test_stream_that_fails_before_its_first_line_is_an_ordinary_error(client: Client) -> None:
    status, error = await ask(client, "POST", "/v1/volumes/none/move", {"node": "node2"})
    assert (status, error["code"]) == (404, "volume-not-found")


class Scripted(FakeCluster):
    """Yields what a test puts in, and tells whether its generator was closed."""

    script: list[Any]
    closed: asyncio.Event

    async def move_volume(
        self, name: str, node: str, *, wait_seconds: float
    ) -> AsyncGenerator[MoveProgress, None]:
        try:
            # As an implementation may: a timeout belongs to the task in which it was entered.
            async with asyncio.timeout(30):
                for step in self.script:
                    if isinstance(step, Exception):
                        raise step
                    if isinstance(step, float):
                        await asyncio.sleep(step)
                    else:
                        yield step
        finally:
            self.closed.set()


COPYING = MoveProgress(phase=MovePhase.COPYING, volume="data", source="node1", target="node2")


@pytest.fixture
def cluster_with_script() -> Scripted:
    cluster = Scripted()
    cluster.script = []
    cluster.closed = asyncio.Event()
    return cluster


@pytest.fixture
async def scripted(cluster_with_script: Scripted) -> AsyncIterator[Client]:
    application = build_application(
        cluster_with_script.by,
        peers=cluster_with_script.by_node,
        identify=identify,
        keepalive_seconds=0.02,
    )
    async with TestClient(TestServer(application)) as client:
        yield client


async def test_stream_that_fails_later_ends_with_the_error(
    scripted: Client, cluster_with_script: Scripted
) -> None:
    cluster_with_script.script = [COPYING, StoreUnavailable("etcd is away", remedy="wait")]
    status, lines = await ask(scripted, "POST", "/v1/volumes/data/move", {"node": "node2"})
    assert status == 200
    assert lines[0]["phase"] == "copying"
    assert lines[1] == {"code": "store-unavailable", "message": "etcd is away", "remedy": "wait"}


async def test_unexpected_error_in_a_stream_tells_nothing(
    scripted: Client, cluster_with_script: Scripted
) -> None:
    cluster_with_script.script = [COPYING, RuntimeError("hunter2")]
    _, lines = await ask(scripted, "POST", "/v1/volumes/data/move", {"node": "node2"})
    assert lines[-1]["code"] == "internal"
    assert "hunter2" not in json.dumps(lines)


async def test_silent_stream_shows_life(scripted: Client, cluster_with_script: Scripted) -> None:
    cluster_with_script.script = [0.1, COPYING, 0.1]
    answer = await scripted.post("/v1/volumes/data/move", json={"node": "node2"})
    lines = (await answer.text()).splitlines()
    position = next(number for number, line in enumerate(lines) if line)
    assert position >= 1
    assert len(lines) > position + 2


async def test_source_is_closed_when_the_reader_goes(
    scripted: Client, cluster_with_script: Scripted
) -> None:
    cluster_with_script.script = [COPYING, 30.0]
    answer = await scripted.post("/v1/volumes/data/move", json={"node": "node2"})
    await answer.content.readline()
    answer.close()
    await asyncio.wait_for(cluster_with_script.closed.wait(), 5)


async def test_stopping_server_tells_the_readers(
    scripted: Client, cluster_with_script: Scripted
) -> None:
    cluster_with_script.script = [COPYING, 30.0]
    answer = await scripted.post("/v1/volumes/data/move", json={"node": "node2"})
    await answer.content.readline()
    reading = asyncio.create_task(answer.text())
    await asyncio.wait_for(scripted.server.close(), 5)
    last = [json.loads(line) for line in (await reading).splitlines() if line][-1]
    assert last["code"] == "unavailable"
    assert cluster_with_script.closed.is_set()


async def test_events_follow(client: Client, cluster: FakeCluster) -> None:
    await ask(client, "POST", "/v1/volumes", {"name": "data"})
    answer = await client.get("/v1/events?follow=true")
    assert json.loads(await answer.content.readline())["kind"] == "volume.created"
    event = EventView(at="now", kind=EventKind.NODE_DOWN, subject="node2", node="node1")
    await cluster.more_events.put(event)
    line = b"\n"
    while not line.strip():
        line = await answer.content.readline()
    assert json.loads(line)["kind"] == "node.down"
    answer.close()


def test_lines_from_chunks() -> None:
    reader = LineReader(limit_bytes=10)
    assert reader.feed(b'{"a"') == []
    assert reader.feed(b':1}\n\n{"b":2}\n{') == [b'{"a":1}', b'{"b":2}']
    with pytest.raises(PannierError, match="more than 10 bytes"):
        reader.feed(b"x" * 10)
