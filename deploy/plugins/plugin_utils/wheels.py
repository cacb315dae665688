"""Which wheels a Python can use, by their file names (PEP 427)."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path


def wheels_in(folder: str) -> list[Path]:
    """The wheels of a wheelhouse, in order; none where there is no such folder."""
    return sorted(Path(folder).expanduser().glob("*.whl"))


def unfit(wheels: Iterable[str], python: tuple[int, ...]) -> list[str]:
    """Names of the projects of which no wheel is for this Python, whatever the machine."""
    fits: dict[str, bool] = {}
    for wheel in wheels:
        project, *parts = wheel.removesuffix(".whl").split("-")
        if len(parts) < 4:
            continue  # no wheel's name: pip passes it over, too
        project = re.sub("[._]+", "-", project).lower()  # PyYAML and pyyaml are the same
        interpreters, abis = (part.split(".") for part in parts[-3:-1])
        fit = any(_fits(interpreter, abis, python) for interpreter in interpreters)
        fits[project] = fits.get(project, False) or fit
    return sorted(project for project, fit in fits.items() if not fit)


def _fits(interpreter: str, abis: list[str], python: tuple[int, ...]) -> bool:
    major, minor = python
    oldest = interpreter.removeprefix(f"cp{major}")
    if "abi3" in abis and oldest.isdecimal():
        return int(oldest) <= minor
    return interpreter in (f"py{major}", f"py{major}{minor}", f"cp{major}{minor}")
