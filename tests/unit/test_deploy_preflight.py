"""What the preflight finds: tables of facts and findings."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from collection import plugin

preflight = plugin("plugin_utils.preflight")


def facts(number: int, **different: Any) -> dict[str, Any]:
    """A fresh Debian 12 host."""
    found: dict[str, Any] = {
        "name": f"node{number}",
        "address": f"192.0.2.{number}",
        "addresses": ["127.0.0.1", "::1", f"192.0.2.{number}", "fe80::1"],
        "machine_id": f"id{number}",
        "release": {"ID": "debian", "VERSION_ID": "12", "PRETTY_NAME": "Debian 12"},
        "python": [3, 11, 2],
        "root": True,
        "systemd": True,
        "lacks": [],
        "free_bytes": 50 << 30,
        "listening": {},
        "firewall": "",
        "pool": None,
        "docker": None,
        "foreign_docker": False,
        "swarm": {"state": "inactive", "manager": False, "cluster": None},
        "etcd": {"members": [], "identity": False},
        "authority": False,
        "member": None,
        "is_member": False,
        "in_swarm": False,
        "clock_offset": 0.0,
        "clock_error": 0.01,
    }
    return found | different


def fleet(*hosts: dict[str, Any] | None, **different: Any) -> Any:
    """These hosts, the first three of them managers and members of etcd."""
    names = tuple(f"node{number}" for number in range(1, len(hosts) + 1))
    few = names[:3] if len(names) > 2 else names[:1]
    found = preflight.Fleet(
        nodes=names,
        managers=few,
        etcd=few,
        asked=frozenset(names),
        wishes={},
        facts=dict(zip(names, hosts, strict=True)),
    )
    return replace(found, **different)


def told(of: Any, level: str = "problem") -> list[str]:
    return [each.line() for each in preflight.examine(of).findings if each.level == level]


def three(**of_the_second: Any) -> Any:
    return fleet(facts(1), facts(2, **of_the_second), facts(3))


def test_fresh_hosts_are_fine() -> None:
    plan = preflight.examine(fleet(facts(1), facts(2), facts(3), facts(4)))
    assert plan.findings == ()
    assert (plan.founder, plan.leader) == ("node1", "node1")
    assert plan.store == "etcd://192.0.2.1:2379,192.0.2.2:2379,192.0.2.3:2379"


def test_one_host_needs_no_etcd() -> None:
    plan = preflight.examine(fleet(facts(1), etcd=()))
    assert plan.findings == ()
    assert plan.store == "sqlite"


MEMBER = {"cluster": "c1", "node": "node2", "address": "192.0.2.2"}
SWARM = {"state": "active", "manager": True, "cluster": "s1"}


@pytest.mark.parametrize(
    ("different", "says"),
    [
        (
            {"release": {"ID": "debian", "VERSION_ID": "11", "PRETTY_NAME": "Debian 11"}},
            "Debian 11",
        ),
        ({"release": {}}, "an unknown system"),
        ({"python": [3, 9, 2]}, "has Python 3.9.2"),
        ({"root": False}, "is not worked on as root"),
        ({"systemd": False}, "is not run by systemd"),
        ({"free_bytes": 1 << 30}, "1.0 GiB are free"),
        ({"lacks": ["btrfs", "loop devices"]}, "the kernel has no btrfs, no loop devices"),
        ({"listening": {"2379": "postgres"}}, "port 2379 is in use by postgres"),
        ({"machine_id": "id1"}, "have the same machine id id1"),
        ({"address": "192.0.2.1", "addresses": []}, "have the same address 192.0.2.1"),
        (
            {"address": "203.0.113.9"},
            "203.0.113.9 is none of its own addresses (192.0.2.2, fe80::1)",
        ),
        ({"address": "127.0.0.1"}, "127.0.0.1 is none of its own addresses"),
        ({"clock_offset": 1.5}, "its clock is 1.5 s ahead of node1's"),
        (
            {"docker": {"package": "docker-ce", "version": [19, 3]}, "foreign_docker": True},
            "has Docker 19.3 from docker-ce",
        ),
        ({"pool": {"path": "/dev/vdb", "exists": False}}, "there is no device /dev/vdb"),
        (
            {
                "pool": {
                    "path": "/dev/vdb",
                    "exists": True,
                    "holds": {"TYPE": "ext4", "LABEL": "precious"},
                    "mounted": True,
                }
            },
            '/dev/vdb holds ext4 "precious", and it is mounted',
        ),
        (
            {
                "pool": {
                    "path": "/dev/vdb",
                    "exists": True,
                    "holds": {"PTTYPE": "gpt"},
                    "mounted": False,
                }
            },
            "/dev/vdb holds a partition table (gpt)",
        ),
        ({"member": MEMBER}, "the node with the cluster's certificate authority is not among"),
        ({"member": MEMBER | {"node": "old"}, "authority": True}, "with the node old, not node2"),
        (
            {"member": MEMBER | {"address": "192.0.2.9"}, "authority": True},
            "with the address 192.0.2.9",
        ),
        ({"etcd": {"members": ["node2"], "identity": True}}, "its etcd has the members node2, not"),
        ({"swarm": SWARM | {"state": "locked"}}, "its Swarm is in the state locked"),
        ({"swarm": SWARM | {"manager": False}}, "is in a Swarm whose managers are not here"),
    ],
)
def test_what_is_wrong_with_a_host(different: dict[str, Any], says: str) -> None:
    problems = told(three(**different))
    assert [line for line in problems if (says in line and "node2" in line) or says in line]
    assert len(problems) == 1


@pytest.mark.parametrize(
    "different",
    [
        {"clock_offset": 1.5, "clock_error": 0.6},
        {"listening": {"2379": "etcd", "7400": "pannierd", "2377": "dockerd"}},
        {"pool": {"path": "/var/lib/pannier/pool.img", "exists": False}},
        {"pool": {"path": "/dev/vdb", "exists": True, "holds": {}, "mounted": False}},
        {
            "pool": {
                "path": "/dev/vdb",
                "exists": True,
                "holds": {"TYPE": "btrfs", "LABEL": "pannier"},
                "mounted": False,
            }
        },
        {"member": MEMBER, "authority": True, "free_bytes": 0, "lacks": ["btrfs"]},
        {"etcd": {"members": ["node1", "node2", "node3"], "identity": True}},
        {"swarm": SWARM},
    ],
)
def test_what_is_not_wrong_with_a_host(different: dict[str, Any]) -> None:
    assert told(three(**different)) == []


def test_a_disk_that_may_be_erased() -> None:
    pool = {"path": "/dev/vdb", "exists": True, "holds": {"TYPE": "ext4"}, "mounted": False}
    allowed = replace(three(pool=pool), wishes={"node2": preflight.Wish(force_format="/dev/vdb")})
    wrong = replace(three(pool=pool), wishes={"node2": preflight.Wish(force_format="/dev/vdc")})
    assert told(allowed) == []
    assert len(told(wrong)) == 1


def test_the_directory_driver_needs_no_btrfs() -> None:
    wish = preflight.Wish(driver="directory")
    assert told(replace(three(lacks=["btrfs"]), wishes={"node2": wish})) == []


@pytest.mark.parametrize(
    ("different", "says"),
    [
        ({"etcd": ("node1", "node2")}, "an etcd of 2 members, which stops when either is lost"),
        ({"etcd": ()}, "3 nodes and no etcd"),
        ({"managers": ("node1", "node2")}, "2 managers: they bear no more losses than 1"),
        ({"managers": ()}, "the group managers is empty"),
        ({"nodes": (), "managers": (), "etcd": ()}, "the group nodes is empty"),
        ({"managers": ("node1", "node2", "other")}, "other: is in managers but not in nodes"),
    ],
)
def test_what_is_wrong_with_an_inventory(different: dict[str, Any], says: str) -> None:
    problems = told(replace(three(), **different))
    assert len(problems) == 1
    assert says in problems[0]


def test_everything_is_told_at_once() -> None:
    hosts = fleet(
        facts(1), None, facts(3, python=[3, 9, 0], lacks=["btrfs"]), etcd=("node1", "node3")
    )
    problems = told(hosts)
    assert [line.split(":")[0] for line in problems] == ["inventory", "node2", "node3", "node3"]
    assert all(". " in line for line in problems)  # each with a remedy


def test_what_a_person_should_know_stops_nothing() -> None:
    docker = {"package": "docker-ce", "version": [27, 1]}
    hosts = three(docker=docker, foreign_docker=True, firewall="nftables")
    hosts = replace(hosts, etcd=("node1",))
    plan = preflight.examine(hosts)
    assert plan.problems == []
    notes = told(hosts, "note")
    assert "a single manager or etcd member" in notes[0]
    assert "has Docker 27.1 from docker-ce" in notes[1]
    assert "nftables is active" in notes[2]


def test_a_cluster_that_is_there_is_gone_on_with() -> None:
    """Whoever has the authority and the Swarm goes on having them, wherever it is in the inventory."""
    there = facts(3, authority=True, member=MEMBER | {"node": "node3", "address": "192.0.2.3"})
    plan = preflight.examine(fleet(facts(1), facts(2, swarm=SWARM), there))
    assert (plan.founder, plan.leader) == ("node3", "node2")
    assert plan.problems == []


def test_two_clusters_are_not_mixed() -> None:
    hosts = fleet(
        facts(1, authority=True, member=MEMBER | {"node": "node1", "address": "192.0.2.1"}),
        facts(2, member=MEMBER | {"cluster": "c2"}),
        facts(3),
    )
    assert told(hosts) == [
        "inventory: nodes of several clusters: node1 c1; node2 c2. "
        "Give each cluster an inventory of its own"
    ]


def limited(*asked: str, **of_the_last: Any) -> list[str]:
    """A run of three nodes of a cluster and a fourth that is new, limited to some."""
    there = {"is_member": True, "in_swarm": True, "etcd": {"members": [], "identity": True}}
    hosts = [facts(1, authority=True, swarm=SWARM, **there), facts(2, **there), facts(3, **there)]
    found = fleet(*hosts, facts(4, **of_the_last))
    known = {name: of if name in asked else None for name, of in found.facts.items()}
    return told(replace(found, asked=frozenset(asked), facts=known))


def test_a_limited_run_has_whom_it_needs() -> None:
    assert limited("node1", "node4") == []
    assert limited("node1", "node2", "node3") == []
    assert [line.split(", and ")[1].split(" is ")[0] for line in limited("node4")] == [
        "the node with the certificate authority",
        "a manager of the Swarm",
    ]


def test_a_new_etcd_is_not_made_in_parts() -> None:
    found = replace(three(), asked=frozenset({"node1", "node2"}))
    lines = told(replace(found, facts={**found.facts, "node3": None}))
    assert "this run is limited to a part of a new etcd" in lines[-1]


# -- leaving ---------------------------------------------------------------------------------------

removal = plugin("plugin_utils.removal")


def cluster(**of_the_last: Any) -> Any:
    """Four nodes, the first of which has the authority."""
    hosts = [
        facts(number, member=MEMBER | {"node": f"node{number}"}, authority=number == 1, swarm=SWARM)
        for number in range(1, 5)
    ]
    return fleet(*hosts[:3], hosts[3] | of_the_last if of_the_last != {"gone": True} else None)


def test_a_node_may_leave() -> None:
    assert list(removal.examine_removal(cluster(), "node4")) == []
    assert removal.keeper_of(cluster(), "node4") == "node1"


@pytest.mark.parametrize(
    ("of", "leaving", "says"),
    [
        (cluster(), "node9", "there is no node 'node9'"),
        (cluster(), "node2", "is a member of etcd"),
        (replace(cluster(), etcd=()), "node1", "has the cluster's certificate authority"),
        (cluster(gone=True), "node4", "cannot be reached"),
        (fleet(facts(1, member=MEMBER), etcd=()), "node1", "no other node of the cluster"),
    ],
)
def test_a_node_that_may_not_leave(of: Any, leaving: str, says: str) -> None:
    lines = [each.line() for each in removal.examine_removal(of, leaving)]
    assert len(lines) == 1
    assert says in lines[0]


def volume(name: str, *copies: str, **different: Any) -> dict[str, Any]:
    return {"name": name, "holder": copies[0], "copies_on": list(copies), **different}


@pytest.mark.parametrize(
    ("nodes", "volumes", "given_up", "says"),
    [
        (["node1"], [volume("a", "node1", "node2")], [], []),
        (["node3"], [volume("a", "node1", "node2")], [], []),
        (["node1"], [volume("a", "node1")], [], ["node1: nobody else has the volume a"]),
        (
            ["node1", "node2"],
            [volume("a", "node1", "node2")],
            [],
            ["node1, node2: nobody else has the volume a"],
        ),
        (["node1"], [volume("a", "node1"), volume("b", "node1")], ["a"], ["volume b"]),
        (["node1"], [volume("a", "node1")], ["a"], []),
        (["node1"], [volume("a", "node1")], ["A"], ["volume a", "pannier_give_up names A"]),
        (
            ["node1"],
            [volume("a", "node1", in_use_by=["web"])],
            ["a"],
            ["node1: web uses the volume a"],
        ),
    ],
)
def test_whether_pannier_may_be_taken_off(
    nodes: list[str], volumes: list[Any], given_up: list[str], says: list[str]
) -> None:
    found = removal.examine_uninstall(nodes, volumes, given_up=given_up)
    lines = [each.line() for each in found]
    assert [wanted in line for wanted, line in zip(says, lines, strict=True)] == [True] * len(says)


WHEELS = (
    "pannier-1.0-py3-none-any.whl",
    "msgspec-0.18-cp311-cp311-manylinux_2_17_x86_64.manylinux2014_x86_64.whl",
    "cryptography-43.0-cp39-abi3-manylinux_2_28_x86_64.whl",
)


@pytest.mark.parametrize(
    ("wheels", "python", "says"),
    [
        (WHEELS, [3, 11, 2], []),
        (WHEELS, [3, 13, 5], ["node2: its wheelhouse has no msgspec for its Python 3.13."]),
        ((*WHEELS, "msgspec-0.18-cp313-cp313-any.whl"), [3, 13, 5], []),
        ((*WHEELS, "MsgSpec-0.19-cp313-cp313-any.whl"), [3, 13, 5], []),
        (WHEELS[1:], [3, 11, 2], ["node2: its wheelhouse has no wheel of Pannier."]),
        ((), [3, 11, 2], ["node2: its wheelhouse has no wheel of Pannier."]),
        (None, [3, 13, 5], []),
    ],
)
def test_a_wheelhouse_has_what_each_python_needs(
    wheels: tuple[str, ...] | None, python: list[int], says: list[str]
) -> None:
    found = told(
        replace(three(python=python), wishes={"node2": preflight.Wish(wheels=wheels)}),
    )
    assert len(found) == len(says)
    assert all(line.startswith(start) for line, start in zip(found, says, strict=True))


@pytest.mark.parametrize(("kind", "opens"), [("ufw", False), ("firewalld", False), ("ufw", True)])
def test_a_firewall_that_nobody_opens_is_told(kind: str, opens: bool) -> None:
    wishes = {"node2": preflight.Wish(opens_firewall=opens)}
    notes = told(replace(three(firewall=kind), wishes=wishes), "note")
    assert [kind in note for note in notes] == ([] if opens else [True])


def test_nodes_are_known_by_what_was_seen_or_by_the_inventory() -> None:
    seen = {"ansible_facts": {"pannier_host": {"address": "10.0.0.1"}}, "ansible_host": "one"}
    hosts = {
        "node1": seen,
        "node2": {"ansible_host": "10.0.0.2"},
        "node3": {"ansible_host": "three.example", "pannier_address": "fd00::3"},
        "node4": {"ansible_host": "four.example"},
        "10.0.0.5": {},
        "node6": {},
    }
    assert preflight.addresses_of(hosts) == {
        "node1": "10.0.0.1",
        "node2": "10.0.0.2",
        "node3": "fd00::3",
        "10.0.0.5": "10.0.0.5",
    }
