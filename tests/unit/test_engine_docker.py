"""The Docker engine's client against answers that a real engine gives rarely, or never should."""

from __future__ import annotations

import asyncio
import json
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from aiohttp import web

from pannier.core.errors import EngineUnavailable
from pannier.engine.base import Container
from pannier.engine.docker import DockerEngine


class Stub:
    """Answers each path with what a test puts there: JSON, bytes, or a function."""

    def __init__(self, socket: Path) -> None:
        self.socket = socket
        self.answers: dict[str, Any] = {}
        self.asked: list[str] = []

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        self.asked.append(request.path_qs)
        answer = self.answers[request.path]
        if callable(answer):
            answer = await answer(request)
        if isinstance(answer, web.StreamResponse):
            return answer
        if isinstance(answer, bytes):
            return web.Response(body=answer)
        return web.json_response(answer)


@pytest.fixture
async def stub() -> AsyncIterator[Stub]:
    with tempfile.TemporaryDirectory(prefix="pannier-engine-") as folder:
        stub = Stub(Path(folder) / "docker.sock")
        runner = web.ServerRunner(web.Server(stub.handle), shutdown_timeout=0.1)
        await runner.setup()
        await web.UnixSite(runner, str(stub.socket)).start()
        yield stub
        await runner.cleanup()


@pytest.fixture
async def engine(stub: Stub) -> AsyncIterator[DockerEngine]:
    engine = DockerEngine(
        stub.socket, timeout_seconds=0.3, activate_seconds=0.3, retry_seconds=0.01
    )
    yield engine
    await engine.close()


def entry(name: str, **changes: Any) -> dict[str, Any]:
    mount = {"Type": "volume", "Name": "v1", "Driver": "pannier", "Destination": "/d"}
    return {
        "Id": name * 4,
        "Names": [f"/{name}"],
        "Labels": {},
        "State": "running",
        "Mounts": [mount],
        **changes,
    }


async def test_names_the_service_and_knows_states(stub: Stub, engine: DockerEngine) -> None:
    stub.answers["/containers/json"] = [
        entry("web", Labels={"com.docker.swarm.service.name": "shop"}),
        entry("idle", State="paused", Labels=None),
        entry("dead", State="exited"),
        entry("new", State="created", Names=None),
        entry("linked", State="restarting", Names=["/other/alias", "/linked"]),
    ]
    found = await engine.containers_using("v1")
    assert found == [
        Container(id="web" * 4, name="web", service="shop", running=True),
        Container(id="idle" * 4, name="idle", service=None, running=True),
        Container(id="dead" * 4, name="dead", service=None, running=False),
        Container(id="new" * 4, name="newnewnewnew", service=None, running=False),
        Container(id="linked" * 4, name="linked", service=None, running=True),
    ]
    assert str(found[0]) == "web (service shop)"
    (asked,) = stub.asked
    assert "all=1" in asked
    assert "filters=" in asked


async def test_another_driver_s_volume_of_the_name_is_not_ours(
    stub: Stub, engine: DockerEngine
) -> None:
    local = {"Type": "volume", "Name": "v1", "Driver": "local"}
    bind = {"Type": "bind", "Source": "/v1", "Destination": "v1"}
    longer = {"Type": "volume", "Name": "v11", "Driver": "pannier"}
    stub.answers["/containers/json"] = [
        entry("a", Mounts=[local]),
        entry("b", Mounts=[bind, longer]),
        entry("c", Mounts=None),
    ]
    assert await engine.containers_using("v1") == []


async def test_an_activation_that_had_no_effect_is_an_error(
    stub: Stub, engine: DockerEngine
) -> None:
    stub.answers["/volumes"] = {"Volumes": [], "Warnings": None}
    stub.answers["/info"] = {"Plugins": {"Volume": ["local"]}}
    with pytest.raises(EngineUnavailable, match="does not list the plugin"):
        await engine.activate_plugin()
    stub.answers["/info"] = {"Plugins": {"Volume": ["local", "pannier"]}}
    await engine.activate_plugin()
    (filters,) = parse_qs(urlsplit(stub.asked[0]).query)["filters"]
    assert json.loads(filters) == {"driver": ["pannier"]}


@pytest.mark.parametrize("answer", [b"", b"not json", b"[]", b'{"Plugins": 1}', b"\xff"])
async def test_an_answer_that_is_none_is_an_error(
    stub: Stub, engine: DockerEngine, answer: bytes
) -> None:
    stub.answers["/info"] = answer
    with pytest.raises(EngineUnavailable, match="not its") as caught:
        await engine.plugin_active()
    assert caught.value.remedy
    assert str(stub.socket) in str(caught.value)


@pytest.mark.parametrize(
    ("body", "shown"), [(b'{"message": "no space left"}', "no space left"), (b"\xffoops", "oops")]
)
async def test_the_engine_s_own_words_are_told(
    stub: Stub, engine: DockerEngine, body: bytes, shown: str
) -> None:
    async def refuse(_: web.BaseRequest) -> web.Response:
        return web.Response(status=500, body=body)

    stub.answers["/info"] = refuse
    with pytest.raises(EngineUnavailable, match=f"answered 500 to /info.*{shown}"):
        await engine.plugin_active()


async def test_an_engine_that_hangs_is_given_up(stub: Stub, engine: DockerEngine) -> None:
    async def hang(_: web.BaseRequest) -> None:
        await asyncio.Event().wait()

    stub.answers["/version"] = hang
    with pytest.raises(EngineUnavailable, match=r"did not answer /version within 0\.3 s"):
        await engine.version()


async def test_an_engine_that_hangs_up_is_unavailable(stub: Stub, engine: DockerEngine) -> None:
    async def hang_up(request: web.BaseRequest) -> web.Response:
        assert request.transport is not None
        request.transport.close()
        return web.Response()

    stub.answers["/version"] = hang_up
    with pytest.raises(EngineUnavailable, match="cannot be reached"):
        await engine.version()


async def test_an_id_cannot_lead_elsewhere(stub: Stub, engine: DockerEngine) -> None:
    async def missing(_: web.BaseRequest) -> web.Response:
        return web.Response(status=404)

    stub.answers["/containers/../info?x/json"] = missing
    assert await engine.container("../info?x") is None
    assert stub.asked == ["/containers/..%2Finfo%3Fx/json"]


async def test_works_again_after_it_was_closed(stub: Stub, engine: DockerEngine) -> None:
    stub.answers["/version"] = {"Version": "26.1.5"}
    assert await engine.version() == "26.1.5"
    await engine.close()
    assert await engine.version() == "26.1.5"


async def test_starts_are_told_through_refusals_and_hang_ups(
    stub: Stub, engine: DockerEngine
) -> None:
    answers = iter([web.Response(status=503), web.Response(), web.Response(status=500), None])

    async def events(request: web.BaseRequest) -> web.StreamResponse:
        answer = next(answers)
        if answer is not None:
            return answer
        stream = web.StreamResponse()
        await stream.prepare(request)
        await stream.write(b'{"Type":"daemon"}\n' * 5000)
        await asyncio.Event().wait()
        return stream

    stub.answers["/events"] = events
    starts = engine.starts()
    await anext(starts)  # the second answer, which ends at once
    await anext(starts)  # the fourth
    assert len(stub.asked) == 4
    more = asyncio.ensure_future(anext(starts))
    await asyncio.wait([more], timeout=0.05)
    assert not more.done()
    more.cancel()
    await asyncio.wait([more])
