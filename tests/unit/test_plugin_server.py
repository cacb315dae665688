"""The plugin socket: what Docker sends, what garbage does, deadlines and hang-ups."""

from __future__ import annotations

import asyncio
import json
import socket
import tempfile
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from pannier.contract.docker_volumes import DockerVolume
from pannier.core.errors import InvalidInput, StoreUnavailable, VolumeInUse, VolumeNotFound
from pannier.host.activation import unix_listener
from pannier.plugin.endpoints import ENDPOINTS
from pannier.plugin.server import Deadlines, PluginServer

ID = "a" * 64


class Volumes:
    """Volumes in a dictionary, with hooks to make calls wait and fail."""

    def __init__(self) -> None:
        self.known: dict[str, dict[str, str]] = {}
        self.mounts: list[tuple[str, str]] = []
        self.abandoned: asyncio.Queue[tuple[str, str]] = asyncio.Queue()
        self.hold: asyncio.Event | None = None
        self.entered: asyncio.Queue[str] = asyncio.Queue()
        self.finished: asyncio.Queue[str] = asyncio.Queue()
        self.failure: BaseException | None = None
        self.deaf = False

    async def _enter(self, what: str) -> None:
        self.entered.put_nowait(what)
        while self.hold is not None and not self.hold.is_set():
            try:
                await self.hold.wait()
            except asyncio.CancelledError:
                if not self.deaf:
                    raise
        if self.failure is not None:
            raise self.failure
        self.finished.put_nowait(what)

    async def create(self, name: str, options: Mapping[str, str]) -> None:
        await self._enter("create")
        self.known[name] = dict(options)

    async def remove(self, name: str) -> None:
        await self._enter("remove")
        self.known.pop(name, None)

    async def mount(self, name: str, mount_id: str) -> Path:
        await self._enter("mount")
        self.mounts.append((name, mount_id))
        return Path("/m") / name

    async def unmount(self, name: str, mount_id: str) -> None:
        await self._enter("unmount")

    async def abandon(self, name: str, mount_id: str) -> None:
        self.abandoned.put_nowait((name, mount_id))

    def get(self, name: str) -> DockerVolume:
        if isinstance(self.failure, Exception):
            raise self.failure
        if name not in self.known:
            raise VolumeNotFound(f"there is no volume {name}", remedy="create it")
        return DockerVolume(
            name=name,
            mountpoint=f"/m/{name}",
            created_at="2026-11-22T00:00:00Z",
            status={"holder": "n1"},
        )

    def list(self) -> list[DockerVolume]:
        return [self.get(name) for name in self.known]


