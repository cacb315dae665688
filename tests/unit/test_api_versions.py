"""What nodes exchange outlives versions: files of it decode for ever, and newer nodes are understood.

A file in ``golden/peers`` is what a node of some version sent. It is never changed: when a type grows, the file
stays, and another one with the new field comes beside it (``NAME.WHAT.json``).
"""

from __future__ import annotations

import json
import types
import typing
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

from pannier.api.caller import Caller, NodeCaller
from pannier.api.client import PeerClient
from pannier.api.connection import UnixEndpoint
from pannier.api.listen import serve_unix
from pannier.api.server import build_application
from pannier.contract.bodies import JoinOrder
from pannier.contract.operation import API_HEADER, API_VERSION
from pannier.contract.operations import OPERATIONS
from pannier.contract.peers import PEER_OPERATIONS
from pannier.contract.views import BackupView, ErrorView, JoinReply
from pannier.contract.words import HandoverState, MovePhase, NodeState, Word
from pannier.core.errors import PannierError, PeerUnavailable
from pannier.testing.api import FakeCluster

GOLDEN = Path(__file__).parent / "golden" / "peers"
FILES = sorted(GOLDEN.glob("*.json"))


def _parts(kind: Any) -> list[type]:
    """The classes of ours that make up an answer's type."""
    if typing.get_origin(kind) in (list, types.UnionType, typing.Union):
        return [part for each in typing.get_args(kind) for part in _parts(each)]
    return [] if kind is None or kind is str else [kind]


EXCHANGED: dict[str, type] = {
    kind.__name__: kind
    for row in PEER_OPERATIONS.rows
    for kind in (*_parts(row.answer), *_parts(row.body))
} | {kind.__name__: kind for kind in (JoinOrder, JoinReply, ErrorView, BackupView)}


def _kind(file: Path) -> type:
    return EXCHANGED[file.name.split(".")[0]]


def _everywhere(value: Any, change: Callable[[dict[str, Any]], None]) -> Any:
    """``value`` with every object in it changed, but for mappings of free names."""
    if isinstance(value, dict):
        for name, each in value.items():
            if name not in ("options", "volumes", "counts", "ages", "labels"):
                _everywhere(each, change)
        change(value)
    elif isinstance(value, list):
        for each in value:
            _everywhere(each, change)
    return value


def _without_more(value: Any, sent: Any) -> Any:
    """``value`` without the fields that its type has got since ``sent``."""
    if isinstance(value, dict) and isinstance(sent, dict):
        return {name: _without_more(value[name], sent[name]) for name in sent if name in value}
    if isinstance(value, list) and isinstance(sent, list):
        return [_without_more(*pair) for pair in zip(value, sent, strict=True)]
    return value


def test_all_that_nodes_exchange_has_a_file() -> None:
    assert {file.name.split(".")[0] for file in FILES} == set(EXCHANGED)
    assert {row.name for row in OPERATIONS.rows if row.body is JoinOrder} == {"join"}


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_what_was_sent_once_is_understood_and_sent_as_it_was(file: Path) -> None:
    value: object = msgspec.json.decode(file.read_bytes(), type=_kind(file))
    again = json.loads(msgspec.json.encode(value))
    sent = json.loads(file.read_text("utf-8"))
    assert _without_more(again, sent) == sent


def test_an_answer_of_several_kinds_says_which_it_is() -> None:
    answer = next(row.answer for row in PEER_OPERATIONS.rows if row.name == "peer_volume")
    for kind in _parts(answer):
        content = (GOLDEN / f"{kind.__name__}.json").read_bytes()
        assert type(msgspec.json.decode(content, type=answer)) is kind


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_fields_that_a_newer_node_adds_are_ignored(file: Path) -> None:
    sent = json.loads(file.read_text("utf-8"))
    value: object = msgspec.json.decode(file.read_bytes(), type=_kind(file))
    newer = _everywhere(sent, lambda each: each.update(tomorrow={"deep": [1, None]}))
    assert msgspec.json.decode(json.dumps(newer), type=_kind(file)) == value


