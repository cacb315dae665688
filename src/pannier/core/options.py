"""Volume options as people type them (``-o size=10G``), read strictly."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from difflib import get_close_matches
from typing import Any

from pannier.core.backup_plans import parse_plan
from pannier.core.clone_source import CloneSource
from pannier.core.drill_plans import parse_drill_plan
from pannier.core.errors import AlreadyExists, InvalidInput
from pannier.core.node import check_node_name
from pannier.core.schedules import parse_schedule
from pannier.core.size import format_size, parse_size
from pannier.core.volume import Durability, UnheldWrites, Volume, VolumeSpec

DRIVERS = ("btrfs", "directory")
LAYOUTS = ("image", "tree")


@dataclass(frozen=True, slots=True)
class Option:
    """One option: how it is read, and the words that the documentation shows.

    Attributes:
        later: what happens where a service asks for another value once the volume is there, and what a person may set
            (:mod:`pannier.core.declarations` decides it).
    """

    name: str
    read: Callable[[str], Any]
    default: str
    meaning: str
    later: str = "stays"


def _whole(name: str, low: int, high: int) -> Callable[[str], int]:
    def read(text: str) -> int:
        if not text.isascii() or not text.isdigit() or not low <= int(text[:20]) <= high:
            raise InvalidInput(
                f"{name}={text} is not allowed", remedy=f"use a whole number from {low} to {high}"
            )
        return int(text)

    return read


def _choice(name: str, choices: tuple[str, ...]) -> Callable[[str], str]:
    def read(text: str) -> str:
        if text not in choices:
            raise InvalidInput(
                f"{name}={text} is not allowed" + _did_you_mean(text, choices),
                remedy="use " + ", ".join(choices[:-1]) + " or " + choices[-1],
            )
        return text

    return read


def _mode(text: str) -> int:
    if not 3 <= len(text) <= 4 or any(c not in "01234567" for c in text):
        raise InvalidInput(f"mode={text} is not a mode", remedy="write it in octal, such as 0750")
    return int(text, 8)


def _nodes(text: str) -> tuple[str, ...]:
    names = tuple(check_node_name(part.strip()) for part in text.split(","))
    if len(set(names)) != len(names):
        raise InvalidInput(f"nodes={text} names a node twice", remedy="name each node once")
    return names


def _labels(text: str) -> dict[str, str]:
    labels: dict[str, str] = {}
    for part in text.split(","):
        key, equals, value = part.partition("=")
        if not equals or not key.strip():
            raise InvalidInput(
                f"labels={text} cannot be read", remedy="write labels=team=web,stage=test"
            )
        labels[key.strip()] = value
    return labels


_DURATION = re.compile(r"([0-9]{1,6}(?:\.[0-9]{1,3})?)(ms|s|m)", re.ASCII)
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0}
SHORTEST_INTERVAL_SECONDS = 0.2
LONGEST_INTERVAL_SECONDS = 3600.0


def _interval(text: str) -> float:
    match = _DURATION.fullmatch(text)
    if not match:
        raise InvalidInput(
            f"interval={text} is not a time", remedy="write a number and ms, s or m, such as 5s"
        )
    seconds = float(match[1]) * _SECONDS[match[2]]
    if not SHORTEST_INTERVAL_SECONDS <= seconds <= LONGEST_INTERVAL_SECONDS:
        raise InvalidInput(f"interval={text} is out of range", remedy="use 200ms to 60m")
    return seconds


def _flag(name: str) -> Callable[[str], bool]:
    return lambda text: _choice(name, ("true", "false"))(text) == "true"


def _backup(text: str) -> str:
    return "" if text == "none" else str(parse_plan(text))


def _drill(text: str) -> str:
    return "" if text == "none" else str(parse_drill_plan(text))


_ID_MAX = 2**32 - 2
OPTIONS = (
    Option(
        "size",
        parse_size,
        "none",
        "what its files can fill, such as 10G; without it as much as the pool; with layout=tree a guard "
        "against runaways",
        "of an image, more: `volume set`; less: never",
    ),
    Option(
        "copies",
        _whole("copies", 1, 99),
        "1",
        "nodes that keep the data",
        "more: made by itself; fewer: never",
    ),
    Option(
        "durability",
        lambda text: Durability(_choice("durability", tuple(Durability))(text)),
        "fsync with copies, else none",
        "what a node's sudden death may cost: nothing that was synced (fsync), at most the lag "
        "(interval), or access until the node returns (none)",
        "more: by itself; fsync to interval: `volume set`; none, with copies=1: `volume set`, by a copy",
    ),
    Option(
        "interval",
        _interval,
        "1s",
        "how often what was written is sent to the other copies",
        "by itself",
    ),
    Option(
        "min_copies",
        _whole("min_copies", 1, 99),
        "1",
        "so few copies in sync, the holder's included, may still acknowledge a sync call",
        "more: by itself, once so many are in sync; fewer: `volume set`",
    ),
    Option(
        "unheld_writes",
        lambda text: UnheldWrites(_choice("unheld_writes", tuple(UnheldWrites))(text)),
        "warn",
        "what no sync call waits for, such as a write to a file opened with O_DSYNC: is found and told (warn), "
        "or cannot be done in a container that mounts the volume (refuse)",
        "`volume set`, for containers that are started then",
    ),
    Option(
        "driver",
        _choice("driver", DRIVERS),
        "the node's own",
        "where the bytes live",
        "`volume set`, by a copy",
    ),
    Option(
        "layout",
        _choice("layout", LAYOUTS),
        "image",
        "how a btrfs pool keeps it: image (an ext4 in one file, with an exact size, and nothing that a "
        "container does reaches the pool) or tree (a tree of files in btrfs, as before images)",
        "`volume set`, by a copy",
    ),
    Option("nodes", _nodes, "the node that creates it", "where it is made, first choice first"),
    Option("uid", _whole("uid", 0, _ID_MAX), "0", "owner of the root directory"),
    Option("gid", _whole("gid", 0, _ID_MAX), "0", "group of the root directory"),
    Option("mode", _mode, "0755", "permissions of the root directory, octal"),
    Option(
        "labels",
        _labels,
        "none",
        "labels for people and tools, key=value,key=value",
        "by itself",
    ),
    Option(
        "snapshots",
        lambda text: None if text == "none" else parse_schedule(text),
        "none",
        "snapshots that are made and removed by themselves, such as hourly:24,daily:7,weekly:5,monthly:12: of how many hours, days, "
        "weeks and months one is kept",
        "more: by itself; fewer: `volume set`",
    ),
    Option(
        "protected",
        _flag("protected"),
        "false",
        "true: nothing removes it, neither Docker nor Pannier nor the loss of its node, before it is set to false",
        "true: by itself; false: `volume set`",
    ),
    Option(
        "backup",
        _backup,
        "none",
        "backs it up by itself: TARGET:EVERY:KEEP, such as offsite:daily:30 (EVERY: hourly, daily or weekly)",
        "by itself",
    ),
    Option(
        "drill",
        _drill,
        "none",
        "tries by itself whether its newest backup comes back: TARGET:EVERY, such as offsite:weekly (EVERY: daily, weekly or monthly)",
        "by itself",
    ),
    Option(
        "encrypted",
        _flag("encrypted"),
        "false",
        "true: its files are encrypted on each disk, with a key of its own that only nodes of the cluster have",
        "never: import it into a new volume",
    ),
)
FROM = Option(
    "from",
    CloneSource.parse,
    "it begins empty",
    "another volume that it begins as a clone of: `NAME@SNAPSHOT`, or `NAME` for what that is now. What is not said "
    "otherwise is as with that one, but for labels, protected, snapshots, backup and drill",
)
"""It says how a volume is made, and is no part of its spec."""
_BY_NAME = {option.name: option for option in (*OPTIONS, FROM)}


def _did_you_mean(word: str, known: tuple[str, ...]) -> str:
    close = get_close_matches(word, known, n=1)
    return f" (did you mean '{close[0]}'?)" if close else ""


def parse_options(options: Mapping[str, str], *, default_driver: str = "image") -> VolumeSpec:
    """Read options into a spec.

    Args:
        options: as they were typed.
        default_driver: what keeps a volume for which neither a driver nor a layout was typed.

    Raises:
        InvalidInput: an unknown option, a value that cannot be, or two that do not go together.
    """
    values = _read(options)
    if values.get("copies", 1) > 1:
        values.setdefault("durability", Durability.FSYNC)
    layout, driver = values.pop("layout", None), values.pop("driver", None)
    spec = VolumeSpec(**values, driver=_driver_for(layout, driver, default=default_driver))
    check_together(spec, given=frozenset(options))
    return spec


def _read(options: Mapping[str, str]) -> dict[str, Any]:
    """The value of each option by itself."""
    values: dict[str, Any] = {}
    for name, text in options.items():
        option = _BY_NAME.get(name)
        if option is None:
            known = tuple(_BY_NAME)
            raise InvalidInput(
                f"unknown option {name[:40]!r}" + _did_you_mean(name, known),
                remedy="the options are " + ", ".join(known),
            )
        values[name] = option.read(text)
    values.pop(FROM.name, None)
    return values


def asked_of(spec: VolumeSpec, options: Mapping[str, str]) -> VolumeSpec:
    """``spec`` with what the options say. Whether all of it goes together is not looked at.

    Raises:
        InvalidInput: an unknown option, or a value that cannot be.
    """
    values = _read(options)
    layout, driver = values.pop("layout", None), values.pop("driver", None)
    return replace(spec, **values, driver=_driver_for(layout, driver, default=spec.driver))


def _driver_for(layout: str | None, driver: str | None, *, default: str) -> str:
    """What keeps a volume. A person says driver=btrfs for both of its layouts."""
    if layout is None:
        return "image" if driver == "btrfs" else driver or default
    if (driver or default) == "directory":
        raise InvalidInput(
            "the directory driver has one layout of its own",
            remedy="leave layout out, or use driver=btrfs",
        )
    return "image" if layout == "image" else "btrfs"


def check_together(spec: VolumeSpec, *, given: frozenset[str]) -> None:
    """Refuse options that are valid by themselves but not together.

    Args:
        given: the names of those that were typed.

    Raises:
        InvalidInput: two do not go together.
    """
    if spec.copies == 1 and spec.durability is not Durability.NONE:
        raise InvalidInput(
            f"durability={spec.durability} needs a second copy",
            remedy="add copies=2, or leave it out",
        )
    if spec.copies > 1 and spec.durability is Durability.NONE:
        raise InvalidInput(
            f"copies={spec.copies} with durability=none would never be up to date",
            remedy="leave durability out, use fsync or interval, or have one copy: copies=1",
        )
    if spec.min_copies > spec.copies:
        raise InvalidInput(
            f"min_copies={spec.min_copies} with copies={spec.copies} could never be met",
            remedy="ask for at least as many copies",
        )
    if "min_copies" in given and spec.durability is not Durability.FSYNC:
        raise InvalidInput(
            "min_copies is about sync calls, which only durability=fsync holds",
            remedy="add durability=fsync and copies=2, or leave it out",
        )
    if "unheld_writes" in given and spec.durability is not Durability.FSYNC:
        raise InvalidInput(
            "unheld_writes is about what durability=fsync promises",
            remedy="add durability=fsync and copies=2, or leave it out",
        )
    if spec.copies == 1 and "interval" in given:
        raise InvalidInput("interval is for volumes with more than one copy", remedy="add copies=2")
    if spec.snapshots is not None and spec.layout != "image":
        raise InvalidInput(
            "only images have snapshots", remedy="use layout=image, or leave snapshots out"
        )
    if spec.backup and spec.driver != "image":
        raise InvalidInput(
            "backups are made of volumes with layout=image only", remedy="leave backup out"
        )
    if spec.drill and spec.driver != "image":
        raise InvalidInput(
            "backups are made of volumes with layout=image only", remedy="leave drill out"
        )
    if spec.encrypted and spec.driver != "image":
        raise InvalidInput(
            "only images are encrypted",
            remedy="use layout=image on a btrfs pool, or leave encrypted out",
        )
    if spec.copies > 1 and spec.driver == "directory":
        raise InvalidInput(
            "the directory driver keeps one copy: it cannot copy what is in use",
            remedy="use driver=btrfs, or leave copies out",
        )


def check_copies(options: Mapping[str, str], *, nodes: int) -> None:
    """Refuse more copies than there are nodes, before anything else is said about copies.

    Raises:
        InvalidInput: too many.
    """
    text = options.get("copies")
    if text is None:
        return
    copies = _BY_NAME["copies"].read(text)
    if copies > nodes:
        raise InvalidInput(
            f"copies={copies} needs as many nodes, and the cluster has {nodes}",
            remedy="ask for fewer copies, or join more nodes",
        )


def describe_spec(spec: VolumeSpec) -> dict[str, str]:
    """The options that would make ``spec``, as text; those at their default are left out."""
    default = VolumeSpec()
    shown: dict[str, str] = {}
    for item in fields(VolumeSpec):
        value = getattr(spec, item.name)
        if item.name == "unknown" or (
            value == getattr(default, item.name) and item.name != "driver"
        ):
            continue
        match item.name:
            case "driver" if spec.layout:
                shown.update(driver="btrfs", layout=spec.layout)
            case "size":
                shown["size"] = format_size(value)
            case "nodes":
                shown["nodes"] = ",".join(value)
            case "mode":
                shown["mode"] = f"{value:04o}"
            case "interval":
                shown["interval"] = f"{value:g}s"
            case "labels":
                shown["labels"] = ",".join(f"{key}={text}" for key, text in value.items())
            case "protected" | "encrypted":
                shown[item.name] = "true"
            case _:
                shown[item.name] = str(value)
    return shown


def value_of(spec: VolumeSpec, name: str) -> Any:
    """What an option is in a spec. A person says driver=btrfs for both of its layouts."""
    return describe_spec(spec)["driver"] if name == "driver" else getattr(spec, name)


def shown_value(spec: VolumeSpec, name: str) -> str:
    """The same as text for people."""
    if name == "durability":
        return spec.durability  # its default depends on another option
    return describe_spec(spec).get(name, _BY_NAME[name].default)


def check_same_options(existing: Volume, options: Mapping[str, str]) -> None:
    """Accept the creation of a volume that is already there, if it asks for nothing different.

    Only the options that were given are compared, since Docker repeats a creation without any.

    Raises:
        AlreadyExists: an option differs; the message names both values.
        InvalidInput: an option cannot be read, or two do not go together.
    """
    if FROM.name in options:  # what is not said is as with the other volume
        wanted = asked_of(existing.spec, options)
    else:
        wanted = parse_options(options, default_driver=existing.spec.driver)
    differing = [
        f"{name} is {shown_value(existing.spec, name)}, not {text}"
        for name, text in options.items()
        if name != FROM.name and value_of(wanted, name) != value_of(existing.spec, name)
    ]
    differing += other_origin(existing, options)
    if differing:
        raise AlreadyExists(
            f"volume {existing.name} exists with other options: " + ", ".join(differing),
            remedy="use it as it is, or create one with another name",
        )


def other_origin(existing: Volume, options: Mapping[str, str]) -> list[str]:
    """What a volume began as, in words for people, where the options say something else; empty where they do not."""
    asked = options.get(FROM.name)
    origin = existing.origin.source if existing.origin is not None else "none"
    return [] if asked in (None, origin) else [f"{FROM.name} is {origin}, not {asked}"]