@dataclass
class Rig:
    """A server on a socket, spoken to byte by byte."""

    server: PluginServer
    volumes: Volumes
    ready: asyncio.Event
    path: Path
    listener: socket.socket

    async def open(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_unix_connection(str(self.path))

    async def call(self, endpoint: str, body: Any = b"", **kwargs: Any) -> tuple[int, Any]:
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        reader, writer = await self.open()
        writer.write(request(endpoint, raw, **kwargs))
        status, _, content = await answer(reader)
        writer.close()
        return status, json.loads(content)


def request(
    endpoint: str, body: bytes = b"", *, method: str = "POST", headers: str = "Host: \r\n"
) -> bytes:
    """A request as dockerd 20.10 sends it: an empty Host and no Content-Type."""
    head = f"{method} /{endpoint} HTTP/1.1\r\n{headers}Content-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


async def answer(reader: asyncio.StreamReader) -> tuple[int, dict[str, str], bytes]:
    head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
    headers = dict(line.lower().split(": ", 1) for line in head[1:] if line)
    content = await reader.readexactly(int(headers.get("content-length", "0")))
    return int(head[0].split()[1]), headers, content


@asynccontextmanager
async def serving(*, ready: bool = True, deadlines: Deadlines | None = None) -> AsyncIterator[Rig]:
    gate = asyncio.Event()
    if ready:
        gate.set()
    volumes = Volumes()
    with tempfile.TemporaryDirectory(prefix="pannier-plugin-") as folder:
        path = Path(folder) / "p.sock"
        with unix_listener(path) as listener:
            server = PluginServer(volumes, ready=gate, deadlines=deadlines)
            await server.start(listener.dup())
            try:
                yield Rig(server, volumes, gate, path, listener)
            finally:
                volumes.deaf = False
                await server.stop()


@pytest.fixture
def lines() -> Iterator[list[Any]]:
    with capture_logs() as captured:
        yield captured


# --- the protocol --------------------------------------------------------------------------------


async def test_introduces_itself_to_an_empty_body_and_an_empty_host() -> None:
    async with serving() as rig:
        reader, writer = await rig.open()
        writer.write(request("Plugin.Activate"))
        status, headers, content = await answer(reader)
        assert (status, json.loads(content)) == (200, {"Implements": ["VolumeDriver"]})
        assert headers["content-type"] == "application/vnd.docker.plugins.v1.1+json"
        writer.close()
        reader, writer = await rig.open()
        writer.write(request("VolumeDriver.Capabilities", b"{}"))
        status, _, content = await answer(reader)
        assert json.loads(content) == {"Capabilities": {"Scope": "global"}}
        writer.close()


async def test_a_volume_s_life() -> None:
    async with serving() as rig:
        name = {"Name": "v1"}
        assert (await rig.call("VolumeDriver.Get", name))[0] == 404
        assert await rig.call("VolumeDriver.Create", {**name, "Opts": {"size": "1G"}}) == (
            200,
            {"Err": ""},
        )
        assert rig.volumes.known == {"v1": {"size": "1G"}}
        shown = {
            "Name": "v1",
            "Mountpoint": "/m/v1",
            "CreatedAt": "2026-11-22T00:00:00Z",
            "Status": {"holder": "n1"},
        }
        assert await rig.call("VolumeDriver.Get", name) == (200, {"Volume": shown, "Err": ""})
        assert await rig.call("VolumeDriver.List", {}) == (200, {"Volumes": [shown], "Err": ""})
        mounted = (200, {"Mountpoint": "/m/v1", "Err": ""})
        assert await rig.call("VolumeDriver.Path", name) == mounted
        assert await rig.call("VolumeDriver.Mount", {**name, "ID": ID}) == mounted
        assert await rig.call("VolumeDriver.Unmount", {**name, "ID": ID}) == (200, {"Err": ""})
        assert await rig.call("VolumeDriver.Remove", name) == (200, {"Err": ""})
        assert rig.volumes.abandoned.empty()


@pytest.mark.parametrize(
    "body", [{"Name": "v", "Opts": None}, {"Name": "v"}, {"Name": "v", "X": 1}]
)
async def test_options_may_be_null_or_missing(body: dict[str, Any]) -> None:
    async with serving() as rig:
        assert (await rig.call("VolumeDriver.Create", body))[0] == 200
        assert rig.volumes.known == {"v": {}}


@pytest.mark.parametrize(
    "headers",
    [
        "Host: plugin.moby.localhost\r\n",
        "Host: plugin\r\nContent-Type: application/vnd.docker.plugins.v1.1+json\r\n",
        "Host: x\r\nContent-Type: text/html; charset=utf-7\r\n",
        "Host:\r\nAccept: application/vnd.docker.plugins.v1.2+json\r\n",
    ],
)
async def test_headers_do_not_matter(headers: str) -> None:
    async with serving() as rig:
        assert (await rig.call("VolumeDriver.List", {}, headers=headers))[0] == 200


async def test_parallel_requests_for_one_volume_run_at_once() -> None:
    async with serving() as rig:
        rig.volumes.hold = asyncio.Event()
        bodies = [{"Name": "v", "ID": str(number)} for number in range(8)]
        calls = [asyncio.create_task(rig.call("VolumeDriver.Mount", body)) for body in bodies]
        for _ in calls:
            await rig.volumes.entered.get()
        rig.volumes.known["v"] = {}
        assert (await rig.call("VolumeDriver.Get", {"Name": "v"}))[0] == 200
        rig.volumes.hold.set()
        assert {status for status, _ in await asyncio.gather(*calls)} == {200}
        assert len(rig.volumes.mounts) == 8


# --- errors --------------------------------------------------------------------------------------


async def test_an_error_carries_message_and_remedy_verbatim() -> None:
    async with serving() as rig:
        rig.volumes.failure = VolumeInUse("volume v: in use on n2 by web", remedy="stop it")
        status, content = await rig.call("VolumeDriver.Mount", {"Name": "v", "ID": ID})
        assert (status, content) == (500, {"Err": "volume v: in use on n2 by web; stop it"})
        rig.volumes.failure = InvalidInput("size=x is not a size", remedy="write 10G")
        status, content = await rig.call("VolumeDriver.Create", {"Name": "v"})
        assert (status, content) == (500, {"Err": "size=x is not a size; write 10G"})
        assert rig.volumes.abandoned.empty()  # a use case that refuses has counted nothing


async def test_get_says_404_only_for_a_volume_that_is_not_there() -> None:
    """Docker takes any failed Get for a missing volume and creates it; ours must be told apart."""
    async with serving() as rig:
        assert (await rig.call("VolumeDriver.Get", {"Name": "v"}))[0] == 404
        rig.volumes.failure = StoreUnavailable("no store")
        assert (await rig.call("VolumeDriver.Get", {"Name": "v"}))[0] == 500


async def test_a_defect_is_logged_with_its_traceback_and_told_without(lines: list[Any]) -> None:
    async with serving() as rig:
        rig.volumes.failure = RuntimeError("secret detail")
        status, content = await rig.call("VolumeDriver.Mount", {"Name": "v", "ID": ID})
        assert status == 500
        assert content["Err"].startswith("internal error in pannierd at VolumeDriver.Mount")
        assert "journalctl -u pannierd" in content["Err"]
        assert "secret" not in content["Err"]
        assert await rig.volumes.abandoned.get() == ("v", ID)
    assert any(line.get("exc_info") for line in lines)


async def test_an_empty_body_is_400_except_where_nothing_is_said() -> None:
    """Docker repeats a call without its body when the plugin died in the middle of it."""
    silent = {"Plugin.Activate", "VolumeDriver.Capabilities", "VolumeDriver.List"}
    async with serving() as rig:
        for endpoint in ENDPOINTS:
            status, content = await rig.call(endpoint)
            assert status == (200 if endpoint in silent else 400)
            assert endpoint in silent or "repeat the command" in content["Err"]
        assert rig.volumes.entered.empty()


@pytest.mark.parametrize(
    ("endpoint", "method"),
    [
        ("VolumeDriver.Nothing", "POST"),
        ("", "POST"),
        ("VolumeDriver.Get/x", "POST"),
        ("VolumeDriver.Get", "GET"),
        ("NetworkDriver.GetCapabilities", "POST"),
    ],
)
async def test_unknown_endpoints_are_404(endpoint: str, method: str) -> None:
    async with serving() as rig:
        status, content = await rig.call(endpoint, {"Name": "v"}, method=method)
        assert status == 404
        assert "volume plugin has no" in content["Err"]


@pytest.mark.parametrize(
    "body",
    [
        b"{",
        b"[]",
        b"null",
        b"\xff\xfe",
        b'{"Name": 1, "ID": "x"}',
        b'{"Name": null}',
        b'{"Name": "\xff"}',
        b'{"ID": "x"}',
        b'{"Name": "v", "Opts": {"size": 1}, "ID": 2}',
        b"[" * 100_000,
        b'{"Name": ' * 50_000,
        b"0" * (2**20 + 1),
    ],
)
async def test_garbage_is_400_with_a_reason(body: bytes, lines: list[Any]) -> None:
    async with serving() as rig:
        for endpoint in ("VolumeDriver.Create", "VolumeDriver.Mount"):
            status, content = await rig.call(endpoint, body)
            assert status == 400
            assert endpoint in content["Err"]
            assert "Traceback" not in content["Err"]
        assert (await rig.call("VolumeDriver.List", {}))[0] == 200
    assert not any(line.get("exc_info") for line in lines)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.just("Name"), inner),
    max_leaves=8,
)
_BODIES = st.binary(max_size=200) | _JSON.map(lambda value: json.dumps(value).encode())


