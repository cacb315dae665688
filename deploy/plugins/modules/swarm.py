#!/usr/bin/python
"""Module ``swarm``: a host's place in the Swarm."""

from __future__ import annotations

DOCUMENTATION = """
module: swarm
short_description: Makes a host a member of a Swarm
description:
  - Without O(join) it makes a new Swarm, with O(join) it joins one; a member stays as it is.
  - The token goes through the engine's socket and is in no process list.
options:
  address:
    description: Address at which the others reach this engine.
    type: str
    required: true
  join:
    description: Addresses of managers of the Swarm that it joins.
    type: list
    elements: str
    default: []
  token:
    description: The join token.
    type: str
  state:
    description: C(absent) leaves the Swarm; a manager has to be made a worker first.
    type: str
    choices: [present, absent]
    default: present
author: The Pannier authors (@pannier)
"""
EXAMPLES = """
- name: Make a Swarm
  pannier.cluster.swarm:
    address: 192.0.2.11
"""
RETURN = """
node:
  description: The engine's node id.
  returned: when it is a member
  type: str
"""

import time

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.pannier.cluster.plugins.module_utils.engine import Engine, EngineError

PORT = 2377
TRIES = 20


def main() -> None:
    """Entry point."""
    module = AnsibleModule(
        argument_spec={
            "address": {"type": "str", "required": True},
            "join": {"type": "list", "elements": "str", "default": []},
            "token": {"type": "str", "no_log": True},
            "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
        },
        supports_check_mode=True,
    )
    engine, wish = Engine(), module.params
    try:
        state = engine.get("/info")["Swarm"]
        inside = state["LocalNodeState"] in ("active", "pending")
        if wish["state"] == "absent":
            leave(module, engine, inside)
        if inside:
            module.exit_json(changed=False, node=state["NodeID"])
        if not module.check_mode:
            enter(engine, wish)
            state = engine.get("/info")["Swarm"]
    except EngineError as error:
        if not module.check_mode:
            module.fail_json(msg=f"{error}. Next: see journalctl -u docker")
        state = {"NodeID": ""}
    after = f"joins {', '.join(wish['join'])}\n" if wish["join"] else "a new Swarm\n"
    diff = {"before": "in no Swarm\n", "after": after}
    module.exit_json(changed=True, node=state["NodeID"], diff=diff)


def leave(module: AnsibleModule, engine: Engine, inside: bool) -> None:
    """Leave the Swarm. A manager that was just made a worker takes a moment to know it."""
    if inside and not module.check_mode:
        for attempt in range(TRIES):
            if not engine.get("/info")["Swarm"]["ControlAvailable"] or attempt == TRIES - 1:
                break
            time.sleep(1)
        engine.post("/swarm/leave", None)
    diff = {"before": "in a Swarm\n", "after": "in no Swarm\n"} if inside else {}
    module.exit_json(changed=inside, node="", diff=diff)


def enter(engine: Engine, wish: dict) -> None:
    """Make a Swarm, or join one."""
    body = {"AdvertiseAddr": wish["address"], "ListenAddr": f"{wish['address']}:{PORT}"}
    if wish["join"]:
        remotes = [f"{address}:{PORT}" for address in wish["join"]]
        engine.post("/swarm/join", {**body, "RemoteAddrs": remotes, "JoinToken": wish["token"]})
    else:
        engine.post("/swarm/init", {**body, "ForceNewCluster": False})


if __name__ == "__main__":
    main()
