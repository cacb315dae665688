"""Swarm's placement constraints, as its scheduler evaluates them.

A constraint is ``KEY==VALUE`` or ``KEY!=VALUE``, with optional blanks around both. Values are compared
without regard to case, and so are keys, except for a label's own name. A node that lacks a label has
the empty value for it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from pannier.core.swarm import SwarmNode

_CONSTRAINT = re.compile(
    r"\s*(?P<key>[^=!]*?)\s*(?P<operator>==|!=)\s*(?P<value>.*?)\s*", re.DOTALL
)
_NODE_LABEL = "node.labels."
_ENGINE_LABEL = "engine.labels."


def matches(node: SwarmNode, constraints: Iterable[str]) -> bool:
    """Whether Swarm may place a task with these constraints on the node, as far as they go.

    A constraint that we cannot read, or about something that we do not know of the node, counts as
    met, so that nobody is warned without need.
    """
    return all(_met(node, constraint) for constraint in constraints)


def _met(node: SwarmNode, constraint: str) -> bool:
    parts = _CONSTRAINT.fullmatch(constraint)
    actual = _actual(node, parts["key"]) if parts else None
    if parts is None or actual is None:
        return True
    same = actual.casefold() == parts["value"].casefold()
    return same == (parts["operator"] == "==")


def _actual(node: SwarmNode, key: str) -> str | None:
    """The node's value for a constraint's key; None where we know of no such key."""
    folded = key.casefold()
    if folded.startswith(_NODE_LABEL):
        return node.labels.get(key[len(_NODE_LABEL) :], "")
    if folded.startswith(_ENGINE_LABEL):
        return node.engine_labels.get(key[len(_ENGINE_LABEL) :], "")
    return {
        "node.id": node.id,
        "node.hostname": node.hostname,
        "node.role": node.role,
        "node.platform.os": node.os,
        "node.platform.arch": node.arch,
    }.get(folded)
