#!/usr/bin/python
"""Module ``pannier_volume``: a volume, and where it is."""

from __future__ import annotations

DOCUMENTATION = """
module: pannier_volume
short_description: Makes, moves or removes a volume
description:
  - Runs on any node. A volume that is there with other options is an error, and stays as it is.
options:
  name:
    description: The volume's name.
    type: str
    required: true
  state:
    description: C(absent) moves it to the trash, from which it can be restored for a time.
    type: str
    choices: [present, absent]
    default: present
  options:
    description: Options of a new volume, such as C(size) and C(copies).
    type: dict
    default: {}
  from:
    description:
      - What a new volume is to be a clone of, C(NAME@SNAPSHOT), or C(NAME) for what that volume is now.
      - A volume that is there and is a clone of something else, or of nothing, is an error.
    type: str
  node:
    description: The node that is to hold it; where it is stays open if not given.
    type: str
  wait:
    description: How long a move waits for the containers that use the volume to stop.
    type: str
    default: 100s
author: The Pannier authors (@pannier)
"""
EXAMPLES = """
- name: Make a volume
  pannier.cluster.pannier_volume:
    name: jenkins_home
    options: {size: 10G, copies: 2}

- name: Make a test database of last night's
  pannier.cluster.pannier_volume:
    name: test_db
    from: shop_db@nightly
    options: {copies: 1}

- name: Move it
  pannier.cluster.pannier_volume:
    name: jenkins_home
    node: node2
"""
RETURN = """
volume:
  description: The volume as it is now; none in check mode where it would be made.
  returned: with O(state=present)
  type: dict
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.pannier.cluster.plugins.module_utils.program import pannier


def state_of(volume: dict) -> dict:
    """What a diff shows of a volume."""
    if not volume:
        return {}
    return {"holder": volume["holder"], "options": volume["options"]}


def asked(wish: dict) -> dict:
    """The options that are asked for, as text."""
    options = {key: str(value) for key, value in wish["options"].items()}
    return {**options, "from": wish["from"]} if wish["from"] else options


def wanted(volume: dict, wish: dict) -> dict:
    """What that will be."""
    if wish["state"] == "absent":
        return {}
    options = asked(wish)
    before = state_of(volume) or {"holder": "any node", "options": options}
    return {**before, "holder": wish["node"] or before["holder"]}


def change(module: AnsibleModule, volume: dict) -> dict:
    """Do it; the volume afterwards."""
    wish = module.params
    name = wish["name"]
    if wish["state"] == "absent":
        pannier(module, "volume", "rm", name)
        return {}
    if not volume:
        options = asked(wish)
        if (
            wish["node"] and not wish["from"]
        ):  # a clone is made where the other volume is, and moved then
            options.setdefault("nodes", wish["node"])
        words = [word for pair in options.items() for word in ("-o", "=".join(pair))]
        volume = pannier(module, "volume", "create", name, *words)
    if wish["node"] and volume["holder"] != wish["node"]:
        pannier(module, "volume", "move", name, wish["node"], "--wait", wish["wait"])
    return pannier(module, "volume", "show", name)


def check_options(module: AnsibleModule, volume: dict) -> None:
    """Fail where the volume was made with other options; Pannier compares them."""
    options = asked(module.params)
    if not options or module.params["state"] == "absent":
        return
    there = {**volume["options"], "from": volume.get("cloned_from", "")}
    same = all(there.get(key) == value for key, value in options.items())
    if not same and not module.check_mode:
        words = [word for key, value in options.items() for word in ("-o", f"{key}={value}")]
        pannier(module, "volume", "create", module.params["name"], *words)


def main() -> None:
    """Entry point."""
    module = AnsibleModule(
        argument_spec={
            "name": {"type": "str", "required": True},
            "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
            "options": {"type": "dict", "default": {}},
            "from": {"type": "str"},
            "node": {"type": "str"},
            "wait": {"type": "str", "default": "100s"},
        },
        supports_check_mode=True,
    )
    volume = pannier(module, "volume", "show", module.params["name"], ignore=["volume-not-found"])
    if volume:
        check_options(module, volume)
    before, after = state_of(volume), wanted(volume, module.params)
    changed = before != after
    if changed and not module.check_mode:
        volume = change(module, volume)
        after = state_of(volume)
    module.exit_json(changed=changed, volume=volume, diff={"before": before, "after": after})


if __name__ == "__main__":
    main()
