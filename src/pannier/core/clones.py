"""What a clone is to be, by the volume that it is made of and by what was asked for. Pure.

A clone is made on the node that holds that volume, since its bytes are there. It may then be moved as any other.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from pannier.core.clone_source import CloneSource
from pannier.core.errors import Conflict, InvalidInput
from pannier.core.options import FROM, describe_spec, parse_options, shown_value, value_of
from pannier.core.placement import Candidate, place_holder, place_replicas
from pannier.core.size import format_size
from pannier.core.volume import Durability, Volume, VolumeSpec, check_name

_OF_THE_OTHER_ALONE = ("labels", "protected", "snapshots", "backup", "drill")
"""What is not taken over: it was said of the other volume as such, and not of what is in it."""
_OF_COPIES = ("durability", "interval", "min_copies", "unheld_writes")
"""What says something of a second copy only."""
_OF_SYNC_CALLS = ("min_copies", "unheld_writes")
"""What says something of durability=fsync only."""
_IN_THE_IMAGE = ("uid", "gid", "mode")
"""What is in the file system, which is the other volume's."""
_OF_THE_BYTES = ("driver", "encrypted")
"""What each byte of it depends on: both share them."""


def name_of_clone(pattern: str, volume: str) -> str:
    """What the clone of a volume is called: the volume's name stands for ``{}`` in a pattern.

    Raises:
        InvalidInput: there is not one ``{}``, or what comes of it cannot name a volume.
    """
    if pattern.count("{}") != 1:
        raise InvalidInput(
            f"{pattern[:80]!r} does not say where the volume's name goes",
            remedy="write it with one {}, such as '{}-test'",
        )
    return check_name(pattern.replace("{}", volume))


def spec_of_clone(source: Volume, options: Mapping[str, str]) -> VolumeSpec:
    """What a clone of a volume is to be: as that is, but for what the options say.

    Raises:
        InvalidInput: an option cannot be read, or does not go with another one or with a clone of this volume.
        Conflict: the volume is no image.
    """
    if source.spec.layout != "image":
        raise Conflict(
            f"volume {source.name} is no image, and only images have clones",
            remedy=f"have its files copied into one: pannier volume set {source.name} layout=image",
        )
    asked = {name: text for name, text in options.items() if name != FROM.name}
    had = {
        name: text
        for name, text in describe_spec(source.spec).items()
        if name not in _OF_THE_OTHER_ALONE
    }
    spec = parse_options({**taken_over(had, asked), **asked})
    _check_same(source, spec, asked)
    if "size" not in asked:
        return replace(spec, size=source.spec.size)  # as it is, to the byte
    _check_size(source, spec)
    return spec


def taken_over(there: Mapping[str, str], asked: Mapping[str, str]) -> dict[str, str]:
    """The options of another volume that go with what is asked for: those of copies only where there are to be copies.

    Args:
        there: the other volume's. asked: those that are to be others.
    """
    had = there.get("copies", "1")
    copies = asked.get("copies", had)
    gone = set(_OF_COPIES) if "1" in (copies, had) else set()
    if "driver" in asked:
        gone.add("layout")
    if asked.get("durability", Durability.FSYNC) != Durability.FSYNC:
        gone |= set(_OF_SYNC_CALLS)
    if _count(copies) < _count(there.get("min_copies", "1")):
        gone.add("min_copies")
    return {name: text for name, text in there.items() if name not in gone}


def _count(text: str) -> int:
    """A number of copies; a high one for what is none, which is refused later."""
    return int(text) if text.isdecimal() and len(text) < 3 else 100


def _check_same(source: Volume, spec: VolumeSpec, asked: Mapping[str, str]) -> None:
    """Refuse what a clone has in common with the other volume, whatever is asked for."""
    for name in (*_OF_THE_BYTES, *_IN_THE_IMAGE):
        if name in asked and value_of(spec, name) != value_of(source.spec, name):
            raise _stays(source, name, asked[name])
    if spec.driver != source.spec.driver:
        raise _stays(source, "layout", asked["layout"])


def _stays(source: Volume, name: str, text: str) -> InvalidInput:
    what = source.spec.layout if name == "layout" else shown_value(source.spec, name)
    if name in _IN_THE_IMAGE:
        instead = ", and change the owner or the mode in a container"
    elif name == "encrypted":
        instead = (
            ": a clone has the same key; or export the files and import them into a new volume"
        )
    else:
        instead = ""
    return InvalidInput(
        f"{name}={text} cannot be: {name} of a clone of volume {source.name} is {what}",
        remedy=f"leave {name} out{instead}",
    )


def _check_size(source: Volume, spec: VolumeSpec) -> None:
    """Refuse another size than the other volume has.

    Raises:
        InvalidInput: it is another one; the remedy says what to do.
    """
    assert spec.size is not None
    copy = f"or take the files along: pannier volume export {source.name}, and pannier volume import -o size=..."
    if source.spec.size is None:
        raise InvalidInput(
            f"size={format_size(spec.size)} cannot be: volume {source.name} has no size of its own, and its file system is "
            f"as large as the pool",
            remedy=f"leave size out, {copy}",
        )
    if spec.size < source.spec.size:
        raise InvalidInput(
            f"size={format_size(spec.size)} is less than volume {source.name} has, which is {format_size(source.spec.size)}: "
            f"a file system is not made smaller",
            remedy=f"leave size out, {copy}",
        )


def place_clone(
    source: Volume,
    spec: VolumeSpec,
    candidates: Iterable[Candidate],
    *,
    wanted: CloneSource,
    nodes_asked: bool,
) -> tuple[str, ...]:
    """The nodes for the copies of a clone beside the holder's, who is that of the other volume. Those with a copy of that
    volume come before others: they may have the same bytes already.

    Args:
        nodes_asked: whether the option ``nodes`` was given, and not taken over.

    Raises:
        InvalidInput: a wished-for node is unknown. Conflict: the holder may get no new volume, another node is asked for, or there
            are not enough nodes for the copies.
    """
    nodes, holder = list(candidates), source.grant.node
    asked = spec if nodes_asked else replace(spec, nodes=())
    chosen = place_holder(asked, nodes, here=holder)
    if chosen != holder:
        why = (
            f"nodes={','.join(spec.nodes)} asks for node {chosen}"
            if asked.nodes
            else "that node is drained"
        )
        raise Conflict(
            f"a clone of {wanted} is made on node {holder}, which holds that volume, and {why}",
            remedy=f"leave nodes out, or name {holder} first, and move the clone afterwards; or move volume {source.name}",
        )
    if spec.copies == 1:
        return ()
    first = replace(spec, nodes=tuple(dict.fromkeys((*asked.nodes, *source.replicas, *spec.nodes))))
    return place_replicas(first, nodes, holder=holder)