WORDS = {"phase", "state", "holder_state", "way"}


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_words_of_a_newer_node_are_kept(file: Path) -> None:
    sent = json.loads(file.read_text("utf-8"))

    def say(each: dict[str, Any]) -> None:
        each.update(dict.fromkeys(WORDS & each.keys(), "tomorrow's"))

    newer = _everywhere(sent, say)
    value: object = msgspec.json.decode(json.dumps(newer), type=_kind(file))
    assert _without_more(json.loads(msgspec.json.encode(value)), newer) == newer


def test_a_word_that_is_not_known_is_none_of_those_that_are() -> None:
    word = MovePhase("resting")
    assert (str(word), word.known, MovePhase.DONE.known) == ("resting", False, True)
    assert word not in set(MovePhase)
    assert word == MovePhase("resting")
    with pytest.raises(ValueError, match="5 is not a valid"):
        MovePhase(5)  # type: ignore[arg-type]  # what is no word at all


def test_every_state_in_a_view_is_a_word() -> None:
    """A plain enum there would make a newer node's answer unreadable."""
    for kind in EXCHANGED.values():
        hints = typing.get_type_hints(kind)
        for name in WORDS & hints.keys():
            assert issubclass(hints[name], Word), (kind, name)


# Over HTTP


@pytest.fixture
def cluster() -> FakeCluster:
    return FakeCluster()


def identify(request: web.Request) -> Caller:
    return NodeCaller("node2")


@pytest.fixture
async def http(cluster: FakeCluster) -> AsyncIterator[TestClient[web.Request, web.Application]]:
    application = build_application(cluster.by, peers=cluster.by_node, identify=identify)
    async with TestClient(TestServer(application)) as client:
        yield client


async def test_a_newer_nodes_request_is_understood(
    http: TestClient[web.Request, web.Application], cluster: FakeCluster
) -> None:
    await cluster.create_volume("data", {})
    answer = await http.post(
        "/v1/peer/volumes/data/handover",
        json={"epoch": 1, "urgency": "high"},
        headers={API_HEADER: "2"},
    )
    assert answer.status == 200
    assert (await answer.json())["state"] == HandoverState.GIVEN
    assert answer.headers[API_HEADER] == str(API_VERSION)


async def test_a_persons_request_with_a_field_more_is_refused(
    http: TestClient[web.Request, web.Application],
) -> None:
    answer = await http.post("/v1/volumes", json={"name": "data", "optoins": {}})
    assert answer.status == 400
    assert "optoins" in (await answer.json())["message"]


@pytest.mark.parametrize("version", ["0", "-1", "1.5", "new", "9" * 30])
async def test_what_is_no_version_is_refused(
    http: TestClient[web.Request, web.Application], version: str
) -> None:
    answer = await http.get("/v1/peer/node", headers={API_HEADER: version})
    assert answer.status == 400
    assert API_HEADER in (await answer.json())["message"]


async def test_errors_and_streams_say_the_version_too(
    http: TestClient[web.Request, web.Application],
) -> None:
    for path in ("/v1/nothing", "/v1/volumes/none", "/v1/events"):
        answer = await http.get(path)
        assert answer.headers[API_HEADER] == str(API_VERSION), path


def _newer(answer: Any) -> Any:
    async def handle(request: web.Request) -> web.Response:
        assert request.headers[API_HEADER] == str(API_VERSION)
        return web.json_response(answer, headers={API_HEADER: "2"})

    application = web.Application()
    application.router.add_get("/v1/peer/node", handle)
    return application


async def test_a_newer_nodes_answer_is_understood(tmp_path: Path) -> None:
    told = json.loads((GOLDEN / "NodeView.json").read_text("utf-8"))
    application = _newer({**told, "state": "resting", "mood": "good"})
    path = tmp_path / "api.sock"
    async with serve_unix(application, path=path), PeerClient(UnixEndpoint(path)) as peer:
        view = await peer.peer_node()
    assert view.state == "resting"
    assert not view.state.known
    assert view.state is not NodeState.UP


async def test_an_answer_that_cannot_be_read_tells_of_the_versions(tmp_path: Path) -> None:
    path = tmp_path / "api.sock"
    async with serve_unix(_newer([]), path=path), PeerClient(UnixEndpoint(path)) as peer:
        with pytest.raises(PeerUnavailable, match="speaks version 2 of the API") as caught:
            await peer.peer_node()
    assert isinstance(caught.value, PannierError)