@settings(max_examples=150, deadline=None)
@given(cases=st.lists(st.tuples(st.sampled_from(sorted(ENDPOINTS)), _BODIES), max_size=5))
def test_no_body_makes_it_fail(cases: list[tuple[str, bytes]]) -> None:
    async def run() -> None:
        async with serving() as rig:
            for endpoint, body in cases:
                status, content = await rig.call(endpoint, body)
                assert status in (200, 400, 404)
                assert (status == 200) == (not content.get("Err"))

    with capture_logs() as captured:
        asyncio.run(run())
    assert not any(line.get("exc_info") for line in captured)


_BROKEN = [
    b"\x00\x01\x02\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",  # a TLS hello
    b"GET\r\n\r\n",
    b"POST /VolumeDriver.Get HTTP/1.1\r\nHost:\r\nContent-Length: -1\r\n\r\n",
    b"POST /VolumeDriver.Get HTTP/1.1\r\nHost:\r\nContent-Length: 99999\r\n\r\n{}",
    b"POST /VolumeDriver.Get HTTP/1.1\r\nHost:\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    b"POST /VolumeDriver.Get HTTP/1.1\r\nHost:\r\nContent-Encoding: gzip\r\nContent-Length: 4\r\n\r\nabcd",
    b"POST //[::bad HTTP/1.1\r\nHost:\r\nContent-Length: 2\r\n\r\n{}",
    b"OPTIONS * HTTP/1.1\r\nHost:\r\nContent-Length: 0\r\n\r\n",
    b"POST /" + b"x" * 20_000 + b" HTTP/1.1\r\nHost:\r\n\r\n",
    b"POST /\xff\xfe HTTP/1.1\r\nHost:\r\nContent-Length: 0\r\n\r\n",
    b"POST /%ff%00 HTTP/1.1\r\nHost:\r\nContent-Length: 0\r\n\r\n",
    b"POST /VolumeDriver.Get HTTP/1.1\r\nHost:\r\nExpect: miracles\r\nContent-Length: 2\r\n\r\n{}",
    b"",
]


