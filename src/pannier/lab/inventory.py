"""The lab's machines as an inventory for Ansible."""

from __future__ import annotations

import json
from collections.abc import Sequence

from pannier.lab.lab import Lab
from pannier.lab.machine import POOL_DEVICE

_GROUP = 3
"""Number of the Swarm's managers and of etcd's members. With fewer machines it is one of each."""


def inventory(lab: Lab) -> str:
    """``hosts.yml`` for the collection pannier.cluster, and for anything else that speaks ssh.

    Raises:
        LabError: there is no such lab.
    """
    nodes = lab.nodes
    names = [node.name for node in nodes]
    few = names[: _GROUP if len(names) >= _GROUP else 1]
    # The lab's own key and the machines' host keys: nothing of the caller's ssh is used.
    ssh = f"-o UserKnownHostsFile={lab.names.known_hosts} -o StrictHostKeyChecking=yes"
    variables = {
        "ansible_user": "root",
        "ansible_ssh_private_key_file": str(lab.names.ssh_key),
        "ansible_ssh_common_args": f"{ssh} -o IdentitiesOnly=yes",
        "pannier_pool": POOL_DEVICE,
    }
    lines = [f"# The machines of lab {lab.name}.", "nodes:", "  hosts:"]
    for node in nodes:
        lines += [f"    {node.name}:", f"      ansible_host: {node.address}"]
    lines += ["  vars:"]
    # A JSON string is a YAML string, whatever is in it.
    lines += [f"    {key}: {json.dumps(value)}" for key, value in variables.items()]
    lines += [*_group("managers", few), *_group("etcd", few)]
    return "\n".join(lines) + "\n"


def _group(name: str, hosts: Sequence[str]) -> list[str]:
    return [f"{name}:", "  hosts:", *(f"    {host}:" for host in hosts)]
