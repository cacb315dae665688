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

from pannier.core.errors import Conflict, EngineUnavailable, OutcomeUnknown, Stale
from pannier.core.swarm import Availability, Resources, SwarmMember
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
    engine = DockerEngine(stub.socket, retry_seconds=0.01)
    yield engine
    await engine.close()


@pytest.fixture
async def impatient(stub: Stub) -> AsyncIterator[DockerEngine]:
    """For what never answers; on a busy machine an answer can take longer than this waits."""
    engine = DockerEngine(stub.socket, timeout_seconds=0.3, swarm_seconds=0.3)
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


async def test_an_engine_that_hangs_is_given_up(stub: Stub, impatient: DockerEngine) -> None:
    async def hang(_: web.BaseRequest) -> None:
        await asyncio.Event().wait()

    stub.answers["/version"] = hang
    with pytest.raises(EngineUnavailable, match=r"did not answer /version within 0\.3 s"):
        await impatient.version()


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


# -- facts and the Swarm ----------------------------------------------------------------------------


async def test_a_newer_engine_tells_libseccomp_s_version(stub: Stub, engine: DockerEngine) -> None:
    features = {"annotations": {"io.github.seccomp.libseccomp.version": "2.6.0"}}
    status = {"org.opencontainers.runtime-spec.features": json.dumps(features)}
    runc: dict[str, Any] = {"path": "runc", "status": status}
    info: dict[str, Any] = {
        "Plugins": {"Volume": []},
        "DefaultRuntime": "pannier",
        "Runtimes": {"runc": runc, "pannier": {"path": "/usr/local/bin/pannier-runtime"}},
        "KernelVersion": "6.12.1",
    }
    stub.answers["/info"] = info
    stub.answers["/version"] = {
        "Version": "26.1.5",
        "Components": [
            {"Name": "Engine", "Version": "26.1.5"},
            {"Name": "runc", "Version": "1.1.15"},
        ],
    }
    facts = await engine.facts()
    assert (facts.version, facts.runc, facts.libseccomp) == ("26.1.5", "1.1.15", "2.6.0")
    assert (facts.kernel, facts.default_runtime) == ("6.12.1", "pannier")
    assert facts.runtimes == {"runc": "runc", "pannier": "/usr/local/bin/pannier-runtime"}
    for unknown in (None, {}, {"org.opencontainers.runtime-spec.features": "not json"}):
        runc["status"] = unknown
        assert (await engine.facts()).libseccomp is None


@pytest.mark.parametrize(
    ("swarm", "member"),
    [
        ({"LocalNodeState": "inactive", "NodeID": ""}, None),
        (
            {"LocalNodeState": "active", "NodeID": "n1", "ControlAvailable": True},
            SwarmMember("n1", manager=True),
        ),
        ({"LocalNodeState": "pending", "NodeID": "n1"}, SwarmMember("n1", manager=False)),
    ],
)
async def test_the_place_in_a_swarm(
    stub: Stub, engine: DockerEngine, swarm: dict[str, Any], member: SwarmMember | None
) -> None:
    stub.answers["/info"] = {"Swarm": swarm}
    assert await engine.swarm.member() == member


async def test_a_locked_swarm_is_not_no_swarm(stub: Stub, engine: DockerEngine) -> None:
    stub.answers["/info"] = {"Swarm": {"LocalNodeState": "locked", "NodeID": ""}}
    with pytest.raises(EngineUnavailable, match="a Swarm that is locked"):
        await engine.swarm.member()


def refusing(text: str, status: int) -> Any:
    async def refuse(_: web.BaseRequest) -> web.Response:
        return web.json_response({"message": text}, status=status)

    return refuse


async def test_a_worker_is_told_from_a_manager_without_a_leader(
    stub: Stub, engine: DockerEngine
) -> None:
    worker = (
        "This node is not a swarm manager. Worker nodes can't be used to view or modify cluster"
    )
    stub.answers["/nodes"] = refusing(worker, 503)
    with pytest.raises(Conflict) as caught:
        await engine.swarm.nodes()
    assert not isinstance(caught.value, EngineUnavailable)
    stub.answers["/nodes"] = refusing("rpc error: The swarm does not have a leader.", 503)
    with pytest.raises(EngineUnavailable, match="does not have a leader"):
        await engine.swarm.nodes()