@pytest.mark.parametrize("raw", _BROKEN)
async def test_what_is_no_http_does_not_disturb_it(
    raw: bytes, lines: list[Any], caplog: pytest.LogCaptureFixture
) -> None:
    async with serving(deadlines=Deadlines(other_seconds=0.2)) as rig:
        reader, writer = await rig.open()
        writer.write(raw)
        if writer.can_write_eof():
            writer.write_eof()
        said = await reader.read()
        writer.close()
        assert not said.startswith(b"HTTP/1.1 200")
        assert b"Traceback" not in said
        assert (await rig.call("VolumeDriver.List", {}))[0] == 200
    assert not any(line.get("exc_info") for line in lines)
    assert not any(record.exc_info for record in caplog.records)


@settings(max_examples=100, deadline=None)
@given(raw=st.binary(max_size=300))
def test_no_bytes_disturb_it(raw: bytes) -> None:
    async def run() -> None:
        async with serving(deadlines=Deadlines(other_seconds=0.2)) as rig:
            reader, writer = await rig.open()
            writer.write(raw)
            writer.write_eof()
            await reader.read()
            writer.close()
            assert (await rig.call("VolumeDriver.List", {}))[0] == 200

    asyncio.run(run())


# --- time ----------------------------------------------------------------------------------------

SHORT = Deadlines(mount_seconds=0.05, other_seconds=0.05)


def test_deadlines_lie_before_docker_s_own() -> None:
    assert Deadlines().of("VolumeDriver.Mount") == 100.0
    assert {Deadlines().of(name) for name in ENDPOINTS if "Mount" not in name} == {50.0}


