"""The stacks that come with Pannier: a folder each, with a compose file and all that it names."""

from __future__ import annotations

import os
import shutil
from difflib import get_close_matches
from pathlib import Path

from pannier.core.errors import Conflict, NotFound

_IN_PACKAGE = Path(__file__).with_name("files")
_IN_CHECKOUT = Path(__file__).parents[3] / "stacks"
_COMPOSE = "compose.yml"


def folder() -> Path:
    """Where the stacks' folders are: in the package, or in the checkout it was installed from."""
    return _IN_PACKAGE if _IN_PACKAGE.exists() else _IN_CHECKOUT


def names() -> list[str]:
    """The stacks that there are."""
    return sorted(path.parent.name for path in folder().glob(f"*/{_COMPOSE}"))


def compose_file(name: str) -> Path:
    """The compose file of one stack.

    Raises:
        NotFound: there is none of this name.
    """
    known = names()
    if name not in known:
        close = get_close_matches(name, known, n=1)
        hint = f" (did you mean {close[0]!r}?)" if close else ""
        raise NotFound(
            f"there is no stack {name}{hint}",
            remedy=f"there are {', '.join(known)}; or name a compose file of your own with --file",
        )
    return folder() / name / _COMPOSE


def write_to(target: Path, name: str) -> Path:
    """Copy a stack's whole folder, to be kept and changed; returns its compose file there.

    The folder is there whole or not at all.

    Raises:
        NotFound: there is no such stack. Conflict: ``target`` is there already.
    """
    source = compose_file(name).parent
    if target.exists():
        raise Conflict(f"{target} is there already", remedy="name a folder that is to be made")
    target.parent.mkdir(parents=True, exist_ok=True)
    draft = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        shutil.copytree(source, draft)
        draft.rename(target)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return target / _COMPOSE
