#!/usr/bin/python
"""Module ``ready``: waits until every node can be given work that needs volumes."""

from __future__ import annotations

DOCUMENTATION = """
module: ready
short_description: Waits until all nodes are up and the Swarm knows that they have Pannier
description:
  - Runs on a manager and changes nothing. The Swarm learns of a node's plugins some 20 s late.
options:
  nodes:
    description: The nodes' names in the cluster, by their ids in the Swarm.
    type: dict
    required: true
  timeout_seconds:
    description: How long to wait.
    type: int
    default: 90
author: The Pannier authors (@pannier)
"""
EXAMPLES = """
- name: Wait until all are ready
  pannier.cluster.ready:
    nodes: {j3v0x: node1}
"""
RETURN = """ # """

import time
from collections.abc import Mapping, Sequence
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.pannier.cluster.plugins.module_utils.engine import Engine, EngineError
from ansible_collections.pannier.cluster.plugins.module_utils.program import pannier

POLL_S = 1.0


def lacking(
    wanted: Mapping[str, str],
    swarm: Sequence[Mapping[str, Any]],
    cluster: Sequence[Mapping[str, Any]],
) -> list[str]:
    """What is not there yet, one sentence for each node.

    Args:
        wanted: id in the Swarm -> name in the cluster.
        swarm: the engine's nodes.
        cluster: Pannier's nodes.
    """
    found = []
    states = {node["name"]: node["state"] for node in cluster}
    engines = {node["ID"]: node for node in swarm}
    for identity, name in sorted(wanted.items(), key=lambda pair: pair[1]):
        node = engines.get(identity)
        plugins = (node or {}).get("Description", {}).get("Engine", {}).get("Plugins") or []
        if node is None or node["Status"]["State"] != "ready":
            found.append(f"{name} is not ready in the Swarm")
        elif not any((each["Type"], each["Name"]) == ("Volume", "pannier") for each in plugins):
            found.append(f"the Swarm does not know yet that {name} has Pannier")
        elif states.get(name) not in ("up", "drained"):
            found.append(f"{name} is {states.get(name, 'unknown')} in the cluster")
    return found


def main() -> None:
    """Entry point."""
    module = AnsibleModule(
        argument_spec={
            "nodes": {"type": "dict", "required": True},
            "timeout_seconds": {"type": "int", "default": 90},
        },
        supports_check_mode=True,
    )
    if module.check_mode:
        module.exit_json(changed=False)
    deadline = time.monotonic() + module.params["timeout_seconds"]
    while True:
        try:
            nodes = Engine().get("/nodes")
            missing = lacking(module.params["nodes"], nodes, pannier(module, "node", "ls"))
        except EngineError as error:
            missing = [str(error)]  # for a moment there may be no leader
        if not missing:
            module.exit_json(changed=False)
        if time.monotonic() > deadline:
            said = "; ".join(missing)
            module.fail_json(msg=f"{said}. Next: see journalctl -u pannierd -u docker there")
        time.sleep(POLL_S)


if __name__ == "__main__":
    main()