@pytest.mark.parametrize("deaf", [False, True], ids=["cancellable", "deaf to cancellation"])
async def test_a_late_mount_is_answered_in_time_and_abandoned(deaf: bool) -> None:
    async with serving(deadlines=SHORT) as rig:
        rig.volumes.hold, rig.volumes.deaf = asyncio.Event(), deaf
        status, content = await rig.call("VolumeDriver.Mount", {"Name": "v", "ID": ID})
        assert status == 500
        assert "volume v: mounting it was not finished after 0.05 s" in content["Err"]
        assert "may safely be repeated" in content["Err"]
        if deaf:  # not forgotten before the work has ended, or the work would count it again
            assert rig.volumes.abandoned.empty()
            rig.volumes.hold.set()
        assert await rig.volumes.abandoned.get() == ("v", ID)


async def test_other_late_work_is_cancelled_and_not_abandoned() -> None:
    async with serving(deadlines=SHORT) as rig:
        rig.volumes.hold = asyncio.Event()
        for endpoint in ("Create", "Remove", "Unmount"):
            body = {"Name": "v", "ID": ID}
            status, content = await rig.call(f"VolumeDriver.{endpoint}", body)
            assert (status, "was not finished" in content["Err"]) == (500, True)
        assert rig.volumes.abandoned.empty()
        assert rig.volumes.finished.empty()


async def test_a_body_that_never_comes_is_answered_in_time() -> None:
    async with serving(deadlines=SHORT) as rig:
        reader, writer = await rig.open()
        writer.write(b"POST /VolumeDriver.Get HTTP/1.1\r\nHost:\r\nContent-Length: 9\r\n\r\n{")
        status, _, content = await answer(reader)
        assert (status, "could not be received" in content.decode()) == (400, True)
        writer.close()


async def test_before_it_is_ready_only_the_introduction_is_answered() -> None:
    async with serving(ready=False) as rig:
        assert (await rig.call("Plugin.Activate"))[0] == 200
        assert (await rig.call("VolumeDriver.Capabilities", {}))[0] == 200
        rig.volumes.known["v"] = {}
        calls = [
            asyncio.create_task(rig.call("VolumeDriver.Get", {"Name": "v"})),
            asyncio.create_task(rig.call("VolumeDriver.List", {})),
            asyncio.create_task(rig.call("VolumeDriver.Mount", {"Name": "v", "ID": ID})),
        ]
        await asyncio.wait(calls, timeout=0.05)
        assert not any(call.done() for call in calls)
        rig.ready.set()
        assert [status for status, _ in await asyncio.gather(*calls)] == [200, 200, 200]


async def test_a_daemon_that_does_not_get_ready_says_so_in_time() -> None:
    async with serving(ready=False, deadlines=SHORT) as rig:
        status, content = await rig.call("VolumeDriver.Get", {"Name": "v"})
        assert status == 500
        assert "pannierd on this node is still starting" in content["Err"]
        assert "nothing was changed" in content["Err"]


# --- hang-ups ------------------------------------------------------------------------------------


async def test_a_mount_is_abandoned_when_the_engine_hangs_up(lines: list[Any]) -> None:
    async with serving() as rig:
        rig.volumes.hold = asyncio.Event()
        _, writer = await rig.open()
        writer.write(request("VolumeDriver.Mount", b'{"Name": "v", "ID": "x"}'))
        await rig.volumes.entered.get()
        writer.close()
        assert await rig.volumes.abandoned.get() == ("v", "x")
        assert not rig.volumes.mounts
    assert [line["outcome"] for line in lines if line["event"] == "plugin request"] == ["hung-up"]


async def test_a_mount_that_finished_all_the_same_is_abandoned_afterwards() -> None:
    async with serving() as rig:
        rig.volumes.hold, rig.volumes.deaf = asyncio.Event(), True
        _, writer = await rig.open()
        writer.write(request("VolumeDriver.Mount", b'{"Name": "v", "ID": "x"}'))
        await rig.volumes.entered.get()
        writer.close()
        await writer.wait_closed()
        rig.volumes.hold.set()
        assert await rig.volumes.abandoned.get() == ("v", "x")
        assert rig.volumes.mounts == [("v", "x")]