RAW_NODE: dict[str, Any] = {
    "ID": "n1",
    "Version": {"Index": 7},
    "Spec": {"Name": "kept", "Role": "worker", "Availability": "active", "Labels": {"a": "b"}},
    "Description": {"Hostname": "one", "Platform": {"OS": "linux", "Architecture": "x86_64"}},
    "Status": {"State": "unknown"},
}


async def test_what_services_reserve_and_publish_is_told(stub: Stub, engine: DockerEngine) -> None:
    half = {"Reservations": {"NanoCPUs": 500000000, "MemoryBytes": 1024}}
    ports = [
        {"Protocol": "udp", "TargetPort": 53, "PublishedPort": 5353, "PublishMode": "host"},
        {"Protocol": "tcp", "TargetPort": 80, "PublishedPort": 8080, "PublishMode": "ingress"},
    ]
    template = {"ContainerSpec": {"Image": "x"}, "Resources": half}
    spec = {"Name": "dns", "TaskTemplate": template, "EndpointSpec": {"Ports": ports}}
    stub.answers["/services"] = [{"ID": "s1", "Version": {"Index": 1}, "Spec": spec}]
    stub.answers["/tasks"] = [{"ID": "t1", "ServiceID": "s1", "Spec": template}, {"ID": "t2"}]
    whole = {"NanoCPUs": 2000000000, "MemoryBytes": 4096}
    stub.answers["/nodes"] = [
        RAW_NODE,
        {**RAW_NODE, "Description": {"Hostname": "two", "Resources": whole}},
    ]
    (service,) = await engine.swarm.services()
    assert (service.reserved, service.host_ports) == (Resources(500000000, 1024), ("5353/udp",))
    assert [task.reserved for task in await engine.swarm.tasks()] == [
        Resources(500000000, 1024),
        Resources(),
    ]
    nodes = await engine.swarm.nodes()
    assert [node.resources for node in nodes] == [None, Resources(2000000000, 4096)]


async def test_a_change_of_a_node_sends_back_what_is_not_ours(
    stub: Stub, engine: DockerEngine
) -> None:
    sent: list[Any] = []

    async def update(request: web.BaseRequest) -> web.Response:
        sent.append(await request.json())
        return web.Response()

    stub.answers["/nodes"] = [RAW_NODE]
    stub.answers["/nodes/n1"] = RAW_NODE
    stub.answers["/nodes/n1/update"] = update
    (node,) = await engine.swarm.nodes()
    assert (node.state, node.leader, node.labels) == ("unknown", False, {"a": "b"})
    await engine.swarm.update_node(node, availability=Availability.DRAIN)
    await engine.swarm.update_node(node, labels={})
    spec = RAW_NODE["Spec"]
    assert sent == [{**spec, "Availability": "drain"}, {**spec, "Labels": {}}]
    assert stub.asked[-1] == "/nodes/n1/update?version=7"


async def test_a_change_without_an_answer_may_have_been_made(
    stub: Stub, engine: DockerEngine, impatient: DockerEngine
) -> None:
    async def hang(_: web.BaseRequest) -> None:
        await asyncio.Event().wait()

    stub.answers["/nodes"] = [RAW_NODE]
    stub.answers["/nodes/n1"] = RAW_NODE
    (node,) = await engine.swarm.nodes()
    stub.answers["/nodes/n1/update"] = hang
    with pytest.raises(OutcomeUnknown):
        await impatient.swarm.update_node(node)
    stub.answers["/nodes/n1/update"] = refusing("rpc error: update out of sequence", 500)
    with pytest.raises(Stale):
        await engine.swarm.update_node(node)
    stub.answers["/nodes/n1/update"] = refusing("rpc error: no space", 500)
    with pytest.raises(EngineUnavailable, match="no space"):
        await engine.swarm.update_node(node)
    stub.answers["/nodes/n1"] = hang
    with pytest.raises(EngineUnavailable):
        await impatient.swarm.update_node(node)
