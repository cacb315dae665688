"""Swarm's templates in what a service's tasks mount, such as ``data-{{.Task.Slot}}``.

Swarm replaces them on the node that a task runs on. No answer of its API has the result, so it is told here by
the same rules. Go's templates can do far more than anybody needs in a volume's name: of anything but a field
and a service's label, nothing is said.
"""

from __future__ import annotations

import re

from pannier.core.swarm import SwarmNode, SwarmService, SwarmTask

_ACTION = re.compile(
    r"(?P<before>\s*)\{\{(?P<left>-\s)?\s*(?P<what>[^{}]*?)\s*(?P<right>\s-)?\}\}(?P<after>\s*)"
)
# Swarm refuses .Service.Labels.KEY: it tries each template without labels when the service is made.
_LABEL = re.compile(r'index\s+\$?\.Service\.Labels\s+"(?P<key>[^"\\]*)"')


def expanded(
    text: str, *, service: SwarmService, task: SwarmTask, node: SwarmNode | None
) -> str | None:
    """What Swarm makes of a text for one task; None where that cannot be told.

    Args:
        node: the one that the task is on; None while Swarm has found none.
    """
    if "{{" not in text:
        return text
    values = _values(service, task, node)
    unknown = False

    def value(match: re.Match[str]) -> str:
        nonlocal unknown
        found = _value(match["what"], values, service)
        unknown = unknown or found is None
        before = "" if match["left"] else match["before"]
        after = "" if match["right"] else match["after"]
        return f"{before}{found}{after}"

    result = _ACTION.sub(value, text)
    return None if unknown or "{{" in result else result


def _value(what: str, values: dict[str, str], service: SwarmService) -> str | None:
    if label := _LABEL.fullmatch(what):
        return service.labels.get(label["key"], "")
    return values.get(what.removeprefix("$"))


def _values(service: SwarmService, task: SwarmTask, node: SwarmNode | None) -> dict[str, str]:
    values = {".Service.ID": service.id, ".Service.Name": service.name, ".Task.ID": task.id}
    if node is not None:
        values[".Node.ID"] = node.id
        values[".Node.Hostname"] = node.hostname
        values[".Node.Platform.OS"] = node.os
        values[".Node.Platform.Architecture"] = node.arch
    # A task of a global service has no slot: Swarm takes its node's id instead.
    slot = str(task.slot) if task.slot else node.id if node is not None else ""
    values |= {".Task.Slot": slot, ".Task.Name": f"{service.name}.{slot}.{task.id}"}
    return {field: text for field, text in values.items() if text}