async def test_a_mount_whose_answer_cannot_be_delivered_is_abandoned(lines: list[Any]) -> None:
    """The engine goes in the very moment in which the work ends: no cancellation comes any more."""
    async with serving() as rig:
        engine = socket.socket(socket.AF_UNIX)
        engine.connect(str(rig.path))

        async def mount(name: str, mount_id: str) -> Path:
            engine.close()  # the server's loop has not turned since, so it cannot know
            return Path("/m")

        rig.volumes.mount = mount  # type: ignore[method-assign]
        engine.send(request("VolumeDriver.Mount", b'{"Name": "v", "ID": "x"}'))
        assert await rig.volumes.abandoned.get() == ("v", "x")
    outcomes = [line["outcome"] for line in lines if line["event"] == "plugin request"]
    assert outcomes == ["undelivered"]


@pytest.mark.parametrize("endpoint", ["Create", "Remove", "Unmount"])
async def test_other_work_goes_on_when_the_engine_hangs_up(endpoint: str) -> None:
    """podman hangs up early on Remove and Unmount, and means them."""
    async with serving() as rig:
        rig.volumes.hold = asyncio.Event()
        _, writer = await rig.open()
        writer.write(request(f"VolumeDriver.{endpoint}", b'{"Name": "v", "ID": "x"}'))
        await rig.volumes.entered.get()
        writer.close()
        await writer.wait_closed()
        rig.volumes.hold.set()
        assert await rig.volumes.finished.get() == endpoint.lower()
        assert rig.volumes.abandoned.empty()


async def test_stopping_answers_what_is_under_way() -> None:
    """A hang-up would make Docker repeat the call without its body: a worse message."""
    async with serving() as rig:
        rig.volumes.hold = asyncio.Event()
        call = asyncio.create_task(rig.call("VolumeDriver.Mount", {"Name": "v", "ID": ID}))
        await rig.volumes.entered.get()
        await rig.server.stop()
        status, content = await call
        assert status == 500
        assert "volume v: pannierd on this node was stopped while mounting it" in content["Err"]
        assert await rig.volumes.abandoned.get() == ("v", ID)


async def test_a_connection_is_for_one_call() -> None:
    """A call on a connection that we end just then would be repeated without its body."""
    async with serving() as rig:
        reader, writer = await rig.open()
        writer.write(request("VolumeDriver.List", b"{}"))
        _, headers, _ = await answer(reader)
        assert headers["connection"] == "close"
        assert await reader.read() == b""
        writer.close()


async def test_calls_wait_for_the_next_daemon_while_one_ends() -> None:
    async with serving() as rig:
        rig.volumes.hold = asyncio.Event()
        under_way = asyncio.create_task(rig.call("VolumeDriver.Create", {"Name": "v"}))
        await rig.volumes.entered.get()
        with rig.listener.dup() as kept:  # as systemd keeps it
            await rig.server.close_door()
            late = asyncio.create_task(rig.call("VolumeDriver.Create", {"Name": "w"}))
            rig.volumes.hold.set()
            assert (await under_way)[0] == 200
            await rig.server.stop()
            assert rig.volumes.known == {"v": {}}
            following = PluginServer(rig.volumes, ready=rig.ready)
            await following.start(kept)
            assert (await late)[0] == 200
            assert rig.volumes.known == {"v": {}, "w": {}}
            await following.stop()


# --- the log -------------------------------------------------------------------------------------


async def test_each_request_is_one_line(lines: list[Any]) -> None:
    async with serving() as rig:
        await rig.call("VolumeDriver.Mount", {"Name": "v", "ID": ID})
        await rig.call("VolumeDriver.Get", {"Name": "w"})
        await rig.call("VolumeDriver.Mount", b"nonsense")
    logged = [line for line in lines if line["event"] == "plugin request"]
    assert [(line["endpoint"], line.get("volume"), line["outcome"]) for line in logged] == [
        ("VolumeDriver.Mount", "v", "ok"),
        ("VolumeDriver.Get", "w", "volume-not-found"),
        ("VolumeDriver.Mount", None, "invalid-input"),
    ]
    assert len({line["request"] for line in logged}) == 3
    assert all(line["seconds"] >= 0 for line in logged)
    assert logged[0]["mount"] == ID
