#!/usr/bin/python
"""Module ``member``: makes a host a node of the cluster."""

from __future__ import annotations

DOCUMENTATION = """
module: member
short_description: Makes a host a node of the cluster
description:
  - Runs C(pannier init) or, with O(join), C(pannier join); a host that is a node stays as it is.
  - What a try that was cut short has made is found again and used.
options:
  name:
    description: The node's name.
    type: str
    required: true
  address:
    description: Address at which the other nodes reach it.
    type: str
    required: true
  store:
    description: The cluster's memory, for a new cluster.
    type: str
    default: sqlite
  join:
    description: Address of a node of the cluster that it joins.
    type: str
  token:
    description: The join token.
    type: str
  driver:
    description: Where the bytes live.
    type: str
    choices: [btrfs, directory]
    default: btrfs
  pool:
    description: Device or file of the pool.
    type: str
  pool_size:
    description: Size of a new pool file.
    type: str
  force_format:
    description: The pool's device again, if what it holds may be erased.
    type: str
  runtime:
    description: Whether pannier-runtime becomes Docker's default runtime.
    type: bool
    default: true
  runtime_before:
    description: Docker's runtime before which it goes; runc if not given.
    type: str
author: The Pannier authors (@pannier)
"""
EXAMPLES = """
- name: Make the first node
  pannier.cluster.member:
    name: node1
    address: 192.0.2.11
"""
RETURN = """
command:
  description: What was, or would be, run.
  returned: changed
  type: str
"""

import os

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.pannier.cluster.plugins.module_utils.observe import CONFIGURATION
from ansible_collections.pannier.cluster.plugins.module_utils.program import pannier


def words_of(wish: dict) -> list:
    """The command line, without the token."""
    words = ["join", wish["join"]] if wish["join"] else ["init", "--store", wish["store"]]
    for option in (
        "name",
        "address",
        "driver",
        "pool",
        "pool_size",
        "force_format",
        "runtime_before",
    ):
        if wish[option]:
            words += [f"--{option.replace('_', '-')}", wish[option]]
    return words if wish["runtime"] else [*words, "--no-runtime"]


def main() -> None:
    """Entry point."""
    module = AnsibleModule(
        argument_spec={
            "name": {"type": "str", "required": True},
            "address": {"type": "str", "required": True},
            "store": {"type": "str", "default": "sqlite"},
            "join": {"type": "str"},
            "token": {"type": "str", "no_log": True},
            "driver": {"type": "str", "choices": ["btrfs", "directory"], "default": "btrfs"},
            "pool": {"type": "str"},
            "pool_size": {"type": "str"},
            "force_format": {"type": "str"},
            "runtime": {"type": "bool", "default": True},
            "runtime_before": {"type": "str"},
        },
        supports_check_mode=True,
    )
    if os.path.exists(CONFIGURATION):
        module.exit_json(changed=False)
    words = words_of(module.params)
    if not module.check_mode:
        pannier(module, *words, token=module.params["token"])
    module.exit_json(
        changed=True,
        command=" ".join(["pannier", *words]),
        diff={"before": "no node\n", "after": f"node {module.params['name']}\n"},
    )


if __name__ == "__main__":
    main()
