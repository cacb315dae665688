"""What a compose file asks of the cluster, as far as it can be checked before it is deployed.

Docker reads the file itself. This module reads the same text and variables, and leaves to Docker what it
does not know.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any

from pannier.core.errors import InvalidInput
from pannier.core.options import parse_options
from pannier.core.volume import Durability

OURS = "x-pannier"
"""The compose file's section for Pannier: what the stack is, the address to open, what to do next, and
which of its secrets are passwords that Pannier may make."""
_DRIVER = "pannier"
_VARIABLE = re.compile(
    r"\$(?:(?P<dollar>\$)|(?P<plain>\w+)|\{(?P<name>\w+)(?:(?P<operator>:?[-?])(?P<word>[^}]*))?\})"
)
_PUBLISHED = re.compile(r"(?:[0-9.]+:)?(?P<port>[0-9]+):[0-9]+(?:/(?P<protocol>\w+))?")


@dataclass(frozen=True, slots=True, order=True)
class Port:
    """A port that a service publishes on nodes."""

    number: int
    protocol: str = "tcp"

    def __str__(self) -> str:
        return f"{self.number}/{self.protocol}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """One service. ``volumes`` are the compose file's keys of those volumes that use our driver."""

    name: str
    constraints: tuple[str, ...] = ()
    volumes: tuple[str, ...] = ()
    ports: tuple[Port, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Compose:
    """A compose file, its variables replaced.

    Attributes:
        about: what it is, in a line.
        address: the address to open, with ``NODE`` for any node's; empty where there is none.
        next_steps: what a person does after the deployment.
        secrets: names of those that must be in the Swarm before the deployment.
        passwords: those of them that may be any text, so that Pannier can make them.
        fsync: keys of the volumes whose sync calls are to be held.
        variables: names of the variables that the file uses, with their defaults; None without one.
    """

    about: str = ""
    address: str = ""
    next_steps: tuple[str, ...] = ()
    services: tuple[Service, ...] = ()
    secrets: tuple[str, ...] = ()
    passwords: frozenset[str] = frozenset()
    fsync: frozenset[str] = frozenset()
    variables: Mapping[str, str | None] = field(default_factory=dict)


def read(text: str, *, environment: Mapping[str, str], given: Mapping[str, str]) -> Compose:
    """Read a compose file.

    Args:
        environment: variables that it may use.
        given: variables that were typed for it; they have precedence, and the file must use them.

    Raises:
        InvalidInput: it is not a compose file, does not use a given variable, needs one that has no
            value, or has an invalid volume option.
    """
    document = _document(text)
    variables = _variables(document)
    _must_know(variables, given)
    document = _replaced(document, {**environment, **given})
    volumes = {
        key: each or {}
        for key, each in _section(document, "volumes").items()
        if (each or {}).get("driver") == _DRIVER
    }
    ours = _section(document, OURS)
    return Compose(
        about=str(ours.get("about", "")),
        address=str(ours.get("address", "")),
        next_steps=tuple(map(str, ours.get("next", ()))),
        services=tuple(
            _service(name, service or {}, volumes)
            for name, service in _section(document, "services").items()
        ),
        secrets=tuple(_external(_section(document, "secrets"))),
        passwords=frozenset(map(str, ours.get("passwords", ()))),
        fsync=frozenset(key for key, each in volumes.items() if _is_fsync(key, each)),
        variables=variables,
    )


def _document(text: str) -> dict[str, Any]:
    import yaml  # only here: no other command needs it

    try:
        document = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise InvalidInput(f"the compose file is not YAML: {error}", remedy="mend it") from error
    if not isinstance(document, dict) or not isinstance(document.get("services"), dict):
        raise InvalidInput("the compose file has no services", remedy="name a compose file")
    return document


def _section(document: Mapping[str, Any], name: str) -> dict[str, Any]:
    return document.get(name) or {}


# -- variables -----------------------------------------------------------------------------------


def _texts(value: object) -> list[str]:
    if isinstance(value, dict):
        return [text for each in value.values() for text in _texts(each)]
    if isinstance(value, list):
        return [text for each in value for text in _texts(each)]
    return [value] if isinstance(value, str) else []


def _variables(document: Mapping[str, Any]) -> dict[str, str | None]:
    found: dict[str, str | None] = {}
    for text in _texts(document):
        for match in _VARIABLE.finditer(text):
            name = match["name"] or match["plain"]
            if name and match["operator"] in ("-", ":-"):
                found[name] = match["word"]
            elif name:
                found.setdefault(name)
    return found


def _must_know(variables: Mapping[str, object], given: Mapping[str, str]) -> None:
    for name in given:
        if name not in variables:
            close = get_close_matches(name, variables, n=1)
            hint = f" (did you mean {close[0]!r}?)" if close else ""
            raise InvalidInput(
                f"the stack has no variable {name}{hint}",
                remedy=f"it has {', '.join(sorted(variables)) or 'none'}",
            )


def _replaced(document: dict[str, Any], values: Mapping[str, str]) -> dict[str, Any]:
    missing: dict[str, str] = {}

    def replace(match: re.Match[str]) -> str:
        name, operator = match["name"] or match["plain"], match["operator"] or ""
        if name is None:
            return "$"
        value = values.get(name)
        if value is None or (value == "" and operator.startswith(":")):
            if operator.endswith("?"):
                missing[name] = match["word"]
            return match["word"] if operator.endswith("-") else value or ""
        return value

    def walk(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: walk(each) for key, each in value.items()}
        if isinstance(value, list):
            return [walk(each) for each in value]
        return _VARIABLE.sub(replace, value) if isinstance(value, str) else value

    result: dict[str, Any] = walk(document)
    if missing:
        shown = ", ".join(f"{name} ({why})" if why else name for name, why in missing.items())
        words = " ".join(f"-e {name}=..." for name in missing)
        raise InvalidInput(f"the stack needs a value for {shown}", remedy=f"add {words}")
    return result


# -- parts ---------------------------------------------------------------------------------------


def _service(name: str, service: Mapping[str, Any], volumes: Mapping[str, Any]) -> Service:
    placement = (service.get("deploy") or {}).get("placement") or {}
    return Service(
        name=name,
        constraints=tuple(map(str, placement.get("constraints") or ())),
        volumes=tuple(key for key in map(_source, service.get("volumes") or ()) if key in volumes),
        ports=tuple(port for each in service.get("ports") or () if (port := _port(each))),
    )


def _source(mount: object) -> str:
    if isinstance(mount, dict):
        return str(mount.get("source", ""))
    return str(mount).partition(":")[0]


def _port(published: object) -> Port | None:
    """None where Docker chooses the port itself, or where several are meant."""
    if isinstance(published, dict):
        number = str(published.get("published", ""))
        protocol = str(published.get("protocol", "tcp"))
        return Port(int(number), protocol) if number.isdigit() else None
    match = _PUBLISHED.fullmatch(str(published))
    return Port(int(match["port"]), match["protocol"] or "tcp") if match else None


def _external(things: Mapping[str, Any]) -> list[str]:
    found = []
    for key, thing in things.items():
        external = (thing or {}).get("external")
        if isinstance(external, dict):  # the form of older files
            found.append(str(external.get("name", key)))
        elif external:
            found.append(str(thing.get("name", key)))
    return found


def _is_fsync(key: str, volume: Mapping[str, Any]) -> bool:
    options = {name: str(value) for name, value in (volume.get("driver_opts") or {}).items()}
    try:
        return parse_options(options).durability is Durability.FSYNC
    except InvalidInput as error:
        raise InvalidInput(
            f"volume {key} of the compose file: {error.message}", remedy=error.remedy
        ) from error
