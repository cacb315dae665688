#!/usr/bin/python
"""Module ``pannier_node``: a node in or out of use, or out of the cluster."""

from __future__ import annotations

DOCUMENTATION = """
module: pannier_node
short_description: Puts a node in or out of use, or takes it out of the cluster
description:
  - Runs on any other node. A drained node's volumes leave it as soon as no container uses them.
options:
  name:
    description: The node's name.
    type: str
    required: true
  state:
    description: C(absent) drains it first, unless it is O(lost).
    type: str
    choices: [present, drained, absent]
    default: present
  lost:
    description: It is down and will not come back. Its volumes without copies go to the trash.
    type: bool
    default: false
  timeout_seconds:
    description: How long to wait until a drained node holds no volume.
    type: int
    default: 300
author: The Pannier authors (@pannier)
"""
EXAMPLES = """
- name: Empty a node
  pannier.cluster.pannier_node:
    name: node3
    state: drained
"""
RETURN = """
node:
  description: The node as it is now.
  returned: unless it is absent
  type: dict
"""

import time

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.pannier.cluster.plugins.module_utils.program import pannier

POLL_S = 1.0


def drain(module: AnsibleModule, name: str) -> dict:
    """Drain the node and wait until it holds nothing."""
    pannier(module, "node", "drain", name)
    deadline = time.monotonic() + module.params["timeout_seconds"]
    while (node := pannier(module, "node", "show", name))["volumes"]:
        if time.monotonic() > deadline:
            held = [v["name"] for v in pannier(module, "volume", "ls") if v["holder"] == name]
            module.fail_json(
                msg=f"node {name} still holds {', '.join(held)}. "
                f"Next: stop what uses them (pannier volume show {held[0] if held else 'NAME'}), "
                "then repeat this"
            )
        time.sleep(POLL_S)
    return node


def main() -> None:
    """Entry point."""
    module = AnsibleModule(
        argument_spec={
            "name": {"type": "str", "required": True},
            "state": {
                "type": "str",
                "choices": ["present", "drained", "absent"],
                "default": "present",
            },
            "lost": {"type": "bool", "default": False},
            "timeout_seconds": {"type": "int", "default": 300},
        },
        supports_check_mode=True,
    )
    wish = module.params
    name = wish["name"]
    node = pannier(module, "node", "show", name, ignore=["node-not-found"])
    if node is None and wish["state"] != "absent":
        module.fail_json(msg=f"there is no node {name}. Next: see pannier node ls")
    before = "absent" if node is None else "drained" if node["state"] == "drained" else "present"
    changed = before != wish["state"]
    if changed and not module.check_mode:
        if wish["state"] == "present":
            node = pannier(module, "node", "drain", name, "--undo")
        elif wish["state"] == "drained" or not wish["lost"]:
            node = drain(module, name)
        if wish["state"] == "absent":
            pannier(module, "node", "rm", name, *(["--lost"] if wish["lost"] else []))
            node = None
    elif wish["state"] == "drained" and not module.check_mode:
        node = drain(module, name)  # it may have been told to, and not be empty yet
    diff = {"before": f"{before}\n", "after": f"{wish['state']}\n"}
    module.exit_json(changed=changed, node=node, diff=diff)


if __name__ == "__main__":
    main()
