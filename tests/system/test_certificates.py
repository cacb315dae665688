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
authority = Authority.load(Path(sys.argv[2]))
find = present.extensions.get_extension_for_class
[name] = present.subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME)
print(authority.sign(Unsigned(
    common_name=name.value,
    number=present.serial_number,
    public_key=present.public_key(),
    names=find(x509.SubjectAlternativeName).value,
    usages=tuple(find(x509.ExtendedKeyUsage).value),
    since=present.not_valid_before_utc,
    life=timedelta(days=float(sys.argv[1])),
)), end="")
"""
PYTHON = "/opt/pannier/venv/bin/python3"
OWN = "/etc/pannier/node.crt"
FOR_ETCD = ("/etc/pannier/store/node.crt", "/etc/etcd/pki/tls.crt")


@pytest.fixture
def aged(calm: World) -> Iterator[World]:
    """At the end node2 has certificates that count, whatever happened."""
    before = {path: calm.run("node2", "cat", path) for path in (OWN, *FOR_ETCD)}
    yield calm
    for path, chain in before.items():
        put(calm, chain, path=path)
    calm.run("node2", "systemctl", "restart", "pannierd")
    calm.wait_until_all_up()


def put(world: World, chain: str, *, path: str = OWN) -> None:
    """A person puts a certificate on node2's disk."""
    script = f"cat > {path}.new; mv {path}.new {path}"
    world.lab.run("node2", ["sh", "-euc", script], input=chain)


def give(world: World, *, days: float, path: str = OWN) -> None:
    """Let a certificate of node2 have ``days`` left."""
    present = world.run("node2", "cat", path)
    authority = "/etc/pannier/ca" if path == OWN else "/etc/pannier/ca/store"
    aged = world.run("node1", PYTHON, "-c", AGE, str(days), authority, input=present)
    put(world, aged, path=path)


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
    assert kinds.count("authority") == 2
    assert kinds.count("store") == 3
    assert kinds.count("etcd") == 3, "each is what the file on its node has"
    assert {each["node"] for each in found if each["kind"] == "etcd"} == {"node1", "node2", "node3"}
    assert {each["state"] for each in found} == {"good"}
    assert {each["node"] for each in found if each["kind"] == "authority"} == {"node1"}
    for each in found:
        assert each["serial"] in calm.run("node2", "pannier", "cert", "ls")
    refused = calm.attempt("node2", "pannier", "cert", "renew", "-o", "json")
    assert json.loads(refused.err)["code"] == "conflict"
    assert "is good until" in refused.err


def test_those_that_are_due_are_renewed_and_shown_without_a_restart(aged: World) -> None:
    """Servers and clients of the running daemon, the process that renews the lease and etcd go on with the new ones."""
    for path in (OWN, *FOR_ETCD):
        give(aged, days=100, path=path)
    started = aged.sh("node2", "systemctl show -P ExecMainStartTimestamp pannierd etcd")
    aged.attempt("node2", "pannier", "cert", "renew")  # the daemon may have come first
    renewed = listed(aged, "node2")["node2"]
    assert shown_to(aged, "node3") == renewed["serial"].lstrip("0")
    assert listed(aged, "node3")["node2"]["serial"] == renewed["serial"]
    found = looks.daemon(aged.lab, "node3").get("/v1/certificates")
    assert {each["state"] for each in found} == {"good"}
    assert [each["node"] for each in found if each["kind"] == "etcd"].count("node2") == 1
    assert all(each["node"] for each in found), "etcd shows what its files have"
    assert aged.sh("node2", "systemctl show -P ExecMainStartTimestamp pannierd etcd") == started
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
