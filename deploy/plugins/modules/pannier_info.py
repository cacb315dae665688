#!/usr/bin/python
"""Module ``pannier_info``: what the cluster knows of itself."""

from __future__ import annotations

DOCUMENTATION = """
module: pannier_info
short_description: Returns the cluster's state, nodes and volumes
description:
  - Asks the daemon of the host where it runs, and changes nothing.
options:
  details:
    description: Whether each volume's holder is asked for what only it knows, such as its users.
    type: bool
    default: false
author: The Pannier authors (@pannier)
"""
EXAMPLES = """
- name: Ask for the volumes
  pannier.cluster.pannier_info:
  register: found

- name: Show those without a second copy
  ansible.builtin.debug:
    msg: "{{ found.volumes | map(attribute='name') }}"
"""
RETURN = """
status:
  description: As C(pannier status -o json).
  returned: always
  type: dict
nodes:
  description: As C(pannier node ls -o json).
  returned: always
  type: list
  elements: dict
volumes:
  description: As C(pannier volume ls -o json), or C(volume show) with O(details).
  returned: always
  type: list
  elements: dict
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.pannier.cluster.plugins.module_utils.program import pannier


def main() -> None:
    """Entry point."""
    module = AnsibleModule(
        argument_spec={"details": {"type": "bool", "default": False}}, supports_check_mode=True
    )
    volumes = pannier(module, "volume", "ls")
    if module.params["details"]:
        gone = "volume-not-found"
        shown = [pannier(module, "volume", "show", each["name"], ignore=[gone]) for each in volumes]
        volumes = [each for each in shown if each]
    module.exit_json(
        changed=False,
        status=pannier(module, "status"),
        nodes=pannier(module, "node", "ls"),
        volumes=volumes,
    )


if __name__ == "__main__":
    main()
