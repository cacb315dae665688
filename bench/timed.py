"""Commands on a machine, timed there: starting a program from outside costs more than some of what is measured."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from bench.world import World


@dataclass(frozen=True, slots=True)
class Timed:
    """How a command went.

    Attributes:
        began: on the monotonic clock, which all machines share.
        said: what it printed.
    """

    began: float
    seconds: float
    said: str


def run_timed(
    world: World, node: str, *commands: Sequence[str], pause: float = 0.0
) -> tuple[Timed, ...]:
    """Run commands one after the other; each must succeed.

    Args:
        pause: seconds before each.
    """
    found = world.probe(node, "timed", pause, json.dumps(commands))
    return tuple(Timed(**line) for line in found)
