"""The program as a user's, with a certificate, against a daemon elsewhere."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from pannier.api.caller import identify_tls
from pannier.api.listen import serve_tls
from pannier.api.server import build_application
from pannier.cli.main import cli
from pannier.pki.authority import Authority
from pannier.pki.credentials import Credentials, new_request
from pannier.testing.api import FakeCluster, NotedCall


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority.create(tmp_path / "ca", cluster="test")


@pytest.fixture
def user(authority: Authority, tmp_path: Path) -> Path:
    request = new_request("anna")
    certificate = authority.issue_user(request.csr_pem, user="anna")
    ca = authority.certificate_pem
    directory = tmp_path / "anna"
    Credentials.save(directory, ca=ca, certificate=certificate, key=request.key_pem, kind="user")
    return directory


@pytest.fixture
def cluster() -> FakeCluster:
    return FakeCluster()


@pytest.fixture
def port(authority: Authority, cluster: FakeCluster, tmp_path: Path) -> Iterator[int]:
    request = new_request("node1")
    issued = authority.issue_node(request.csr_pem, node="node1", addresses=["127.0.0.1"])
    ca = authority.certificate_pem
    node = Credentials.save(tmp_path / "node1", ca=ca, certificate=issued, key=request.key_pem)
    context = node.server_context(client_certificate_required=False)
    application = build_application(
        cluster.by, peers=cluster.by_node, identify=identify_tls("test")
    )
    started, stop, found = threading.Event(), asyncio.Event(), []
    loop = asyncio.new_event_loop()

    async def serve() -> None:
        async with serve_tls(application, context=context, host="127.0.0.1", port=0) as port:
            found.append(port)
            started.set()
            await stop.wait()

    thread = threading.Thread(target=lambda: loop.run_until_complete(serve()))
    thread.start()
    assert started.wait(10)
    yield found[0]
    loop.call_soon_threadsafe(stop.set)
    thread.join(10)
    loop.close()


def run(port: int, certificates: Path, *arguments: str) -> Result:
    where = ["--host", f"https://127.0.0.1:{port}", "--certificates", str(certificates)]
    return CliRunner().invoke(cli, [*where, *arguments], prog_name="pannier")


def test_the_certificate_says_who_asks(port: int, user: Path, cluster: FakeCluster) -> None:
    result = run(port, user, "volume", "create", "data")
    assert result.exit_code == 0, result.output
    assert cluster.calls == [NotedCall("create_volume", "data", "anna")]


def test_wrong_directory(port: int, tmp_path: Path) -> None:
    result = run(port, tmp_path / "none", "volume", "ls")
    assert result.exit_code == 3
    assert "does not exist" in result.stderr


def test_certificate_of_another_cluster(port: int, tmp_path: Path) -> None:
    stranger = Authority.create(tmp_path / "other-ca", cluster="other")
    request = new_request("eve")
    certificate = stranger.issue_user(request.csr_pem, user="eve")
    ca = stranger.certificate_pem
    directory = tmp_path / "eve"
    Credentials.save(directory, ca=ca, certificate=certificate, key=request.key_pem, kind="user")
    result = run(port, directory, "-o", "json", "volume", "ls")
    assert result.exit_code == 5
    assert json.loads(result.stderr)["code"] == "denied"


def test_nobody_there(user: Path) -> None:
    result = run(1, user, "volume", "ls")
    assert result.exit_code == 6
    assert "https://127.0.0.1:1 cannot be reached: Connection refused" in result.stderr
