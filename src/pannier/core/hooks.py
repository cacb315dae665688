"""Commands that a container wants to be run in it before and after its service is moved."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from pannier.core.duration import parse_duration
from pannier.core.errors import InvalidInput

PREFIX = "pannier.hook."
TIMEOUT_SECONDS = 600.0
_TIMEOUT = ".timeout"
_ON_FAILURE = ".on-failure"


class Moment(StrEnum):
    """When a hook is run: in the old container while it still runs, or in the new one."""

    BEFORE = "pre-move"
    AFTER = "post-move"


@dataclass(frozen=True, slots=True, kw_only=True)
class Hook:
    """A command for ``sh -c``.

    Attributes:
        abort: whether the move fails with it.
    """

    moment: Moment
    command: str
    timeout_seconds: float
    abort: bool


def read_hooks(labels: Mapping[str, str]) -> dict[Moment, Hook]:
    """The hooks that a container's labels ask for.

    Raises:
        InvalidInput: one of ours is misspelt, cannot be read, or belongs to no command.
    """
    ours = {key: text for key, text in labels.items() if key.startswith(PREFIX)}
    hooks = {moment: _hook(moment, ours) for moment in Moment if PREFIX + moment in ours}
    known = {PREFIX + moment + end for moment in hooks for end in ("", _TIMEOUT, _ON_FAILURE)}
    for key in sorted(ours.keys() - known):
        raise InvalidInput(
            f"the label {key} means nothing",
            remedy=f"the labels are {PREFIX}pre-move and {PREFIX}post-move, and for each of them "
            f"that is there {_TIMEOUT} and {_ON_FAILURE}",
        )
    return hooks


def _hook(moment: Moment, labels: Mapping[str, str]) -> Hook:
    key = PREFIX + moment
    default = "abort" if moment is Moment.BEFORE else "continue"
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
