#!/usr/bin/python
"""Module ``swarm_settings``: what a manager decides for all: heartbeat, roles, labels."""

from __future__ import annotations

DOCUMENTATION = """
module: swarm_settings
short_description: Sets a Swarm's heartbeat and its nodes' roles and labels
description:
  - Runs on a manager. Nodes and labels that are not named stay as they are.
options:
  heartbeat_seconds:
    description: How often a node gives a sign of life; it stays as it is if not given.
    type: int
  nodes:
    description:
      - For each node its C(id), and C(role) (manager or worker), C(labels) and C(availability)
        (active or drain); what is not given stays.
      - A node with C(absent) is taken out of the list; it has to have left.
    type: list
    elements: dict
    default: []
author: The Pannier authors (@pannier)
"""
EXAMPLES = """
- name: Notice a loss after some two seconds
  pannier.cluster.swarm_settings:
    heartbeat_seconds: 1
"""
RETURN = """
changes:
  description: One sentence for each change.
  returned: always
  type: list
  elements: str
"""

import time
from collections.abc import Callable

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.pannier.cluster.plugins.module_utils.engine import Engine, EngineError

NANOSECONDS = 1000000000
TRIES = 5


def main() -> None:
    """Entry point."""
    module = AnsibleModule(
        argument_spec={
            "heartbeat_seconds": {"type": "int"},
            "nodes": {"type": "list", "elements": "dict", "default": []},
        },
        supports_check_mode=True,
    )
    changes = []
    try:
        if module.params["heartbeat_seconds"]:
            changes += set_heartbeat(module)
        for node in module.params["nodes"]:
            changes += set_node(module, node)
    except EngineError as error:
        if not module.check_mode:
            module.fail_json(msg=f"{error}. Next: see docker node ls", changes=changes)
    diff = {"before": "", "after": "".join(f"{change}\n" for change in changes)}
    module.exit_json(changed=bool(changes), changes=changes, diff=diff)


def set_heartbeat(module: AnsibleModule) -> list:
    """The whole Swarm's setting."""

    def change() -> list:
        swarm = engine.get("/swarm")
        wanted = module.params["heartbeat_seconds"] * NANOSECONDS
        if swarm["Spec"]["Dispatcher"]["HeartbeatPeriod"] == wanted:
            return []
        swarm["Spec"]["Dispatcher"]["HeartbeatPeriod"] = wanted
        if not module.check_mode:
            engine.post(f"/swarm/update?version={swarm['Version']['Index']}", swarm["Spec"])
        return [f"heartbeat every {module.params['heartbeat_seconds']} s"]

    engine = Engine()
    return again(change)


def set_node(module: AnsibleModule, wish: dict) -> list:
    """One node's role and labels."""

    def change() -> list:
        node = next((each for each in engine.get("/nodes") if each["ID"] == wish["id"]), None)
        if wish.get("absent"):
            return [] if node is None else remove(node)
        if node is None:
            raise EngineError(f"the Swarm has no node {wish['id']}")
        spec = {**node["Spec"], "Labels": node["Spec"].get("Labels") or {}}
        wanted = wanted_of(spec, wish)
        if wanted == spec:
            return []
        if not module.check_mode:
            engine.post(f"/nodes/{wish['id']}/update?version={node['Version']['Index']}", wanted)
        new = [str(wanted[key]) for key in ("Role", "Availability") if wanted[key] != spec[key]]
        new += [f"{k}={v}" for k, v in wanted["Labels"].items() if spec["Labels"].get(k) != v]
        return [f"{node['Description']['Hostname']}: {', '.join(new)}"]

    def remove(node: dict) -> list:
        if not module.check_mode:
            engine.delete(f"/nodes/{node['ID']}?force=true")
        return [f"{node['Description']['Hostname']}: out of the list"]

    engine = Engine()
    return again(change)


def wanted_of(spec: dict, wish: dict) -> dict:
    """A node's specification as it is to be."""
    labels = {key: str(value) for key, value in (wish.get("labels") or {}).items()}
    return {
        **spec,
        "Role": wish.get("role") or spec["Role"],
        "Availability": wish.get("availability") or spec["Availability"],
        "Labels": {**spec["Labels"], **labels},
    }


def again(change: Callable[[], list]) -> list:
    """Swarm takes a change only for the version that was read; somebody may have been quicker."""
    for attempt in range(TRIES):
        try:
            return change()
        except EngineError as error:
            if "out of sequence" not in str(error) or attempt == TRIES - 1:
                raise
            time.sleep(0.5)
    return []


if __name__ == "__main__":
    main()
