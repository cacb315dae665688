"""Commands that a container wants to be run in it: around a move of its service, and around a snapshot of its volumes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from pannier.core.duration import parse_duration
from pannier.core.errors import InvalidInput

PREFIX = "pannier.hook."
TIMEOUT_SECONDS = 600.0
_TIMEOUT = ".timeout"
_ON_FAILURE = ".on-failure"


class Moment(StrEnum):
    """When a hook of a move is run: in the old container while it still runs, or in the new one."""

    BEFORE = "pre-move"
    AFTER = "post-move"


class SnapshotMoment(StrEnum):
    """When a hook of a snapshot is run: both in the same container, which goes on running."""

    BEFORE = "pre-snapshot"
    AFTER = "post-snapshot"


HookMoment = Moment | SnapshotMoment
_FIRST = (Moment.BEFORE, SnapshotMoment.BEFORE)
_ALL: tuple[HookMoment, ...] = (*Moment, *SnapshotMoment)


@dataclass(frozen=True, slots=True, kw_only=True)
class Hook:
    """A command for ``sh -c``.

    Attributes:
        abort: whether the move or the snapshot fails with it.
    """

    moment: HookMoment
    command: str
    timeout_seconds: float
    abort: bool


def read_hooks(labels: Mapping[str, str]) -> dict[HookMoment, Hook]:
    """The hooks that a container's labels ask for.

    Raises:
        InvalidInput: one of ours is misspelt, cannot be read, or belongs to no command.
    """
    ours = {key: text for key, text in labels.items() if key.startswith(PREFIX)}
    hooks = {moment: _hook(moment, ours) for moment in _ALL if PREFIX + moment in ours}
    known = {PREFIX + moment + end for moment in hooks for end in ("", _TIMEOUT, _ON_FAILURE)}
    for key in sorted(ours.keys() - known):
        raise InvalidInput(
            f"the label {key} means nothing",
            remedy=f"the labels are {', '.join(PREFIX + moment for moment in _ALL)}, and for each of them "
            f"that is there {_TIMEOUT} and {_ON_FAILURE}",
        )
    return hooks


def _hook(moment: HookMoment, labels: Mapping[str, str]) -> Hook:
    key = PREFIX + moment
    default = "abort" if moment in _FIRST else "continue"
    on_failure = labels.get(key + _ON_FAILURE, default)
    if on_failure not in ("abort", "continue"):
        raise InvalidInput(
            f"the label {key}{_ON_FAILURE}={on_failure} is not allowed",
            remedy="use abort or continue",
        )
    try:
        seconds = parse_duration(labels.get(key + _TIMEOUT, f"{TIMEOUT_SECONDS:.0f}"))
    except InvalidInput as error:
        raise InvalidInput(
            f"the label {key}{_TIMEOUT}: {error.message}", remedy=error.remedy
        ) from error
    command = labels[key].strip()
    if not command:
        raise InvalidInput(f"the label {key} is empty", remedy="give it a command, or leave it out")
    return Hook(
        moment=moment, command=command, timeout_seconds=seconds, abort=on_failure == "abort"
    )


def hook_ended(moment: HookMoment, failure: str, output: Sequence[str]) -> str:
    """How a hook ended, as part of a sentence.

    Args:
        failure: why it failed; empty where it did not.
        output: the last lines that it printed.
    """
    if not failure:
        return f"{moment} hook done"
    said = " / ".join(line.strip() for line in output[-3:] if line.strip())
    return f"the {moment} hook failed: {failure}" + (f" ({said})" if said else "")
