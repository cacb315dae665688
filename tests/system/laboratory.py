"""Labs that are gone after their tests, and in order between them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from cluster_world import World

from pannier.lab import Lab

open_labs: list[Lab] = []
"""Those that stand now."""


@contextmanager
def laboratory(word: str, **wish: Any) -> Iterator[Lab]:
    """A lab that is gone afterwards, whatever happens."""
    lab = Lab(f"{word}{os.getpid() % 100000}")
    assert lab.name not in (other.name for other in open_labs), f"two labs named {lab.name}"
    lab.down()
    try:
        lab.up(**wish)
        open_labs.append(lab)
        yield lab
    finally:
        if lab in open_labs:
            open_labs.remove(lab)
        lab.down()


@contextmanager
def world_on(lab: Lab) -> Iterator[World]:
    """A lab for one test, in order before and after it."""
    world = World(lab)
    try:
        yield world
    finally:
        world.clean_up()
