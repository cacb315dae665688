"""Which wheels a Python can use, by their file names."""

from __future__ import annotations

from collections.abc import Iterable

from packaging.tags import Tag
from packaging.utils import InvalidWheelFilename, parse_wheel_filename


def unfit(wheels: Iterable[str], python: tuple[int, ...]) -> list[str]:
    """Names of the projects of which no wheel is for this Python, whatever the machine."""
    fits: dict[str, bool] = {}
    for wheel in wheels:
        try:
            project, _, _, tags = parse_wheel_filename(wheel)
        except InvalidWheelFilename:
            continue  # pip passes it over, too
        fits[project] = fits.get(project, False) or any(_fits(tag, python) for tag in tags)
    return sorted(project for project, fit in fits.items() if not fit)


def _fits(tag: Tag, python: tuple[int, ...]) -> bool:
    major, minor = python
    if tag.abi == "abi3" and tag.interpreter.startswith(f"cp{major}"):
        return int(tag.interpreter.removeprefix(f"cp{major}") or 0) <= minor
    return tag.interpreter in (f"py{major}", f"py{major}{minor}", f"cp{major}{minor}")
