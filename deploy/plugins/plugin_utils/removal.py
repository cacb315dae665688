"""Whether a node may leave, and whether Pannier may be taken off hosts: pure, from facts to findings."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from ansible_collections.pannier.cluster.plugins.plugin_utils.preflight import (
    Finding,
    Fleet,
    problem,
)


def keeper_of(fleet: Fleet, leaving: str) -> str:
    """Another host that is in the cluster and, if there is one, a manager of the Swarm; or empty."""
    others = {name: facts for name, facts in fleet.seen().items() if name != leaving}
    members = [name for name, facts in others.items() if facts["member"]]
    managers = [name for name in members if others[name]["swarm"]["manager"]]
    return (*managers, *members, "")[0]


def examine_removal(fleet: Fleet, leaving: str) -> Iterator[Finding]:
    """What is against taking the node ``leaving`` out of the cluster."""
    if leaving not in fleet.nodes:
        yield problem("", f"there is no node {leaving!r}", "Name a host: -e node=HOST")
        return
    if not keeper_of(fleet, leaving):
        yield problem("", "no other node of the cluster can be reached", "Start one of them first")
    if leaving in fleet.etcd:
        what = "is a member of etcd, whose members stay"
        yield problem(leaving, what, "Take a node out that is none, or move etcd first")
    facts = fleet.facts.get(leaving)
    if facts is None:
        remedy = f"If it will not come back: pannier node rm --lost {leaving}, on another node"
        yield problem(leaving, "cannot be reached", remedy)
    elif facts["authority"]:
        what = "has the cluster's certificate authority, without which no node can join"
        yield problem(leaving, what, "Keep it, and take another node out")


def examine_uninstall(
    nodes: Collection[str], volumes: Sequence[Mapping[str, Any]], *, given_up: Collection[str]
) -> Iterator[Finding]:
    """What is against taking Pannier off ``nodes``.

    Args:
        volumes: as ``pannier volume show`` has them.
        given_up: names of volumes that may become unreachable.
    """
    for volume in volumes:
        name = volume["name"]
        if volume["holder"] in nodes and volume.get("in_use_by"):
            users = ", ".join(volume["in_use_by"])
            yield problem(volume["holder"], f"{users} uses the volume {name}", "Stop it first")
        copies = set(volume.get("copies_on") or [volume["holder"]])
        if copies <= set(nodes) and name not in given_up:
            yield problem(
                ", ".join(sorted(copies)),
                f"nobody else has the volume {name}",
                f"Move it away, or accept that it cannot be reached any more: "
                f"pannier_give_up: [{name}]",
            )
    known = {volume["name"] for volume in volumes}
    for name in sorted(set(given_up) - known):
        yield problem("", f"pannier_give_up names {name}, which is no volume", "See the spelling")
