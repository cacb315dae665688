"""Looks at the Swarm, through ``docker``, and at Pannier's nodes, before a stack is deployed."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from pannier.contract.views import NodeView
from pannier.core.errors import Conflict, Unavailable
from pannier.core.swarm import Availability, SwarmNode
from pannier.stacks.checks import Publication, StackPlace
from pannier.stacks.compose import Port
from pannier.stacks.docker import Docker, DockerRefused

STACK_LABEL = "com.docker.stack.namespace"
_PLUGIN = ("Volume", "pannier")


def require_manager(docker: Docker) -> None:
    """Make sure that stacks can be deployed from this machine.

    Raises:
        Unavailable: no docker command, one without stacks, or no engine.
        Conflict: its engine is no Swarm manager.
    """
    try:
        docker.text("stack", "deploy", "--help")
    except DockerRefused as error:
        raise Unavailable(
            f"the command docker of this machine cannot deploy stacks: {error.message}",
            remedy="install Docker's own: docker-cli (Debian), or docker-ce-cli",
        ) from error
    swarm = json.loads(docker.text("info", "--format", "{{json .Swarm}}")) or {}
    state = swarm.get("LocalNodeState", "inactive")
    if state == "inactive":
        raise Conflict(
            "this machine's engine is in no Swarm",
            remedy="type it on a Swarm manager; to make one: docker swarm init, or pannier deploy",
        )
    if not swarm.get("ControlAvailable"):
        managers = [each["Addr"].rpartition(":")[0] for each in swarm.get("RemoteManagers") or ()]
        raise Conflict(
            f"this machine's engine is no Swarm manager (its Swarm is {state})",
            remedy="type it on a manager" + (f": {', '.join(managers)}" if managers else ""),
        )


def places(docker: Docker, nodes: Iterable[NodeView]) -> list[StackPlace]:
    """The Swarm's nodes, each with what Pannier knows of it.

    Args:
        nodes: Pannier's, as far as they were asked.
    """
    identities = docker.text("node", "ls", "--quiet").split()
    obstacles = {node.swarm: node.sync_obstacle for node in nodes if node.swarm}
    return [_place(each, obstacles.get(each["ID"])) for each in docker.inspect("node", identities)]


def published(docker: Docker) -> list[Publication]:
    """The ports that all services of the Swarm publish."""
    identities = docker.text("service", "ls", "--quiet").split()
    found = []
    for service in docker.inspect("service", identities):
        spec = service["Spec"]
        stack = (spec.get("Labels") or {}).get(STACK_LABEL, "")
        for port in (spec.get("EndpointSpec") or {}).get("Ports") or ():
            if number := port.get("PublishedPort"):
                shown = Port(number, port.get("Protocol", "tcp"))
                found.append(Publication(port=shown, service=spec["Name"], stack=stack))
    return found


def _place(found: dict[str, Any], obstacle: str | None) -> StackPlace:
    spec, description = found["Spec"], found.get("Description") or {}
    engine, platform = description.get("Engine") or {}, description.get("Platform") or {}
    plugins = {(each.get("Type"), each.get("Name")) for each in engine.get("Plugins") or ()}
    manager = found.get("ManagerStatus") or {}
    address = manager.get("Addr", "").rpartition(":")[0] or found["Status"].get("Addr", "")
    node = SwarmNode(
        id=found["ID"],
        hostname=description.get("Hostname", ""),
        state=found["Status"]["State"],
        availability=Availability(spec["Availability"]),
        role=spec["Role"],
        version=found["Version"]["Index"],
        leader=bool(manager.get("Leader")),
        labels=spec.get("Labels") or {},
        engine_labels=engine.get("Labels") or {},
        os=platform.get("OS", ""),
        arch=platform.get("Architecture", ""),
    )
    return StackPlace(
        node=node,
        address=address if address not in ("0.0.0.0", "127.0.0.1") else "",
        has_plugin=_PLUGIN in plugins,
        sync_obstacle=obstacle,
    )
