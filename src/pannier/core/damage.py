"""What a volume's history says of bytes that a disk did not give back as they were written. Pure.

There is one line for each change, so what is open is what the last such line of a node says.
"""

from __future__ import annotations

from pannier.core.volume import HistoryEntry, Volume

DAMAGED = "damaged"
"""What the node holds is proved to be other than what was written: another node has the right bytes."""
UNREADABLE = "unreadable"
"""The node's disk does not give back a part of what the node holds. It stands until all of it has been read again."""
PROVED = "proved right"
"""The node has what a damaged holder has otherwise. It stands until its copy is made anew: out of what the holder has,
perhaps."""
DIFFERS = "differs"
"""The node's copy is not what the holder has, and nobody can prove theirs; or it is damaged, and nobody has
the right bytes."""
MENDED = "mended"
"""Blocks of the node's copy were damaged, and are as they were written again."""
MADE_ANEW = "made anew"
"""The node's copy was damaged, and is sent again as a whole."""
SET_APART = "set apart"
"""What the node had of the volume could be neither tidied up nor read. It is kept for a person, and the copy is sent anew."""
WHOLE = "whole again"
"""The node has what the others have."""
_WORDS = frozenset({DAMAGED, UNREADABLE, PROVED, DIFFERS, MENDED, MADE_ANEW, SET_APART, WHOLE})
_OPEN = (DAMAGED, UNREADABLE, DIFFERS)


def open_damage(volume: Volume) -> tuple[HistoryEntry, ...]:
    """The lines that still stand of the nodes that keep the volume, the holder's first."""
    lines = (_last(volume, node) for node in (volume.grant.node, *volume.replicas))
    return tuple(line for line in lines if line is not None and line.what in _OPEN)


def is_worth_a_line(volume: Volume, node: str, what: str, detail: str) -> bool:
    """Whether this is not what the last line of a node says already."""
    last = _last(volume, node)
    repeated = last is not None and (last.what, last.detail) == (what, detail)
    return what in (MENDED, MADE_ANEW) or not repeated


def is_whole_again(volume: Volume, node: str, like: frozenset[str]) -> bool:
    """Whether a node whose damage is open has what it should have, since it has the same as ``like``.

    A holder that was proved to be damaged is whole only if it has what one has that was proved right: others may
    have been given its damaged bytes since.
    """
    last = _last(volume, node)
    if last is None or last.what not in _OPEN:
        return False
    return last.what != DAMAGED or any(_is_proved(volume, other) for other in like - {node})


def is_to_be_made_anew(volume: Volume, node: str) -> bool:
    """Whether a node's copy is what it held when it was proved to be damaged, and the holder has the right bytes; or when its
    disk did not give it back.

    The holder has no checksums of them any more once it writes: the lines in the history are all that is left of the
    proof.
    """
    last = _last(volume, node)
    if last is None or last.epoch >= volume.grant.epoch or volume.grant.node == node:
        return False
    return last.what == UNREADABLE or (
        last.what == DAMAGED and _is_proved(volume, volume.grant.node)
    )


def last_of_holder(volume: Volume) -> str:
    """The word of the last line about what the holder has; empty without one."""
    last = _last(volume, volume.grant.node)
    return last.what if last is not None else ""


def _is_proved(volume: Volume, node: str) -> bool:
    last = _last(volume, node)
    return last is not None and last.what == PROVED


def _last(volume: Volume, node: str) -> HistoryEntry | None:
    lines = (line for line in reversed(volume.history) if line.node == node and line.what in _WORDS)
    return next(lines, None)
