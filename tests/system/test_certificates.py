"""Certificates on real machines: one that has ended, and one that is renewed while everything runs."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from cluster_world import World
from demo import looks, story

pytestmark = [pytest.mark.system, pytest.mark.timeout(300)]

AGE = """
import sys
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from cryptography import x509
from pannier.pki.authority import Authority, Unsigned

present = x509.load_pem_x509_certificate(sys.stdin.read().encode())
authority = Authority.load(Path("/etc/pannier/ca"))
find = present.extensions.get_extension_for_class
print(authority.sign(Unsigned(
    common_name="node2",
    public_key=present.public_key(),
    names=find(x509.SubjectAlternativeName).value,
    usages=tuple(find(x509.ExtendedKeyUsage).value),
    since=present.not_valid_before_utc,
    life=timedelta(days=float(sys.argv[1])),
)), end="")
"""
PYTHON = "/opt/pannier/venv/bin/python3"


@pytest.fixture
def aged(calm: World) -> Iterator[World]:
    """At the end node2 has a certificate that counts, whatever happened."""
    before = calm.run("node2", "cat", "/etc/pannier/node.crt")
    yield calm
    put(calm, before)
    calm.run("node2", "systemctl", "restart", "pannierd")
    calm.wait_until_all_up()


def put(world: World, chain: str) -> None:
    """A person puts a certificate on node2's disk."""
    script = "cat > /etc/pannier/node.new; mv /etc/pannier/node.new /etc/pannier/node.crt"
    world.lab.run("node2", ["sh", "-euc", script], input=chain)


def give(world: World, *, days: float) -> None:
    """Let node2's certificate have ``days`` left."""
    present = world.run("node2", "cat", "/etc/pannier/node.crt")
    put(world, world.run("node1", PYTHON, "-c", AGE, str(days), input=present))


def listed(world: World, seen_by: str) -> dict[str, dict[str, str]]:
    """All certificates of nodes, by node."""
    found = looks.daemon(world.lab, seen_by).get("/v1/certificates")
    return {each["name"]: each for each in found if each["kind"] == "node"}


def shown_to(world: World, node: str) -> str:
    """The serial number of the certificate that node2's API shows to another machine."""
    address = world.lab.nodes[1].address
    script = (
        f"echo | openssl s_client -connect {address}:7400 2>/dev/null | openssl x509 -noout -serial"
    )
    return world.sh(node, script).strip().removeprefix("serial=").lower().lstrip("0")


def test_all_certificates_are_listed_on_each_node(calm: World) -> None:
    found = calm.printed("node2", "cert", "ls")
    kinds = [each["kind"] for each in found]
    assert kinds.count("node") == 3
    assert kinds.count("authority") == 1
    assert kinds.count("etcd") == 3
    assert {each["state"] for each in found} == {"good"}
    assert {each["node"] for each in found if each["kind"] == "authority"} == {"node1"}
    for each in found:
        assert each["serial"] in calm.run("node2", "pannier", "cert", "ls")
    refused = calm.attempt("node2", "pannier", "cert", "renew", "-o", "json")
    assert json.loads(refused.err)["code"] == "conflict"
    assert "is good until" in refused.err


def test_one_that_is_due_is_renewed_and_shown_without_a_restart(aged: World) -> None:
    """Servers and clients of the running daemon, and the process that renews the lease, go on with the new one."""
    give(aged, days=100)
    started = aged.sh("node2", "systemctl show -P ExecMainStartTimestamp pannierd")
    renewed = aged.printed("node2", "cert", "renew")
    assert renewed["state"] == "good"
    assert shown_to(aged, "node3") == renewed["serial"].lstrip("0")
    assert listed(aged, "node3")["node2"]["serial"] == renewed["serial"]
    assert aged.sh("node2", "systemctl show -P ExecMainStartTimestamp pannierd") == started
    name = aged.create("node2", nodes="node2,node3")
    aged.run("node2", "pannier", "volume", "move", name, "node3")
    assert aged.holder(name) == "node3"


def test_a_node_whose_certificate_has_ended_comes_back_by_itself(aged: World) -> None:
    """No node accepts the old one."""
    give(aged, days=0)
    aged.run("node2", "systemctl", "restart", "pannierd")
    story.wait_until("node2 has a certificate that counts", lambda: _is_back(aged))
    aged.wait_until_all_up()
    assert listed(aged, "node1")["node2"]["state"] == "good"


def _is_back(world: World) -> bool:
    return listed(world, "node1")["node2"]["state"] == "good"
