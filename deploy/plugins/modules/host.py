#!/usr/bin/python
"""Module ``host``: what a host is like."""

from __future__ import annotations

DOCUMENTATION = """
module: host
short_description: Looks at a host and changes nothing
description:
  - Returns the fact C(pannier_host), from which the preflight and the roles decide.
  - Together with the action plugin of the same name it also measures the host's clock.
options:
  name:
    description: The node's name in the cluster.
    type: str
    required: true
  address:
    description: Address at which the other nodes reach it.
    type: str
    required: true
  pool:
    description: Device or file of the pool.
    type: str
  ports:
    description: TCP ports that it will listen on.
    type: list
    elements: int
    default: []
author: The Pannier authors (@pannier)
"""
EXAMPLES = """
- name: Look at the host
  pannier.cluster.host:
    name: node1
    address: 192.0.2.11
"""
RETURN = """
ansible_facts:
  description: The fact C(pannier_host).
  returned: always
  type: dict
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.pannier.cluster.plugins.module_utils.observe import observe


def main() -> None:
    """Entry point."""
    module = AnsibleModule(
        argument_spec={
            "name": {"type": "str", "required": True},
            "address": {"type": "str", "required": True},
            "pool": {"type": "str"},
            "ports": {"type": "list", "elements": "int", "default": []},
        },
        supports_check_mode=True,
    )
    wish = module.params
    found = observe(wish["pool"] or None, wish["ports"])
    found.update(name=wish["name"], address=wish["address"])
    module.exit_json(ansible_facts={"pannier_host": found})


if __name__ == "__main__":
    main()
