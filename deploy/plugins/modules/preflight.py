#!/usr/bin/python
"""Documentation of the action ``preflight``, which runs on the control machine only."""

from __future__ import annotations

DOCUMENTATION = """
module: preflight
short_description: Decides from the facts of all hosts whether they can become one cluster
description:
  - Needs the fact C(pannier_host) of every host in the group C(nodes), see M(pannier.cluster.host).
  - Fails with all problems at once, each with its host and a remedy.
options:
  remove:
    description: Decides instead whether this node may leave the cluster.
    type: str
  volumes:
    description: Decides instead whether Pannier may be taken off the hosts of the play.
    type: list
    elements: dict
  give_up:
    description: Names of volumes that nobody can reach any more afterwards.
    type: list
    elements: str
author: The Pannier authors (@pannier)
"""
EXAMPLES = """
- name: Decide
  pannier.cluster.preflight:
  run_once: true
"""
RETURN = """
findings:
  description: Notes for a person, each with C(host), C(level), C(what) and C(remedy).
  returned: always
  type: list
  elements: dict
"""
