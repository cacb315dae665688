"""The program as a user's, with a certificate, against a daemon elsewhere."""

from __future__ import annotations

import asyncio
import json
import os
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from cryptography import x509

from pannier.api.caller import identify_tls
from pannier.api.listen import serve_tls
from pannier.api.server import build_application
from pannier.cli.main import cli
from pannier.contract.bodies import RenewalOrder
from pannier.contract.views import RenewalReply
from pannier.core.certificates import DAY_SECONDS
from pannier.core.errors import Conflict
from pannier.pki.authority import Authority, load_private
from pannier.pki.credentials import Credentials, new_request, request_for
from pannier.pki.facts import facts_of
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


def aged(authority: Authority, user: Path, *, days: float) -> None:
    """The user's certificate is that much older."""
    key = load_private((user / "user.key").read_text(), path=user)
    then = replace(authority, _clock=lambda: time.time() - days * DAY_SECONDS)
    chain = then.issue_user(request_for(key, "anna"), user="anna")
    (user / "user.crt").write_text(chain)


def test_a_certificate_that_has_ended_is_told_with_the_way_back(
    port: int, authority: Authority, user: Path, cluster: FakeCluster
) -> None:
    aged(authority, user, days=366)
    result = run(port, user, "volume", "create", "data")
    assert result.exit_code == 5
    assert "the certificate of user anna in" in result.stderr
    assert "pannier ca issue anna --for user" in result.stderr
    assert cluster.calls == []


def test_a_certificate_is_renewed_when_it_is_used_late_in_its_life(
    port: int, authority: Authority, user: Path, cluster: FakeCluster
) -> None:
    async def renewed(order: RenewalOrder) -> RenewalReply:
        present = x509.load_pem_x509_certificate(order.certificate.encode())
        return RenewalReply(certificate=authority.renew(present))

    cluster.renewing = renewed
    before = (user / "user.crt").read_text()
    run(port, user, "volume", "ls")
    assert (user / "user.crt").read_text() == before, "not early in its life"
    aged(authority, user, days=300)
    result = run(port, user, "volume", "ls")
    assert (result.exit_code, result.stderr) == (0, "no volumes\n")
    left = facts_of((user / "user.crt").read_text()).ends - time.time()
    assert left > 364 * DAY_SECONDS
    assert run(port, user, "volume", "create", "data").exit_code == 0


def test_a_renewal_that_fails_is_told_and_not_asked_for_each_time(
    port: int, authority: Authority, user: Path, cluster: FakeCluster
) -> None:
    async def refused(order: RenewalOrder) -> RenewalReply:
        raise Conflict("no node says that it has the authority")

    cluster.renewing = refused
    aged(authority, user, days=300)
    first, second = (run(port, user, "-o", "json", "volume", "ls") for _ in range(2))
    assert (first.exit_code, second.exit_code) == (0, 0)
    assert "could not be renewed: no node says that it has the authority" in first.stderr
    assert second.stderr == ""
    assert [call.operation for call in cluster.calls] == ["renew_certificate"]
    an_hour_ago = time.time() - 3700
    os.utime(user / "user.asked", (an_hour_ago, an_hour_ago))
    run(port, user, "volume", "ls")
    assert len(cluster.calls) == 2


def test_nobody_there(user: Path) -> None:
    result = run(1, user, "volume", "ls")
    assert result.exit_code == 6
    assert "https://127.0.0.1:1 cannot be reached: Connection refused" in result.stderr
