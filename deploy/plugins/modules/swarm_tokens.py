#!/usr/bin/python
"""Module ``swarm_tokens``: what machines join the Swarm with."""

from __future__ import annotations

DOCUMENTATION = """
module: swarm_tokens
short_description: Asks a manager for the Swarm's join tokens
description:
  - Changes nothing. Use it with C(no_log), since the answer is a secret.
options: {}
author: The Pannier authors (@pannier)
"""
EXAMPLES = """
- name: Ask for the join tokens
  pannier.cluster.swarm_tokens:
  register: tokens
  no_log: true
"""
RETURN = """
tokens:
  description: C(manager) and C(worker).
  returned: always
  type: dict
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.pannier.cluster.plugins.module_utils.engine import Engine, EngineError


def main() -> None:
    """Entry point."""
    module = AnsibleModule(argument_spec={}, supports_check_mode=True)
    try:
        tokens = Engine().get("/swarm")["JoinTokens"]
    except EngineError as error:
        module.fail_json(msg=str(error))
    module.exit_json(
        changed=False, tokens={"manager": tokens["Manager"], "worker": tokens["Worker"]}
    )


if __name__ == "__main__":
    main()
